"""Tar files of samples that are damaged at random: how they are written, damaged and read, and by whom."""

import functools
import io
import itertools
import os
import tarfile

import torch

from hostile import mutating
from hostile.arrays import npy
from hostile.fuzz_format import Format, written_to
from hostile.fuzz_images import batches_of, compare_batches, encoded, pillow_reads
from hostile.tars import patched, tarred

BLOCK = tarfile.BLOCKSIZE
LONG = "f" * 60 + "/" + "n" * 110
# What a header holds: where a field begins, and how long it is.
FIELDS = {
    "name": (0, 100),
    "mode": (100, 8),
    "size": (124, 12),
    "mtime": (136, 12),
    "type": (156, 1),
    "link": (157, 100),
    "magic": (257, 8),
    "prefix": (345, 155),
}
TYPES = b"0\x00 1234567xgLKSDVNAX"
NAMES = (
    b"0.npy",
    b"1.npy",
    b"a/1.npy",
    b"1.x.npy",
    b"1.cls",
    b".1.npy",
    b"1.png",
    b"1.NPY",
    b"\xff.npy",
    b"",
)
SIZES = (b"0", b"1", b"77", b"202", b"1000", b"-1", b" 12", b"8", b"7" * 11, b"\x80" + b"\x00" * 10 + b"\x52")
IMAGES = (".jpg", ".jpeg", ".png", ".webp")
DECODED = (*IMAGES, ".npy")


@functools.cache
def seeds():
    """Tar files of the formats that Python writes: of arrays, of images, with long names and labels."""
    arrays = [(f"{number}.npy", npy((3,), bytes([number, 7, 9]), "|u1")) for number in range(2)]
    long = [(f"{LONG}.npy", npy((3,), b"abc", "|u1")), (f"{LONG}.cls", b"3")]
    pictures = [("a/0.png", encoded("L", "PNG")), ("a/0.cls", b"1"), ("a/1.seg.png", encoded("L", "PNG"))]
    formats = tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT
    found = [
        tarred(*members, format=one) for one in formats[1:] for members in (long + arrays, arrays + long[1:])
    ]
    found += [tarred(*arrays, format=formats[0]), tarred(*pictures, format=formats[0])]
    # Without what fills the file up to a whole record, where damage is not seen.
    return [one.rstrip(b"\0") + bytes(-len(one.rstrip(b"\0")) % BLOCK + 2 * BLOCK) for one in found]


def mutant(dice):
    data = dice.choice(seeds())
    change = dice.randrange(8)
    if change == 0:
        return mutating.of_bytes(dice, data)
    if change == 1:
        return _with_other_blocks(dice, data)
    if change == 2:
        place = dice.randrange(len(data))
        return data[:place] + mutating.of_bytes(dice, data[place : place + 40], 1)[:40] + data[place + 40 :]
    for _ in range(dice.randint(1, 3)):
        data = _with_another_field(dice, data)
    return data


def _with_other_blocks(dice, data):
    """Swap, repeat, remove or empty whole blocks."""
    blocks = [data[place : place + BLOCK] for place in range(0, len(data), BLOCK)]
    return mutating.rearranged(dice, blocks, lambda _: bytes(BLOCK))


def _with_another_field(dice, data):
    """Change a field of a header, whose checksum is right again."""
    headers = [place for place in range(0, len(data), BLOCK) if data[place + 257 : place + 262] == b"ustar"]
    if not headers:
        return data
    place = dice.choice(headers)
    name = dice.choice(("size", "size", "type", "type", "name", *FIELDS))
    begin, length = FIELDS[name]
    field = mutating.of_bytes(dice, data[place + begin : place + begin + length], 1)
    if dice.randrange(3):
        known = {"type": [bytes([one]) for one in TYPES], "size": SIZES, "name": NAMES}
        field = dice.choice(known.get(name, (field,)))
    changed = patched(data[place : place + BLOCK], begin, field[:length].ljust(length, b"\0"))
    return data[:place] + changed + data[place + BLOCK :]


def tarfile_reads(data):
    """What a reader makes of a tar file that trusts Python's tarfile, NumPy and Pillow."""
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
        members = [(info.name, _content(archive, info)) for info in archive if _is_decoded(info.name)]
    samples = itertools.groupby(members, lambda member: _key(member[0]))
    return [_decoded(*_input(list(several))) for _, several in samples]


def _is_decoded(name):
    base = os.path.basename(name)
    return os.path.splitext(name)[1].lower() in DECODED and not base.startswith(".")


def _content(archive, info):
    if not info.isreg():
        raise ValueError("a link")
    return archive.extractfile(info).read()


def _key(name):
    return os.path.dirname(name), os.path.basename(name).split(".")[0]


def _input(members):
    """Return the one member of a sample that nothing distinguishes but its type."""
    if len(members) == 1:
        return members[0]
    (found,) = [one for one in members if os.path.basename(one[0]).partition(".")[2].lower() in KINDS]
    return found


KINDS = tuple(suffix[1:] for suffix in DECODED)


def _decoded(name, data):
    import numpy

    if not name.endswith(".npy"):
        return pillow_reads(data)
    found = numpy.load(io.BytesIO(data), allow_pickle=False)
    if found.dtype == bool:
        found = found.view(numpy.uint8) != 0  # bytes that are neither 0 nor 1 are true
    return torch.from_numpy(found.astype(found.dtype.newbyteorder("=")))[None]


FORMATS = {
    "tar": Format(
        mutant,
        written_to("x.tar"),
        lambda path: batches_of(f"wds:{path}"),
        tarfile_reads,
        compare_batches,
        is_listed=True,
    )
}
