"""Assemblers of .npy and .npz files and of images, and archives that are damaged or lie."""

import io
import os
import struct
import zipfile
import zlib

STORED, DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED


def npy(shape, data, descr="<f4"):
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text + data


ARRAY = npy((10, 6), struct.pack("<60f", *range(60)))


def zipped(*records, method=STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in records:
            archive.writestr(name, data)
    return bytearray(file.getvalue())


def in_central(raw, name, offset, form, *values):
    """Overwrite fields of a record in the central directory."""
    place = raw.rindex(b"PK\1\2", 0, raw.rindex(name.encode()))
    struct.pack_into(form, raw, place + offset, *values)
    return raw


def in_local(raw, offset, form, *values):
    struct.pack_into(form, raw, offset, *values)
    return raw


def twice():
    raw = zipped(("x.npy", ARRAY), ("y.npy", ARRAY))
    return raw.replace(b"y.npy", b"x.npy")


def unending():
    """A packed record whose bytes begin a block of 65,535 bytes, and reach beyond the end of the file."""
    head = npy((60_000,), b"", "|u1")
    raw = zipped(("x.npy", head + os.urandom(30_000)), method=DEFLATED)
    sizes = len(raw) - 10, len(head) + 60_000
    raw = in_local(in_central(raw, "x.npy", 20, "<2I", *sizes), 18, "<2I", *sizes)
    return in_local(raw, 35, "<BHH", 0, 65_535, 0)


BAD_ARCHIVES = {
    "a duplicate name": (twice(), "array 'x' is there twice"),
    "encrypted": (in_central(zipped(("x.npy", ARRAY)), "x.npy", 8, "<H", 1), "is encrypted: save it"),
    "bzip2": (zipped(("x.npy", ARRAY), method=zipfile.ZIP_BZIP2), "compressed by method 12"),
    "lzma": (zipped(("x.npy", ARRAY), method=zipfile.ZIP_LZMA), "compressed by method 14"),
    "two sizes": (in_central(zipped(("x.npy", ARRAY)), "x.npy", 24, "<I", 12), "size that it cannot have"),
    "packed beyond the end": (
        in_central(zipped(("x.npy", ARRAY), method=DEFLATED), "x.npy", 20, "<I", 10**9),
        "size that it cannot have",
    ),
    "stored beyond the end": (
        in_central(zipped(("x.npy", ARRAY)), "x.npy", 20, "<2I", 10**9, 10**9),
        "size that it cannot have",
    ),
    "zip64 without numbers": (
        in_central(zipped(("x.npy", ARRAY)), "x.npy", 20, "<2I", 2**32 - 1, 2**32 - 1),
        r"x\.npz",
    ),
    "patched data": (
        in_local(in_central(zipped(("x.npy", ARRAY)), "x.npy", 8, "<H", 32), 6, "<H", 32),
        "damaged",
    ),
    "a version of the future": (in_central(zipped(("x.npy", ARRAY)), "x.npy", 6, "<H", 99), "damaged"),
    "a packed record that never ends": (unending(), "damaged .*EOFError"),
    "a header elsewhere": (in_central(zipped(("x.npy", ARRAY)), "x.npy", 42, "<I", 10), "damaged"),
    "a header beyond the end": (in_central(zipped(("x.npy", ARRAY)), "x.npy", 42, "<I", 10**9), "damaged"),
    "another name in the local header": (in_local(zipped(("x.npy", ARRAY)), 30, "<c", b"z"), "damaged"),
    "another method in the local header": (in_local(zipped(("x.npy", ARRAY)), 8, "<H", 8), "damaged"),
    "packed garbage": (
        in_local(zipped(("x.npy", ARRAY), method=DEFLATED), 35, "<8s", b"\xff" * 8),
        "damaged",
    ),
    "a text": (bytearray(b"hello"), r"damaged or no \.npz archive"),
    "nothing": (bytearray(), r"damaged or no \.npz archive"),
    "an .npy file": (bytearray(ARRAY), r"damaged or no \.npz archive"),
    "a record that is no array": (zipped(("x.npy", b"\x80\4K\1.")), r"no \.npy array"),
    "an object array": (zipped(("x.npy", npy((1,), b"\x80\4K\1.", "|O"))), "object array"),
    "an array that is too short": (zipped(("x.npy", ARRAY[:-1])), "truncated or damaged"),
    "an array that is too long": (zipped(("x.npy", ARRAY + b"\0")), "truncated or damaged"),
}


def png(width, height, data=None):
    """A PNG that claims this size, of a hundred bytes if no data are given."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(100)) if data is None else data
    parts = (chunk(b"IHDR", head), chunk(b"IDAT", data), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)
