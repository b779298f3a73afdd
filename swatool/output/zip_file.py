"""A zip file of uncompressed records, arranged as torch does it, with room for what is filled in later.

Every record begins at a multiple of 64 bytes, by padding in its header, so that its values are aligned where
the file is mapped into memory.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from typing import NamedTuple

from swatool.output.layout import Piece

__all__ = ["Archive", "Record", "lay_out_zip"]

ALIGNMENT = 64
UTF8 = 0x0800
SIZES_FOLLOW = 0x0008  # a data descriptor stands behind the bytes
FULL_16 = 0xFFFF
FULL_32 = 0xFFFFFFFF  # this and more is written elsewhere, in 64 bits
ZIP64 = 1
PADDING = b"FB"  # torch's own kind of extra field
FILLER = b"Z"

# Signature; version, flags, method, time, date; CRC, packed size, size; lengths of name and extra.
LOCAL = struct.Struct("<4s5H3I2H")
# Signature; two versions, flags, method, time, date; CRC, packed size, size; lengths of name, extra and
# comment, disk, attributes; attributes, offset of the local header.
CENTRAL = struct.Struct("<4s6H3I5H2I")
# Signature; CRC, packed size, size.
DESCRIPTOR = struct.Struct("<4s3I")
DESCRIPTOR64 = struct.Struct("<4sI2Q")
# Signature; size of the rest, two versions, disk, disk of the directory, records on the disk, records, size
# and offset of the directory.
END64 = struct.Struct("<4sQ2H2I4Q")
# Signature; disk, offset of the zip64 end, number of disks.
LOCATOR = struct.Struct("<4sIQI")
# Signature; disk, disk of the directory, records on the disk, records; size and offset of the directory;
# length of the comment.
END = struct.Struct("<4s4H2IH")
MADE_BY, NEEDED = 0x031E, 45  # as torch's writer has it


class Record(NamedTuple):
    """One record of the file.

    Attributes:
        name: its name, with the folder.
        nbytes: its length.
        data: its bytes; None if they are filled in later.
    """

    name: str
    nbytes: int
    data: bytes | None = None


class Archive(NamedTuple):
    """Where everything in the file goes.

    Attributes:
        fixed: all but the records that are filled in later.
        begins: position of each record's first byte, in their order.
        nbytes: length of the file.
    """

    fixed: list[Piece]
    begins: list[int]
    nbytes: int


def lay_out_zip(records: Iterable[Record]) -> Archive:
    """Arrange the records one after the other.

    A record that is filled in later gets the CRC 0, which torch itself writes when it is told not to compute
    them, and which it does not check.
    """
    fixed: list[Piece] = []
    begins: list[int] = []
    directory: list[bytes] = []
    position, pending = 0, bytearray()  # what goes to `position` and is known; nothing is known behind it
    for name, nbytes, data in records:
        crc = 0 if data is None else zlib.crc32(data)
        header = position + len(pending)
        local, central = _headers(name.encode(), nbytes, crc, header)
        directory.append(central)
        pending += local
        begins.append(header + len(local))
        if data is not None:
            pending += data
        elif nbytes:
            fixed.append(Piece(position, bytes(pending)))
            position, pending = begins[-1] + nbytes, bytearray()
        pending += _descriptor(nbytes, crc, header)
    pending += _end(directory, position + len(pending))
    fixed.append(Piece(position, bytes(pending)))
    return Archive(fixed, begins, position + len(pending))


def _headers(name: bytes, nbytes: int, crc: int, header: int) -> tuple[bytes, bytes]:
    """Return the local header, which ends where the bytes begin, and the entry in the directory."""
    flags = UTF8 | SIZES_FOLLOW if nbytes else UTF8
    wide = _wide_numbers(nbytes, nbytes, header)
    extra = _wide_numbers(nbytes, 0, header)  # torch does not know the packed size yet
    extra += _padding(header + LOCAL.size + len(name) + len(extra))
    # Where the sizes follow the bytes they are 0 here; where there are no bytes they are it, too.
    local = LOCAL.pack(b"PK\3\4", 0, flags, 0, 0, 0, 0, 0, 0, len(name), len(extra))
    size = min(nbytes, FULL_32)
    lengths = (len(name), len(wide), 0)
    central = CENTRAL.pack(
        b"PK\1\2", 0, 0, flags, 0, 0, 0, crc, size, size, *lengths, 0, 0, 0, min(header, FULL_32)
    )
    return local + name + extra, central + name + wide


def _wide_numbers(nbytes: int, packed: int, header: int) -> bytes:
    """Return the extra field for what does not fit into 32 bits: the sizes, the offset of the header."""
    numbers = ((nbytes, packed) if nbytes >= FULL_32 else ()) + ((header,) if header >= FULL_32 else ())
    return struct.pack(f"<HH{len(numbers)}Q", ZIP64, 8 * len(numbers), *numbers) if numbers else b""


def _padding(end: int) -> bytes:
    """Return the extra field that brings a header which ends at `end` without it to the alignment."""
    length = -(end + 4) % ALIGNMENT
    return struct.pack("<2sH", PADDING, length) + FILLER * length


def _descriptor(nbytes: int, crc: int, header: int) -> bytes:
    """Return what stands behind a record's bytes."""
    if not nbytes:
        return b""
    wide = nbytes >= FULL_32 or header >= FULL_32
    return (DESCRIPTOR64 if wide else DESCRIPTOR).pack(b"PK\7\x08", crc, nbytes, nbytes)


def _end(directory: list[bytes], offset: int) -> bytes:
    """Return the directory, which begins at `offset`, and what tells where it is: twice, as torch does."""
    entries = b"".join(directory)
    count, size = len(directory), len(entries)
    wide = END64.pack(b"PK\6\6", END64.size - 12, MADE_BY, NEEDED, 0, 0, count, count, size, offset)
    locator = LOCATOR.pack(b"PK\6\7", 0, offset + size, 1)
    few = min(count, FULL_16)
    end = END.pack(b"PK\5\6", 0, 0, few, few, min(size, FULL_32), min(offset, FULL_32), 0)
    return entries + wide + locator + end
