"""Tells whether a process that somebody else started has ended."""

import os
import signal
import time


def is_gone(pid):
    """Tell whether a process ends within a moment, though its parent may not have asked for its status."""
    for _ in range(100):
        try:
            with open(f"/proc/{pid}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] == "Z":
                    return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    return False
