"""The command line: the topmost leaf. A command parses, calls one function of the library, and draws.

A command is imported when it is named, because to import one takes longer than `--help` should.
"""

from __future__ import annotations

import errno
import functools
import importlib
import io
import os
import sys
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Annotated

import typer

from swatool.errors import OutputError
from swatool.version import __version__

__all__ = ["app", "main"]

# Each is a function in a module of its name, in the order of `--help`, which says of it what its first
# sentence says.
COMMANDS: Mapping[str, str] = {
    "average": "Average checkpoints of one training run into one.",
    "soup": "Average those checkpoints that do not make the average worse, by an evaluation: a greedy soup.",
    "run": "Carry out a recipe: averages, recalibrations, evaluations and checks, as a YAML file says.",
    "recalibrate-bn": "Recompute the BatchNorm statistics of a checkpoint on data, and write it with them.",
    "inspect": "Show what lies in checkpoints: state dicts, tensors, steps and metrics.",
    "diff": "Compare two checkpoints: names, shapes, types, and the values of each tensor, the worst first.",
    "verify": "Check outputs: header, sizes, finite values, checksums, and that they average their sources.",
}
# What only writing leads to. Before a command has begun, nothing is written to but the standard streams.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
ENDING_AT_ONCE = ("average", "inspect", "diff", "verify")  # they run nobody else's code


def __getattr__(name: str) -> object:
    if name != "app":
        raise AttributeError(f"module 'swatool.cli' has no attribute {name!r}")
    return _app(tuple(COMMANDS))


@functools.cache
def _app(named: Collection[str]) -> typer.Typer:
    """Return the application; of commands that are not named it only knows how they are introduced."""
    # Plain help: drawing it with rich costs as much time again as everything else in `--help`.
    app = typer.Typer(
        name="swatool",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(swatool)
    for command, summary in COMMANDS.items():
        if command in named:
            name = command.replace("-", "_")
            module = importlib.import_module(f"swatool.cli.{name}")
            # One that parses its arguments in a way of its own brings the class that does so.
            app.command(command, cls=getattr(module, "Command", None))(getattr(module, name))
        else:
            app.command(command, help=summary)(_introduced)
    return app


def _introduced() -> None:
    """Stand for a command that is not named on the command line, and so cannot be called."""


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"swatool {__version__}")
        raise typer.Exit


def swatool(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Turn the saved checkpoints of a training run into one better model."""


def main() -> None:
    """Run the command line."""
    _open_standard_streams()
    for stream in (sys.stdout, sys.stderr):
        # Names of tensors and files may hold letters that the terminal does not know.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    # Any argument may be the command, as options may stand before it.
    asked_for = tuple(command for command in COMMANDS if command in sys.argv[1:])
    try:
        _app(asked_for)()
    except SystemExit as ended:
        runs_others = any(argument.startswith("--eval") for argument in sys.argv)
        if set(asked_for) & set(ENDING_AT_ONCE) and not runs_others and isinstance(ended.code, int):
            _end_at_once(ended.code)
        raise
    except (MemoryError, ImportError, OSError) as error:  # no command has begun that would take care of them
        with suppress(OSError):
            sys.stderr.write(f"error: {_described(error)}\n")
            sys.stderr.flush()
        os._exit(OutputError.exit_code)  # what stands in a stream that cannot be written would be tried again


def _described(error: BaseException) -> str:
    """Say what kept help, or a command, from being given."""
    if isinstance(error, OSError) and error.errno in NO_ROOM and error.filename is None:
        return f"cannot write to standard output: {error.strerror}"
    return f"the system failed: {str(error) or 'out of memory'}"


def _end_at_once(code: int) -> None:
    """Leave without taking torch apart piece by piece, which takes a quarter of a second.

    Only for commands that run nobody else's code, which might have left something to be done at the end.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            return
    os._exit(code)


def _open_standard_streams() -> None:
    """Put something in the place of streams that are closed from the start, before a checkpoint takes it."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)
