"""Reading safetensors files: what the reference library reads, and no lie that it would refuse."""

import gc
import importlib.util
import json
import random
import tracemalloc

import pytest
import safetensors
import safetensors.torch
import torch
from hostile.safetensors_headers import BAD, HONEST, VALID, assembled, entry, one, text, two
from hypothesis import given, settings
from hypothesis import strategies as st

from swatool.checkpoints import safetensors_file
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


def test_tensors_and_metadata_called_as_the_fields_of_an_entry_are_read():
    fields = ("dtype", "shape", "data_offsets")
    state = {name: entry(shape=[1], offsets=(4 * i, 4 * i + 4)) for i, name in enumerate(fields)}
    assert set(described(read_safetensors(InMemory(assembled(state, bytes(range(12))))))) == set(fields)
    said = dict.fromkeys(fields, "x")
    contents = read_safetensors(InMemory(assembled({"__metadata__": said, **state}, bytes(12))))
    assert contents.metadata == said
    with pytest.raises(CheckpointError, match="metadata that are not strings"):
        read_safetensors(InMemory(assembled({"__metadata__": entry()}, b"")))


def test_a_header_takes_a_few_hundred_bytes_for_each_tensor():
    count = 20_000
    header = {f"t{number}": entry(shape=[1], offsets=(4 * number, 4 * number + 4)) for number in range(count)}
    source = InMemory(assembled(header, bytes(4 * count)))
    del header
    read_safetensors(source)  # Python's own table of names may grow with these, once
    gc.collect()
    tracemalloc.start()
    try:
        contents = read_safetensors(source)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(contents.root) == count
    assert peak / count < 800, peak / count


def test_more_tensors_than_any_model_has_are_refused(monkeypatch):
    monkeypatch.setattr(safetensors_file, "MAX_TENSORS", 4)
    assert len(read_safetensors(InMemory(VALID)).root) == 4
    more = assembled({f"t{number}": entry(shape=[0], offsets=(0, 0)) for number in range(5)}, b"")
    with pytest.raises(CheckpointError, match="holds more than 4 tensors, which are not read"):
        read_safetensors(InMemory(more))


def long_header(text, at_least=1 << 20):
    """Some text of JSON, repeated between the two braces of a header until it is long."""
    return b"{" + b",".join(text % number for number in range(at_least // len(text) + 1)) + b"}"


def file_of(header, data=b""):
    return InMemory(len(header).to_bytes(8, "little") + header + data)


@pytest.mark.parametrize(
    "text",
    [
        b'"%x":{}',
        b'"%x":[[],[],[],[],[],[],[],[],[]]',
        b'"%x":""',
        b'"%x":1',
        b'"__metadata__":{"a":"%x","b":{}}',
        b'"%x":{"dtype":"F32","shape":[0],"data_offsets":[0,0],"more":""}',
        b'"%x":{"dtype":"F32","shape":[' + b"0," * 64 + b'0],"data_offsets":[0,0]}',
    ],
)
def test_a_long_header_of_anything_but_entries_is_refused_before_it_is_parsed(text, monkeypatch):
    monkeypatch.setattr(safetensors_file.json, "loads", lambda *_args, **_options: pytest.fail("parsed"))
    with pytest.raises(CheckpointError, match=r"bytes, and more in it than entries of tensors"):
        read_safetensors(file_of(long_header(text)))


@pytest.mark.parametrize(
    "text",
    [
        b'"%x":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}',
        b'"%x" : { "data_offsets" : [ 0 , 0 ] , "shape" : [ ] , "dtype" : "F32" }\n'.replace(
            b"[ ]", b"[ 0 ]"
        ),
        b'"a \\"quoted\\" \\u00e9 {name}[%x]":{"dtype":"F32","shape":[0,2,3],"data_offsets":[0,0]}',
        '"\u00e9 %x":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'.encode(),
    ],
)
def test_a_long_header_of_entries_is_read_however_it_is_written(text):
    header = long_header(text)
    assert len(read_safetensors(file_of(header)).root) == len(json.loads(header))


@pytest.mark.parametrize("first", [True, False])
def test_the_metadata_of_a_long_header_may_be_long(first):
    metadata = b'"__metadata__":{"a":"' + b"x" * 3_000_000 + b'","b":"c"}'
    entry = b'"w":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    header = b"{" + b",".join((metadata, entry) if first else (entry, metadata)) + b"}   "
    assert read_safetensors(file_of(header)).metadata["b"] == "c"


def test_long_wide_headers_and_many_metadata_are_refused():
    entry = '"\U0001f600 %x":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'.encode()
    with pytest.raises(CheckpointError, match="letters beyond ASCII; at most 4,194,304"):
        read_safetensors(file_of(long_header(entry, 4 << 20)))
    pairs = b",".join(b'"%d":"' % number + b"x" * 200 + b'"' for number in range(10_001))
    with pytest.raises(CheckpointError, match="more in it than entries"):
        read_safetensors(file_of(b'{"__metadata__":{' + pairs + b"}}"))


def test_deep_lists_are_refused_in_words_of_our_own():
    with pytest.raises(CheckpointError, match="it is nested too deep"):
        read_safetensors(file_of(b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}"))


def test_locating_what_is_no_leaf_is_a_bug():
    with pytest.raises(TypeError):
        read_safetensors(InMemory(VALID)).locate("w")


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
