"""The folder beside the output in which a greedy soup keeps what it has found: a kill loses nothing."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
import stat
from collections.abc import Iterator

from swatool.checkpoints.files import open_regular
from swatool.errors import CheckFailedError, OutputError, UsageError, printable
from swatool.jobs.soup_state import SoupState, as_text, from_text
from swatool.output.unfinished import sync_folder

__all__ = ["SoupWork", "read_state", "work_folder", "working"]

# A folder of such a name is passed over when checkpoints are looked for.
SUFFIX = ".soup.incomplete"
STATE = "state.json"
# What a run puts there, and the hidden names of what one was writing when it was killed.
SUM = re.compile(r"sum-\d+\.safetensors")
OWN = re.compile(r"\.?(candidate|sum)-\d.*|\.?state\.json.*")
MAX_STATE = 16 << 20  # of some ten thousand members


class SoupWork:
    """The work folder of one soup.

    Attributes:
        folder: its path.
        state: everything that was found so far, as it is on the disk.
        resumed: whether something was found by an earlier run.
        removed: whether the folder has been removed, as nothing is left to be done.
    """

    def __init__(self, folder: str, state: SoupState, *, resumed: bool) -> None:
        self.folder = folder
        self.state = state
        self.resumed = resumed
        self.removed = False

    def note(self, state: SoupState) -> None:
        """Bring the state to the disk: the old one or the new one is there at any moment."""
        hidden, path = self.path(f".{STATE}.tmp"), self.path(STATE)
        with open(hidden, "w", encoding="utf-8") as file:
            file.write(as_text(state))
            file.flush()
            os.fsync(file.fileno())
        os.replace(hidden, path)
        folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            sync_folder(folder)
        finally:
            os.close(folder)
        self.state = state

    def path(self, name: str) -> str:
        """Return the path of something in the folder."""
        return os.path.join(self.folder, name)

    def clear(self, *, sums: bool) -> None:
        """Remove candidates and what is unfinished; and the sums, if that is asked for."""
        for name in os.listdir(self.folder):
            if OWN.fullmatch(name) and name != STATE and (sums or not SUM.fullmatch(name)):
                _remove(self.path(name))

    def remove(self) -> None:
        """Remove the folder; what others have put there stays, and the folder with it."""
        self.removed = True
        with contextlib.suppress(FileNotFoundError):
            self.clear(sums=True)
            os.unlink(self.path(STATE))  # the last, as it tells what the rest is
        with contextlib.suppress(OSError):
            os.rmdir(self.folder)


def work_folder(output: str) -> str:
    """Return the path of the work folder that belongs to an output."""
    return output.rstrip("/") + SUFFIX


def read_state(folder: str) -> SoupState | None:
    """Return what an earlier run has found; None if there was none, or it found nothing.

    Raises:
        UsageError: the folder is not a soup's, or what it tells is damaged.
    """
    path = os.path.join(folder, STATE)
    damaged = UsageError(
        f"{printable(path)} is damaged, or was not written by this version of swatool: --restart begins the "
        "soup anew"
    )
    try:
        _refuse_no_folder(folder)
        if not stat.S_ISREG(os.lstat(path).st_mode):
            raise damaged
        with open_regular(path) as file:
            data = file.read(MAX_STATE) if os.fstat(file.fileno()).st_size <= MAX_STATE else b""
            state = from_text(data)
    except FileNotFoundError:
        _refuse_foreign(folder)
        return None
    except OSError as error:
        raise OutputError(f"cannot read {printable(path)}: {error.strerror}") from error
    except ValueError as error:
        raise damaged from error
    return state if state.own or state.tried else None


@contextlib.contextmanager
def working(folder: str, state: SoupState, *, resumed: bool) -> Iterator[SoupWork]:
    """Take a work folder; afterwards it stays only if something was found, and is needed to go on.

    Raises:
        UsageError: another process is at work in it, or it is no folder.
        CheckFailedError: as within, told how to go on.
        OutputError: it cannot be made.
    """
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder)
        _refuse_no_folder(folder)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise OutputError(f"cannot make the folder {printable(folder)}: {error.strerror}") from error
    work = SoupWork(folder, state, resumed=resumed)
    kept = f"what was found is kept in {printable(folder)}, and the same command goes on from there"
    try:
        _lock(descriptor, folder)
        work.clear(sums=not resumed)
        work.note(state)
        try:
            yield work
        except BaseException as error:
            if work.removed:
                raise
            if not (work.state.own or work.state.tried):
                work.remove()
                raise
            error.add_note(kept)
            if isinstance(error, CheckFailedError):
                told = CheckFailedError(f"{error}; {kept}")
                told.report = error.report
                raise told from error
            raise
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: str) -> None:
    """Keep others out; the system lets go of it when the process ends, however it does."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise UsageError(
                f"another process is making a soup in {printable(folder)}: wait for it, or choose another -o"
            ) from error
        # Not every file system knows locks.


def _refuse_no_folder(folder: str) -> None:
    """Refuse what stands in the folder's place: a link would lead a soup to where others keep something.

    Raises:
        UsageError: it is a link, or no folder.
        FileNotFoundError: nothing stands there.
    """
    mode = os.lstat(folder).st_mode
    if not stat.S_ISDIR(mode):
        what = "a link" if stat.S_ISLNK(mode) else "no folder"
        raise UsageError(
            f"{printable(folder)} is {what}, and a soup keeps there what it finds: remove it, or choose "
            "another -o"
        )


def _refuse_foreign(folder: str) -> None:
    """Refuse a folder that holds something which no soup has put there; remove one that holds nothing."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return
    if not names:  # all that a run leaves that was killed at the very end
        os.rmdir(folder)
    foreign = sorted(name for name in names if not OWN.fullmatch(name))
    if foreign:
        raise UsageError(
            f"{printable(folder)} is there, and holds {printable(foreign[0])} and no {STATE}: move it away, "
            "or choose another -o"
        )


def _remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)
