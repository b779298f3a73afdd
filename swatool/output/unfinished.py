"""What a file or folder needs before it is published: a hidden name, room, and all of its bytes."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
from collections.abc import Callable, Iterator

from swatool.errors import OutputError, UsageError, printable

__all__ = [
    "FILE_MODE",
    "UNFINISHED",
    "UNSUPPORTED",
    "check_room",
    "dead_names",
    "discard_unfinished",
    "failure",
    "hidden_name",
    "hidden_prefix",
    "remove",
    "reserve",
    "split",
    "sync_folder",
    "write_all",
]

FILE_MODE = 0o666  # less the umask, as for any new file
MAX_NAME_BYTES = 255
UNSUPPORTED = (errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS)
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
IS_FOLDER = (errno.EISDIR, errno.EPERM)  # what unlinking a folder is answered on Linux and elsewhere
# What removes the traces of each output that is being written.
UNFINISHED: set[Callable[[], None]] = set()


def discard_unfinished() -> None:
    """Remove all traces of outputs that are being written.

    For a process that a signal ends: it may have come while a `with` block was being entered or left, which
    then cannot clean up.
    """
    for discard in list(UNFINISHED):
        discard()


def split(path: str) -> tuple[str, str]:
    """Return the folder and the name in it."""
    folder, name = os.path.split(path)
    if name in ("", ".", ".."):
        raise UsageError(f"{printable(path)} names a folder: add a file name to -o")
    return folder or ".", name


def check_room(path: str, nbytes: int) -> None:
    """Raise OutputError if the file system of an output cannot hold it, and OSError if it cannot be asked."""
    folder = os.statvfs(split(path)[0])
    free = folder.f_bavail * folder.f_frsize
    if folder.f_blocks and free < nbytes:  # no blocks at all: the file system does not tell
        raise OutputError(
            f"cannot write {printable(path)}: {nbytes:,} bytes are needed and {free:,} are free; make room"
        )


def reserve(descriptor: int, nbytes: int) -> None:
    """Give a file its length and its room on the disk at once, so that a full disk shows at once."""
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, nbytes)
            return
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
    os.ftruncate(descriptor, nbytes)


def write_all(descriptor: int, offset: int, buffer: bytes | bytearray | memoryview) -> None:
    """Write all of the buffer at a position in a file."""
    rest = memoryview(buffer).cast("B")
    while rest:
        count = os.pwrite(descriptor, rest, offset)
        rest = rest[count:]
        offset += count


def sync_folder(folder: int) -> None:
    """Bring a folder's names to the disk, on file systems that can."""
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise


def failure(path: str, error: OSError, folder: int, nbytes: int, own: int) -> OutputError:
    """Put a system error into a sentence, with figures if it is about room.

    Args:
        path: the output.
        error: what the system said.
        folder: descriptor of the folder that the output belongs to; negative if that could not be opened.
        nbytes: length of the output.
        own: bytes that its unfinished files take already.
    """
    culprit = f"folder {printable(split(path)[0])}: " if folder < 0 else ""
    message = f"cannot write {printable(path)}: {culprit}{error.strerror}"
    if error.errno in NO_ROOM:
        with contextlib.suppress(OSError):
            status = os.statvfs(folder)
            free = status.f_bavail * status.f_frsize + own
            message += f"; {nbytes:,} bytes are needed and {free:,} are free"
    return OutputError(message)


def hidden_name(name: str, suffix: str = "tmp") -> str:
    """Return a temporary name for what will be called `name`: which, on which machine, by whom."""
    return f"{hidden_prefix(name)}{os.getpid()}-{secrets.token_hex(8)}.{suffix}"


def hidden_prefix(name: str) -> str:
    """Return what the temporary names of one target have in common on this machine."""
    # Another machine's processes cannot be told dead from alive, so its files must be left alone.
    suffix = f".swatool-{os.uname().nodename[:64]}-"
    room = MAX_NAME_BYTES - len(os.fsencode(suffix)) - len(".4194304-0123456789abcdef.tmp")
    return "." + os.fsencode(name)[:room].decode(errors="ignore") + suffix


def dead_names(folder: int, name: str, suffix: str = "tmp") -> Iterator[str]:
    """Yield the temporary names that killed processes of this machine left for the same target."""
    pattern = re.compile(re.escape(hidden_prefix(name)) + rf"(\d{{1,9}})-[0-9a-f]{{16}}\.{suffix}")
    for entry in sorted(os.listdir(folder)):
        match = pattern.fullmatch(entry)
        if match and not _is_alive(int(match[1])):
            yield entry


def remove(folder: int, name: str) -> None:
    """Remove a file, or a folder of files, as far as that can be done; what lies in folders below stays."""
    try:
        os.unlink(name, dir_fd=folder)
    except OSError as error:
        if error.errno in IS_FOLDER:
            with contextlib.suppress(OSError):
                _remove_folder(folder, name)


def _remove_folder(parent: int, name: str) -> None:
    folder = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        for entry in os.listdir(folder):
            os.unlink(entry, dir_fd=folder)
    finally:
        os.close(folder)
    os.rmdir(name, dir_fd=parent)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return error.errno != errno.ESRCH  # EPERM: alive, and somebody else's
    return True
