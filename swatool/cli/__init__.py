"""The command line: the topmost leaf. A command parses, calls one function of the library, and draws."""

from __future__ import annotations

import io
import os
import sys
from typing import Annotated

import typer

from swatool.cli.average import average
from swatool.cli.recalibrate_bn import recalibrate_bn
from swatool.version import __version__

__all__ = ["app", "main"]

# Plain help: drawing it with rich costs as much time again as everything else in `--help`.
app = typer.Typer(
    name="swatool",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(average)
app.command("recalibrate-bn")(recalibrate_bn)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"swatool {__version__}")
        raise typer.Exit


@app.callback()
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
    try:
        app()
    except SystemExit as ended:
        if sys.argv[1:2] == ["average"] and isinstance(ended.code, int):
            _end_at_once(ended.code)
        raise


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
