"""Renaming a folder without replacing what is there: either the name is free, or the two change places.

The standard library's rename silently replaces an empty folder, and cannot replace one that is not empty.
"""

from __future__ import annotations

import contextlib
import errno
import os

from swatool.output.unfinished import UNSUPPORTED

__all__ = ["TAKEN", "change_places", "rename_to_free_name"]

# How renaming a folder is answered if the name is that of anything but an empty folder.
TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)

NO_REPLACE = 1  # flags of Linux' renameat2
EXCHANGE = 2


def rename_to_free_name(parent: int, old: str, new: str) -> None:
    """Rename a folder in its parent, all at once; FileExistsError if the name is taken."""
    try:
        _renameat2(parent, old, new, NO_REPLACE)
        return
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
    taken = FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), new)
    with contextlib.suppress(FileNotFoundError):
        os.stat(new, dir_fd=parent, follow_symlinks=False)
        raise taken
    # Replaces nothing but a folder that is empty, and was not there a moment ago.
    try:
        os.rename(old, new, src_dir_fd=parent, dst_dir_fd=parent)
    except OSError as error:
        if error.errno in TAKEN:
            raise taken from error
        raise


def change_places(parent: int, one: str, other: str) -> bool:
    """Exchange two names in a folder, all at once; False if the system cannot."""
    try:
        _renameat2(parent, one, other, EXCHANGE)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        return False
    return True


def _renameat2(parent: int, old: str, new: str, flags: int) -> None:
    """Call the system's rename with flags; OSError of UNSUPPORTED where it or its file system cannot."""
    import ctypes  # only needed here, and takes its time

    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if call(parent, os.fsencode(old), parent, os.fsencode(new), ctypes.c_uint(flags)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), old, None, new)
