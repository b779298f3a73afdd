"""The checksum of a file that is about to be replaced: aside until it is known which of the two files stays.

There is never a wrong one: it goes before its file is replaced, and is put back only beside that very file.
A kill in between loses it; what is then aside, the next run removes.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from enum import Enum
from types import TracebackType
from typing import Self

from swatool.output.checksums import SUFFIX, checksum_line, parse_checksums
from swatool.output.renaming import rename_to_free_name
from swatool.output.unfinished import (
    UNFINISHED,
    dead_names,
    failure,
    hidden_name,
    remove,
    split,
    sync_folder,
)

__all__ = ["Beside", "OldChecksum", "look_beside", "remove_checksum"]

FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Beside(Enum):
    """What stands under the name of a file's checksum."""

    NOTHING = "nothing"
    OURS = "one line about that file"
    FOREIGN = "something else"


def look_beside(path: str) -> Beside:
    """Look at what stands beside a file; OSError if the system does not tell."""
    name = os.path.basename(path)
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        status = os.lstat(path + SUFFIX)
        if not stat.S_ISREG(status.st_mode):
            return Beside.FOREIGN
        descriptor = os.open(path + SUFFIX, flags)
    except FileNotFoundError:
        return Beside.NOTHING
    except PermissionError:
        return Beside.FOREIGN
    try:
        longest = len(checksum_line("0" * 64, name))
        text = os.pread(descriptor, longest + 1, 0)
    finally:
        os.close(descriptor)
    return Beside.OURS if list(parse_checksums(text) or {}) == [name] else Beside.FOREIGN


def remove_checksum(path: str) -> bool:
    """Remove the checksum beside a file, if it is one line about that file; say whether there was such."""
    with suppress(OSError):
        if look_beside(path) is Beside.OURS:
            os.unlink(path + SUFFIX)
            return True
    return False


class OldChecksum:
    """Moves the checksum of an older file aside, and puts it back or removes it in the end.

    with OldChecksum("averaged.safetensors") as old:
        old.move_aside()
        ...  # replace the file, or fail to
    """

    def __init__(self, path: str) -> None:
        """Describe the checksum of the file that stands under a path, if there is one."""
        self._path = path
        self._parent, name = split(path)
        self._name = name + SUFFIX
        self._folder = -1
        self._hidden = ""
        self._file: os.stat_result | None = None

    def __enter__(self) -> Self:
        """Remove what killed runs have left aside."""
        UNFINISHED.add(self.settle)
        with suppress(OSError):  # whoever writes the file tells what is wrong with its folder
            folder = os.open(self._parent, FOLDER_FLAGS)
            try:
                for dead in dead_names(folder, self._name, "old"):
                    remove(folder, dead)
            finally:
                os.close(folder)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Put it back, or remove it."""
        try:
            self.settle()
        except BaseException:  # a signal came in between
            self.settle()
            raise

    def move_aside(self) -> None:
        """Move it away from beside its file, for good; OutputError if the system fails."""
        folder = -1
        try:
            if look_beside(self._path) is not Beside.OURS:
                return
            folder = os.open(self._parent, FOLDER_FLAGS)
            self._file = os.lstat(self._path) if os.path.lexists(self._path) else None
            self._hidden = hidden_name(self._name, "old")
            os.rename(self._name, self._hidden, src_dir_fd=folder, dst_dir_fd=folder)
            sync_folder(folder)
        except OSError as error:
            raise failure(self._path + SUFFIX, error, folder, 0, 0) from error
        finally:
            if folder >= 0:
                os.close(folder)

    def settle(self) -> None:
        """Put it back beside its file, or remove it if another file stands there; twice is harmless."""
        if self._hidden:
            with suppress(OSError):
                folder = os.open(self._parent, FOLDER_FLAGS)
                try:
                    self._put_back(folder)
                    remove(folder, self._hidden)
                finally:
                    os.close(folder)
            self._hidden = ""
        UNFINISHED.discard(self.settle)

    def _put_back(self, folder: int) -> None:
        """Give it its name again if its own file stands there, and no other checksum."""
        with suppress(OSError):
            if self._file is not None and os.path.samestat(self._file, os.lstat(self._path)):
                rename_to_free_name(folder, self._hidden, self._name)
