"""The directory of a zip file as torch.save writes it: uncompressed records, read by position.

Python's zipfile is more lenient than it is safe to be here: a record that two readers take for different
bytes, or that lies inside another, is refused. Every span is checked against the file before it is read.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from swatool.errors import CheckpointError, printable
from swatool.tensors import Source

__all__ = ["TORCHSCRIPT", "Record", "data_offset", "read_directory"]

TORCHSCRIPT = (
    "is a TorchScript archive, not a checkpoint: save its weights by "
    "torch.save(torch.jit.load(file).state_dict(), ...)"
)
MAX_RECORDS = 200_000
MAX_DIRECTORY = 64 << 20

ENCRYPTED = 0x0001 | 0x0040 | 0x2000
WELL_KNOWN = frozenset({"data.pkl", "byteorder", "version"})
PATCH = 0x0020  # the difference to another file
DATA_DESCRIPTOR = 0x0008
STORED = 0
FOLDER = 0x10  # among the attributes, as MS-DOS has them
IN_ZIP64_16 = 0xFFFF
IN_ZIP64_32 = 0xFFFFFFFF

# Signature; version, flags, method, time, date; CRC, compressed size, size; lengths of name and extra.
LOCAL = struct.Struct("<4s5H3I2H")
# Signature; two versions, flags, method, time, date; CRC, compressed size, size; lengths of name, extra and
# comment, disk, attributes; attributes, offset of the local header.
CENTRAL = struct.Struct("<4s6H3I5H2I")
# Signature; disk, disk of the directory, records on the disk, records; size and offset of the directory;
# length of the comment.
END = struct.Struct("<4s4H2IH")
# Signature; disk, offset of the zip64 end, number of disks.
LOCATOR = struct.Struct("<4sIQI")
# Signature; size of the rest, two versions, disk, disk of the directory, records on the disk, records, size
# and offset of the directory.
END64 = struct.Struct("<4sQ2H2I4Q")


class Record(NamedTuple):
    """One record of a zip file.

    Attributes:
        name: its name, with the folder.
        size: number of bytes, the same packed and unpacked.
        crc: CRC-32 of the bytes; 0 where none was recorded.
        header: where its local header lies, which precedes the bytes.
        limit: where the next record, or the directory, begins.
    """

    name: str
    size: int
    crc: int
    header: int
    limit: int


class _Directory(NamedTuple):
    """Where the central directory lies, and how many records it lists."""

    records: int
    size: int
    offset: int


def read_directory(source: Source) -> Mapping[str, Record]:
    """Return the records of a zip file by name; CheckpointError unless they are sound and stored plainly."""
    where = _find_directory(source)
    data = source.read(where.offset, where.size)
    records = sorted(_records(source, data, where.records), key=lambda record: record.header)
    if records and records[0].header != 0:
        raise _damaged(source, "its first record does not begin at the first byte")
    found: dict[str, Record] = {}
    seen: set[str] = set()
    following = [record.header for record in records[1:]] + [where.offset]
    for record, limit in zip(records, following, strict=False):
        name, size, crc, header, _ = record
        if header + LOCAL.size + len(name.encode()) + size > limit:
            raise _damaged(source, f"record {printable(name)} overlaps what follows it")
        # torch looks for records without regard to case.
        if name.lower() in seen or name.rpartition("/")[2].lower() in WELL_KNOWN - {name.rpartition("/")[2]}:
            raise _damaged(source, f"record {printable(name)} is there twice, or in another case")
        seen.add(name.lower())
        found[name] = Record(name, size, crc, header, limit)
    return found


def data_offset(source: Source, record: Record) -> int:
    """Return where a record's bytes begin; CheckpointError if its local header contradicts the directory."""
    name = record.name.encode()
    header = source.read(record.header, LOCAL.size + len(name))
    magic, _, flags, method, _, _, _, packed, size, name_length, extra_length = LOCAL.unpack_from(header)
    start: int = record.header + LOCAL.size + name_length + extra_length
    # With a data descriptor, as torch.save has it, the sizes follow the bytes and are 0 here.
    unsized = IN_ZIP64_32 if not flags & DATA_DESCRIPTOR else 0
    if (
        magic != b"PK\3\4"
        or method != STORED
        or flags & (ENCRYPTED | PATCH)
        or header[LOCAL.size :] != name
        or name_length != len(name)
        or packed not in (record.size, unsized)
        or size not in (record.size, unsized)
        or start + record.size > record.limit
    ):
        raise _damaged(source, f"the header of record {printable(record.name)} contradicts the directory")
    return start


def _damaged(source: Source, what: str) -> CheckpointError:
    return CheckpointError(
        f"{printable(source.path)} is damaged or was not written by torch.save: {what}; copy or save it again"
    )


def _find_directory(source: Source) -> _Directory:
    """Read the end of the file, with or without its zip64 part; nothing may follow it or lie between."""
    tail_size = min(source.size, END64.size + LOCATOR.size + END.size)
    if tail_size < END.size:
        raise _damaged(source, "it is too short for a zip file")
    tail = source.read(source.size - tail_size, tail_size)
    magic, disk, first_disk, here, count, size, offset, comment = END.unpack_from(tail, tail_size - END.size)
    if magic != b"PK\5\6" or comment:
        raise _damaged(source, "it does not end with a zip directory (a truncated download?)")
    directory = _Directory(count, size, offset)
    end = source.size - END.size
    if tail_size > END.size + LOCATOR.size and tail[-END.size - LOCATOR.size :][:4] == b"PK\6\7":
        directory = _zip64_directory(source, tail, directory)
        end -= LOCATOR.size + END64.size
    elif disk or first_disk or here != count:
        raise _damaged(source, "it is one part of several")
    if directory.records > MAX_RECORDS or directory.size > MAX_DIRECTORY:
        raise _damaged(source, f"it claims {directory.records:,} records, of at most {MAX_RECORDS:,}")
    if directory.offset + directory.size != end or directory.size < directory.records * CENTRAL.size:
        raise _damaged(source, "its directory is not where it should be")
    return directory


def _zip64_directory(source: Source, tail: bytes, short: _Directory) -> _Directory:
    """Read the wide numbers, which must agree with the short ones where those are not saturated."""
    if len(tail) < END64.size + LOCATOR.size + END.size:
        raise _damaged(source, "its zip64 end is cut off")
    magic, rest, _, _, disk, first_disk, here, count, size, offset = END64.unpack_from(tail)
    _, end_disk, end_offset, disks = LOCATOR.unpack_from(tail, END64.size)
    wide = _Directory(count, size, offset)
    expected = source.size - len(tail)
    if magic != b"PK\6\6" or rest != END64.size - 12 or end_offset != expected or here != count:
        raise _damaged(source, "its zip64 end is not where it should be")
    saturated = _Directory(IN_ZIP64_16, IN_ZIP64_32, IN_ZIP64_32)
    if (
        disk
        or first_disk
        or end_disk
        or disks != 1
        or any(few not in (many, full) for few, many, full in zip(short, wide, saturated, strict=True))
    ):
        raise _damaged(source, "its two directories contradict each other")
    return wide


def _records(source: Source, data: bytes, count: int) -> Iterator[Record]:
    position = 0
    for _ in range(count):
        if position + CENTRAL.size > len(data):
            raise _damaged(source, "its directory ends too early")
        fields = CENTRAL.unpack_from(data, position)
        magic, _, _, flags, method, _, _, crc, packed, size, name_length, extra_length, comment = fields[:13]
        start = position + CENTRAL.size
        position = start + name_length + extra_length + comment
        if magic != b"PK\1\2" or position > len(data):
            raise _damaged(source, "its directory does not list what it claims")
        try:
            name = data[start : start + name_length].decode()
        except UnicodeDecodeError:
            raise _damaged(source, "the name of a record is not UTF-8") from None
        if "\0" in name:
            raise _damaged(source, f"the name of record {printable(name)} does not end where it seems to")
        disk, _, attributes, header = fields[13:]
        if disk or attributes & FOLDER:
            # Some readers give nothing, or what lay in memory before, for a folder's bytes.
            raise _damaged(source, f"record {printable(name)} is marked as a folder or part of another file")
        if IN_ZIP64_32 in (size, packed, header):
            extra = data[start + name_length : start + name_length + extra_length]
            size, packed, header = _wide_numbers(source, name, extra, (size, packed, header))
        _check_stored(source, name, flags, method, packed == size)
        yield Record(name, size, crc, header, header)
    if position != len(data):
        raise _damaged(source, "its directory lists more than it claims")


def _check_stored(source: Source, name: str, flags: int, method: int, same_size: bool) -> None:
    if flags & (ENCRYPTED | PATCH):
        how = "encrypted" if flags & ENCRYPTED else "a patch to another file"
        raise CheckpointError(f"record {printable(name)} of {printable(source.path)} is {how}")
    if "/code/" in name:
        raise CheckpointError(f"{printable(source.path)} {TORCHSCRIPT}")
    if method != STORED or not same_size:
        raise CheckpointError(
            f"record {printable(name)} of {printable(source.path)} is compressed, unlike any of torch.save: "
            "unpack the archive and zip it again without compression"
        )


def _wide_numbers(source: Source, name: str, extra: bytes, short: tuple[int, ...]) -> list[int]:
    """Replace the saturated ones of size, packed size and header offset by those of the zip64 extra field."""
    position = 0
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, position)
        position += 4
        if kind == 1 and position + length <= len(extra):
            wide = iter(struct.unpack_from(f"<{length // 8}Q", extra, position))
            numbers = [next(wide, None) if number == IN_ZIP64_32 else number for number in short]
            known = [number for number in numbers if number is not None]
            if len(known) == len(short):
                return known
        position += length
    raise _damaged(source, f"record {printable(name)} has no 64-bit size")
