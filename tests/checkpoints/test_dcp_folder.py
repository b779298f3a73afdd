"""Folders by torch.distributed.checkpoint: against what was saved, torch's own reader, and crafted ones."""

import os
import pickle
import shutil
import sys
import warnings

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hostile.dcp import BAD_METADATA, change, save
from torch.distributed.checkpoint.metadata import MetadataIndex, TensorProperties

import swatool
from swatool.checkpoints.dcp_folder import recognises
from swatool.checkpoints.opening import Reading, open_checkpoint
from swatool.errors import CheckpointError
from swatool.models.weights import read_tensor


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable")
        warnings.filterwarnings("ignore", message="Detected an existing checkpoint")
        yield


def tensors_of(path, **options):
    checkpoint = open_checkpoint(path, Reading(**options))
    try:
        return {name: read_tensor(stored) for name, stored in checkpoint.tensors.items()}
    finally:
        checkpoint.close()


def check_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype is tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def averaged(paths, output):
    swatool.average(paths, output, overwrite=True)
    return tensors_of(output)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_reads_what_fsdp_saved_and_leaves_the_optimizer_out(saved_by_ranks, ranks):
    path = saved_by_ranks / f"train{ranks}-step2"
    checkpoint = open_checkpoint(path)
    assert (checkpoint.format, checkpoint.key) == ("torch distributed", "model")
    assert "epoch" in checkpoint.opaque
    assert not checkpoint.skipped
    checkpoint.close()
    check_equal(tensors_of(path), torch.load(f"{path}.pt")["model"])


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_averages_what_fsdp_saved(saved_by_ranks, tmp_path, ranks):
    paths = [saved_by_ranks / f"train{ranks}-step{step}" for step in (1, 2, 3)]
    whole = [torch.load(f"{path}.pt")["model"] for path in paths]
    found = averaged(paths, tmp_path / "out.safetensors")
    for name, tensor in found.items():
        if tensor.is_floating_point():
            expected = sum(one[name].double() for one in whole) / 3
            torch.testing.assert_close(tensor.double(), expected, rtol=3e-7, atol=3e-7)
        else:
            assert torch.equal(tensor, whole[-1][name])


@pytest.mark.parametrize("name", ["layouts1", "layouts2", "layouts4", "odd"])
def test_reads_tensors_of_every_layout(saved_by_ranks, tmp_path, name):
    expected = torch.load(saved_by_ranks / f"{name}.pt")
    check_equal(tensors_of(saved_by_ranks / name), expected)
    # The loop reads blocks, not whole tensors.
    state = {"a": expected, "b": {key: 0 * tensor for key, tensor in expected.items()}}
    other = save(tmp_path / "other", {"model": state["b"]})
    paths = [saved_by_ranks / name, other]
    swatool.average(paths, tmp_path / "out.safetensors", weights=(1, 0), integers="first", sort="given")
    check_equal(tensors_of(tmp_path / "out.safetensors"), expected)


def test_reads_what_was_saved_beside_the_training(saved_by_ranks):
    check_equal(tensors_of(saved_by_ranks / "async"), torch.load(saved_by_ranks / "async.pt")["model"])


def test_layouts_are_of_every_form(saved_by_ranks):
    """So that the tests above test what they should."""
    checkpoint = open_checkpoint(saved_by_ranks / "layouts4")
    tensors = checkpoint.tensors
    assert len(tensors["shard0.even"].extents) == 4
    assert not tensors["shard0.even"].is_gathered
    assert len(tensors["shard1.uneven"].boxes) == 4
    assert len(tensors["both.uneven"].boxes) == 4
    assert tensors["shard1.one_row"].boxes is None
    odd = open_checkpoint(saved_by_ranks / "odd")
    assert all(box.strides for stored in odd.tensors.values() for box in stored.boxes)
    checkpoint.close()
    odd.close()


def mixed():
    generator = torch.Generator().manual_seed(1)

    def some(*shape):
        return torch.randn(shape, generator=generator)

    return {
        "w": some(5, 3),
        "half": some(7).to(torch.bfloat16),
        "scalar": some(),
        "empty": some(0, 4),
        "flags": torch.tensor([True, False, True]),
        "count": torch.tensor(7),
        "transposed": some(4, 6).t(),
        "channels_last": some(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "sliced": some(9, 8)[2:6, 1:5],
        "complex": torch.complex(some(3), some(3)),
        "float8": some(4, 2).to(torch.float8_e4m3fn),
    }


@pytest.mark.parametrize("options", [{}, {"thread_count": 3}, {"single_file_per_rank": False}])
def test_reads_what_one_process_saved(tmp_path, options):
    state = mixed()
    writer = dcp.FileSystemWriter(tmp_path / "a", sync_files=False, **options)
    dcp.save(state, storage_writer=writer, no_dist=True)
    found = tensors_of(tmp_path / "a")
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(found[name].contiguous().view(-1).view(torch.uint8), raw(tensor)), name
    loaded = {name: torch.empty_like(tensor) for name, tensor in state.items()}
    dcp.load(loaded, checkpoint_id=tmp_path / "a", no_dist=True)
    for name, tensor in loaded.items():
        assert torch.equal(raw(tensor), raw(found[name])), name


def raw(tensor):
    return tensor.clone(memory_format=torch.contiguous_format).view(-1).view(torch.uint8)


def test_weights_beside_an_optimizer_at_the_top(tmp_path):
    """As torchtitan saves: the model's names at the top, the optimizer's under a key."""
    path = save(
        tmp_path / "a", {"w": torch.ones(3), "optimizer": {"w": {"exp_avg": torch.ones(9)}}, "step": 4}
    )
    checkpoint = open_checkpoint(path)
    assert (checkpoint.key, list(checkpoint.tensors)) == ("", ["w"])
    assert checkpoint.skipped == ("optimizer", "step")
    checkpoint.close()


def test_a_key_chooses_among_state_dicts(tmp_path):
    path = save(tmp_path / "a", {"model": {"w": torch.zeros(2)}, "teacher": {"w": torch.ones(2)}})
    with pytest.raises(CheckpointError, match=r"choose one with --key.*'model'.*'teacher'"):
        open_checkpoint(path)
    check_equal(tensors_of(path, key="teacher"), {"w": torch.ones(2)})


def test_names_stay_flat_without_paths(tmp_path):
    path = save(tmp_path / "a", {"model": {"w": torch.ones(2)}})
    change(path, lambda m: setattr(m, "planner_data", None))
    check_equal(tensors_of(path), {"model.w": torch.ones(2)})


# --- what is refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", BAD_METADATA)
def test_refuses_metadata_that_lie(tmp_path, case):
    how, message = BAD_METADATA[case]
    path = save(tmp_path / "a", {"w": torch.rand(5, 3), "other": torch.rand(7)})
    save(tmp_path / "other", {"w": torch.rand(5, 3)})
    change(path, how)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("length", [0, 1, 20, 300, 800])
def test_refuses_metadata_that_are_cut(tmp_path, length):
    path = save(tmp_path / "a", {"w": torch.rand(5, 3)})
    data = (path / ".metadata").read_bytes()
    assert len(data) > length
    (path / ".metadata").write_bytes(data[:length])
    with pytest.raises(CheckpointError):
        open_checkpoint(path)


@pytest.mark.parametrize("value", [3, None, {"w": torch.ones(2)}, ["x"], MetadataIndex("w")])
def test_refuses_a_pickle_of_something_else(tmp_path, value):
    (tmp_path / ".metadata").write_bytes(pickle.dumps(value))
    with pytest.raises(CheckpointError):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("names", [["__0_0.distcp"], ["__0_0.distcp", ".metadata.tmp"], [".metadata.tmp"]])
def test_says_that_a_folder_was_not_committed(tmp_path, names):
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"not committed: it has no \.metadata"):
        open_checkpoint(tmp_path)


def test_says_that_ranks_saved_without_each_other(tmp_path):
    (tmp_path / "__0.metadata").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="for each rank and none for all"):
        open_checkpoint(tmp_path)


def test_recognises_its_folders():
    assert recognises([".metadata"])
    assert recognises(["__0_0.distcp"])
    assert not recognises(["model.safetensors", "metadata", "distcp"])


def test_a_shard_that_is_truncated(saved_by_ranks, tmp_path):
    path = shutil.copytree(saved_by_ranks / "train4-step1", tmp_path / "a")
    os.truncate(path / "__1_0.distcp", 100)
    with pytest.raises(CheckpointError, match=r"__1_0\.distcp' is truncated"):
        open_checkpoint(path)
    (path / "__1_0.distcp").unlink()
    with pytest.raises(CheckpointError, match=r"incomplete: '__1_0.distcp'.*copy the whole folder"):
        open_checkpoint(path)


# --- nothing is run --------------------------------------------------------------------------------------


class Canary:
    """What makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


class Harmless:
    """A class of somebody's own."""


EVENTS = []
ARMED = []


def audit(event, args):
    if ARMED and (event in ("import", "exec", "compile", "pickle.find_class", "os.mkdir", "os.system")):
        EVENTS.append((event, args))


sys.addaudithook(audit)


def opened_under_watch(path):
    open_checkpoint(path).close()  # whatever is imported late is so now
    ARMED.append(1)
    try:
        tensors_of(path)
    finally:
        ARMED.clear()
    found, EVENTS[:] = list(EVENTS), []
    return [event for event in found if not event[1] or "torch" not in str(event[1][0])]


def test_a_byte_entry_runs_nothing(tmp_path):
    state = {"model": {"w": torch.ones(3)}, "canary": Canary(tmp_path / "hatched"), "other": Harmless()}
    path = save(tmp_path / "a", state)
    assert opened_under_watch(path) == []
    assert not (tmp_path / "hatched").exists()
    checkpoint = open_checkpoint(path)
    assert set(checkpoint.opaque) == {"canary", "other"}
    checkpoint.close()


@pytest.mark.parametrize("where", ["storage_meta", "planner_data", "version", "new"])
def test_metadata_that_would_call_something_are_refused(tmp_path, where):
    path = save(tmp_path / "a", {"w": torch.ones(3)})
    change(path, lambda m: setattr(m, where, Canary(tmp_path / "hatched")))
    ARMED.append(1)
    with pytest.raises(CheckpointError, match=r"would call posix\.mkdir when unpickled"):
        open_checkpoint(path)
    ARMED.clear()
    assert not EVENTS
    assert not (tmp_path / "hatched").exists()


def test_what_other_programs_add_is_left_alone(tmp_path):
    path = save(tmp_path / "a", {"w": torch.ones(3)})
    change(path, lambda m: setattr(m, "mcore_data", {"x": Harmless(), "y": [Harmless()]}))
    assert opened_under_watch(path) == []
    check_equal(tensors_of(path), {"w": torch.ones(3)})


def test_a_tensor_of_a_type_that_cannot_be_averaged(tmp_path):
    path = save(tmp_path / "a", {"w": torch.ones(3), "q": torch.ones(3)})
    change(
        path,
        lambda m: setattr(m.state_dict_metadata["q"], "properties", TensorProperties(torch.quint8)),
    )
    with pytest.raises(CheckpointError, match=r"'q' is torch\.quint8"):
        open_checkpoint(path)
