"""Checkpoints of one run that share a description: only those that would have the same one anyway."""

import pickle
import pickletools
import shutil
import warnings
from dataclasses import replace

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint.metadata import StorageMeta

from swatool.checkpoints import dcp_runs
from swatool.checkpoints.dcp_metadata import interpreted
from swatool.checkpoints.dcp_runs import FIRST_WORD, describe, form_of
from swatool.checkpoints.files import LocalFile
from swatool.checkpoints.opening import open_checkpoint
from swatool.errors import CheckpointError
from swatool.models.weights import read_tensor


@pytest.fixture(autouse=True)
def nothing_is_known(monkeypatch):
    monkeypatch.setattr(dcp_runs, "_last", None)


@pytest.fixture
def interpretations(monkeypatch):
    """The files whose description was interpreted."""
    seen = []

    def counting(read, size, where):
        seen.append(where)
        return interpreted(read, size, where)

    monkeypatch.setattr(dcp_runs, "interpreted", counting)
    return seen


def state(step):
    return {
        "w": torch.full((3, 4), float(step)),
        "b": torch.full((5,), -float(step)),
        "n": torch.tensor(step),
    }


def save(path, values):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"model": values}, checkpoint_id=path, no_dist=True)
    return path


def tensors_of(path):
    checkpoint = open_checkpoint(path)
    try:
        return {name: read_tensor(stored) for name, stored in checkpoint.tensors.items()}
    finally:
        checkpoint.close()


def metadata_bytes(tmp_path):
    return (save(tmp_path / "ckpt-1", state(1)) / ".metadata").read_bytes()


def described(path, data):
    path.write_bytes(data)
    file = LocalFile(path)
    try:
        return describe(file).metadata
    finally:
        file.close()


def interpreted_alone(data):
    return interpreted(lambda offset, nbytes: data[offset : offset + nbytes], len(data), "alone")


def contents_of(metadata):
    parts = {name: metadata.parts_of(name, "it") for name in metadata.tensors}
    shapes = {name: (entry.dtype, entry.shape) for name, entry in metadata.tensors.items()}
    return parts, shapes, metadata.others, metadata.items, metadata.paths, metadata.notes


def free_texts(data):
    """Where torch wrote when and where a checkpoint was saved, by Python's own reading of the opcodes."""
    found, key, path = [], None, False
    for opcode, value, position in pickletools.genops(data):
        if opcode.name == "MARK" and key == "checkpoint_id":
            path = True
        elif opcode.name == "SHORT_BINUNICODE":
            if value in ("checkpoint_id", "save_id", "load_id"):
                key, path = value, False
            elif path or key == "save_id":
                found.append(range(position + 2, position + 2 + len(value)))
    return found


def test_of_a_run_only_the_first_is_interpreted(tmp_path, interpretations):
    paths = [save(tmp_path / f"ckpt-{step}", state(step)) for step in (1, 2, 3)]
    for step, path in enumerate(paths, 1):
        found = tensors_of(path)
        assert all(torch.equal(found[name], tensor) for name, tensor in state(step).items())
    assert interpretations == [f"'{paths[0] / '.metadata'}'"]


def test_texts_instead_of_paths_are_known_too(tmp_path, interpretations):
    for name in ("ckpt-1", "ckpt-2"):
        path = save(tmp_path / name, state(1)) / ".metadata"
        metadata = pickle.loads(path.read_bytes())
        metadata = replace(metadata, storage_meta=StorageMeta(checkpoint_id=name, save_id=name[::-1]))
        path.write_bytes(pickle.dumps(metadata, protocol=4))
        tensors_of(path.parent)
    assert len(interpretations) == 1


@pytest.mark.parametrize(
    "values",
    [
        {**state(2), "w": torch.ones(4, 3)},
        {**state(2), "w": torch.ones(3, 4, dtype=torch.int32)},
        {"v" if name == "w" else name: tensor for name, tensor in state(2).items()},
    ],
    ids=["shape", "type", "name"],
)
def test_another_model_is_interpreted(tmp_path, interpretations, values):
    tensors_of(save(tmp_path / "ckpt-1", state(1)))
    found = tensors_of(save(tmp_path / "ckpt-2", values))
    assert len(interpretations) == 2
    assert all(torch.equal(found[name], tensor) for name, tensor in values.items())


def test_names_of_other_lengths_are_interpreted_and_right(tmp_path, interpretations):
    for step in (9, 10):
        found = tensors_of(save(tmp_path / f"ckpt-{step}", state(step)))
        assert torch.equal(found["w"], state(step)["w"])
    assert len(interpretations) == 2


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    data = metadata_bytes(tmp_path_factory.mktemp("real"))
    return data, free_texts(data)


def test_the_free_texts_are_those_that_torch_wrote(real):
    data, free = real
    assert len(free) > 2
    assert form_of(data).boundary == data.index(FIRST_WORD)
    for text in free:
        changed = bytearray(data)
        changed[text.start : text.stop] = b"x" * len(text)
        assert form_of(bytes(changed)) == form_of(data)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_a_change_elsewhere_is_another_form(real, data):
    original, free = real
    position = data.draw(
        st.integers(0, len(original) - 1) | st.integers(original.index(FIRST_WORD), len(original) - 1)
    )
    byte = data.draw(st.integers(0, 255))
    changed = bytearray(original)
    changed[position] = byte
    same = form_of(bytes(changed)) == form_of(original)
    inside = any(position in text for text in free)
    assert same == (byte == original[position] or (inside and 0x20 <= byte <= 0x7E))


@pytest.mark.parametrize("junk", [b"", b".", b"\x8c\x01a\x94", b"\0"])
def test_what_follows_the_end_is_another_form(real, junk):
    data, _ = real
    assert (form_of(data + junk) == form_of(data)) == (junk == b"")


def with_a_value_over_the_last_words(data, rest):
    """A `.metadata` in which the last words are bytes of a value, up to opcodes in place of the number."""
    (*_, number) = free_texts(data)
    boundary = data.index(FIRST_WORD)
    covered = data[boundary : number.stop - len(rest)]
    changed = (
        data[:boundary] + b"B" + len(covered).to_bytes(4, "little") + covered + rest + data[number.stop :]
    )
    frame = changed[2:3] == b"\x95"
    return changed[:3] + (len(changed) - 11).to_bytes(8, "little") + changed[11:] if frame else changed


def test_what_only_seems_to_be_the_end_is_not_shared(tmp_path, real, interpretations):
    harmless = with_a_value_over_the_last_words(real[0], b"N0)}(NN")
    hostile = with_a_value_over_the_last_words(real[0], b"~0)}(NN")  # an opcode that there is not
    assert form_of(harmless) == form_of(hostile) is not None
    described(tmp_path / "harmless", harmless)
    with pytest.raises(CheckpointError, match="opcode 0x7e"):
        described(tmp_path / "hostile", hostile)
    assert len(interpretations) == 2
    assert dcp_runs._last is None


def test_a_boundary_inside_a_value_leaves_the_reading_as_it_is(tmp_path, real):
    harmless = with_a_value_over_the_last_words(real[0], b"N0)}(NN")
    assert contents_of(described(tmp_path / "a", harmless)) == contents_of(interpreted_alone(harmless))


def test_what_is_shared_is_what_would_have_been_interpreted(tmp_path):
    one = metadata_bytes(tmp_path)
    other = (save(tmp_path / "ckpt-2", state(2)) / ".metadata").read_bytes()
    described(tmp_path / "one", one)
    assert contents_of(described(tmp_path / "other", other)) == contents_of(interpreted_alone(other))
    assert other != one


def test_a_large_description_is_not_kept(tmp_path, real, monkeypatch):
    monkeypatch.setattr(dcp_runs, "MAX_BYTES", len(real[0]) - 1)
    described(tmp_path / "one", real[0])
    assert dcp_runs._last is None


def test_errors_name_the_folder_that_was_opened(tmp_path):
    good, bad = (save(tmp_path / f"ckpt-{step}", state(step)) for step in (1, 2))
    tensors_of(good)
    (bad / "__0_0.distcp").unlink()
    with pytest.raises(CheckpointError, match=f"{bad}.* is incomplete"):
        open_checkpoint(bad)


def test_a_description_that_was_refused_is_refused_again_by_its_own_name(tmp_path):
    good, bad = (save(tmp_path / f"ckpt-{step}", state(step)) for step in (1, 2))
    for path in (good, bad):
        file = path / ".metadata"
        file.write_bytes(file.read_bytes().replace(b"K\x03K\x04", b"K\x03K\x05", 1))  # a shape, not its parts
        with pytest.raises(CheckpointError, match=f"lacks parts.*{path}"):
            open_checkpoint(path)


def test_an_item_of_the_next_checkpoint_that_lies_is_found(tmp_path):
    good, bad = (save(tmp_path / f"ckpt-{step}", state(step)) for step in (1, 2))
    tensors_of(good)
    file = bad / "__0_0.distcp"
    data = file.read_bytes()
    file.write_bytes(data.replace(b"FloatStorage", b"DoubleStorag", 1))
    with pytest.raises(CheckpointError, match=str(bad)):
        open_checkpoint(bad)


def test_a_run_that_was_moved_reads_its_own_files(tmp_path):
    one = save(tmp_path / "ckpt-1", state(1))
    tensors_of(one)
    shutil.copytree(one, tmp_path / "moved")
    shutil.rmtree(one)
    found = tensors_of(tmp_path / "moved")
    assert torch.equal(found["w"], state(1)["w"])
