"""Local files as sources: opened once, checked to be regular files, read by position, never mapped.

Mapping would be slower (page faults) and would kill the process with SIGBUS if a file shrank.
"""

from __future__ import annotations

import errno
import os
import resource
import stat
from collections.abc import Callable, Sequence
from typing import BinaryIO, NamedTuple, TypeVar

from swatool.errors import CheckpointError, OutputError, printable
from swatool.tensors import Buffer

__all__ = [
    "LocalFile",
    "LocalFiles",
    "LocalFolder",
    "is_link_outside",
    "last_name",
    "leads_outside",
    "named_path",
    "open_regular",
]

MAX_PIECES = 1024  # IOV_MAX on Linux and macOS: how many buffers one preadv takes
SPARE_DESCRIPTORS = 64  # what the rest of the process may still open
TOO_MANY_OPEN = (errno.EMFILE, errno.ENFILE)
T = TypeVar("T")


class Identity(NamedTuple):
    """What changes when a file is replaced, truncated or written to."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


class LocalFile:
    """A regular file that stays open; a Source."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open the file without waiting; CheckpointError if it is missing or not a regular file."""
        self.path = os.fspath(path)
        try:
            self._descriptor = _open(self.path)
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            raise _refusal("open", self.path, error) from error
        try:
            status = os.fstat(self._descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise CheckpointError(f"{printable(self.path)} is not a regular file; give a checkpoint file")
        except BaseException:
            self.close()
            raise
        self._identity = _identity(status)
        self.size = status.st_size

    @property
    def key(self) -> tuple[int, int]:
        """Device and inode: equal for two names of one file."""
        return self._identity.device, self._identity.inode

    @property
    def mtime_ns(self) -> int:
        """Time of last modification, in nanoseconds, when the file was opened."""
        return self._identity.mtime_ns

    def read(self, offset: int, nbytes: int) -> bytes:
        """Return exactly `nbytes` bytes from `offset`."""
        try:
            data = os.pread(self._descriptor, nbytes, offset)
        except OSError:
            data = b""  # the long way says what is wrong
        if len(data) == nbytes:
            return data
        buffer = bytearray(nbytes)
        self.read_into([buffer], offset)
        return bytes(buffer)

    def read_into(self, buffers: Sequence[Buffer], offset: int) -> None:
        """Fill the buffers one after the other from `offset`."""
        for first in range(0, len(buffers), MAX_PIECES):
            pieces = buffers[first : first + MAX_PIECES]
            wanted = sum(map(len, pieces))
            try:
                got = os.preadv(self._descriptor, pieces, offset)
                if got != wanted:
                    self._read_rest(pieces, offset, got)
            except OSError as error:
                where = f"reading {printable(self.path)} at byte {offset} failed"
                raise CheckpointError(f"{where}: {error.strerror}") from error
            offset += wanted

    def _read_rest(self, pieces: Sequence[Buffer], offset: int, got: int) -> None:
        """Go on after a short read, which is normal for large requests and tells of a file that shrank."""
        done = 0
        for piece in pieces:
            view = memoryview(piece)
            start = min(max(got - done, 0), len(view))
            while start < len(view):
                count = os.preadv(self._descriptor, [view[start:]], offset + done + start)
                if count == 0:
                    raise CheckpointError(
                        f"{printable(self.path)} ends at byte {offset + done + start}, before the data it "
                        "should hold: it is truncated or was changed while it was read"
                    )
                start += count
            done += len(view)

    def check_unchanged(self) -> None:
        """Raise CheckpointError if the file was written to or truncated since it was opened."""
        try:
            now = _identity(os.fstat(self._descriptor))
        except OSError as error:  # on a network, of a file that is gone
            raise CheckpointError(f"cannot look at {printable(self.path)}: {error.strerror}") from error
        if now != self._identity:
            raise CheckpointError(
                f"{printable(self.path)} changed while it was read: use a finished copy of it"
            )

    def close(self) -> None:
        """Close the file; more than once is harmless."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class LocalFiles:
    """The files of one checkpoint: opened one by one, checked and closed together."""

    def __init__(self) -> None:
        self._files: dict[str, LocalFile] = {}

    def open(self, path: str | os.PathLike[str]) -> LocalFile:
        """Return the file under this path, which is opened if it is not open yet."""
        key = os.fspath(path)
        if key not in self._files:
            self._files[key] = LocalFile(key)
        return self._files[key]

    @property
    def opened(self) -> tuple[LocalFile, ...]:
        """The files, in the order in which they were opened."""
        return tuple(self._files.values())

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self._files.values())

    @property
    def keys(self) -> frozenset[tuple[int, int]]:
        """Device and inode of each file."""
        return frozenset(file.key for file in self._files.values())

    @property
    def mtime_ns(self) -> int:
        """Time of the last modification of any of them, in nanoseconds."""
        return max((file.mtime_ns for file in self._files.values()), default=0)

    def check_unchanged(self) -> None:
        """Raise CheckpointError if a file was written to or truncated since it was opened."""
        for file in self._files.values():
            file.check_unchanged()

    def close(self) -> None:
        """Close all files; more than once is harmless."""
        for file in self._files.values():
            file.close()


class LocalFolder:
    """A folder of a checkpoint's files; a Folder.

    Attributes:
        path: how the user named it.
        names: what lies in it, sorted.
    """

    def __init__(self, path: str | os.PathLike[str], files: LocalFiles) -> None:
        """List the folder, whose files will be opened among `files`; CheckpointError if it cannot be."""
        self.path = os.fspath(path)
        self._files = files
        try:
            self.names = tuple(sorted(_with_room(lambda: os.listdir(self.path))))
        except OSError as error:
            raise _refusal("list", self.path, error) from error

    def open(self, name: str) -> LocalFile:
        """Open a file that lies in the folder itself, or is linked there.

        The check is of the name alone: a link may lead anywhere, as in the cache of the Hugging Face hub.
        """
        if leads_outside(name):
            raise CheckpointError(
                f"{printable(self.path)} names a file outside itself, {printable(name)}: refused"
            )
        return self._files.open(os.path.join(self.path, name))


def named_path(path: str | os.PathLike[str]) -> str:
    """Return a path whose last part is the name of a file or folder, which `.` and `..` are not."""
    plain = os.path.normpath(path)
    return os.path.abspath(plain) if path and os.path.basename(plain) in (os.curdir, os.pardir) else plain


def last_name(path: str | os.PathLike[str]) -> str:
    """Return what a file or folder is called wherever one stands, as outputs and tables refer to it."""
    return os.path.basename(named_path(path))


def leads_outside(name: str) -> bool:
    """Tell whether what should be the name of a file in a folder is a path, or no name at all."""
    return name in ("", ".", "..") or not set(name).isdisjoint("/\\\0")


def is_link_outside(folder: str, name: str) -> bool:
    """Tell whether a name is a link out of its folder, other than to where the hub's cache keeps the file."""
    home, real = os.path.realpath(folder), os.path.realpath(os.path.join(folder, name))
    cache, _, revision = home.rpartition("/snapshots/")
    blobs = os.path.join(cache, "blobs") if revision else home
    return os.path.commonpath([home, real]) != home and os.path.dirname(real) != blobs


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading, and wait for no pipe; OSError if it is none, or cannot be opened."""
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is no regular file")
    return file


def _open(path: str) -> int:
    """Open a file for reading, and keep room for the files of others under the process's own limit."""
    # O_NONBLOCK: opening a FIFO that nobody writes to would wait for ever.
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = _with_room(lambda: os.open(path, flags))
    # The system gives the lowest number that is free.
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and descriptor + SPARE_DESCRIPTORS > soft:
        _raise_limit()
    return descriptor


def _with_room(opening: Callable[[], T]) -> T:
    """Open something, for which the process may first have to let itself have more open files."""
    try:
        return opening()
    except OSError as error:
        if error.errno != errno.EMFILE or not _raise_limit():
            raise
    return opening()


def _refusal(what: str, path: str, error: OSError | ValueError) -> CheckpointError | OutputError:
    """Put into a sentence why something could not be opened."""
    if isinstance(error, OSError) and error.errno in TOO_MANY_OPEN:
        return OutputError(f"cannot {what} {printable(path)}: too many files are open; raise ulimit -n")
    reason = error.strerror if isinstance(error, OSError) else error
    return CheckpointError(f"cannot {what} {printable(path)}: {reason}")


def _raise_limit() -> bool:
    """Let the process have more open files, as far as it may; False if it may not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * soft + SPARE_DESCRIPTORS
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft == resource.RLIM_INFINITY or allowed <= soft:
        return False
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    return True


def _identity(status: os.stat_result) -> Identity:
    return Identity(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
