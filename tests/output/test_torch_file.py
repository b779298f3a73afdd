"""Torch files as output: to the byte what torch.save writes, but for the tensors' bytes and checksums."""

import io
import itertools
import re
import struct
import zipfile
import zlib
from collections import OrderedDict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from swatool.checkpoints.file_formats import read_file
from swatool.checkpoints.files import LocalFile
from swatool.checkpoints.state_dicts import find_state_dict
from swatool.errors import CheckpointError
from swatool.output.layout import OutputTensor
from swatool.output.torch_file import lay_out_torch
from swatool.tensors import DTYPES

METADATA = {"swatool": '{"version": "1", "name": "caf\u00e9 \udce9"}', "format": "pt"}
ID = ".data/serialization_id"
PLAIN = {
    "step": 70_000,
    "version": "2.1.0",
    "loss": -1.5,
    "none": None,
    "true": True,
    "false": False,
    "numbers": [0, 255, 256, 65535, 65536, -1, -128, 2**31 - 1, -(2**31), 2**31, -(2**39), 2**63, -(2**63)],
    "tuples": [(), (1,), ((1, 2), [3]), (1, 2, 3), (1, 2, 3, 4)],
    "lists": [[], [1], list(range(2000)), {}, {1: "one"}, {"a": {"b": [1.0]}}],
    "text" * 100: "\u00e9\U00010000\udc80\0",
}


def described(state):
    return [
        OutputTensor(name, DTYPES[str(tensor.dtype).removeprefix("torch.")], tuple(tensor.shape))
        for name, tensor in state.items()
    ]


def filled(dtype, shape, seed=0):
    """A tensor of any dtype whose bytes are 0 or 1, which is valid for every one of them."""
    numel = torch.Size(shape).numel()
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randint(0, 2, (numel * DTYPES[dtype].itemsize,), dtype=torch.uint8, generator=generator)
    return raw.view(getattr(torch, dtype)).reshape(shape)


def raw(tensor):
    return bytes(tensor.reshape(-1).view(torch.uint8).tolist())


def assemble(layout, values=None):
    """The file, with the values of those tensors that have bytes of their own."""
    whole = bytearray(layout.size)
    for position, data in layout.fixed:
        whole[position : position + len(data)] = data
    for name, position in layout.offsets.items() if values else ():
        data = raw(values[name])
        assert not any(whole[position : position + len(data)])
        whole[position : position + len(data)] = data
    assert len(whole) == layout.size
    return bytes(whole)


def write(path, state, ties=None, metadata=None, **options):
    path.write_bytes(assemble(lay_out_torch(described(state), ties or {}, metadata or {}, **options), state))
    return path


def save_without_data(value, path):
    """What torch.save writes without the tensors' bytes: those and their checksums are zeros."""
    with torch.serialization.skip_data():
        torch.save(value, path)
    return path


def without_id(data, file=None):
    """The bytes with one and the same serialization id, which torch makes of names and checksums."""
    with zipfile.ZipFile(file or io.BytesIO(data)) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(ID))
        digits = archive.read(name)
    assert re.fullmatch(rb"[0-9]{40}", digits)
    assert data.count(digits) == 1
    checksum = struct.pack("<I", zlib.crc32(digits))
    assert data.count(checksum) == 2
    return data.replace(digits, b"0" * 40).replace(checksum, b"\0" * 4)


def every_kind():
    shapes = ((), (3,), (0, 2), (2, 3), (1, 2, 1, 3))
    return {
        f"layer.{dtype}.{number}": filled(dtype, shape, number)
        for dtype in DTYPES
        for number, shape in enumerate(shapes)
    }


STATES = {
    "empty": dict,
    "one": lambda: {"weight": torch.ones(3)},
    "every kind": every_kind,
    "999": lambda: {f"weight.{i}": torch.ones(1) for i in range(999)},
    "1000": lambda: {f"weight.{i}": torch.ones(1) for i in range(1000)},
    "1001": lambda: {f"weight.{i}": torch.ones(1) for i in range(1001)},
    "large shapes": lambda: {
        "rank 9": torch.empty((2,) * 9),
        "wide": torch.empty(0, 70_000, 1 << 31),
        "long" * 100: torch.empty(70_000, 1),
    },
}


@pytest.mark.parametrize("state", STATES.values(), ids=STATES)
@pytest.mark.parametrize("wrapper", [(), ("state_dict",), ("outer", "inner")])
def test_the_file_is_the_one_of_torch_to_the_byte(state, wrapper, tmp_path):
    state = state()
    beside = PLAIN if wrapper else {}
    value = OrderedDict(state)
    for key in reversed(wrapper):
        value = {key: value} | (beside if key == wrapper[0] else {})
    expected = save_without_data(value, tmp_path / "archive.pt").read_bytes()
    layout = lay_out_torch(described(state), {}, {}, wrapper=wrapper, beside=beside)
    assert without_id(assemble(layout)) == without_id(expected)


def test_ties_are_stored_once_as_torch_does(tmp_path):
    head, embedding = torch.ones(2, 3), torch.zeros(2, 3)
    state = OrderedDict(head=head, embedding=embedding)
    state |= {"tied.head": head.detach(), "tied": embedding.detach()}
    expected = save_without_data(state, tmp_path / "archive.pt").read_bytes()
    layout = lay_out_torch(described(state), {"tied.head": "head", "tied": "embedding"}, {})
    assert without_id(assemble(layout)) == without_id(expected)
    assert list(layout.offsets) == ["head", "embedding"]


def test_a_tie_may_come_before_the_tensor_that_it_shows(tmp_path):
    values = torch.arange(6.0)
    state = {"a": values, "b": torch.ones(1), "c": values}
    path = tmp_path / "a.pt"
    layout = lay_out_torch(described(state), {"a": "c"}, {})
    assert list(layout.offsets) == ["c", "b"]
    path.write_bytes(assemble(layout, state))
    loaded = torch.load(path)
    assert list(loaded) == ["a", "b", "c"]
    assert loaded["a"].data_ptr() == loaded["c"].data_ptr()
    assert loaded["a"].tolist() == values.tolist()


LOADERS = {
    "plain": lambda path: torch.load(path, weights_only=False),
    "weights_only": lambda path: torch.load(path, weights_only=True),
    "mmap": lambda path: torch.load(path, weights_only=True, mmap=True),
    "open file": lambda path: torch.load(io.BytesIO(path.read_bytes())),
}


@pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)
@pytest.mark.parametrize("metadata", [{}, METADATA])
def test_torch_reads_every_dtype_and_shape(load, metadata, tmp_path):
    state = every_kind()
    loaded = load(write(tmp_path / "x.pt", state, metadata=metadata))
    assert list(loaded) == list(state)
    for name, tensor in state.items():
        assert (loaded[name].dtype, loaded[name].shape) == (tensor.dtype, tensor.shape)
        assert loaded[name].is_contiguous()
        assert raw(loaded[name]) == raw(tensor), name


def test_torch_may_compute_where_the_tensors_are(tmp_path):
    from torch.utils.serialization import config

    state = every_kind()
    path = write(tmp_path / "x.pt", state, metadata=METADATA)
    with config.patch({"load.calculate_storage_offsets": True}):
        loaded = torch.load(path, mmap=True)
    assert all(raw(loaded[name]) == raw(tensor) for name, tensor in state.items())


def test_a_model_takes_the_state_dict_strictly_and_ties_stay_ties(tmp_path):
    model = nn.Sequential(nn.Embedding(5, 3), nn.BatchNorm1d(3), nn.Linear(3, 5, bias=False))
    model[2].weight = model[0].weight
    state = model.state_dict()
    path = write(tmp_path / "x.pt", state, {"2.weight": "0.weight"}, METADATA)
    loaded = torch.load(path, weights_only=True)
    assert loaded["2.weight"].data_ptr() == loaded["0.weight"].data_ptr()
    assert path.stat().st_size < save_size(state, tmp_path) + 1000
    other = nn.Sequential(nn.Embedding(5, 3), nn.BatchNorm1d(3), nn.Linear(3, 5, bias=False))
    other.load_state_dict(loaded, strict=True)
    assert all(torch.equal(other.state_dict()[name], tensor) for name, tensor in state.items())


def save_size(state, folder):
    torch.save(state, folder / "reference.pt")
    return (folder / "reference.pt").stat().st_size


def read_back(path, key=None):
    """Our own reader's view: the names in order, the bytes, the format and the metadata."""
    source = LocalFile(path)
    try:
        contents = read_file(source)
        found = find_state_dict(contents, str(path), key)
        stored = {name: contents.locate(leaf) for name, leaf in found.leaves.items()}
        values = {
            name: b"".join(source.read(one.offset, one.nbytes) for one in tensor.extents)
            for name, tensor in stored.items()
        }
        kinds = {name: (tensor.dtype.name, tensor.shape, tensor.strides) for name, tensor in stored.items()}
        return contents, found, values, kinds
    finally:
        source.close()


def located(path, names):
    """Where our own reader finds these tensors."""
    source = LocalFile(path)
    contents = read_file(source)
    leaves = find_state_dict(contents, str(path)).leaves
    found = {name: [extent[1:] for extent in contents.locate(leaves[name]).extents] for name in names}
    source.close()
    return found


NAMES = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
    st.sampled_from(["", "cpu", "storage", "0", "1", "a.b", "a" * 300, "\u00e9" * 300, "\0", "\n"]),
)
KINDS = st.tuples(st.sampled_from(list(DTYPES)), st.lists(st.integers(0, 3), max_size=4).map(tuple))


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(NAMES, st.tuples(KINDS, st.lists(NAMES, max_size=2)), max_size=6),
    st.lists(NAMES, max_size=3).map(tuple),
    NAMES,
    st.dictionaries(st.text(max_size=4), st.text(max_size=8), max_size=2),
)
def test_any_names_ties_and_wrappers_are_read_back(tmp_path_factory, kinds, wrapper, prefix, metadata):
    state, ties = {}, {}
    for seed, (name, ((dtype, shape), others)) in enumerate(kinds.items()):
        state[name] = filled(dtype, shape, seed)
        new = [other for other in others if other not in kinds and other not in state]
        ties |= dict.fromkeys(new, name)
        state |= dict.fromkeys(new, state[name])
    path = tmp_path_factory.mktemp("torch") / "x.pt"
    write(path, state, ties, metadata, wrapper=wrapper, beside={"epoch": 3}, prefix=prefix)
    names = [prefix + name for name in state]

    for load in (LOADERS["mmap"], LOADERS["plain"]):
        loaded = load(path)
        for depth, key in enumerate(wrapper):
            assert list(loaded) == [key] + ["epoch"] * (depth == 0 and key != "epoch")
            loaded = loaded[key]
        assert list(loaded) == names
        assert all(raw(loaded[prefix + name]) == raw(tensor) for name, tensor in state.items())
        for name, first in ties.items():
            assert loaded[prefix + name].data_ptr() == loaded[prefix + first].data_ptr()

    if state:
        contents, found, values, stored = read_back(path, ".".join(wrapper))
        assert (contents.format, list(found.leaves)) == ("torch zip", names)
        assert contents.metadata == metadata
        assert values == {prefix + name: raw(tensor) for name, tensor in state.items()}
        assert list(stored.values()) == [(t.dtype.name, t.shape, None) for t in described(state)]


def test_metadata_that_is_not_unicode_is_read_back(tmp_path):
    contents, *_ = read_back(write(tmp_path / "x.pt", {"w": torch.ones(2)}, metadata=METADATA))
    assert contents.metadata == METADATA


def test_tensors_are_aligned_and_lie_in_the_given_order():
    layout = lay_out_torch(described(every_kind()), {}, METADATA)
    positions = list(layout.offsets.values())
    assert list(layout.offsets) == list(every_kind())
    assert positions == sorted(positions)
    assert not any(position % 64 for position in positions)
    # So near that neighbours share a block of work.
    gaps = [after - before for before, after in itertools.pairwise(positions)]
    assert max(gaps) < 600


def test_the_same_tensors_give_the_same_file_and_others_another():
    first, again, other = (
        assemble(lay_out_torch(described({name: torch.ones(1)}), {}, {})) for name in ("a", "a", "b")
    )
    assert first == again != other
    assert without_id(first) != without_id(other)


def test_zipfile_lists_the_records_and_reads_all_but_the_tensors(tmp_path):
    with zipfile.ZipFile(write(tmp_path / "x.pt", {"w": torch.ones(2)}, metadata=METADATA)) as archive:
        assert archive.namelist() == [
            f"archive/{name}"
            for name in (
                *("data.pkl", ".format_version", ".storage_alignment", "byteorder", "swatool.json"),
                *("data/0", "version", ID),
            )
        ]
        small = [name for name in archive.namelist() if name != "archive/data/0"]
        assert all(archive.read(name) for name in small)
        assert archive.read("archive/byteorder") == b"little"
        with pytest.raises(zipfile.BadZipFile, match="CRC"):
            archive.read("archive/data/0")


def test_a_name_used_twice_is_refused():
    twice = [OutputTensor("w", DTYPES["float32"], (1,)), OutputTensor("w", DTYPES["int8"], (1,))]
    with pytest.raises(CheckpointError, match="'w' is used by two tensors"):
        lay_out_torch(twice, {}, {})


@pytest.mark.parametrize("name", ["\ud800", "a\udfff"])
def test_a_name_that_is_not_unicode_is_refused(name):
    with pytest.raises(CheckpointError, match="is not Unicode"):
        lay_out_torch([OutputTensor(name, DTYPES["float32"], (1,))], {}, {})


def test_more_records_than_a_plain_zip_file_counts(tmp_path):
    count = 0xFFFF - 5  # and the records that are no tensors: one too many for 16 bits
    tensors = [OutputTensor(f"w{i}", DTYPES["uint8"], (1,)) for i in range(count)]
    layout = lay_out_torch(tensors, {}, {})
    data = bytearray(assemble(layout))
    last = layout.offsets[f"w{count - 1}"]
    data[last] = 7
    assert struct.unpack_from("<2H", data, len(data) - 14) == (0xFFFF, 0xFFFF)
    path = tmp_path / "x.pt"
    path.write_bytes(data)
    loaded = torch.load(path, mmap=True)
    assert len(loaded) == count
    assert (loaded["w0"].item(), loaded[f"w{count - 1}"].item()) == (0, 7)
    assert located(path, [f"w{count - 1}"]) == {f"w{count - 1}": [(last, 1)]}


def huge_tensors(folder):
    """Tensors around and above 4 GiB, which take no room: nothing is read from them or written to them."""
    sizes = {"a": 40, "limit": (1 << 32) - 1, "c": 12, "large": 5 << 30, "e": 3, "empty": 0, "full": 1 << 32}
    state = OrderedDict()
    for name, size in sizes.items():
        path = str(folder / f"{name}.raw")
        mapped = torch.from_file(path, shared=True, size=max(size, 1), dtype=torch.uint8)
        state[name] = mapped if size else torch.empty(0, dtype=torch.uint8)
    return state


def write_sparsely(path, layout, some):
    with open(path, "wb") as file:
        file.truncate(layout.size)
        for position, data in (*layout.fixed, *some):
            file.seek(position)
            file.write(data)


def test_files_above_4_gib_are_laid_out_as_torch_does_and_are_read(tmp_path):
    state = huge_tensors(tmp_path)
    ends = {name: bytes([index, 7])[: tensor.numel()] for index, (name, tensor) in enumerate(state.items())}
    layout = lay_out_torch(described(state), {}, {})
    ours, reference = tmp_path / "ours.pt", save_without_data(state, tmp_path / "archive.pt")
    places = {name: layout.offsets[name] + state[name].numel() - len(end) for name, end in ends.items()}
    write_sparsely(ours, layout, [(places[name], end) for name, end in ends.items()])
    assert ours.stat().st_size == reference.stat().st_size > 12 << 30
    with open(ours, "rb") as mine, open(reference, "rb") as theirs:
        found = [b"".join(pieces(file, layout)) for file in (mine, theirs)]
    assert without_id(found[0], ours) == without_id(found[1], reference)

    loaded = torch.load(ours, mmap=True, weights_only=True)
    for name, end in ends.items():
        assert bytes(loaded[name][-2:].tolist()) == end, name
    assert located(ours, state) == {
        name: [(layout.offsets[name], tensor.numel())] * (tensor.numel() > 0)
        for name, tensor in state.items()
    }


def pieces(file, layout):
    for position, data in layout.fixed:
        file.seek(position)
        yield file.read(len(data))
