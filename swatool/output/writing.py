"""An output that is being written, whatever it consists of: filled by position, published at once."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Protocol

from swatool.output.checksummed import ChecksummedFile, ChecksummedFolder, check_checksum_target
from swatool.output.layout import Layout
from swatool.output.old_checksum import OldChecksum
from swatool.output.publish import PendingFile, check_target
from swatool.output.publish_folder import PendingFolder, check_folder_target
from swatool.output.unfinished import check_room

__all__ = ["Pending", "check_output", "check_room_for_all", "publish_all", "writing"]


class Pending(Protocol):
    """What is being written, and becomes visible when it is published; without that, never."""

    def write(self, offset: int, buffer: bytes | bytearray | memoryview) -> None:
        """Write all of the buffer at a position; several threads may do so at once."""

    @property
    def digests(self) -> Mapping[str, str]:
        """SHA-256 of its files by name, once it is sealed; nothing if no checksums are wanted."""

    def seal(self) -> None:
        """Read again what was written, for the checksums; nothing is written afterwards."""

    def publish(self) -> float:
        """Seal it, make it visible, and return the seconds spent waiting for the disk."""

    def withdraw(self) -> None:
        """Take back the name, if it was given; what had it before gets it again, if it is still there."""


def check_output(
    layout: Layout,
    path: str | os.PathLike[str],
    *,
    overwrite: bool,
    inputs: Collection[tuple[int, int]],
    room: bool = True,
    checksum: bool = False,
) -> None:
    """Refuse a target that could not or should not be written, before the work of filling it.

    Args:
        layout: what will be written.
        path: where it will be published.
        overwrite: whether what is there already may be replaced.
        inputs: device and inode of each file that is read.
        room: whether it must have room now.
        checksum: whether a checksum is published beside it.

    Raises:
        UsageError: the target is or holds an input, is of the wrong kind, or exists without `overwrite`; or
            its checksum does.
        OutputError: its folder is missing, cannot be written to, or lacks the room.
    """
    check = check_folder_target if layout.is_folder else check_target
    check(path, overwrite=overwrite, inputs=inputs, nbytes=layout.size if room else 0)
    if not layout.is_folder:
        check_checksum_target(os.fspath(path), overwrite=overwrite, wanted=checksum, inputs=inputs)


def check_room_for_all(sizes: Mapping[str, int]) -> None:
    """Raise OutputError if several outputs, sizes in bytes by path, do not fit on their disks together."""
    needed: dict[int, int] = {}
    places: dict[int, str] = {}
    for path, nbytes in sizes.items():
        folder = os.path.dirname(os.path.abspath(path.rstrip("/")))
        device = os.stat(folder).st_dev
        needed[device] = needed.get(device, 0) + nbytes
        places[device] = path.rstrip("/")
    for device, nbytes in needed.items():
        check_room(places[device], nbytes)


def publish_all(pending: Sequence[Pending]) -> float:
    """Publish several outputs: all of them or, if one fails, none; return the seconds spent on the disk.

    What is replaced is kept until all are published. Only where the system cannot exchange names is an older
    file gone at once; what has replaced it stays.
    """
    waited = 0.0
    for index, one in enumerate(pending):
        try:
            waited += one.publish()
        except BaseException:
            for published in pending[:index]:
                published.withdraw()
            raise
    return waited


@contextmanager
def writing(
    layout: Layout,
    path: str | os.PathLike[str],
    *,
    overwrite: bool,
    checksum: bool = False,
    threads: int = 1,
) -> Iterator[Pending]:
    """Begin an output with all that is not tensors; whoever enters fills in the tensors and publishes.

    Args:
        layout: what is written; a folder has checksums if its layout has a place for them.
        path: where it will be published.
        overwrite: whether what is there may be replaced.
        checksum: publish that of a file beside it.
        threads: by how many checksums are computed.

    Raises:
        UsageError: somebody else published something of this name in the meantime.
        OutputError: the system failed.
    """
    pending: Pending
    with ExitStack() as stack:
        if layout.is_folder:
            folder = stack.enter_context(PendingFolder(path, layout.files, overwrite=overwrite))
            pending = ChecksummedFolder(folder, layout.files, threads)
        else:
            # Left the last: which file stays is known when nothing is pending any more.
            old = stack.enter_context(OldChecksum(os.fspath(path)))
            file = stack.enter_context(PendingFile(path, layout.size, overwrite=overwrite))
            pending = ChecksummedFile(file, old, os.fspath(path), overwrite=overwrite, wanted=checksum)
        for position, data in layout.fixed:
            pending.write(position, data)
        yield pending
