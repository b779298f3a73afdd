"""Publishing an output together with its checksums, so that there is never a wrong one.

Beside a file an older checksum goes before the file is replaced, and the new one comes after it: whoever is
killed between leaves a file without one. Where publishing fails, the older one is put back. A folder has them
in it, and appears with them at once.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from swatool.errors import OutputError, UsageError, printable
from swatool.output.checksums import SUFFIX, SUMS, checksum_line, sums_of
from swatool.output.layout import OutputFile
from swatool.output.old_checksum import Beside, OldChecksum, look_beside, remove_checksum
from swatool.output.publish import PendingFile, check_target
from swatool.output.publish_folder import PendingFolder

__all__ = ["ChecksummedFile", "ChecksummedFolder", "check_checksum_target"]

PIECE = 1 << 20


def check_checksum_target(
    path: str, *, overwrite: bool, wanted: bool, inputs: Collection[tuple[int, int]] = ()
) -> None:
    """Refuse an output beside which a checksum would be wrong, or could not be written.

    Args:
        path: the output, a file.
        overwrite: whether what is there may be replaced.
        wanted: whether a checksum will be written.
        inputs: device and inode of each file that is read.

    Raises:
        UsageError: something else stands there, or a checksum, without `overwrite`.
        OutputError: it cannot be written.
    """
    beside = path + SUFFIX
    try:
        found = look_beside(path)
    except OSError as error:
        if not wanted:
            return  # under a name that is too long, there is nothing
        raise OutputError(f"cannot write {printable(beside)}: {error.strerror}") from error
    if found is Beside.OURS and not overwrite:
        raise UsageError(
            f"{printable(beside)}, a checksum, exists: give --overwrite to replace it, or choose another -o"
        )
    if wanted and found is Beside.FOREIGN:
        raise UsageError(
            f"{printable(beside)} is there and is not the checksum of {printable(os.path.basename(path))} as "
            "swatool writes it: move it away, or choose another -o"
        )
    if wanted:
        check_target(beside, overwrite=overwrite, inputs=inputs, nbytes=0)


class ChecksummedFile:
    """A pending file whose checksum, wanted or not, is never another's; a `Pending`.

    Attributes:
        digests: the file's SHA-256 by its name, once it is sealed; nothing if it is not wanted.
    """

    def __init__(
        self, pending: PendingFile, old: OldChecksum, path: str, *, overwrite: bool, wanted: bool
    ) -> None:
        self.digests: Mapping[str, str] = {}
        self._pending = pending
        self._old = old
        self._path = path
        self._overwrite = overwrite
        self._wanted = wanted

    def write(self, offset: int, buffer: bytes | bytearray | memoryview) -> None:
        """Write all of the buffer at a position in the file."""
        self._pending.write(offset, buffer)

    def seal(self) -> None:
        """Read again what was written, for its checksum; nothing may be written afterwards."""
        if self._wanted and not self.digests:
            with self._pending.reading() as descriptor:
                self.digests = {os.path.basename(self._path): _digest(descriptor)}

    def publish(self) -> float:
        """Publish the file and then its checksum; raises what `PendingFile.publish` does."""
        self.seal()
        check_checksum_target(self._path, overwrite=self._overwrite, wanted=self._wanted)
        if self._overwrite:
            self._old.move_aside()
        try:
            waited = self._pending.publish()
            for name, digest in self.digests.items():
                line = checksum_line(digest, name)
                with PendingFile(self._path + SUFFIX, len(line), overwrite=self._overwrite) as beside:
                    beside.write(0, line)
                    waited += beside.publish()
        except BaseException:
            self._take_back()
            raise
        return waited

    def withdraw(self) -> None:
        """Take back the names that were given, the checksum's before the file's."""
        if self.digests:
            remove_checksum(self._path)
        self._take_back()

    def _take_back(self) -> None:
        """Let the older file have its name again, and then its checksum."""
        self._pending.withdraw()
        self._old.settle()


class ChecksummedFolder:
    """A pending folder, in which the checksums of all files are filled in at the end; a `Pending`.

    Attributes:
        digests: SHA-256 of each file by name, once it is sealed; nothing if there is no place for them.
    """

    def __init__(self, pending: PendingFolder, files: Sequence[OutputFile], threads: int) -> None:
        self.digests: Mapping[str, str] = {}
        self._pending = pending
        self._sums = next((file for file in files if file.name == SUMS), None)
        self._names = [file.name for file in files if file.name != SUMS]
        self._threads = max(threads, 1)

    def write(self, offset: int, buffer: bytes | bytearray | memoryview) -> None:
        """Write all of the buffer at a position of one of the files."""
        self._pending.write(offset, buffer)

    def seal(self) -> None:
        """Read again what was written, for its checksums; nothing may be written afterwards."""
        if self._sums is None or self.digests:
            return
        with ThreadPoolExecutor(min(self._threads, len(self._names))) as pool:
            self.digests = dict(zip(self._names, pool.map(self._digest, self._names), strict=True))
        self._pending.write(self._sums.begin, sums_of(self.digests))

    def publish(self) -> float:
        """Publish the folder; raises what `PendingFolder.publish` does."""
        self.seal()
        return self._pending.publish()

    def withdraw(self) -> None:
        """Take back the name that was given, unless it had been another folder's before."""
        self._pending.withdraw()

    def _digest(self, name: str) -> str:
        with self._pending.reading(name) as descriptor:
            return _digest(descriptor)


def _digest(descriptor: int) -> str:
    """Return the SHA-256 of a whole file."""
    found = hashlib.sha256()
    buffer = memoryview(bytearray(PIECE))
    position = 0
    while count := os.preadv(descriptor, [buffer], position):
        found.update(buffer[:count])
        position += count
    return found.hexdigest()
