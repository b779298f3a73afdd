import json

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from swatool.errors import CheckpointError, UsageError
from swatool.output.hf_folder import lay_out_shards, parse_size
from swatool.output.layout import OutputTensor
from swatool.output.writing import writing
from swatool.tensors import DTYPES

INDEX = "model.safetensors.index.json"


def described(state):
    return [
        OutputTensor(name, DTYPES[str(t.dtype).removeprefix("torch.")], tuple(t.shape))
        for name, t in state.items()
    ]


def raw(tensor):
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).tolist())


def write(path, state, metadata, limit, **options):
    """Write a state dict by position, and return its layout."""
    layout = lay_out_shards(described(state), metadata, limit, **options)
    with writing(layout, path, overwrite=False) as pending:
        for name, tensor in state.items():
            pending.write(layout.offsets[name], raw(tensor))
        pending.publish()
    return layout


def state_of(sizes):
    """Tensors of so many bytes, of several types, with names whose order is not that of the alphabet."""
    dtypes = [torch.float32, torch.int64, torch.bfloat16, torch.uint8]
    state = {}
    for number, nbytes in enumerate(sizes):
        dtype = dtypes[number % 4]
        values = torch.arange(nbytes // dtype.itemsize) % 100
        state[f"layer.{(number * 7) % 11}.é{number}"] = values.to(dtype)
    return state


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def hub():
    try:
        return pytest.importorskip("huggingface_hub")
    except RuntimeError as error:  # some versions of what it stands on do
        pytest.skip(str(error))


@pytest.mark.parametrize(
    "sizes",
    [
        [600, 600, 200, 600, 200, 200],
        [80, 2000, 80, 2000, 2000, 80],  # larger than the limit: alone, and before the shard that was begun
        [1000, 8, 1000],  # exactly the limit
        [0, 0, 1000, 0],
        [16],
        [2000],
        [8] * 40,
    ],
)
@pytest.mark.parametrize("limit", [1000, 10**9])
def test_folder_is_the_hubs_to_the_byte(tmp_path, hub, sizes, limit):
    pytest.importorskip("numpy")  # the hub writes with safetensors' own function
    state = state_of(sizes)
    (tmp_path / "hub").mkdir()
    hub.save_torch_state_dict(state, tmp_path / "hub", max_shard_size=limit)
    write(tmp_path / "ours", state, {"format": "pt"}, limit)
    assert contents(tmp_path / "ours") == contents(tmp_path / "hub")


@given(st.lists(st.integers(0, 40), max_size=30), st.integers(1, 60))
def test_split_is_the_hubs(sizes, limit):
    try:
        hub = pytest.importorskip("huggingface_hub")
    except RuntimeError as error:
        pytest.skip(str(error))
    tensors = [OutputTensor(f"t{i}", DTYPES["uint8"], (size,)) for i, size in enumerate(sizes)]
    layout = lay_out_shards(tensors, {}, limit)
    split = hub.split_state_dict_into_shards_factory(
        {tensor.name: tensor for tensor in tensors},
        get_storage_size=lambda tensor: tensor.nbytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=limit,
    )
    names = {file.name for file in layout.files} - {INDEX}
    assert names == (set(split.filename_to_tensors) or {"model.safetensors"})
    if split.is_sharded:
        (index,) = [piece.data for piece in layout.fixed if piece.position == layout.files[-1].begin]
        assert json.loads(index)["weight_map"] == split.tensor_to_filename
        assert json.loads(index)["metadata"] == {"total_size": sum(sizes)}
    # Each tensor lies within the file that it is assigned to.
    for tensor in tensors:
        begin = layout.offsets[tensor.name]
        (home,) = [
            f for f in layout.files if f.begin <= begin and begin + tensor.nbytes <= f.begin + f.nbytes
        ]
        assert home.name == split.tensor_to_filename[tensor.name]


def test_each_shard_loads_alone_and_all_are_the_whole(tmp_path):
    state = state_of([600, 600, 200, 2000, 0, 200])
    layout = write(tmp_path / "out", state, {"format": "pt", "swatool": "{}"}, 1000)
    index = json.loads((tmp_path / "out" / INDEX).read_text())
    found = {}
    for path in sorted((tmp_path / "out").glob("*.safetensors")):
        shard = safetensors.torch.load_file(path)
        assert all(index["weight_map"][name] == path.name for name in shard)
        assert not set(shard) & set(found)
        found |= shard
        with safetensors.safe_open(path, "pt") as opened:
            assert opened.metadata() == {"format": "pt", "swatool": "{}"}
    assert found.keys() == state.keys() == index["weight_map"].keys()
    assert all(torch.equal(found[name], state[name]) for name in state)
    assert index["metadata"] == {"total_size": 3600, "swatool": "{}"}
    assert layout.is_folder
    assert {file.name: file.nbytes for file in layout.files} == {
        name: len(data) for name, data in contents(tmp_path / "out").items()
    }


def test_all_in_one_file_has_no_index(tmp_path):
    for limit in (None, 10**6):
        layout = write(tmp_path / str(limit), state_of([600, 600]), {}, limit)
        assert [file.name for file in layout.files] == ["model.safetensors"]
        assert layout.is_folder
    assert len(safetensors.torch.load_file(tmp_path / "None" / "model.safetensors")) == 2


def test_no_tensor_makes_an_empty_file(tmp_path):
    write(tmp_path / "out", {}, {}, 10)
    assert safetensors.torch.load_file(tmp_path / "out" / "model.safetensors") == {}


def test_sidecars_are_there_as_they_are(tmp_path):
    files = {"config.json": b"{}", "merges.txt": b""}
    for limit in (10, 10**6):
        write(tmp_path / str(limit), state_of([16, 16]), {}, limit, sidecars=files)
        found = contents(tmp_path / str(limit))
        assert {name: found[name] for name in files} == files
        assert (INDEX in found) == (limit == 10)


def test_metadata_cannot_replace_the_total_size():
    layout = lay_out_shards(described(state_of([16, 16])), {"total_size": "lie"}, 16)
    assert json.loads(layout.fixed[-1].data)["metadata"] == {"total_size": 32}


def test_a_name_that_comes_twice_is_refused_in_whatever_shards():
    twice = OutputTensor("w\x1b", DTYPES["uint8"], (8,))
    with pytest.raises(CheckpointError, match=r"'w\\x1b' would be written twice"):
        lay_out_shards([twice, twice], {}, 8)


def test_a_type_that_safetensors_lacks_is_refused():
    with pytest.raises(UsageError, match="safetensors cannot store"):
        lay_out_shards([OutputTensor("w", DTYPES["complex128"], (8,))], {}, 8)


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("5GB", 5 * 10**9),
        ("500MB", 500 * 10**6),
        (" 1.5 kb ", 1500),
        ("2TB", 2 * 10**12),
        ("1GiB", 2**30),
        ("3KiB", 3072),
        ("800000", 800_000),
        ("7B", 7),
        ("0.5GB", 5 * 10**8),
    ],
)
def test_sizes(text, nbytes):
    assert parse_size(text) == nbytes


@pytest.mark.parametrize("text", ["5GB", "0.29TB", "1.1GB", "33.333MB", "7KB"])
def test_sizes_are_the_hubs(hub, text):
    from huggingface_hub.serialization._base import parse_size_to_int

    assert hub
    assert parse_size(text) == parse_size_to_int(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "GB",
        "5XB",
        "-5GB",
        "0",
        "0.1",
        "0GB",
        "1e9",
        "inf",
        "nan",
        "5 G B",
        "5GB\0",
        "1" * 5000,
        "\u0665GB",
        "1,5GB",
    ],
)
def test_what_is_no_size(text):
    with pytest.raises(UsageError, match="--max-shard-size must be a number of bytes"):
        parse_size(text)
