"""Reading the files of checkpoints from front to back, for their SHA-256 and the checksums that they hold."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass
from typing import NamedTuple

from swatool.checkpoints.files import LocalFile
from swatool.checkpoints.opening import Checkpoint
from swatool.checkpoints.record_checks import RecordChecks, has_records
from swatool.errors import CheckpointError, printable
from swatool.output.checksums import sums_of

__all__ = [
    "UNKNOWN",
    "HashedFile",
    "UnopenedFile",
    "digest_of",
    "hash_checkpoints",
    "hash_files",
    "holds_zip_files",
]

UNKNOWN = "0" * 64  # stands for a digest until it is known, and takes its room
PIECE = 1 << 20
TICK = 0.1  # seconds between two reports of progress
MANY_IN_ONE = "torch distributed"  # the format whose files hold a zip file for each tensor


class UnopenedFile(NamedTuple):
    """A file that is open only while it is read, so that there may be many of them.

    Attributes:
        path: of it.
        size: its length in bytes when it was looked at.
    """

    path: str
    size: int


class HashedFile(NamedTuple):
    """What was found out about a file by reading all of it.

    Attributes:
        name: its name, without the folder.
        sha256: of its bytes.
        records: how many of its records match the checksums that it holds.
    """

    name: str
    sha256: str
    records: int


def hash_checkpoints(
    checkpoints: Sequence[Checkpoint], threads: int, progress: Callable[[int], None] | None = None
) -> list[str]:
    """Return the SHA-256 of each checkpoint, as `digest_of` has it; raises what `hash_files` raises."""
    parts = [(file, holds_zip_files(one)) for one in checkpoints for file in one.files.opened]
    hashed = iter(hash_files(parts, threads, progress))
    return [digest_of(one, [next(hashed) for _ in one.files.opened]) for one in checkpoints]


def holds_zip_files(checkpoint: Checkpoint) -> bool:
    """Tell whether zip files among a checkpoint's files are such as torch.save writes."""
    return checkpoint.format != MANY_IN_ONE


def digest_of(checkpoint: Checkpoint, hashed: Sequence[HashedFile]) -> str:
    """Return a file's SHA-256; of a folder that of the lines that `sha256sum` gives, sorted by name."""
    if [checkpoint.path] == [file.path for file in checkpoint.files.opened]:
        return hashed[0].sha256
    return hashlib.sha256(sums_of({one.name: one.sha256 for one in hashed})).hexdigest()


def hash_files(
    files: Sequence[tuple[LocalFile | UnopenedFile, bool]],
    threads: int,
    progress: Callable[[int], None] | None = None,
) -> list[HashedFile]:
    """Read files, several at a time, in pieces.

    Args:
        files: what is read, which is checked to be unchanged if it has to be opened; and whether the records
            of a zip file are compared with their checksums.
        threads: number of workers, at most; each reads one file.
        progress: is told, ten times a second, how many bytes have been read.

    Raises:
        CheckpointError: a file cannot be read, or a record does not match its checksum.
    """
    stop = threading.Event()
    work = [_Work(file, checked, stop) for file, checked in files]
    largest_first = sorted(work, key=lambda one: -one.file.size)
    with ThreadPoolExecutor(max(1, min(threads, len(work))), thread_name_prefix="swatool") as pool:
        try:
            found = {pool.submit(one.run): one for one in largest_first}
            pending = set(found)
            while pending:
                done, pending = wait(pending, timeout=TICK, return_when=FIRST_EXCEPTION)
                for future in done:
                    found[future].result = future.result()
                if progress is not None:
                    progress(sum(one.position for one in work))
        finally:
            stop.set()  # whatever ended the loop, Ctrl-C included, nobody reads on
    return [one.result for one in work if one.result is not None]


@dataclass(eq=False)
class _Work:
    """The reading of one file."""

    file: LocalFile | UnopenedFile
    checked: bool
    stop: threading.Event
    position: int = 0
    result: HashedFile | None = None

    def run(self) -> HashedFile:
        if isinstance(self.file, LocalFile):
            return self._read(self.file)
        with closing(LocalFile(self.file.path)) as file:
            if file.size != self.file.size:
                raise CheckpointError(f"{printable(file.path)} changed before it was read: try again")
            found = self._read(file)
            file.check_unchanged()
            return found

    def _read(self, file: LocalFile) -> HashedFile:
        digest = hashlib.sha256()
        checks = RecordChecks(file) if self.checked and has_records(file) else None
        buffer = memoryview(bytearray(min(PIECE, file.size)))
        while self.position < file.size and not self.stop.is_set():
            piece = buffer[: min(len(buffer), file.size - self.position)]
            file.read_into([piece], self.position)
            digest.update(piece)
            if checks is not None:
                checks.take(self.position, piece)
            self.position += len(piece)
        name = file.path.rpartition("/")[2]
        return HashedFile(name, digest.hexdigest(), checks.checked if checks else 0)
