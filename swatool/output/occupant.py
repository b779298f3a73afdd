"""What stands under the name of a folder that is to be written, and whether it may be replaced."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Collection
from typing import NamedTuple

from swatool.errors import UsageError, printable
from swatool.output.sidecars import SIDECARS

__all__ = ["Occupant", "look"]

# What the folders consist of that swatool writes: one with anything else in it is never replaced.
OURS = re.compile(
    r"model(-\d{5,}-of-\d{5,})?\.safetensors|model\.safetensors\.index\.json|__\d+_\d+\.distcp|\.metadata|"
    + "|".join(map(re.escape, SIDECARS)),
    re.ASCII,
)
NO_FOLDER = (errno.ENOTDIR, errno.ELOOP)  # how opening as a folder is answered for a file, and for a link


class Occupant(NamedTuple):
    """A folder, as far as it matters to whoever would replace it.

    Attributes:
        path: how the user named it.
        mode: its permissions.
        files: device and inode of each file that lies in it, or is linked there, and its name.
        strange: what lies in it that swatool would not have written.
    """

    path: str
    mode: int
    files: dict[tuple[int, int], str]
    strange: tuple[str, ...]

    def check(self, *, overwrite: bool, inputs: Collection[tuple[int, int]] = ()) -> None:
        """Raise UsageError if it must not be replaced."""
        where = printable(self.path)
        for identity, name in self.files.items():
            if identity in inputs:
                raise UsageError(f"{where} holds an input, {printable(name)}: choose another -o")
        if not overwrite:
            raise UsageError(f"{where} exists: give --overwrite to replace it, or choose another -o")
        if self.strange:
            raise UsageError(
                f"{where} holds {printable(self.strange[0])}, and only folders that hold nothing but what "
                "swatool writes are replaced: choose another -o, or remove the folder yourself"
            )


def look(parent: int, name: str, path: str) -> Occupant | None:
    """Look at what stands under a name in a folder; None if nothing does.

    Raises:
        UsageError: it is no folder.
        OSError: the system failed.
    """
    try:
        folder = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno not in NO_FOLDER:
            raise
        raise UsageError(f"{printable(path)} is there and is not a folder: choose another -o") from error
    try:
        files: dict[tuple[int, int], str] = {}
        strange: list[str] = []
        with os.scandir(folder) as entries:
            for entry in entries:
                if not OURS.fullmatch(entry.name) or entry.is_dir(follow_symlinks=False):
                    strange.append(entry.name)
                with contextlib.suppress(OSError):  # a link that leads nowhere
                    reached = entry.stat()
                    files[reached.st_dev, reached.st_ino] = entry.name
        return Occupant(path, os.fstat(folder).st_mode & 0o7777, files, tuple(sorted(strange)))
    finally:
        os.close(folder)
