"""Tells work that ends from work that does not: far above what it takes, far below what a hang would."""

import contextlib
import signal


@contextlib.contextmanager
def no_hang(seconds=30):
    """Fail if the block takes longer; on a busy machine, what takes linear time is not near it."""

    def fail(*_):
        raise AssertionError(f"this hangs: it took {seconds} s and did not end")

    before = signal.signal(signal.SIGALRM, fail)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
