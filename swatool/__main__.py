"""`python -m swatool`, and the console script of the same name."""

from __future__ import annotations

import signal

__all__ = ["main"]


def main() -> None:
    """Run the command line."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # Until a command takes care of signals there is nothing to clean up, and a traceback helps nobody.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    if signal.getsignal(signal.SIGPIPE) is signal.SIG_IGN:
        # Nor is there anything to be told when nobody reads `--help` any more.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    from swatool.cli import main as run

    run()


if __name__ == "__main__":
    main()
