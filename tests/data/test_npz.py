"""Archives of arrays: plain and packed records are read, and bombs, lies and ambiguities are refused."""

import os
import re
import tempfile
import tracemalloc
from contextlib import contextmanager

import pytest
import torch
from hostile.arrays import ARRAY, BAD_ARCHIVES, DEFLATED, STORED, in_central, in_local, npy, zipped

from swatool.data import npz
from swatool.data.arrays import open_arrays
from swatool.data.options import DataOptions
from swatool.errors import DataError, OutputError, UsageError

VALUES = torch.arange(60.0).view(10, 6)
SMALL = npy((1,), b"\1\2\3\4")


@contextmanager
def memory_below(limit):
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


@pytest.fixture
def opened(tmp_path):
    def opening(raw, key="x", **options):
        path = tmp_path / "x.npz"
        path.write_bytes(raw)
        spec = str(path) if key is None else f"{path}:{key}"
        return open_arrays(spec, str(path), key, DataOptions(**options))

    return opening


@pytest.mark.parametrize("method", [STORED, DEFLATED])
@pytest.mark.parametrize("shuffle", [True, False])
def test_plain_and_packed_arrays_are_read_in_any_order(opened, method, shuffle):
    data = opened(zipped(("y.npy", SMALL), ("x.npy", ARRAY), method=method), shuffle=shuffle, batch_size=3)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    expected = VALUES[order] if shuffle else VALUES
    assert torch.cat(list(data)).equal(expected)
    assert torch.cat(list(data)).equal(expected)
    data.close()


def test_a_packed_array_leaves_nothing_behind(opened, tmp_path, monkeypatch):
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    before = len(os.listdir("/proc/self/fd"))
    data = opened(zipped(("x.npy", ARRAY), method=DEFLATED))
    assert not os.listdir(folder)
    next(iter(data))
    data.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_key_is_the_name_in_the_archive_with_or_without_its_ending(opened):
    raw = zipped(("x.npy", ARRAY), ("folder/y.npy", SMALL), ("readme.txt", b"hello"))
    for key in ("x", "x.npy"):
        assert opened(raw, key).samples == 10
    assert opened(raw, "folder/y").samples == 1
    with pytest.raises(
        UsageError,
        match=r"holds 2 arrays: name one of 'x' \(float32 \[10, 6\]\), 'folder/y' \(float32 \[1\]\)",
    ):
        opened(raw, None)
    with pytest.raises(UsageError, match="no array 'z'"):
        opened(raw, "z")
    assert opened(zipped(("x.npy", ARRAY)), None).samples == 10


def test_an_array_that_cannot_be_described_is_still_listed(opened):
    with pytest.raises(UsageError, match=r"'x' \(float32 \[10, 6\]\), 'bad' \(unreadable\)"):
        opened(zipped(("x.npy", ARRAY), ("bad.npy", b"what")), None)


def test_an_archive_without_arrays(opened):
    with pytest.raises(DataError, match="holds no arrays"):
        opened(zipped(("readme.txt", b"")))


def bomb(claimed):
    """A hundred million zeros in a hundred thousand bytes, with a size of one's choice in both headers."""
    head = npy((100_000_000,), b"", "|u1")
    raw = zipped(("x.npy", head + bytes(100_000_000)), method=DEFLATED)
    return in_local(in_central(raw, "x.npy", 24, "<I", claimed), 22, "<I", claimed)


HONEST = len(npy((100_000_000,), b"", "|u1")) + 100_000_000


@pytest.mark.parametrize(
    ("claimed", "message"),
    [
        (HONEST, "claims to unpack to 100,000,075 bytes"),
        (4_000_000_000, "claims to unpack to 4,000,000,000 bytes"),
        (20_000, "truncated or damaged: uint8"),
    ],
)
def test_a_bomb_is_refused_before_it_is_unpacked(opened, monkeypatch, claimed, message):
    raw = bomb(claimed)
    monkeypatch.setattr(npz.Archive, "_unpacked", lambda *_: pytest.fail("it is unpacked"))
    with memory_below(4 << 20), pytest.raises(DataError, match=message):
        opened(raw)


@pytest.mark.parametrize(("more", "message"), [(5_000_000, "Bad CRC-32"), (-4, "Bad CRC-32")])
def test_a_record_that_unpacks_to_something_else_fills_no_disk(opened, monkeypatch, more, message):
    """The header and the directory agree on a size which is not that of the packed bytes."""
    written = []
    original = npz.shutil.copyfileobj
    monkeypatch.setattr(
        npz.shutil, "copyfileobj", lambda a, b, n: (original(a, b, n), written.append(b.tell()))
    )
    head = npy((1000,), b"", "|u1")
    raw = zipped(("x.npy", head + bytes(1000 + more)), method=DEFLATED)
    claimed = len(head) + 1000
    raw = in_local(in_central(raw, "x.npy", 24, "<I", claimed), 22, "<I", claimed)
    with pytest.raises(DataError, match=rf"x\.npz' is damaged.*({message}|unpacks to less)"):
        opened(raw)
    assert sum(written) <= claimed


def test_a_large_array_that_packs_well_is_unpacked_up_to_a_ratio(opened, monkeypatch):
    monkeypatch.setattr(npz, "FREE_OF_RATIO", 0)
    raw = zipped(("x.npy", npy((100_000,), bytes(100_000), "|u1")), method=DEFLATED)
    with pytest.raises(DataError, match=r"as only a bomb does: if it is yours"):
        opened(raw)
    plausible = b"".join(bytes(90) + os.urandom(10) for _ in range(1000))
    opened(zipped(("x.npy", npy((100_000,), plausible, "|u1")), method=DEFLATED)).close()


def test_without_room_the_system_is_to_blame(opened, monkeypatch):
    raw = zipped(("x.npy", ARRAY), method=DEFLATED)
    real = os.statvfs
    monkeypatch.setattr(os, "statvfs", lambda fd: os.statvfs_result((*real(fd)[:4], 0, *real(fd)[5:])))
    with pytest.raises(OutputError, match="set TMPDIR to another folder"):
        opened(raw)
    monkeypatch.undo()

    def failing(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(npz.shutil, "copyfileobj", failing)
    with pytest.raises(OutputError, match=r"unpacking .* failed: No space left on device"):
        opened(raw)


@pytest.mark.parametrize(("raw", "message"), BAD_ARCHIVES.values(), ids=BAD_ARCHIVES)
def test_a_hostile_archive(opened, raw, message):
    before = len(os.listdir("/proc/self/fd"))
    with memory_below(2 << 20), pytest.raises(DataError, match=message) as caught:
        opened(raw)
    assert "x.npz" in str(caught.value)
    assert "torch.save" not in str(caught.value)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_giant_directory_is_not_read(opened):
    raw = zipped(*((f"{number:04}" + "x" * 60_000, b"") for number in range(80)))
    with pytest.raises(DataError, match="its directory has more than"):
        opened(raw)


@pytest.mark.parametrize("method", [STORED, DEFLATED])
def test_any_cut_is_refused(opened, method):
    raw = zipped(("y.npy", SMALL), ("x.npy", ARRAY), method=method)
    for cut in range(0, len(raw), 13):
        with pytest.raises(DataError, match=re.escape("x.npz")):
            opened(raw[:cut])


@pytest.mark.parametrize("method", [STORED, DEFLATED])
def test_any_changed_byte_is_a_data_error_or_harmless(opened, method):
    raw = zipped(("x.npy", ARRAY), ("y.npy", SMALL), method=method)
    for place in range(0, len(raw), 3):
        changed = bytearray(raw)
        changed[place] ^= 0xFF
        try:
            data = opened(changed)
        except (DataError, UsageError):
            continue
        assert torch.cat(list(data)).numel()
        data.close()
