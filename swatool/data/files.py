"""Opening the files of a data set: the readers of checkpoints, with their errors told as those of data."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from swatool.checkpoints.files import LocalFile
from swatool.errors import CheckpointError, DataError, printable

__all__ = ["check_unchanged", "open_file", "telling_of_data"]


@contextmanager
def telling_of_data() -> Iterator[None]:
    """Turn what a reader of checkpoints finds wrong into a DataError of the same words."""
    try:
        yield
    except CheckpointError as error:
        raise DataError(str(error)) from error


def open_file(path: str) -> LocalFile:
    """Open a data file; DataError if it is missing or no regular file."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"cannot open the data {printable(path)}: {reason}") from error
    if not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
        raise DataError(f"the data {printable(path)} is {what}: give a file")
    with telling_of_data():
        return LocalFile(path)


def check_unchanged(file: LocalFile) -> None:
    """Raise DataError if the file was written to or truncated since it was opened."""
    try:
        file.check_unchanged()
    except CheckpointError as error:
        raise DataError(
            f"the data {printable(file.path)} changed while it was read: give a finished copy of it"
        ) from error
