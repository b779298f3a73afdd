"""Images, and tar files of samples, that are damaged at random: how they are written, damaged and read."""

import functools
import io
import struct
import warnings
import zlib
from pathlib import Path
from unittest import mock

import torch

from hostile import comparing, mutating
from hostile.fuzz_format import Format
from swatool.data import images
from swatool.data.opening import DataOptions, open_data

MOST_PIXELS = 1 << 14  # of a mutant: images of millions take seconds, and are read no otherwise
ONE_BY_ONE = DataOptions(shuffle=False, batch_size=1)
SIGNATURE = b"\x89PNG\r\n\x1a\n"


def encoded(mode, kind, **options):
    """An image of 6 x 5 pixels, as Pillow writes it."""
    from PIL import Image

    file = io.BytesIO()
    pixels = bytes(number * 5 % 256 for number in range(90))
    Image.frombytes("RGB", (6, 5), pixels).convert(mode).save(file, kind, **options)
    return file.getvalue()


@functools.cache
def png_seeds():
    palette = encoded("P", "PNG", transparency=3)
    return [*(encoded(mode, "PNG") for mode in ("RGB", "RGBA", "L", "LA", "1")), palette]


@functools.cache
def jpeg_seeds():
    whole = [encoded(mode, "JPEG", quality=50) for mode in ("RGB", "L", "CMYK")]
    return [*whole, encoded("RGB", "JPEG", progressive=True), encoded("RGB", "JPEG", restart_marker_blocks=1)]


@functools.cache
def ppm_seeds():
    plain = b"P3 # pixels\n2 2 15\n" + b" ".join(b"%d" % number for number in range(12)) + b"\n"
    bits = b"P1\n3 2\n1 0 1\n010\n"
    return [*(encoded(mode, "PPM") for mode in ("RGB", "L", "1")), plain, bits, b"P2 2 1 9 4 9 "]


# PNG.


def png_mutant(dice):
    """Damage bytes, or whole chunks whose checksums are right again."""
    data = dice.choice(png_seeds())
    if not dice.randrange(4):
        return mutating.of_bytes(dice, data)
    chunks = list(_chunks(data))
    for _ in range(dice.randint(1, 2)):
        _change_a_chunk(dice, chunks)
    return SIGNATURE + b"".join(map(_chunk, *zip(*chunks, strict=True))) if chunks else SIGNATURE


def _chunks(data):
    place = len(SIGNATURE)
    while place < len(data):
        (length,) = struct.unpack_from(">I", data, place)
        yield data[place + 4 : place + 8], data[place + 8 : place + 8 + length]
        place += 12 + length


def _chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _change_a_chunk(dice, chunks):
    """Remove, repeat, move, rename or damage one; of pixels also what is packed."""
    place = dice.randrange(len(chunks))
    kind, data = chunks[place]
    change = dice.randrange(8)
    if change == 0 and len(chunks) > 1:
        del chunks[place]
    elif change == 1:
        chunks.insert(dice.randrange(len(chunks)), chunks[place])
    elif change == 2:
        chunks[place] = dice.choice((b"IHDR", b"IDAT", b"PLTE", b"tRNS", b"acTL", b"fdAT", b"zTXt")), data
    elif kind == b"IDAT" and change < 6:
        try:
            pixels = zlib.decompress(data)
        except zlib.error:
            return
        chunks[place] = kind, zlib.compress(mutating.of_bytes(dice, pixels))
    else:
        chunks[place] = kind, mutating.of_bytes(dice, data, 2)


# JPEG and PPM.


def jpeg_mutant(dice):
    """Damage bytes, half of them those that say what is there, and not the tables."""
    data = dice.choice(jpeg_seeds())
    if dice.randrange(2):
        return mutating.of_bytes(dice, data)
    place = data.index(dice.choice((b"\xff\xc4", b"\xff\xda")))
    return data[: place + 2] + mutating.of_bytes(dice, data[place + 2 : place + 24]) + data[place + 24 :]


def ppm_mutant(dice):
    return mutating.of_bytes(dice, dice.choice(ppm_seeds()), 2)


# What swatool and Pillow read.


def prepare(folder):
    (folder / "images").mkdir()


def written(mutant):
    (Path("images") / "x.png").write_bytes(mutant)
    return "imagefolder:images"


def batches_of(spec):
    """Return all batches of a data set, whose images are small."""
    with mock.patch.object(images, "MAX_PIXELS", MOST_PIXELS):
        return list(open_data(spec, ONE_BY_ONE))


def pillow_reads(data):
    """Return what Pillow makes of an image, as [1, 3, height, width] in 0..1."""
    import numpy
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pixels = numpy.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    return torch.from_numpy(pixels.astype("float32").transpose(2, 0, 1)[None] / numpy.float32(255))


def compare_batches(ours, theirs):
    """Say where batches differ in type, shape or any bit."""
    found = [*map(comparing.raw, ours)]
    return "" if found == [*map(comparing.raw, theirs)] else f"{ours} {theirs}"[:500]


def of_images(mutant):
    return Format(
        mutant,
        written,
        batches_of,
        lambda data: [pillow_reads(data)],
        compare_batches,
        prepare=prepare,
        is_listed=True,
    )


FORMATS = {"png": of_images(png_mutant), "jpeg": of_images(jpeg_mutant), "ppm": of_images(ppm_mutant)}
