"""An assembler of tar files, and those that are damaged or lie."""

import gzip
import io
import os
import tarfile

from hostile.arrays import npy


def value(number):
    return npy((2,), bytes([number, 7]), "|u1")


def member(name, kind=tarfile.REGTYPE, size=0, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, size, link
    return info


def tarred(*members, format=tarfile.PAX_FORMAT):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as archive:
        for name, data in members:
            info = name if isinstance(name, tarfile.TarInfo) else member(name, size=len(data))
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def patched(raw, place, data):
    changed = bytearray(raw)
    changed[place : place + len(data)] = data
    if place < 512:  # keep the checksum right
        changed[148:156] = b" " * 8
        changed[148:156] = b"%06o\0 " % sum(changed[:512])
    return bytes(changed)


ONE = tarred(("0.npy", value(0)), format=tarfile.USTAR_FORMAT)


TWO = tarred(("0.npy", value(0)), ("1.npy", value(1)), format=tarfile.USTAR_FORMAT)


def global_header(said):
    """A tar file whose global header says something, and two members."""
    pax = tarfile.TarInfo.create_pax_global_header(said)
    return pax + TWO


BAD_TARS = {
    "a name for all members": (global_header({"path": "2.npy"}), "has a 'path' for all its members"),
    "a size for all members": (global_header({"size": "3"}), "has a 'size' for all its members"),
    "a sparse map for all members": (
        global_header({"GNU.sparse.map": "0,1"}),
        "has a 'GNU.sparse.map' for all its members",
    ),
    "a giant member": (patched(ONE, 124, b"77777777777\0"), "reaches beyond its end"),
    "a giant member in base 256": (patched(ONE, 124, b"\x80" + b"\x7f" * 11), "damaged|beyond"),
    "a negative member": (patched(ONE, 124, b"\xff" * 11 + b"\xf0"), "damaged"),
    "a member that leads back to itself": (
        patched(tarred(("0.txt", b""), format=tarfile.USTAR_FORMAT), 124, b"\xff" * 10 + b"\xfe\0"),
        "negative size",
    ),
    "a sparse member": (patched(ONE, 156, b"S"), "is a sparse file"),
    "a wrong checksum": (bytes([ONE[0] ^ 1]) + ONE[1:], "damaged"),
    "garbage after a member": (TWO[:1024] + os.urandom(512) + TWO[1536:], "no header at byte 1024"),
    "a link": (tarred((member("0.npy", tarfile.SYMTYPE, link="/etc/passwd"), b"")), "not a regular file"),
    "a hard link": (tarred((member("0.npy", tarfile.LNKTYPE, link="a"), b"")), "not a regular file"),
    "a device": (tarred((member("0.npy", tarfile.CHRTYPE), b"")), "not a regular file"),
    "a FIFO": (tarred((member("0.npy", tarfile.FIFOTYPE), b"")), "not a regular file"),
    "a folder": (tarred((member("0.npy", tarfile.DIRTYPE), b"")), "not a regular file"),
    "no members": (tarred(), "holds no samples, that is, members named .jpg"),
    "no samples": (tarred(("0.txt", b"hello")), "holds no samples"),
    "nothing": (b"", "truncated, damaged or no tar file: empty file"),
    "a text": (b"hello " * 200, "damaged or no tar file"),
    "gzip": (gzip.compress(ONE), "compressed by gzip: unpack it"),
    "a bomb of an extended header": (
        patched(tarred(("0", b"")), 156, b"x")[:512] + bytes(5_000_000),
        "damaged",
    ),
}
