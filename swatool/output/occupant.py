"""What stands under the name of a folder that is to be written, and whether it may be replaced."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Collection
from typing import NamedTuple

from swatool.errors import UsageError, printable
from swatool.output.checksums import SUMS
from swatool.output.sidecars import SIDECARS

__all__ = ["Occupant", "look"]

# What the folders consist of that swatool writes: one with anything else in it is never replaced.
OURS = re.compile(
    r"model(-\d{5,}-of-\d{5,})?\.safetensors|model\.safetensors\.index\.json|__\d+_\d+\.distcp|\.metadata|"
    + "|".join(map(re.escape, (SUMS, *SIDECARS))),
    re.ASCII,
)
WEIGHTS = re.compile(r"model(-\d{5,}-of-\d{5,})?\.safetensors|\.metadata", re.ASCII)
SIGNATURE = b"swatool"  # which stands at the beginning of what describes the weights
SIGNED_BYTES = 25_000_000
NO_FOLDER = (errno.ENOTDIR, errno.ELOOP)  # how opening as a folder is answered for a file, and for a link


class Occupant(NamedTuple):
    """A folder, as far as it matters to whoever would replace it.

    Attributes:
        path: how the user named it.
        mode: its permissions.
        files: device and inode of each file that lies in it, or is linked there, and its name.
        strange: what lies in it that swatool would not have written.
        signed: whether the weights in it say that swatool has written them, or it is empty.
    """

    path: str
    mode: int
    files: dict[tuple[int, int], str]
    strange: tuple[str, ...]
    signed: bool

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
        if not self.signed:
            raise UsageError(
                f"{where} holds a checkpoint that swatool has not written, which may be the only one: choose "
                "another -o, or remove the folder yourself"
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
        weights: list[str] = []
        with os.scandir(folder) as entries:
            for entry in entries:
                if not OURS.fullmatch(entry.name) or entry.is_dir(follow_symlinks=False):
                    strange.append(entry.name)
                if WEIGHTS.fullmatch(entry.name):
                    weights.append(entry.name)
                with contextlib.suppress(OSError):  # a link that leads nowhere
                    reached = entry.stat()
                    files[reached.st_dev, reached.st_ino] = entry.name
        # Without weights there is only a configuration, which somebody has written by hand.
        signed = all(_is_signed(folder, one) for one in weights) and (bool(weights) or not files)
        mode = os.fstat(folder).st_mode & 0o7777
        return Occupant(path, mode, files, tuple(sorted(strange)), signed)
    finally:
        os.close(folder)


def _is_signed(folder: int, name: str) -> bool:
    """Look for swatool's own word in what describes weights: a safetensors header, or DCP's `.metadata`."""
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except FileNotFoundError:
        if stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            return False  # it leads nowhere
        raise
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return False
        length = SIGNED_BYTES
        if name != ".metadata":
            length = min(length, 8 + int.from_bytes(os.pread(descriptor, 8, 0), "little"))
        return SIGNATURE in os.pread(descriptor, length, 0)
    finally:
        os.close(descriptor)
