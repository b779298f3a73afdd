"""The files of an output folder, of which only so many are open at a time."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["OpenFiles"]

# Blocks are worked on in the order of the output, so that a few files more than there are workers are in
# use. Readers leave twice as many descriptors to the rest of the process.
MOST_OPEN = 32


class _OpenFile:
    """A descriptor, and how many threads use it."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.users = 0


class OpenFiles:
    """Descriptors of files in one folder, for several threads.

    A file that is closed before the end is brought to the disk first: an error of writing it back might not
    be told to whoever opens it again.
    """

    def __init__(self, folder: int) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._open: dict[str, _OpenFile] = {}  # the one that was not used for longest comes first

    @contextmanager
    def using(self, name: str) -> Iterator[int]:
        """Yield a descriptor of a file that exists, open for writing until the block is left."""
        with self._lock:
            file = self._open.pop(name, None)
            if file is None:
                flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
                file = _OpenFile(os.open(name, flags, dir_fd=self._folder))
            self._open[name] = file
            file.users += 1
            surplus = self._take_surplus()
        try:
            for one in surplus:
                _finish(one.descriptor)
            yield file.descriptor
        finally:
            with self._lock:
                file.users -= 1

    def _take_surplus(self) -> list[_OpenFile]:
        idle = [name for name, file in self._open.items() if file.users == 0]
        too_many = max(len(self._open) - MOST_OPEN, 0)
        return [self._open.pop(name) for name in idle[:too_many]]

    def sync(self) -> None:
        """Bring all that was written to the disk, when no thread writes any more."""
        for file in self._open.values():
            os.fsync(file.descriptor)

    def close(self) -> None:
        """Close everything; more than once is harmless."""
        while self._open:
            _, file = self._open.popitem()
            os.close(file.descriptor)


def _finish(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
