"""An output that is being written, whatever it consists of: filled by position, published at once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from swatool.output.layout import Layout
from swatool.output.publish import PendingFile

__all__ = ["Pending", "writing"]


class Pending(Protocol):
    """What is being written, and becomes visible when it is published; without that, never."""

    def write(self, offset: int, buffer: bytes | bytearray | memoryview) -> None:
        """Write all of the buffer at a position; several threads may do so at once."""

    def publish(self) -> float:
        """Make it visible, and return the seconds spent waiting for the disk."""


@contextmanager
def writing(layout: Layout, path: str | os.PathLike[str], *, overwrite: bool) -> Iterator[Pending]:
    """Begin an output with all that is not tensors; whoever enters fills in the tensors and publishes.

    Raises:
        UsageError: somebody else published something of this name in the meantime.
        OutputError: the system failed.
    """
    with PendingFile(path, layout.size, overwrite=overwrite) as pending:
        for position, data in layout.fixed:
            pending.write(position, data)
        yield pending
