"""Running a command of the user's with all that it starts, so that all of it can be ended.

A shell or launcher that is ended alone leaves behind what it has started, which goes on for hours and holds
devices. So a command has a session of its own: what a terminal sends on Ctrl-C does not reach it, and it is
ended from here.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

__all__ = ["run_in_group"]

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GRACE = 0.3  # seconds between the request to end and the end: launchers end their workers meanwhile
PAUSE = 0.01


def run_in_group(words: Sequence[str]) -> subprocess.CompletedProcess[bytes]:
    """Run a command to its end, and return its exit status and what it said on stdout.

    If it fails, or anything stops the waiting for it, all that it started is ended, but for what has left
    its process group. What a command that ended well leaves in the background is its own affair.

    Raises:
        OSError: it cannot be run.
    """
    process: subprocess.Popen[bytes] | None = None
    try:
        with _signals_held_back():  # else one might come when the process is there and not yet known
            process = subprocess.Popen(
                words, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, start_new_session=True
            )
        said, _ = process.communicate()
        if process.returncode != 0:
            _end(process)
        return subprocess.CompletedProcess(words, process.returncode, said)
    except BaseException:
        if process is not None:
            _end(process)
            process.stdout.close()  # type: ignore[union-attr]
        raise


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask a process and those of its group to end, and end those that do not."""
    with _signals_held_back():  # a second Ctrl-C must not spare them
        deadline = time.monotonic() + GRACE
        _send(process, signal.SIGTERM)
        while _lives(process) and time.monotonic() < deadline:
            time.sleep(PAUSE)
        _send(process, signal.SIGKILL)
        process.wait()


def _lives(process: subprocess.Popen[bytes]) -> bool:
    # Who has ended belongs to the group until the status is asked for; in a container, perhaps nobody asks.
    process.poll()
    return _send(process, 0)


def _send(process: subprocess.Popen[bytes], number: int) -> bool:
    """Send a signal to a whole group; tell whether anything was there to receive it."""
    try:
        os.killpg(process.pid, number)
    except (ProcessLookupError, PermissionError):  # the latter where all that is left runs as another user
        return False
    return True


@contextmanager
def _signals_held_back() -> Iterator[None]:
    """Let signals that would end this process wait for the end of the block.

    Blocking them would not do: a process inherits what is blocked, and other threads get them all the same.
    """
    came: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        came.append(number)

    handled = SIGNALS if threading.current_thread() is threading.main_thread() else ()
    before = [(one, signal.getsignal(one)) for one in handled]
    before = [(one, handler) for one, handler in before if handler not in (signal.SIG_IGN, None)]
    for one, _ in before:
        signal.signal(one, note)
    try:
        yield
    finally:
        for one, handler in before:
            signal.signal(one, handler)
        for number in came:
            os.kill(os.getpid(), number)
