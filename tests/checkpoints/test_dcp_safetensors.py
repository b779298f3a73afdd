"""safetensors files that ranks wrote through torch.distributed.checkpoint, and crafted ones."""

import json

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

import swatool
from swatool.checkpoints.dcp_safetensors import recognises
from swatool.checkpoints.opening import open_checkpoint
from swatool.errors import CheckpointError
from swatool.models.weights import read_tensor


def tensors_of(path):
    checkpoint = open_checkpoint(path)
    try:
        return checkpoint.format, {name: read_tensor(stored) for name, stored in checkpoint.tensors.items()}
    finally:
        checkpoint.close()


def check_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype is tensor.dtype, name
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("ranks", [2, 4])
def test_reads_what_ranks_wrote(saved_by_ranks, tmp_path, ranks):
    path = saved_by_ranks / f"safetensors{ranks}"
    expected = torch.load(f"{path}.pt")
    form, found = tensors_of(path)
    assert form == "sharded safetensors"
    # The format keeps no shape but that of the parts: what no part reaches is not there.
    check_equal(found, expected)
    # Twice the same, so that the average is exact.
    swatool.average([path, path], tmp_path / "out.safetensors", allow_duplicates=True)
    check_equal(tensors_of(tmp_path / "out.safetensors")[1], expected)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable")
@pytest.mark.parametrize("distributed", [False, True])
def test_whole_tensors_by_the_same_writer_are_a_hugging_face_folder(tmp_path, distributed):
    pytest.importorskip("numpy")
    state = {"model.w": torch.rand(3, 4), "b": torch.rand(5)}
    options = {"save_distributed": distributed, "enable_consolidation": distributed}
    dcp.save(state, storage_writer=HuggingFaceStorageWriter(str(tmp_path), **options), no_dist=True)
    form, found = tensors_of(tmp_path)
    assert "Hugging Face" in form
    check_equal(found, state)
    if distributed:
        form, found = tensors_of(tmp_path / "sharded")
        assert form == "sharded safetensors"
        check_equal(found, state)


def write(path, tensors, info, number=1):
    """Write a shard as torch does: int32 tensors by name, and what its metadata say of their places."""
    header, data = {}, b""
    for name, (shape, values) in tensors.items():
        begin = len(data)
        data += b"".join(value.to_bytes(4, "little") for value in values)
        header[name] = {"dtype": "I32", "shape": shape, "data_offsets": [begin, len(data)]}
    if info is not None:
        text = info if isinstance(info, str) else json.dumps(info)
        header["__metadata__"] = {"DCP_SHARDING_INFO": text, "DCP_VERSION": "1.0", "format": "pt"}
    encoded = json.dumps(header).encode()
    name = f"shard-{number:05}-model-00001-of-00001.safetensors"
    path.mkdir(exist_ok=True)
    (path / name).write_bytes(len(encoded).to_bytes(8, "little") + encoded + data)
    return path


def at(*offsets):
    return {"w": {"saved_offsets": list(offsets)}}


def test_puts_columns_together(tmp_path):
    write(tmp_path, {"w": ([2, 1], [1, 4])}, at(0, 0), 1)
    write(tmp_path, {"w": ([2, 2], [2, 3, 5, 6])}, at(0, 1), 2)
    check_equal(tensors_of(tmp_path)[1], {"w": torch.tensor([[1, 2, 3], [4, 5, 6]], dtype=torch.int32)})


@pytest.mark.parametrize(
    "info",
    [
        *(
            None,
            "",
            "[]",
            "{",
            "[" * 100_000,
            "1" * 5000,
            {},
            {"w": 3},
            {"w": {}},
            {"w": {"saved_offsets": 0}},
        ),
        *(at(0), at(0, 0, 0), at(0, -1), at(0, 0.5), at(0, True), at(0, 2**64), at(0, "0"), at(0, None)),
    ],
    ids=str,
)
def test_refuses_places_that_are_none(tmp_path, info):
    write(tmp_path, {"w": ([1, 2], [1, 2])}, info)
    with pytest.raises(CheckpointError, match=r"does not say where its parts? of") as caught:
        open_checkpoint(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (at(0, 0), at(0, 0), "overlap"),
        (at(0, 0), at(0, 1), "overlap"),
        (at(0, 0), at(0, 3), "lacks parts: they hold 4 elements of 5"),
        (at(1, 0), at(0, 2), "lacks parts"),
    ],
)
def test_refuses_parts_that_do_not_tile(tmp_path, first, second, message):
    write(tmp_path, {"w": ([1, 2], [1, 2])}, first, 1)
    write(tmp_path, {"w": ([1, 2], [3, 4])}, second, 2)
    with pytest.raises(CheckpointError, match=f"tensor 'w' .*{message}"):
        open_checkpoint(tmp_path)


def test_refuses_parts_of_several_ranks(tmp_path):
    write(tmp_path, {"w": ([1, 2], [1, 2])}, at(0, 0), 1)
    write(tmp_path, {"w": ([2], [3, 4])}, at(0), 2)
    with pytest.raises(CheckpointError, match="several types or ranks"):
        open_checkpoint(tmp_path)


def test_recognises_its_folders():
    assert recognises(["config.json", "shard-00003-model-00001-of-00002.safetensors"])
    assert not recognises(["model-00001-of-00002.safetensors", "shard.safetensors"])
