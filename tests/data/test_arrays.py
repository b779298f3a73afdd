"""Arrays in files: what NumPy and safetensors read themselves, sample by sample, and no lie believed."""

import io
import json
import os
import struct
import time
import tracemalloc
from contextlib import contextmanager
from importlib.util import find_spec

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from swatool.data.arrays import array_from_bytes, open_arrays
from swatool.data.options import MAX_BATCH, DataOptions
from swatool.errors import DataError, UsageError
from swatool.tensors import DTYPES

needs_numpy = pytest.mark.skipif(find_spec("numpy") is None, reason="NumPy's own writer is the reference")
KINDS = ["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?"]
IN_TORCH = ["float16", "float32", "float64", "bfloat16", "int16", "int64", "uint8", "uint32", "bool"]


@contextmanager
def memory_below(limit):
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


def npy(shape, data, descr="<f4"):
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text + data


def safetensors_file(**tensors):
    header, data = {}, b""
    for name, tensor in tensors.items():
        raw = bytes(tensor.reshape(-1).view(torch.uint8).tolist())
        code = DTYPES[str(tensor.dtype).removeprefix("torch.")].code
        header[name] = {
            "dtype": code,
            "shape": list(tensor.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


@pytest.fixture
def ramp(tmp_path):
    """Seven samples of [2, 3], which count up."""
    path = str(tmp_path / "x.npy")
    values = torch.arange(42.0)
    with open(path, "wb") as file:
        file.write(npy((7, 2, 3), struct.pack("<42f", *values.tolist())))
    return path, values.view(7, 2, 3)


def opened(path, key=None, **options):
    return open_arrays(path if key is None else f"{path}:{key}", path, key, DataOptions(**options))


def whole(path, key=None, **options):
    data = opened(path, key, **options)
    try:
        return torch.cat(list(data))
    finally:
        data.close()


def drawn(shape, kind, seed):
    """Random bytes as an array of a type; as NumPy's bools, only 0 and 1."""
    import numpy

    dtype = numpy.dtype(kind)
    count = int(numpy.prod(shape, dtype=int)) * dtype.itemsize
    raw = numpy.random.default_rng(seed).integers(0, 2 if kind == "?" else 256, count, numpy.uint8)
    return raw.view(dtype).reshape(shape)


def same_bytes(tensor, array):
    assert tensor.shape == array.shape
    assert str(tensor.dtype) == f"torch.{array.dtype.name}"
    return bytes(tensor.reshape(-1).contiguous().view(torch.uint8).tolist()) == array.tobytes()


@needs_numpy
@settings(max_examples=120, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    order=st.sampled_from("<>"),
    shape=st.tuples(st.integers(1, 40), st.lists(st.integers(1, 4), max_size=3)),
    batch_size=st.integers(1, 50),
    samples=st.one_of(st.none(), st.integers(1, 50)),
    shuffle=st.booleans(),
    form=st.sampled_from(["npy", "npz", "compressed"]),
    seed=st.integers(0, 9),
)
def test_batches_are_the_rows_that_numpy_loads(
    tmp_path_factory, kind, order, shape, batch_size, samples, shuffle, form, seed
):
    import numpy

    shape = (shape[0], *shape[1])
    array = drawn(shape, order + kind if kind != "?" else kind, seed)
    path = str(tmp_path_factory.mktemp("a") / ("x.npy" if form == "npy" else "x.npz"))
    if form == "npy":
        numpy.save(path, array)
    else:
        (numpy.savez if form == "npz" else numpy.savez_compressed)(path, y=numpy.zeros(3), x=array)
    key = None if form == "npy" else "x"
    loaded = numpy.load(path) if key is None else numpy.load(path)["x"]
    where = {"shuffle": shuffle, "samples": samples, **({"seed": seed} if shuffle else {})}
    data = opened(path, key, batch_size=batch_size, **where)
    used = min(samples or shape[0], shape[0])
    positions = list(range(used))
    if shuffle:
        generator = torch.Generator().manual_seed(seed)
        positions = torch.randperm(shape[0], generator=generator, dtype=torch.int32)[:used].tolist()
    for _ in range(2):
        batches = list(data)
        assert all(len(batch) == batch_size for batch in batches[:-1])
        for number, batch in enumerate(batches):
            expected = loaded[positions[number * batch_size : (number + 1) * batch_size]]
            assert same_bytes(batch, expected.astype(expected.dtype.newbyteorder("=")))
        assert sum(map(len, batches)) == data.samples == used
    data.close()


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(IN_TORCH), st.integers(1, 9), st.lists(st.integers(1, 3), max_size=3), st.integers(1, 12)
)
def test_batches_are_the_rows_that_safetensors_loads(tmp_path_factory, dtype, rows, rest, batch_size):
    import safetensors.torch

    count = rows * torch.Size(rest).numel()
    values = (torch.arange(count) % 2).to(getattr(torch, dtype)).view(rows, *rest)
    path = tmp_path_factory.mktemp("s") / "x.safetensors"
    # An odd number of bytes before the samples: their alignment in the file must not matter.
    path.write_bytes(safetensors_file(a=torch.zeros(3, dtype=torch.uint8), x=values))
    loaded = safetensors.torch.load_file(path)["x"]
    batches = torch.cat(list(opened(str(path), "x", batch_size=batch_size, shuffle=False)))
    assert batches.dtype is loaded.dtype
    assert batches.equal(loaded)
    assert batches.equal(values)


def test_a_shuffled_batch_is_in_the_order_that_was_drawn(ramp):
    path, values = ramp
    order = torch.randperm(7, generator=torch.Generator().manual_seed(3), dtype=torch.int32)
    assert whole(path, seed=3, batch_size=4).equal(values[order])


def test_neighbours_are_read_at_once(ramp, monkeypatch):
    path, values = ramp
    calls = []
    original = os.preadv
    monkeypatch.setattr(os, "preadv", lambda *args: calls.append(args[2]) or original(*args))
    assert whole(path, shuffle=False).equal(values)
    assert len(calls) == 1
    data = opened(path)
    calls.clear()
    data._order = torch.tensor([3, 0, 4, 6, 1])
    data.samples = 5
    assert next(iter(data)).equal(values[[3, 0, 4, 6, 1]])
    assert len(calls) == 3, "0 and 1, 3 and 4, 6"


def test_a_share_reads_only_its_own_batches(ramp, monkeypatch):
    path, values = ramp
    data = opened(path, batch_size=2, shuffle=False)
    read = []
    original = os.preadv
    monkeypatch.setattr(
        os, "preadv", lambda fd, buffers, at: read.append(sum(map(len, buffers))) or original(fd, buffers, at)
    )
    assert torch.cat(list(data.share(1, 2))).equal(values[[2, 3, 6]])
    assert sum(read) == 3 * 24


def test_batches_do_not_share_memory(ramp):
    path, values = ramp
    data = opened(path, batch_size=4, shuffle=False)
    iterator = iter(data)
    first = next(iterator)
    first.fill_(-1)
    assert next(iterator).equal(values[4:])
    assert next(iter(data)).equal(values[:4])


def test_bools_that_are_neither_0_nor_1_are_true(tmp_path):
    (tmp_path / "x.npy").write_bytes(npy((4,), b"\0\1\2\xff", "|b1"))
    found = whole(str(tmp_path / "x.npy"), shuffle=False)
    assert found.dtype is torch.bool
    assert found.view(torch.uint8).tolist() == [0, 1, 1, 1]


class TestNormalising:
    def test_pixels_become_floats_only_if_asked(self, tmp_path):
        path = tmp_path / "x.npy"
        path.write_bytes(npy((2, 3, 1, 1), bytes([0, 51, 255, 255, 102, 0]), "|u1"))
        assert whole(str(path), shuffle=False).dtype is torch.uint8
        found = whole(str(path), shuffle=False, mean=(0.5, 0.2, 0.0), std=(0.5, 2.0, 1.0))
        assert found.dtype is torch.float32
        expected = [[-1.0, 0.0, 1.0], [1.0, 0.1, 0.0]]
        assert torch.allclose(found.view(2, 3), torch.tensor(expected), atol=1e-7)

    def test_floats_are_not_divided(self, ramp):
        path, values = ramp
        assert whole(path, shuffle=False, mean=(1.0,)).equal(values - 1)
        assert whole(path, shuffle=False, std=(2.0, 4.0)).equal(values / torch.tensor([[2.0], [4.0]]))

    @pytest.mark.parametrize(("dtype", "wide"), [("float16", "float32"), ("float64", "float64")])
    def test_the_result_is_float32_or_wider(self, tmp_path, dtype, wide):
        path = tmp_path / "x.safetensors"
        path.write_bytes(safetensors_file(x=torch.ones(2, 3, dtype=getattr(torch, dtype))))
        assert str(whole(str(path), mean=(0.5,)).dtype) == f"torch.{wide}"

    @pytest.mark.parametrize(
        ("shape", "descr", "message"),
        [
            ((2, 2), "|u1", r"3 numbers, but the samples .* the shape \[2\]"),
            ((4,), "|u1", "one number per channel"),
            ((1, 3), "|b1", "holds bool"),
            ((1, 3), "|i1", "holds int8"),
        ],
    )
    def test_what_cannot_be_normalised_is_refused(self, tmp_path, shape, descr, message):
        path = tmp_path / "x.npy"
        path.write_bytes(npy(shape, bytes(torch.Size(shape).numel()), descr))
        with pytest.raises(UsageError, match=message):
            whole(str(path), mean=(0.5, 0.5, 0.5))


class TestRefused:
    @pytest.mark.parametrize(
        ("raw", "message"),
        [
            (npy((2, 3), bytes(23)), r"float32 \[2, 3\] takes .* bytes with its header, and there are"),
            (npy((2, 3), bytes(25)), "truncated or damaged"),
            (npy((2**40, 2**20), bytes(24)), "truncated or damaged"),
            (npy((2**62, 2**62, 4), b""), "truncated or damaged"),
            (npy((), bytes(4)), r"has the shape \[\]: it holds no samples"),
            (npy((0, 3), b""), r"\[0, 3\]: it holds no samples"),
            (npy((2**62, 0), b""), "holds no samples"),
            (npy((2,), bytes(8), "|O"), "object array"),
            (b"", "begins with"),
            (b"version https://git-lfs.github.com/spec/v1\n", "no .npy array"),
        ],
        ids=range(10),
    )
    def test_a_lying_npy_file(self, tmp_path, raw, message):
        path = tmp_path / "x.npy"
        path.write_bytes(raw)
        before = len(os.listdir("/proc/self/fd"))
        with memory_below(1 << 20), pytest.raises(DataError, match=message) as caught:
            opened(str(path))
        assert "x.npy" in str(caught.value)
        assert len(os.listdir("/proc/self/fd")) == before

    @pytest.mark.parametrize("missing", [1, 2, 60, 119, 120, 121, 150, 180, 188, 189])
    def test_a_truncated_safetensors_file(self, tmp_path, missing):
        raw = safetensors_file(x=torch.ones(10, 3))
        path = tmp_path / "x.safetensors"
        path.write_bytes(raw[:-missing])
        with pytest.raises(DataError, match=r"x\.safetensors"):
            opened(str(path))

    @pytest.mark.parametrize("dtype", ["complex64", "float8_e4m3fn"])
    def test_types_without_statistics(self, tmp_path, dtype):
        path = tmp_path / "x.safetensors"
        path.write_bytes(safetensors_file(x=torch.zeros(2, 2).to(getattr(torch, dtype))))
        with pytest.raises(DataError, match=f"of type {dtype}"):
            opened(str(path))

    def test_a_batch_beyond_any_memory(self, tmp_path):
        path = tmp_path / "x.npy"
        row = MAX_BATCH // 256 + 1
        raw = npy((300, row), b"", "|u1")
        path.write_bytes(raw)
        os.truncate(path, len(raw) + 300 * row)  # nearly all of it is a hole
        with pytest.raises(UsageError, match="give a smaller --batch-size"):
            opened(str(path))
        opened(str(path), batch_size=100).close()

    def test_a_folder_a_fifo_and_nothing(self, tmp_path):
        os.mkfifo(tmp_path / "x.npy")
        with pytest.raises(DataError, match="not a regular file"):
            opened(str(tmp_path / "x.npy"))
        os.mkdir(tmp_path / "y.npy")
        with pytest.raises(DataError, match="is a folder"):
            opened(str(tmp_path / "y.npy"))
        with pytest.raises(DataError, match=r"z\.npy': No such file"):
            opened(str(tmp_path / "z.npy"))
        with pytest.raises(DataError, match="null"):
            opened("a\0b.npy")

    @pytest.mark.parametrize("option", [{"size": 3}, {"max_bad": 3}])
    def test_options_of_images(self, ramp, option):
        with pytest.raises(UsageError, match="it holds arrays, not images"):
            opened(ramp[0], **option)


class TestChanged:
    def test_a_file_that_shrank(self, ramp):
        path, _ = ramp
        data = opened(path)
        os.truncate(path, 100)
        with pytest.raises(DataError, match="truncated or was changed"):
            next(iter(data))

    def test_a_file_that_was_written_to(self, ramp):
        path, _ = ramp
        data = opened(path, batch_size=2)
        iterator = iter(data)
        next(iterator)
        time.sleep(0.02)
        with open(path, "r+b") as file:
            file.seek(-4, os.SEEK_END)
            file.write(b"abcd")
        with pytest.raises(DataError, match=r"the data '.*x\.npy' changed while it was read"):
            next(iterator)

    def test_closing_twice_is_harmless(self, ramp):
        data = opened(ramp[0])
        data.close()
        data.close()


class TestKeys:
    def test_the_only_array_needs_no_key(self, tmp_path):
        path = tmp_path / "x.safetensors"
        path.write_bytes(safetensors_file(only=torch.ones(3, 2)))
        assert whole(str(path)).equal(torch.ones(3, 2))

    def test_several_are_listed_with_their_shapes(self, tmp_path):
        path = tmp_path / "x.safetensors"
        path.write_bytes(safetensors_file(a=torch.ones(3, 2), b=torch.ones(4, dtype=torch.int64)))
        with pytest.raises(
            UsageError, match=r"holds 2 arrays: .*'a' \(float32 \[3, 2\]\), 'b' \(int64 \[4\]\)"
        ):
            opened(str(path))
        with pytest.raises(UsageError, match=r"no array 'c': name one of 'a'"):
            opened(str(path), "c")

    def test_long_lists_are_cut(self, tmp_path):
        path = tmp_path / "x.safetensors"
        path.write_bytes(safetensors_file(**{f"a{number}": torch.ones(1) for number in range(50)}))
        with pytest.raises(UsageError, match=r"'a19' \(float32 \[1\]\) and 30 more after a colon"):
            opened(str(path))

    def test_an_archive_of_nothing(self, tmp_path):
        path = tmp_path / "x.safetensors"
        path.write_bytes(safetensors_file())
        with pytest.raises(DataError, match="holds no arrays"):
            opened(str(path))

    def test_an_npy_file_has_no_key(self, ramp):
        with pytest.raises(UsageError, match="leave out ':x'"):
            opened(ramp[0], "x")


@needs_numpy
def test_an_array_in_memory_is_what_numpy_loads():
    import numpy

    array = drawn((3, 2), ">i4", 0)
    file = io.BytesIO()
    numpy.save(file, array)
    assert array_from_bytes(file.getvalue(), "it").tolist() == array.tolist()
    with pytest.raises(DataError, match="truncated"):
        array_from_bytes(file.getvalue()[:-1], "it")
    with pytest.raises(DataError, match="no values"):
        array_from_bytes(npy((2, 0), b""), "it")


def test_memory_is_one_batch_whatever_the_size_of_the_array(tmp_path):
    path = tmp_path / "x.npy"
    raw = npy((20_000, 1000), b"")
    path.write_bytes(raw)
    os.truncate(path, len(raw) + 20_000 * 4000)  # 80 MB
    data = opened(str(path), batch_size=100)
    with memory_below(2 << 20):  # a batch has 0.4 MB
        for batch in data:
            del batch
