"""Folders that torch.distributed.checkpoint loads."""

import pickle

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hanging import no_hang
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from swatool.checkpoints import dcp_metadata as reading
from swatool.checkpoints.opening import open_checkpoint
from swatool.errors import CheckpointError, UsageError
from swatool.models.weights import read_tensor
from swatool.output import dcp_metadata as writing
from swatool.output.dcp_folder import lay_out_dcp
from swatool.output.layout import OutputTensor
from swatool.tensors import DTYPES

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable")


def described(tensors):
    return [
        OutputTensor(name, DTYPES[str(tensor.dtype).removeprefix("torch.")], tuple(tensor.shape))
        for name, tensor in tensors.items()
    ]


def raw(tensor):
    flat = tensor.detach().clone(memory_format=torch.contiguous_format).view(-1)
    return bytes(flat.view(torch.uint8).tolist())


def write(layout, tensors, path):
    """Write a layout by position, as the loop does."""
    data = bytearray(max(file.begin + file.nbytes for file in layout.files))
    for position, piece in layout.fixed:
        assert not any(data[position : position + len(piece)]), "written twice"
        data[position : position + len(piece)] = piece
    for name, tensor in tensors.items():
        begin = layout.offsets[name]
        assert not any(data[begin : begin + len(raw(tensor))]), "written twice"
        data[begin : begin + len(raw(tensor))] = raw(tensor)
    path.mkdir()
    for file in layout.files:
        (path / file.name).write_bytes(data[file.begin : file.begin + file.nbytes])
    return path


def loaded(path, tensors, wrapper=""):
    state = {name: torch.empty_like(tensor) for name, tensor in tensors.items()}
    nested = state
    for key in reversed(wrapper.split(".") if wrapper else []):
        nested = {key: nested}
    dcp.load(nested, checkpoint_id=path, no_dist=True)
    return state


def check_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert raw(found[name]) == raw(tensor), name


def mixed():
    generator = torch.Generator().manual_seed(2)
    values = {name: torch.rand(3, 2, generator=generator).mul(99) for name in DTYPES}
    return {
        **{f"of.{name}": value.to(getattr(torch, name)) for name, value in values.items()},
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 4),
        "flags": torch.tensor([True, False, True]),
        "many.dimensions": torch.rand(1, 2, 1, 3, 2),
        "long": torch.arange(70_000),
        "größe": torch.ones(1),
    }


@pytest.mark.parametrize("wrapper", ["", "model", "state.model"])
@pytest.mark.parametrize("limit", [None, 6000, 1])
def test_torch_loads_it_and_so_does_swatool(tmp_path, wrapper, limit):
    tensors = mixed()
    layout = lay_out_dcp(described(tensors), {}, wrapper=wrapper, max_file_bytes=limit)
    path = write(layout, tensors, tmp_path / "a")
    check_equal(loaded(path, tensors, wrapper), tensors)
    checkpoint = open_checkpoint(path)
    assert checkpoint.key == wrapper
    check_equal({name: read_tensor(stored) for name, stored in checkpoint.tensors.items()}, tensors)
    checkpoint.close()


def test_torch_turns_it_into_a_file(tmp_path):
    tensors = mixed()
    layout = lay_out_dcp(described(tensors), {}, wrapper="model")
    dcp_to_torch_save(write(layout, tensors, tmp_path / "a"), tmp_path / "a.pt")
    check_equal(torch.load(tmp_path / "a.pt")["model"], tensors)


def test_metadata_are_those_that_torch_writes(tmp_path):
    tensors = {"b": torch.rand(4, 3), "a": torch.rand(()), "c": torch.arange(3)}
    path = write(lay_out_dcp(described(tensors), {}, wrapper="model"), tensors, tmp_path / "a")
    found = pickle.loads((path / ".metadata").read_bytes())
    dcp.save({"model": tensors}, checkpoint_id=tmp_path / "b", no_dist=True)
    expected = pickle.loads((tmp_path / "b" / ".metadata").read_bytes())
    assert found.state_dict_metadata == expected.state_dict_metadata
    assert found.planner_data == expected.planner_data
    assert found.version == expected.version
    assert found.storage_data.keys() == expected.storage_data.keys()
    assert {key.index for key in found.storage_data} == {key.index for key in expected.storage_data}
    for one in (found, expected):
        assert {type(info).__name__ for info in one.storage_data.values()} == {"_StorageInfo"}
        assert {info.relative_path for info in one.storage_data.values()} == {"__0_0.distcp"}
    assert len(found.storage_meta.save_id) == len(expected.storage_meta.save_id)
    # A torch file inside is as long as the one that torch writes.
    assert {key.fqn: info.length for key, info in found.storage_data.items()} == {
        key.fqn: info.length for key, info in expected.storage_data.items()
    }


def test_notes_are_kept(tmp_path):
    assert writing.NOTES == reading.NOTES
    tensors = {"w": torch.ones(2)}
    notes = {"swatool": '{"version": "0"}', "format": "pt"}
    path = write(lay_out_dcp(described(tensors), notes), tensors, tmp_path / "a")
    checkpoint = open_checkpoint(path)
    assert checkpoint.metadata == notes
    checkpoint.close()
    check_equal(loaded(path, tensors), tensors)


def test_ten_thousand_tensors(tmp_path):
    tensors = {f"layer{i}.weight": torch.full((1 + i % 7, 3), float(i)) for i in range(10_000)}
    with no_hang():
        layout = lay_out_dcp(described(tensors), {})
    path = write(layout, tensors, tmp_path / "a")
    some = {name: tensors[name] for name in list(tensors)[::997]}
    check_equal(loaded(path, some), some)
    checkpoint = open_checkpoint(path)
    assert list(checkpoint.tensors) == sorted(tensors)
    check_equal({name: read_tensor(checkpoint.tensors[name]) for name in some}, some)
    checkpoint.close()


def test_tensors_are_aligned_and_files_limited():
    tensors = {f"t{i}": torch.rand(300 + i) for i in range(20)}
    layout = lay_out_dcp(described(tensors), {}, max_file_bytes=10_000)
    *files, metadata = layout.files
    assert metadata.name == ".metadata"
    assert [file.name for file in files] == [f"__0_{i}.distcp" for i in range(len(files))]
    assert len(files) > 1
    assert all(file.nbytes <= 10_000 for file in files)
    for position in layout.offsets.values():
        (begin,) = (file.begin for file in files if file.begin <= position < file.begin + file.nbytes)
        assert (position - begin) % 64 == 0


def test_wide_numbers(tmp_path):
    """Tensors of more than 4 GiB, of which only the surroundings are looked at."""
    huge = OutputTensor("huge", DTYPES["float32"], (1 << 31, 3))
    small = OutputTensor("small", DTYPES["float32"], (2,))
    layout = lay_out_dcp([huge, small], {})
    path = tmp_path / "a"
    path.mkdir()
    for file in layout.files:
        with (path / file.name).open("wb") as stream:
            stream.truncate(file.nbytes)
            for position, piece in layout.fixed:
                if file.begin <= position < file.begin + file.nbytes:
                    stream.seek(position - file.begin)
                    stream.write(piece)
    checkpoint = open_checkpoint(path)
    assert checkpoint.tensors["huge"].shape == huge.shape
    (extent,) = checkpoint.tensors["small"].extents
    assert extent.offset == layout.offsets["small"]
    checkpoint.close()
    state = {"small": torch.ones(2)}
    dcp.load(state, checkpoint_id=path, no_dist=True)
    assert state["small"].tolist() == [0, 0]


@pytest.mark.parametrize("names", [["w", "w"], [""]])
def test_refuses_names_that_cannot_be_loaded(names):
    with pytest.raises(CheckpointError, match="empty or used twice"):
        lay_out_dcp([OutputTensor(name, DTYPES["float32"], (2,)) for name in names], {})


def test_refuses_files_without_room():
    with pytest.raises(UsageError, match="hold nothing"):
        lay_out_dcp([], {}, max_file_bytes=0)


def test_nothing_is_a_checkpoint_too(tmp_path):
    path = write(lay_out_dcp([], {}), {}, tmp_path / "a")
    assert not pickle.loads((path / ".metadata").read_bytes()).state_dict_metadata
