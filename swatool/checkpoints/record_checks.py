"""The CRC-32 of a torch file's records, compared while somebody reads the file from front to back."""

from __future__ import annotations

import zlib

from swatool.checkpoints.file_formats import ZIP_MAGIC
from swatool.checkpoints.zip_records import Record, data_offset, read_directory
from swatool.errors import CheckpointError, printable
from swatool.tensors import Source

__all__ = ["RecordChecks", "has_records"]


def has_records(source: Source) -> bool:
    """Tell from its first bytes whether a file is a zip file."""
    return source.read(0, min(len(ZIP_MAGIC), source.size)) == ZIP_MAGIC


class RecordChecks:
    """Compares the records of one file with their checksums; 0 is what torch writes where it computed none.

    Attributes:
        checked: how many records have matched.
    """

    def __init__(self, source: Source) -> None:
        """Read the directory; CheckpointError if it is not sound."""
        self.checked = 0
        self._source = source
        directory = read_directory(source).values()
        found = [(data_offset(source, one), one) for one in directory if one.crc]
        self._rest: list[tuple[int, Record]] = sorted(found, reverse=True)  # the next one is the last
        self._crc = 0

    @property
    def wanted(self) -> int:
        """How many records with a checksum have not been seen yet."""
        return len(self._rest)

    def take(self, position: int, data: memoryview) -> None:
        """Look at the next bytes of the file; CheckpointError if a record that ends here does not match."""
        end = position + len(data)
        while self._rest:
            begin, record = self._rest[-1]
            limit = begin + record.size
            if begin >= end and record.size:
                return
            self._crc = zlib.crc32(data[max(begin - position, 0) : max(limit - position, 0)], self._crc)
            if limit > end:
                return
            if self._crc != record.crc:
                raise CheckpointError(
                    f"{printable(self._source.path)} is damaged: its record {printable(record.name)} does "
                    "not match its checksum; copy or save it again"
                )
            self._rest.pop()
            self._crc = 0
            self.checked += 1
