"""The arrays of an .npz archive as extents: plain records lie in the file, packed ones are unpacked first.

Unlike those of torch.save, records may be compressed (np.savez_compressed), so that the directory is read by
Python's zipfile, whose leniency does no harm here: each array must fill its record exactly.
"""

from __future__ import annotations

import io
import os
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from swatool.checkpoints.files import LocalFile
from swatool.checkpoints.zip_records import Record, data_offset
from swatool.data.files import telling_of_data
from swatool.errors import CheckpointError, DataError, OutputError, printable

__all__ = ["Archive"]

SUFFIX = ".npy"
MAX_DIRECTORY = 4 << 20  # bytes; zipfile takes some twenty times as much memory for it
MAX_RATIO = 200  # of unpacked to packed; zeros reach 1000, handwritten digits as float64 reach 40
FREE_OF_RATIO = 16 << 20  # bytes that may be unpacked whatever the ratio
CHUNK = 1 << 20
ENCRYPTED = 0x1


class Archive:
    """An open .npz file."""

    def __init__(self, file: LocalFile) -> None:
        """Read the directory; DataError if it is damaged or ambiguous."""
        self._file = file
        self._where = printable(file.path)
        with self._errors():
            self._zip = zipfile.ZipFile(_Stream(file))
        self._records: dict[str, zipfile.ZipInfo] = {}
        for info in self._zip.infolist():
            if not info.filename.endswith(SUFFIX):
                continue
            key = info.filename.removesuffix(SUFFIX)
            if key in self._records:
                raise self._damaged(f"array {printable(key)} is there twice")
            self._records[key] = info

    @property
    def keys(self) -> tuple[str, ...]:
        """Names of the arrays."""
        return tuple(self._records)

    def size(self, key: str) -> int:
        """Bytes of an array, unpacked, with its header, as the directory claims."""
        return self._records[key].file_size

    def beginning(self, key: str, nbytes: int) -> bytes:
        """Return the first bytes of an array, fewer if there are no more."""
        info = self._checked(key)
        with self._errors(), self._zip.open(info) as stream:
            return stream.read(nbytes)

    def locate(self, key: str) -> tuple[LocalFile, int]:
        """Return a file and where in it the array begins: this file, or an unpacked copy without a name.

        Raises:
            DataError: the record is damaged, or unpacks to more than it claims or than can be meant.
            OutputError: there is no room for the copy.
        """
        info = self._checked(key)
        if info.compress_type == zipfile.ZIP_DEFLATED:
            return self._unpacked(info), 0
        record = Record(info.filename, info.file_size, info.CRC, info.header_offset, self._file.size)
        try:
            return self._file, data_offset(self._file, record)
        except CheckpointError as error:
            raise self._damaged(f"array {printable(key)} is not where the directory says") from error

    def _checked(self, key: str) -> zipfile.ZipInfo:
        info = self._records[key]
        which = f"array {printable(key)} of {self._where}"
        if info.flag_bits & ENCRYPTED:
            raise DataError(f"{which} is encrypted: save it by np.savez")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DataError(f"{which} is compressed by method {info.compress_type}: save it by np.savez")
        plain = info.compress_type == zipfile.ZIP_STORED
        if info.compress_size > self._file.size or (plain and info.compress_size != info.file_size):
            raise self._damaged(f"array {printable(key)} has a size that it cannot have")
        if info.file_size > max(FREE_OF_RATIO, MAX_RATIO * info.compress_size):
            raise DataError(
                f"{which} claims to unpack to {info.file_size:,} bytes from {info.compress_size:,}, more "
                f"than {MAX_RATIO} times as many, as only a bomb does: if it is yours, save it by np.savez"
            )
        return info

    def _unpacked(self, info: zipfile.ZipInfo) -> LocalFile:
        """Unpack a record into a file without a name, which vanishes when it is closed."""
        try:
            with tempfile.TemporaryFile() as copy:
                self._check_room(copy.fileno(), info.file_size)
                with self._errors(), self._zip.open(info) as stream:
                    # zipfile gives no more than the claimed size, and compares the checksum at its end.
                    shutil.copyfileobj(stream, copy, CHUNK)
                copy.flush()
                if copy.tell() != info.file_size:
                    raise self._damaged(f"array {printable(info.filename)} unpacks to less than it claims")
                with telling_of_data():
                    return LocalFile(f"/dev/fd/{copy.fileno()}")
        except OSError as error:
            raise OutputError(f"unpacking {self._where} into {_folder()} failed: {error.strerror}") from error

    def _check_room(self, descriptor: int, nbytes: int) -> None:
        room = os.statvfs(descriptor)
        if room.f_blocks and room.f_bavail * room.f_frsize < nbytes:
            raise OutputError(
                f"unpacking {self._where} takes {nbytes:,} bytes of {_folder()}, which has not so much room: "
                "set TMPDIR to another folder, or save the data by np.savez"
            )

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Tell of what zipfile raises for damaged archives, which is of many kinds."""
        try:
            with telling_of_data():
                yield
        except (
            zipfile.BadZipFile,
            zlib.error,
            struct.error,
            EOFError,
            RuntimeError,  # also what it has not implemented
            ValueError,
        ) as error:
            raise self._damaged(str(error) or type(error).__name__) from error

    def _damaged(self, what: str) -> DataError:
        return DataError(f"{self._where} is damaged or no .npz archive: {what}; save it again by np.savez")


def _folder() -> str:
    return printable(tempfile.gettempdir())


class _Stream(io.RawIOBase):
    """A file as zipfile wants it; what it reads at a time is bounded, whatever the file claims."""

    def __init__(self, file: LocalFile) -> None:
        self._file = file
        self._position = 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._file.size}[whence]
        if start + offset < 0:
            raise ValueError("it points to before its beginning")
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        rest = max(self._file.size - self._position, 0)
        count = rest if size is None or size < 0 else min(size, rest)
        if count > MAX_DIRECTORY:
            raise ValueError(f"its directory has more than {MAX_DIRECTORY:,} bytes")
        data = self._file.read(self._position, count)
        self._position += count
        return data
