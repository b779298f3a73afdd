"""From what a command raises to what the user sees: one sentence on stderr and the documented exit code.

0 done, 2 refused, 3 bad input, 4 inputs do not match, 5 output or system failed, 6 a check failed, 1 a bug in
swatool, 128+n after signal n.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import ParamSpec

import typer

from swatool.errors import OutputError, SwatoolError, printable
from swatool.output.unfinished import discard_unfinished

__all__ = [
    "ending_in_an_exit_code",
    "printing_the_report",
    "showing_causes",
    "tell_error",
    "telling_of",
]

P = ParamSpec("P")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(BaseException):
    """A signal asked the process to end; raised in the main thread, so that everything is cleaned up."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def ending_in_an_exit_code(command: Callable[P, None]) -> Callable[P, None]:
    """Wrap a command so that whatever stops it becomes a sentence and an exit code, never a traceback."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        as_json = bool(kwargs.get("as_json"))
        try:
            with _signals_raised(as_json):
                command(*args, **kwargs)
                sys.stdout.flush()
        except SwatoolError as error:
            if as_json and error.report is not None:
                typer.echo(json.dumps(error.report.as_json(), indent=2))  # type: ignore[attr-defined]
            raise tell_error(str(error), error.exit_code, as_json) from None
        except Stopped as stopped:
            what = f"stopped by {signal.Signals(stopped.number).name}"
            raise tell_error(_with_notes(what, stopped), 128 + stopped.number, as_json) from None
        except MemoryError as error:
            raise tell_error(_with_notes("out of memory", error), OutputError.exit_code, as_json) from None
        except ImportError as error:  # without memory, or where something is not installed rightly
            raise tell_error(f"the system failed: {error}", OutputError.exit_code, as_json) from None
        except BrokenPipeError:
            # Nobody reads stdout any more; Python must not complain about that once again when it exits.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(128 + signal.SIGPIPE) from None
        except OSError as error:
            raise tell_error(f"the system failed: {error}", OutputError.exit_code, as_json) from None

    return wrapped


@contextmanager
def telling_of(*outputs: str) -> Iterator[None]:
    """Note on whatever stops the block by force which outputs were written before that."""
    before = {path: _identity(path) for path in outputs}
    try:
        yield
    except (Stopped, MemoryError) as error:
        error.add_note(_what_was_written([path for path in outputs if _is_new(path, before[path])], outputs))
        raise


def _is_new(path: str, before: tuple[int, int] | None) -> bool:
    return _identity(path) not in (None, before)


def _what_was_written(written: Sequence[str], outputs: Sequence[str]) -> str:
    if not written:
        return "no output was written"
    if len(outputs) == 1:
        return "the output was written"
    return f"written before that: {', '.join(map(printable, written[:5]))}{', ...' if written[5:] else ''}"


@contextmanager
def printing_the_report(written: str | None) -> Iterator[None]:
    """Say what was written, if anything was, when the report of it cannot be printed."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        if written is None:
            raise OutputError(f"cannot write to standard output: {error.strerror}") from error
        what = f"{printable(written)} was written"
        raise OutputError(f"{what}, but the report could not be printed: {error.strerror}") from error


@contextmanager
def showing_causes(wanted: bool) -> Iterator[None]:
    """Show where in the user's own code an error arose, if that is wanted."""
    try:
        yield
    except SwatoolError as error:
        if wanted and error.__cause__ is not None:
            traceback.print_exception(error.__cause__, file=sys.stderr)
        raise


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _with_notes(message: str, error: BaseException) -> str:
    return "; ".join([message, *getattr(error, "__notes__", [])])


def tell_error(message: str, code: int, as_json: bool) -> typer.Exit:
    """Say on stderr what went wrong, and return what ends the command with that exit code."""
    said = json.dumps({"schema": 1, "error": message, "exit_code": code}) if as_json else f"error: {message}"
    with suppress(OSError):  # where stderr is full, the exit code still tells
        typer.echo(said, err=True)
    return typer.Exit(code)


def _torch_is_being_imported() -> bool:
    """Tell whether exceptions are lost: any that comes while torch imports NumPy is a missing NumPy to it."""
    spec = getattr(sys.modules.get("torch"), "__spec__", None)
    return bool(getattr(spec, "_initializing", False))


def _end_at_once(number: int, as_json: bool) -> None:
    """Do all that Stopped would lead to, and end the process."""
    discard_unfinished()
    ending = tell_error(f"stopped by {signal.Signals(number).name}", 128 + number, as_json)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(ending.exit_code)


@contextmanager
def _signals_raised(as_json: bool) -> Iterator[None]:
    """Let the first signal raise Stopped; a second one ends the process at once, as if nobody cared.

    Stopped is what comes of it in any case, though it be lost, or another error follow from it.
    """
    process = os.getpid()
    came: list[Stopped] = []

    def stop(number: int, _: FrameType | None) -> None:
        if os.getpid() != process:  # a data loader's worker, forked, which should just end
            if number == signal.SIGINT:
                raise KeyboardInterrupt  # torch's workers know it, and end in peace
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        for one in caught:
            signal.signal(one, signal.SIG_DFL)
        # What is torn down on the way out may complain of it, and nobody is helped by that.
        sys.unraisablehook = lambda _: None
        if _torch_is_being_imported():
            _end_at_once(number, as_json)
        came.append(Stopped(number))
        raise came[0]

    # A signal that is ignored from outside, as under nohup, stays ignored.
    caught = [one for one in SIGNALS if signal.getsignal(one) is not signal.SIG_IGN]
    before = [(one, signal.signal(one, stop)) for one in caught]
    # A reader that went away is an error like others, at which a command cleans up; and so it stays, as what
    # is left to be said on the way out comes after this.
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    try:
        yield
    finally:
        for one, handler in before:
            signal.signal(one, handler)
        if came:
            discard_unfinished()
            raise came[0]
