"""Renaming a folder without replacing what is there: either the name is free, or the two change places.

The standard library's rename silently replaces an empty folder, and cannot replace one that is not empty.
"""

from __future__ import annotations

import contextlib
import errno
import os

from swatool.output.unfinished import UNSUPPORTED

__all__ = ["change_places", "rename_to_free_name"]

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
    # Fails if the name is taken, and keeps others from taking it. Who is killed now leaves an empty folder.
    os.mkdir(new, dir_fd=parent)
    try:
        os.rename(old, new, src_dir_fd=parent, dst_dir_fd=parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.rmdir(new, dir_fd=parent)
        if isinstance(error, OSError) and error.errno == errno.ENOTEMPTY:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), new) from error
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
