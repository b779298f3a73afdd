"""Making a finished folder visible under its name, all at once, as `publish` does for a single file.

The folder is filled under a hidden name beside its place, brought to the disk, and only then renamed. One
that is there already changes places with it, and is deleted last.
"""

from __future__ import annotations

import contextlib
import os
import time
from bisect import bisect_right
from collections.abc import Collection, Iterator, Sequence
from types import TracebackType
from typing import Self

from swatool.errors import OutputError, UsageError, printable
from swatool.output.layout import OutputFile
from swatool.output.occupant import Occupant, look
from swatool.output.open_files import OpenFiles
from swatool.output.renaming import TAKEN, change_places, rename_to_free_name
from swatool.output.unfinished import (
    FILE_MODE,
    UNFINISHED,
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

__all__ = ["PendingFolder", "check_folder_target"]

FOLDER_MODE = 0o777  # less the umask
ATTEMPTS = 20  # to take a name that others take again and again
FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def check_folder_target(
    path: str | os.PathLike[str], *, overwrite: bool, inputs: Collection[tuple[int, int]], nbytes: int
) -> None:
    """Refuse a folder that could not or should not be written, before the work of filling it.

    Args:
        path: where the output will be published.
        overwrite: whether a checkpoint's folder that is already there may be replaced.
        inputs: device and inode of each file that is read.
        nbytes: length of all files.

    Raises:
        UsageError: the target holds an input or something else that must not be deleted, is no folder, or
            exists without `overwrite`.
        OutputError: its parent is missing, cannot be written to, or lacks the room.
    """
    path = _without_slash(os.fspath(path))
    try:
        # Also puts back what a killed run has moved aside, so it comes first; and trying to write is the only
        # sure way to know whether one can.
        with PendingFolder(path, ()) as trial:
            occupant = trial.occupant()
        if occupant is not None:
            occupant.check(overwrite=overwrite, inputs=inputs)
        check_room(path, nbytes)
    except OSError as error:
        raise OutputError(f"cannot write {printable(path)}: {error.strerror}") from error


class PendingFolder:
    """A folder that is being written and becomes visible when it is published; without that, never.

    with PendingFolder("averaged", layout.files) as pending:
        pending.write(0, header)
        ...
        pending.publish()
    """

    def __init__(
        self, path: str | os.PathLike[str], files: Sequence[OutputFile], *, overwrite: bool = False
    ) -> None:
        """Describe a folder of these files, which is created on entering the `with` block."""
        self._path = _without_slash(os.fspath(path))
        self._files = tuple(files)
        self._begins = [file.begin for file in files]
        self._overwrite = overwrite
        self._parent_path, self._name = split(self._path)
        self._parent = -1
        self._folder = -1
        self._hidden = ""  # what is to vanish from the parent, while there is such
        self._open = OpenFiles(-1)

    def __enter__(self) -> Self:
        """Create the files and reserve their room; OutputError if either fails."""
        UNFINISHED.add(self._discard)
        try:
            self._parent = os.open(self._parent_path, FOLDER_FLAGS)
            self._clean_up_after_the_dead()
            self._create()
        except OSError as error:
            told = self._failure(error)
            self._discard()
            raise told from error
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
        """Write all of the buffer at a position of one of the files; several threads may do so at once."""
        name, begin, _ = self._files[bisect_right(self._begins, offset) - 1]
        try:
            with self._open.using(name) as descriptor:
                write_all(descriptor, offset - begin, buffer)
        except OSError as error:
            raise self._failure(error) from error

    @contextlib.contextmanager
    def reading(self, name: str) -> Iterator[int]:
        """Yield a descriptor from which a file that was written is read again; OutputError if that fails."""
        try:
            descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._folder)
            try:
                yield descriptor
            finally:
                os.close(descriptor)
        except OSError as error:
            raise self._failure(error) from error

    def publish(self) -> float:
        """Bring the files to the disk, rename the folder, and return the seconds spent waiting for the disk.

        Raises:
            UsageError: somebody else published something under its name in the meantime, or what stands
                there must not be replaced.
            OutputError: the system failed, and nothing has changed.
        """
        try:
            started = time.perf_counter()
            self._open.sync()
            sync_folder(self._folder)
            waited = time.perf_counter() - started
            self._take_name()
            started = time.perf_counter()
            sync_folder(self._parent)
            return waited + time.perf_counter() - started
        except BaseException as error:
            self.withdraw()
            if isinstance(error, OSError):
                raise self._failure(error) from error
            raise

    def withdraw(self) -> None:
        """Take back the name, if it was given; a folder that had it before gets it again."""
        with contextlib.suppress(OSError):
            there = os.stat(self._name, dir_fd=self._parent, follow_symlinks=False)
            if not os.path.samestat(there, os.fstat(self._folder)):
                return
            old = self._hidden
            if not (old and change_places(self._parent, old, self._name)):
                self._hidden = hidden_name(self._name)
                os.rename(self._name, self._hidden, src_dir_fd=self._parent, dst_dir_fd=self._parent)
                if old:
                    os.rename(old, self._name, src_dir_fd=self._parent, dst_dir_fd=self._parent)

    def occupant(self) -> Occupant | None:
        """Look at what stands under the name."""
        return look(self._parent, self._name, self._path)

    def _clean_up_after_the_dead(self) -> None:
        """Remove what killed runs left; an old folder that one could not replace any more is put back."""
        for dead in dead_names(self._parent, self._name, "old"):
            try:
                os.rename(dead, self._name, src_dir_fd=self._parent, dst_dir_fd=self._parent)
            except OSError as error:
                if error.errno not in TAKEN:  # what may be the only one stays where it is
                    raise
                remove(self._parent, dead)
        for dead in dead_names(self._parent, self._name):
            remove(self._parent, dead)

    def _create(self) -> None:
        """Make the folder under its hidden name, and its files."""
        self._hidden = hidden_name(self._name)
        os.mkdir(self._hidden, FOLDER_MODE, dir_fd=self._parent)
        self._folder = os.open(self._hidden, FOLDER_FLAGS | os.O_NOFOLLOW, dir_fd=self._parent)
        self._open = OpenFiles(self._folder)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        for file in self._files:
            descriptor = os.open(file.name, flags, FILE_MODE, dir_fd=self._folder)
            try:
                reserve(descriptor, file.nbytes)
            finally:
                os.close(descriptor)

    def _take_name(self) -> None:
        """Give the folder its name; what has the name is moved away, if it may be replaced."""
        advice = "choose another -o"
        for _ in range(ATTEMPTS):
            if self._took_free_name():
                return
            if not self._overwrite:
                advice = f"give --overwrite to replace it, or {advice}"
                break
            with contextlib.suppress(FileNotFoundError):  # it was taken away in the meantime
                if self._took_place_of_old():
                    return
        raise UsageError(f"{printable(self._path)} was created by somebody else in the meantime: {advice}")

    def _took_free_name(self) -> bool:
        try:
            rename_to_free_name(self._parent, self._hidden, self._name)
        except FileExistsError:
            return False
        self._hidden = ""
        return True

    def _took_place_of_old(self) -> bool:
        """Change places with the old folder, which is looked at once more when nobody else finds it."""
        occupant = self.occupant()
        if occupant is None:
            return False
        occupant.check(overwrite=True)
        os.fchmod(self._folder, occupant.mode)
        if not change_places(self._parent, self._hidden, self._name):
            return self._took_name_of_old()
        try:
            self._check_removable(self._hidden)
        except BaseException:
            change_places(self._parent, self._hidden, self._name)
            raise
        return True

    def _took_name_of_old(self) -> bool:
        """Move the old folder aside and take its name; there is a moment in which nobody has it."""
        aside = hidden_name(self._name, "old")
        try:
            os.rename(self._name, aside, src_dir_fd=self._parent, dst_dir_fd=self._parent)
            self._check_removable(aside)
            took = self._took_free_name()
            if took:
                self._hidden = aside
        except BaseException:
            self.withdraw()  # a signal may have come when the name was taken just now
            with contextlib.suppress(OSError):
                os.rename(aside, self._name, src_dir_fd=self._parent, dst_dir_fd=self._parent)
            raise
        if not took:  # but somebody else did, who must be replaced in turn
            remove(self._parent, aside)
        return took

    def _check_removable(self, name: str) -> None:
        moved = look(self._parent, name, self._path)
        if moved is not None:
            moved.check(overwrite=True)

    def _remove_hidden(self) -> None:
        if self._hidden:
            remove(self._parent, self._hidden)
            self._hidden = ""

    def _discard(self) -> None:
        """Close everything and remove what is hidden; more than once is harmless."""
        self._open.close()
        self._remove_hidden()
        opened, self._folder, self._parent = (self._folder, self._parent), -1, -1
        for descriptor in opened:
            if descriptor >= 0:
                os.close(descriptor)
        UNFINISHED.discard(self._discard)

    def _failure(self, error: OSError) -> OutputError:
        own = 0
        with contextlib.suppress(OSError), os.scandir(self._folder) as entries:
            own = sum(entry.stat().st_blocks for entry in entries) * 512
        return failure(self._path, error, self._parent, sum(file.nbytes for file in self._files), own)


def _without_slash(path: str) -> str:
    stripped = path.rstrip("/")
    if os.path.basename(stripped) in ("", ".", ".."):
        raise UsageError(f"{printable(path)} is no name for a new folder: add one to -o")
    return stripped
