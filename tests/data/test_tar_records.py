"""Tar files in the manner of WebDataset: read where they lie, nothing extracted, nothing unpickled."""

import os
import tarfile
import time
import tracemalloc

import pytest
import torch
from hanging import no_hang
from hostile.arrays import npy
from hostile.tars import BAD_TARS, TWO, global_header, member, patched, tarred, value

from swatool.data import tar_records
from swatool.data.options import DataOptions
from swatool.data.tar_records import TarData
from swatool.errors import DataError, UsageError

# What nearly every test needs, if only because opening tar files asks for it.
pytestmark = pytest.mark.usefixtures("pictures")


@pytest.fixture
def opened(tmp_path):
    def opening(*shards, pattern="*.tar", **options):
        for number, raw in enumerate(shards):
            (tmp_path / f"{number}.tar").write_bytes(raw)
        return TarData(f"wds:{pattern}", f"{tmp_path}/{pattern}", DataOptions(**options))

    return opening


def firsts(batches):
    return [batch[:, 0].tolist() for batch in batches]


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_the_samples_of_all_shards_in_order(opened, format):
    long = "a" * 90 + "/" + "b" * 90
    shards = [
        tarred(("0.npy", value(0)), ("0.cls", b"3"), ("1.npy", value(1)), format=format),
        tarred((f"{long}.json", b"{}"), (f"{long}.npy", value(2)), ("3.npy", value(3)), format=format),
        tarred(("4.npy", value(4)), format=format),
    ]
    data = opened(*shards, batch_size=2)
    for _ in range(2):
        assert firsts(data) == [[0, 1], [2, 3], [4]]
    assert next(iter(data)).dtype is torch.uint8
    assert data.samples is None
    assert not data.bad
    assert not data.notes
    data.close()


def test_a_global_header_may_comment(opened):
    assert firsts(opened(global_header({"comment": "by git archive"}))) == [[0, 1]]


def test_images_are_decoded_and_resized(opened, pictures):
    pixels = [pictures.drawn(8, 8 + number, number) for number in range(4)]
    kinds = [("png", "PNG"), ("jpg", "JPEG"), ("JPEG", "JPEG"), ("webp", "WEBP")]
    members = [(f"{n}.{kinds[n][0]}", pictures.encoded(pixels[n], kinds[n][1])) for n in range(4)]
    data = opened(tarred(*members), size=8, mean=(0.5, 0.5, 0.5))
    batch = next(iter(data))
    assert (batch.shape, batch.dtype) == ((4, 3, 8, 8), torch.float32)
    assert torch.allclose(batch[0], pixels[0] / 255 - 0.5)
    with pytest.raises(UsageError, match=r"8x8 for .*0\.png' and 8x9 for .*1\.jpg': give --size"):
        list(opened())


def test_samples_and_shares(opened):
    raw = tarred(*((f"{number}.npy", value(number)) for number in range(10)))
    assert firsts(opened(raw, samples=5, batch_size=2)) == [[0, 1], [2, 3], [4]]
    data = opened(batch_size=3)
    for rank in range(3):
        assert firsts(data.share(rank, 3)) == firsts(data)[rank::3]


def test_a_share_decodes_only_its_own(opened, monkeypatch):
    data = opened(tarred(*((f"{number}.npy", value(number)) for number in range(10))), batch_size=2)
    decoded = []
    original = tar_records._decode
    monkeypatch.setattr(
        tar_records, "_decode", lambda one, options: decoded.append(one.name) or original(one, options)
    )
    list(data.share(1, 3))
    assert sorted(decoded) == ["2.npy", "3.npy", "8.npy", "9.npy"]


def test_shuffling_is_refused_and_no_shuffle_is_what_happens_anyway(opened):
    raw = tarred(("0.npy", value(0)))
    with pytest.raises(UsageError, match="read in their own order"):
        opened(raw, shuffle=True)
    with pytest.raises(UsageError, match="--seed cannot be used"):
        opened(raw, seed=1)
    assert firsts(opened(raw, shuffle=False)) == [[0]]


class TestInput:
    """Which member of a sample is the model's input."""

    def test_the_plain_one_before_a_special_one(self, opened):
        raw = tarred(("a/0.mask.npy", value(9)), ("a/0.npy", value(1)), ("b/0.x.npy", value(2)))
        assert firsts(opened(raw)) == [[1, 2]]

    @pytest.mark.parametrize("names", [("0.left.npy", "0.right.npy"), ("0.npy", "0.png")])
    def test_several_are_ambiguous(self, opened, names):
        with pytest.raises(DataError, match=rf"several inputs for one sample, '{names[0]}', '{names[1]}'"):
            opened(tarred(*((name, value(0)) for name in names)))

    def test_only_a_few_of_very_many_are_named(self, opened):
        raw = tarred(*((f"0.{'n' * 200}{number}.png", b"") for number in range(2000)))
        with pytest.raises(DataError, match=r"' and 1,995 more: give a loader") as caught:
            opened(raw)
        assert len(str(caught.value)) < 1500

    def test_hidden_files_and_other_types_are_left_alone(self, opened):
        raw = tarred(("._0.npy", b"macOS"), ("0.npy", value(1)), ("0.txt", b"x"), (member("d", b"5"), b""))
        assert firsts(opened(raw)) == [[1]]


class TestPickles:
    @pytest.mark.parametrize("suffix", [".pyd", ".pickle", ".pkl", ".pth", ".pt"])
    def test_they_are_counted_and_never_decoded(self, opened, monkeypatch, suffix):
        monkeypatch.setattr("pickle.loads", lambda *_: pytest.fail("unpickled"))
        evil = b"cos\nabort\n(tR."
        data = opened(tarred(("0.npy", value(1)), (f"0{suffix}", evil), (f"1{suffix}", evil)))
        for _ in range(2):
            assert firsts(data) == [[1]]
            assert data.notes == [f"2 members named {suffix} were not decoded, because unpickling runs code"]

    def test_an_object_array_is_one(self, opened):
        data = opened(tarred(("0.npy", npy((1,), b"cos\nabort\n(tR.", "|O"))))
        with pytest.raises(DataError, match="object array"):
            list(data)


class TestUnreadable:
    def test_tolerated_ones_are_left_out(self, opened):
        raw = tarred(("0.npy", value(0)), ("1.npy", b"what"), ("2.png", b"what"), ("3.npy", value(3)))
        data = opened(raw, max_bad=2)
        assert firsts(data) == [[0, 3]]
        assert [os.path.basename(name) for name in data.bad] == ["1.npy", "2.png"]
        with pytest.raises(DataError, match=r"(?s)2 samples are unreadable.*0\.tar/1\.npy': it is damaged"):
            list(opened(raw, max_bad=1))

    def test_samples_of_several_shapes(self, opened):
        raw = tarred(("0.npy", value(0)), ("1.npy", npy((3,), b"abc", "|u1")))
        with pytest.raises(
            DataError, match=r"1\.npy' is uint8 \[3\], unlike .*0\.npy', which is uint8 \[2\]"
        ):
            list(opened(raw))

    def test_a_member_that_is_too_large_is_not_read(self, opened, monkeypatch):
        monkeypatch.setattr(tar_records, "MAX_MEMBER", 200)
        raw = tarred(("0.npy", value(0)), ("1.npy", npy((300,), bytes(300), "|u1")))
        data = opened(raw, max_bad=1)
        assert firsts(data) == [[0]]
        assert "at most 200 are read" in next(iter(data.bad.values()))


@pytest.mark.parametrize(("raw", "message"), BAD_TARS.values(), ids=BAD_TARS)
def test_a_hostile_tar_file(opened, raw, message):
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(DataError, match=message):
        opened(raw)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, b"L", b"K"], ids=str)
def test_headers_are_bounded(opened, kind):
    """A long name or an extended header of eight megabytes, which tarfile alone would hold in memory."""
    raw = patched(tarred((member("0", kind, size=8 << 20), bytes(8 << 20))), 156, kind)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="headers have more than 1,048,576 bytes"):
            opened(raw)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_global_headers_do_not_pile_up(opened):
    """Eighty of them with a hundred kilobytes each, under names of their own."""
    parts = []
    for number in range(80):
        text = f"100000 a{number}=".encode().ljust(99_999, b"x") + b"\n"
        one = tarred((member("h", tarfile.XGLTYPE, size=len(text)), text))
        parts.append(patched(one, 156, b"g")[: 512 + -(-len(text) // 512) * 512])
        parts.append(tarred((f"{number}.txt", b""), format=tarfile.USTAR_FORMAT)[:512])
    raw = b"".join([*parts, TWO])
    tracemalloc.start()
    try:
        opened(raw)
        assert tracemalloc.get_traced_memory()[1] < 3 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, b"L"], ids=str)
def test_headers_that_never_end_are_refused(opened, kind):
    one = patched(tarred((member("0", kind, size=10), b"9 path=aa\n")), 156, kind)[:1024]
    with no_hang(), pytest.raises(DataError, match="damaged"):
        opened(one * 20_000)


@pytest.mark.parametrize("cut", [100, 600, 1024, 1200, 1536, 2000])
def test_a_cut_file(opened, cut):
    with pytest.raises(DataError, match=r"0\.tar' is truncated"):
        list(opened(TWO[:cut]))


def test_names_lead_nowhere(opened, tmp_path):
    names = ["../0.npy", "/etc/1.npy", "a/../../2.npy", "C:\\3.npy"]
    data = opened(tarred(*((name, value(number)) for number, name in enumerate(names))))
    assert firsts(data) == [[0, 1, 2, 3]]
    assert os.listdir(tmp_path) == ["0.tar"]


def test_a_name_cannot_drive_the_terminal(opened):
    with pytest.raises(DataError) as caught:
        list(opened(tarred(("\x1b[2J0.npy", b"what"))))
    assert "\x1b" not in str(caught.value)


def test_a_file_that_is_replaced_is_not_read(opened, tmp_path):
    data = opened(tarred(*((f"{number}.npy", value(number)) for number in range(6))), batch_size=2)
    iterator = iter(data)
    next(iterator)
    (tmp_path / "new").write_bytes((tmp_path / "0.tar").read_bytes())
    os.replace(tmp_path / "new", tmp_path / "0.tar")
    with pytest.raises(DataError, match=r"(?s)3\.npy.*0\.tar' changed while it was read"):
        next(iterator)


def test_a_file_that_is_written_to_while_it_is_read(opened, tmp_path):
    data = opened(tarred(*((f"{number}.npy", value(number)) for number in range(6))), batch_size=2)
    iterator = iter(data)
    next(iterator)
    time.sleep(0.02)
    (tmp_path / "0.tar").write_bytes(TWO)
    with pytest.raises(DataError, match=r"0\.tar"):
        list(iterator)


def test_no_files(opened):
    with pytest.raises(DataError, match=r"there are no files '.*/\*\.tar'$"):
        opened()
    with pytest.raises(DataError, match="braces are not expanded"):
        opened(pattern="{0..9}.tar")


def test_walking_keeps_no_members(opened):
    raw = tarred(*((f"{number}.txt", b"") for number in range(3000)), ("x.npy", value(0)))
    opened(raw)
    tracemalloc.start()
    data = opened()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert firsts(data) == [[0]]
    assert peak < 300_000
