"""Letting Ctrl-C wait while something is half changed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["interrupts_held"]


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Let what is done inside come to its end before SIGINT is handled, as it would have been without this.

    Outside of the main thread nothing has to wait, because Python handles signals in that one only; and where
    no handler of Python's is set, nothing is handled.
    """
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler) or threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[tuple[object, object]] = []
    signal.signal(signal.SIGINT, lambda *received: came.append(received))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if came:
            handler(*came[0])  # type: ignore[arg-type]  # just what it would have been given
