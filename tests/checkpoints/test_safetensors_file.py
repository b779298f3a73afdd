"""Reading safetensors files: what the reference library reads, and no lie that it would refuse."""

import importlib.util
import json
import random

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from swatool.checkpoints.files import LocalFile
from swatool.checkpoints.safetensors_file import looks_like_safetensors, read_safetensors
from swatool.errors import CheckpointError
from swatool.tensors import DTYPES

STORABLE = [name for name, dtype in DTYPES.items() if dtype.code]
NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=8)
SHAPES = st.lists(st.integers(0, 3), max_size=4).map(tuple)


class InMemory:
    """A source without a file."""

    def __init__(self, data, path="x.safetensors"):
        self.data, self.path, self.size = data, path, len(data)

    def read(self, offset, nbytes):
        assert nbytes <= max(self.size, 8), "more is asked for, and allocated, than there is"
        if offset + nbytes > self.size:
            raise CheckpointError(f"{self.path!r} ends")
        return self.data[offset : offset + nbytes]

    def read_into(self, buffers, offset):
        raise NotImplementedError


def filled(dtype, shape, seed):
    """A tensor of any dtype whose bytes are 0 or 1, which is valid for every one of them."""
    generator = torch.Generator().manual_seed(seed)
    count = torch.Size(shape).numel() * DTYPES[dtype].itemsize
    raw = torch.randint(0, 2, (count,), dtype=torch.uint8, generator=generator)
    return raw.view(getattr(torch, dtype)).reshape(shape)


def bytes_of(tensor):
    return bytes(tensor.reshape(-1).view(torch.uint8).tolist())


def assembled(header, data):
    if not isinstance(header, bytes):
        header = (header if isinstance(header, str) else json.dumps(header)).encode()
    return len(header).to_bytes(8, "little") + header + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8), **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}


def written(state, metadata=None):
    """A file by the reference library, which needs NumPy to write tensors; without NumPy, by hand."""
    if importlib.util.find_spec("numpy"):
        return safetensors.torch.save(state, metadata)
    header, data = {"__metadata__": metadata} if metadata else {}, b""
    for name, tensor in state.items():
        dtype, raw = DTYPES[str(tensor.dtype).removeprefix("torch.")], bytes_of(tensor)
        header[name] = entry(dtype.code, tensor.shape, (len(data), len(data) + len(raw)))
        data += raw
    return assembled(header, data)


def stored_bytes(tensor):
    return b"".join(extent.source.read(extent.offset, extent.nbytes) for extent in tensor.extents)


def described(contents):
    return {
        name: (tensor.dtype.name, tensor.shape, stored_bytes(contents.locate(tensor)))
        for name, tensor in contents.root.items()
    }


def expected(state):
    return {
        name: (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), bytes_of(tensor))
        for name, tensor in state.items()
    }


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (5, 7), (2, 3, 1, 4)])
@pytest.mark.parametrize("dtype", STORABLE)
def test_every_dtype_is_read_as_the_reference_library_reads_it(tmp_path, dtype, shape):
    path = tmp_path / "x.safetensors"
    state = {"a": filled(dtype, shape, 0), "b.c": filled("float32", (3,), 1), "z": filled(dtype, shape, 2)}
    path.write_bytes(written(state, {"format": "pt", "step": "7"}))
    file = LocalFile(path)
    contents = read_safetensors(file)
    assert described(contents) == expected(safetensors.torch.load_file(path)) == expected(state)
    assert contents.format == "safetensors"
    assert contents.metadata == {"format": "pt", "step": "7"}
    assert all(tensor.strides is None for tensor in contents.root.values())
    file.close()


def test_every_dtype_of_the_table_can_be_read_but_those_without_a_code():
    assert set(DTYPES) - set(STORABLE) == {"complex128"}


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(NAMES, st.tuples(st.sampled_from(STORABLE), SHAPES), max_size=6),
    st.one_of(
        st.none(), st.dictionaries(NAMES, st.text(st.characters(exclude_categories=["Cs"])), max_size=3)
    ),
)
def test_any_file_of_the_reference_library_is_read(kinds, metadata):
    state = {name: filled(dtype, shape, 0) for name, (dtype, shape) in kinds.items()}
    state.pop("__metadata__", None)
    metadata = metadata or None  # the library writes no valid JSON for an empty dict and no tensors
    data = written(state, metadata)
    assert looks_like_safetensors(data[:512], len(data))
    contents = read_safetensors(InMemory(data))
    assert described(contents) == expected(state)
    assert contents.metadata == (metadata or {})


def test_a_file_without_tensors_is_read():
    assert described(read_safetensors(InMemory(assembled({}, b"")))) == {}


def test_equal_shapes_are_kept_once():
    shapes = [tensor.shape for tensor in read_safetensors(InMemory(VALID)).root.values()]
    assert shapes[0] == shapes[1]
    assert shapes[0] is shapes[1]


def test_locating_what_is_no_leaf_is_a_bug():
    with pytest.raises(TypeError):
        read_safetensors(InMemory(VALID)).locate("w")


def one(**fields):
    """A file of one tensor whose entry is honest but for these fields."""
    return assembled({"w": entry() | fields}, b"\0" * 8)


def text(raw):
    """A file of one tensor whose entry is this JSON text."""
    return assembled('{"w":' + raw + "}", b"\0" * 8)


def two(first, second, data=b"\0" * 8):
    return assembled({"a": entry(shape=[1], offsets=first), "b": entry(shape=[1], offsets=second)}, data)


HONEST = '{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'
VALID = assembled(
    {
        "__metadata__": {"step": "12"},
        "a.weight": entry(shape=[2, 3], offsets=(0, 24)),
        "b.weight": entry("BF16", [2, 3], (24, 36)),
        "c.bias": entry("I64", [], (36, 44)),
        "d": entry("U8", [0], (44, 44)),
    },
    bytes(range(44)),
)

BAD = {
    "no bytes": b"",
    "seven bytes": b"\x10\0\0\0\0\0\0",
    "only a length": (100).to_bytes(8, "little"),
    "header of no length": bytes(8),
    "header of no length, data": bytes(100),
    "header longer than the file": (1000).to_bytes(8, "little") + b"{}",
    "header longer by one byte": (3).to_bytes(8, "little") + b"{}",
    "header of 2^63 bytes": (2**63).to_bytes(8, "little") + b"{}",
    "header of 2^64-1 bytes": b"\xff" * 8 + b"{}",
    "header too long": assembled(b"{" + b" " * 25_000_000 + b"}", b""),
    "not JSON": assembled(b"{hello}", b""),
    "JSON cut off": assembled('{"w":' + HONEST, b"\0" * 8),
    "two JSON texts": assembled("{}{}", b""),
    "NUL after the JSON": assembled(b"{}\0", b""),
    "deep lists": assembled('{"w":' + "[" * 200_000 + "]" * 200_000 + "}", b""),
    "deep objects": assembled('{"w":' * 200_000 + "1" + "}" * 200_000, b""),
    "rather deep dtype": text(HONEST.replace('"F32"', '{"a":' * 600 + "1" + "}" * 600)),
    "rather deep list as dtype": text(HONEST.replace('"F32"', "[" * 900 + "]" * 900)),
    "list as root": assembled(b"[1]", b""),
    "string as root": assembled(b'"w"', b""),
    "number as root": assembled(b"12", b""),
    "space before the brace": assembled(b' {"w":' + HONEST.encode() + b"}", b"\0" * 8),
    "byte order mark": assembled(b"\xef\xbb\xbf{}", b""),
    "UTF-16": assembled("{}".encode("utf-16"), b""),
    "invalid UTF-8": assembled(b'{"\xff":' + HONEST.encode() + b"}", b"\0" * 8),
    "surrogate in UTF-8": assembled(b'{"\xed\xa0\x80":' + HONEST.encode() + b"}", b"\0" * 8),
    "lone surrogate as a name": assembled('{"\\ud800":' + HONEST + "}", b"\0" * 8),
    "lone surrogate in metadata": assembled('{"__metadata__":{"a":"\\udc00"},"w":' + HONEST + "}", b"\0" * 8),
    "control character in a name": assembled(b'{"a\nb":' + HONEST.encode() + b"}", b"\0" * 8),
    "empty name": assembled({"": entry()}, b"\0" * 8),
    "NUL in a name": assembled({"a\0b/../c": entry()}, b"\0" * 8),
    "name twice": assembled('{"w":' + HONEST + ',"w":' + HONEST + "}", b"\0" * 8),
    "name twice, differently escaped": assembled('{"w":' + HONEST + ',"\\u0077":' + HONEST + "}", b"\0" * 8),
    "name twice, another dtype": assembled(
        '{"w":' + HONEST + ',"w":' + HONEST.replace("F32", "I32") + "}", b"\0" * 8
    ),
    "field twice": text('{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}'),
    "field twice, other offsets": text(
        '{"dtype":"F32","shape":[2],"data_offsets":[0,8],"data_offsets":[0,4]}'
    ),
    "metadata twice": assembled('{"__metadata__":{},"__metadata__":{}}', b""),
    "key twice in metadata": assembled('{"__metadata__":{"a":"1","a":"1"}}', b""),
    "number in metadata": assembled({"__metadata__": {"step": 7}}, b""),
    "object in metadata": assembled({"__metadata__": {"step": {}}}, b""),
    "list as metadata": assembled({"__metadata__": ["a"]}, b""),
    "null as metadata": assembled({"__metadata__": None}, b""),
    "unknown field": one(extra=1),
    "unknown field instead of another": text('{"dtype":"F32","shape":[2],"offsets":[0,8]}'),
    "no dtype": text('{"shape":[2],"data_offsets":[0,8]}'),
    "no shape": text('{"dtype":"F32","data_offsets":[0,8]}'),
    "no offsets": text('{"dtype":"F32","shape":[2]}'),
    "entry without fields": text("{}"),
    "null as entry": text("null"),
    "list as entry": text('["F32",[2],[0,8]]'),
    "string as entry": text('"F32"'),
    "unknown dtype": one(dtype="F33"),
    "empty dtype": one(dtype=""),
    "dtype in lower case": one(dtype="f32"),
    "dtype by torch's name": one(dtype="float32"),
    "F4": one(dtype="F4", shape=[16]),
    "F6_E2M3": one(dtype="F6_E2M3", shape=[8], data_offsets=[0, 6]),
    "F6_E3M2": one(dtype="F6_E3M2", shape=[8], data_offsets=[0, 6]),
    "number as dtype": one(dtype=32),
    "list as dtype": one(dtype=["F32"]),
    "object as dtype": one(dtype={"name": "F32"}),
    "null as dtype": one(dtype=None),
    "NaN in the shape": text('{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}'),
    "infinity in the shape": text('{"dtype":"F32","shape":[1e999],"data_offsets":[0,8]}'),
    "negative length": one(shape=[-2]),
    "two negative lengths": one(shape=[-1, -2]),
    "float as length": one(shape=[2.0]),
    "bool as length": one(shape=[True, 2]),
    "string as length": one(shape=["2"]),
    "null as shape": one(shape=None),
    "number as shape": one(shape=2),
    "object as shape": one(shape={}),
    "shape too small": one(shape=[1]),
    "shape too large": one(shape=[3]),
    "shape that overflows 64 bits": one(shape=[2**62, 2**62, 2]),
    "shape that overflows to the right size": one(shape=[2, 2**61 + 1]),
    "length of 2^63": assembled({"w": entry(shape=[0, 2**63], offsets=(0, 0))}, b""),
    "huge integer in the shape": text(f'{{"dtype":"F32","shape":[0,{10**4000}],"data_offsets":[0,8]}}'),
    "integer of too many digits": text('{"dtype":"F32","shape":[' + "9" * 5000 + '],"data_offsets":[0,8]}'),
    "rank 65": one(shape=[2] + [1] * 64),
    "rank 1,000,000": one(shape=[2] + [1] * 999_999),
    "negative offset": one(data_offsets=[-8, 0]),
    "negative end": one(data_offsets=[0, -8]),
    "float as offset": one(data_offsets=[0.0, 8]),
    "float as end": one(data_offsets=[0, 8.0]),
    "bool as offset": one(data_offsets=[False, 8]),
    "NaN as offset": text('{"dtype":"F32","shape":[2],"data_offsets":[NaN,8]}'),
    "string as offset": one(data_offsets=["0", "8"]),
    "one offset": one(data_offsets=[8]),
    "three offsets": one(data_offsets=[0, 8, 8]),
    "no offset": one(data_offsets=[]),
    "null as offsets": one(data_offsets=None),
    "object as offsets": one(data_offsets={"0": 0, "1": 8}),
    "offsets reversed": one(data_offsets=[8, 0]),
    "huge offsets": one(data_offsets=[2**62, 2**62 + 8]),
    "offsets of 2^64": one(data_offsets=[2**64, 2**64 + 8]),
    "same bytes twice": two((0, 4), (0, 4), b"\0" * 4),
    "same bytes twice, a hole after": two((0, 4), (0, 4)),
    "partial overlap": two((0, 4), (2, 6), b"\0" * 6),
    "hole": two((0, 4), (8, 12), b"\0" * 12),
    "hole at the beginning": two((4, 8), (8, 12), b"\0" * 12),
    "empty tensor inside another": assembled(
        {"a": entry(), "b": entry(shape=[0], offsets=(4, 4))}, b"\0" * 8
    ),
    "empty tensor beyond the end": assembled(
        {"a": entry(), "b": entry(shape=[0], offsets=(9, 9))}, b"\0" * 8
    ),
    "trailing byte": assembled({"w": entry()}, b"\0" * 9),
    "trailing byte, no tensor": assembled({}, b"\0"),
    "one byte short": assembled({"w": entry()}, b"\0" * 7),
    "no data": assembled({"w": entry()}, b""),
}


# What the reference library accepts, and where two readers might disagree, or a path be made of a name.
STRICTER_THAN_THE_LIBRARY = {
    "empty name": True,
    "F4": True,
    "header too long": True,
    "key twice in metadata": True,
    "length of 2^63": True,
    "list as entry": True,
    "name twice, another dtype": True,
    "name twice, differently escaped": True,
    "name twice": True,
    "NUL in a name": True,
    "null as metadata": True,
    "rank 1,000,000": True,
    "rank 65": True,
    "space before the brace": True,
    "unknown field": True,
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_refused_by_name(case):
    with pytest.raises(CheckpointError) as caught:
        read_safetensors(InMemory(BAD[case], "bad\x1b[2J.safetensors"))
    message = str(caught.value)
    assert "'bad\\x1b[2J.safetensors'" in message
    assert message.isprintable()
    assert len(message) < 3000


@pytest.mark.parametrize("case", BAD)
def test_the_reference_library_is_not_stricter_than_the_cases_say(case):
    try:
        safetensors.deserialize(BAD[case])
        accepted = True
    except (safetensors.SafetensorError, TypeError):
        accepted = False
    assert accepted == STRICTER_THAN_THE_LIBRARY.get(case, False)


def test_the_cases_are_bad_for_one_reason_only():
    """What they are made from is read, so that each is refused for what its name says."""
    assert set(described(read_safetensors(InMemory(one())))) == {"w"}
    assert set(described(read_safetensors(InMemory(text(HONEST))))) == {"w"}
    assert set(described(read_safetensors(InMemory(two((0, 4), (4, 8)))))) == {"a", "b"}
    assert set(described(read_safetensors(InMemory(two((4, 8), (0, 4)))))) == {"a", "b"}


@pytest.mark.parametrize(
    "data",
    [
        assembled({"w": entry(shape=[2] + [1] * 63)}, b"\0" * 8),
        assembled({"w": entry(shape=[0, 2**62], offsets=(0, 0))}, b""),
        assembled({"a": entry(shape=[0], offsets=(8, 8)), "b": entry()}, b"\0" * 8),
        assembled('{"w":' + HONEST + "}   ", b"\0" * 8),
        assembled('{"\\u00e9\\ud83d\\ude00":' + HONEST + "}", b"\0" * 8),
    ],
    ids=["rank 64", "empty but long", "empty at the end", "padding", "surrogate pair"],
)
def test_what_is_odd_but_honest_is_read(data):
    found = described(read_safetensors(InMemory(data)))
    reference = dict(safetensors.deserialize(data))
    assert set(found) == set(reference)
    for name, (_, shape, raw) in found.items():
        assert list(shape) == reference[name]["shape"]
        assert raw == bytes(reference[name]["data"])


def mutated(data, generator):
    """Change a valid file a little: mostly in its header, and so that the text often stays JSON."""
    changed = bytearray(data)
    header = 8 + int.from_bytes(data[:8], "little")
    for _ in range(generator.choice([1, 1, 1, 2, 3])):
        where = generator.randrange(8, header) if generator.random() < 0.9 else generator.randrange(len(data))
        kind = generator.randrange(5)
        if kind == 0:
            changed[where % len(changed)] = generator.randrange(256)
        elif kind == 1:
            changed[where % len(changed)] = ord(generator.choice('0123456789,:[]{}"\\ -.eBFIU_'))
        elif kind == 2:
            digits = [at for at in range(8, header) if chr(changed[at % len(changed)]).isdigit()]
            changed[generator.choice(digits or [8]) % len(changed)] = ord(generator.choice("0123456789"))
        elif kind == 3:
            letters = [at for at in range(8, header) if chr(changed[at % len(changed)]).isalpha()]
            changed[generator.choice(letters or [8]) % len(changed)] = ord(generator.choice("abcdwxFIUB"))
        else:
            del changed[-generator.randrange(1, 9) :]
    return bytes(changed)


def read_or_refuse(data):
    try:
        return read_safetensors(InMemory(data))
    except CheckpointError:
        return None


def test_mutants_are_refused_or_read_as_the_reference_library_reads_them():
    generator = random.Random(20240607)
    both = 0
    for _ in range(3000):
        data = mutated(VALID, generator)
        ours = read_or_refuse(data)
        if ours is None:
            continue
        reference = dict(safetensors.deserialize(data))  # raises what we accepted and the library refuses
        found = described(ours)
        assert set(found) == set(reference)
        for name, (_, shape, raw) in found.items():
            assert ours.root[name].dtype.code == reference[name]["dtype"]
            assert list(shape) == reference[name]["shape"]
            assert raw == bytes(reference[name]["data"])
        both += 1
    assert both > 200
