"""Making a finished file visible under its name, all at once: whoever looks finds all of it or nothing.

The file is written without a name (Linux, most local file systems) or under a hidden one (elsewhere) in
the folder where it belongs, brought to the disk, and only then given its name.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Collection, Iterator
from types import TracebackType
from typing import Self

from swatool.errors import OutputError, UsageError, printable
from swatool.output.renaming import change_places
from swatool.output.unfinished import (
    FILE_MODE,
    UNFINISHED,
    UNSUPPORTED,
    check_room,
    dead_names,
    failure,
    hidden_name,
    remove,
    reserve,
    split,
    sync_folder,
    write_all,
)

__all__ = ["PendingFile", "check_target"]

# Opens a file that has no name and vanishes with its descriptor; 0 where the system has no such thing.
UNNAMED: int = getattr(os, "O_TMPFILE", 0)
OPEN_FILES = "/proc/self/fd"  # through which a file without a name is given one
NO_LINKS = (*UNSUPPORTED, errno.EPERM)


def check_target(
    path: str | os.PathLike[str], *, overwrite: bool, inputs: Collection[tuple[int, int]], nbytes: int
) -> None:
    """Refuse a target that could not or should not be written, before the work of filling it.

    Args:
        path: where the output will be published.
        overwrite: whether a file that is already there may be replaced.
        inputs: device and inode of each file that is read.
        nbytes: length of the output.

    Raises:
        UsageError: the target is an input, no file, or exists without `overwrite`.
        OutputError: its folder is missing, cannot be written to, or lacks the room.
    """
    path = os.fspath(path)
    try:
        _check_occupant(path, overwrite, inputs)
        # Trying is the only sure way: permission bits say nothing of root, read-only mounts or quotas.
        with PendingFile(path, 0):
            pass
        check_room(path, nbytes)
    except OSError as error:
        raise OutputError(f"cannot write {printable(path)}: {error.strerror}") from error


def _check_occupant(path: str, overwrite: bool, inputs: Collection[tuple[int, int]]) -> None:
    """Refuse to replace what stands under the name, if anything does."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    with contextlib.suppress(OSError):  # a link that leads nowhere is no input
        reached = os.stat(path)
        if (reached.st_dev, reached.st_ino) in inputs:
            raise UsageError(f"{printable(path)} is one of the inputs: choose another -o")
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISLNK(status.st_mode):
        raise UsageError(f"{printable(path)} is there and is not a file: choose another -o")
    if not overwrite:
        raise UsageError(f"{printable(path)} exists: give --overwrite to replace it, or choose another -o")


class PendingFile:
    """A file that is being written and becomes visible when it is published; without that, never.

    A symbolic link under its name is replaced, and what it leads to is left alone.

        with PendingFile("averaged.safetensors", nbytes) as pending:
            pending.write(0, header)
            ...
            pending.publish()
    """

    def __init__(self, path: str | os.PathLike[str], nbytes: int, *, overwrite: bool = False) -> None:
        """Describe a file of `nbytes` bytes, which is created on entering the `with` block."""
        self._path = os.fspath(path)
        self._nbytes = nbytes
        self._overwrite = overwrite
        self._parent, self._name = split(self._path)
        self._folder = -1
        self._descriptor = -1
        self._unnamed = False
        self._hidden = ""  # the temporary name, while there is one: of the file or of what it has replaced
        self._old_is_gone = False

    def __enter__(self) -> Self:
        """Create the file and reserve its room; OutputError if either fails."""
        UNFINISHED.add(self._discard)
        try:
            self._folder = os.open(self._parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            for dead in dead_names(self._folder, self._name):
                remove(self._folder, dead)
            self._create()
            reserve(self._descriptor, self._nbytes)
        except OSError as error:
            failure = self._failure(error)
            self._discard()
            raise failure from error
        except BaseException:
            self._discard()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave nothing behind but what was published; what it has replaced goes now."""
        try:
            self._discard()
        except BaseException:  # a signal came in between
            self._discard()
            raise

    def write(self, offset: int, buffer: bytes | bytearray | memoryview) -> None:
        """Write all of the buffer at a position in the file; several threads may do so at once."""
        try:
            write_all(self._descriptor, offset, buffer)
        except OSError as error:
            raise self._failure(error) from error

    @contextlib.contextmanager
    def reading(self) -> Iterator[int]:
        """Yield a descriptor from which what was written is read again; OutputError if that fails."""
        try:
            yield self._descriptor
        except OSError as error:
            raise self._failure(error) from error

    def publish(self) -> float:
        """Bring the file to the disk, give it its name, and return the seconds spent waiting for the disk.

        Raises:
            UsageError: somebody else published a file of this name in the meantime.
            OutputError: the system failed, and nothing has changed. A failed fsync is not tried again: by
                then the pages are lost.
        """
        try:
            if self._overwrite:
                self._keep_mode()
            started = time.perf_counter()
            os.fsync(self._descriptor)
            waited = time.perf_counter() - started
            if self._overwrite:
                self._replace()
            else:
                self._claim()
            started = time.perf_counter()
            sync_folder(self._folder)
            return waited + time.perf_counter() - started
        except BaseException as error:
            self.withdraw()
            if isinstance(error, OSError):
                raise self._failure(error) from error
            raise

    def withdraw(self) -> None:
        """Take back the name, if it was given; a file that had it before gets it again, unless it is gone."""
        with contextlib.suppress(OSError):
            there = os.stat(self._name, dir_fd=self._folder, follow_symlinks=False)
            if self._old_is_gone or not os.path.samestat(there, os.fstat(self._descriptor)):
                return
            if self._hidden and self._overwrite:
                change_places(self._folder, self._hidden, self._name)
            else:
                os.unlink(self._name, dir_fd=self._folder)

    def _create(self) -> None:
        """Open a new file, without a name where the system can."""
        flags = os.O_RDWR | os.O_CLOEXEC
        if UNNAMED and os.path.isdir(OPEN_FILES):
            try:
                self._descriptor = os.open(".", flags | UNNAMED, FILE_MODE, dir_fd=self._folder)
                self._unnamed = True
                return
            except OSError as error:
                # The last two are how kernels answer that do not know the flag.
                if error.errno not in (*UNSUPPORTED, errno.EISDIR, errno.ENOENT):
                    raise
        self._hidden = hidden_name(self._name)
        self._descriptor = os.open(
            self._hidden, flags | os.O_CREAT | os.O_EXCL, FILE_MODE, dir_fd=self._folder
        )

    def _keep_mode(self) -> None:
        """Take over the permissions of the file that is about to be replaced."""
        with contextlib.suppress(FileNotFoundError):
            old = os.stat(self._name, dir_fd=self._folder, follow_symlinks=False)
            if stat.S_ISREG(old.st_mode):
                os.fchmod(self._descriptor, old.st_mode & 0o777)

    def _replace(self) -> None:
        """Give the file its name by a rename; the old file, if there is one, changes places with it."""
        if self._unnamed:
            self._hidden = hidden_name(self._name)
            self._link(self._hidden)
        with contextlib.suppress(FileNotFoundError):  # nothing has the name
            if change_places(self._folder, self._hidden, self._name):
                return
            os.stat(self._name, dir_fd=self._folder, follow_symlinks=False)
            self._old_is_gone = True  # after what comes next; this system cannot exchange names
        os.replace(self._hidden, self._name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        self._hidden = ""

    def _claim(self) -> None:
        """Give the file its name by a link, which fails if the name is taken."""
        try:
            self._link(self._name)
        except FileExistsError as error:
            raise UsageError(
                f"{printable(self._path)} was created by somebody else in the meantime: "
                "give --overwrite to replace it, or choose another -o"
            ) from error
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            raise OutputError(
                f"cannot write {printable(self._path)}: its file system has no hard links, without which "
                "only --overwrite can publish a file"
            ) from error
        self._remove_hidden()

    def _link(self, name: str) -> None:
        """Give the file one more name in its folder; FileExistsError if the name is taken."""
        if not self._unnamed:
            os.link(self._hidden, name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
            return
        # Python follows the link to the open file only when a folder is given by descriptor.
        open_files = os.open(OPEN_FILES, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.link(str(self._descriptor), name, src_dir_fd=open_files, dst_dir_fd=self._folder)
        finally:
            os.close(open_files)

    def _remove_hidden(self) -> None:
        if self._hidden:
            with contextlib.suppress(OSError):
                os.unlink(self._hidden, dir_fd=self._folder)
            self._hidden = ""

    def _discard(self) -> None:
        """Close everything and remove the temporary name; more than once is harmless."""
        self._remove_hidden()
        opened, self._descriptor, self._folder = (self._descriptor, self._folder), -1, -1
        for descriptor in opened:
            if descriptor >= 0:
                os.close(descriptor)
        UNFINISHED.discard(self._discard)

    def _failure(self, error: OSError) -> OutputError:
        own = os.fstat(self._descriptor).st_blocks * 512 if self._descriptor >= 0 else 0
        return failure(self._path, error, self._folder, self._nbytes, own)
