"""The command line: the topmost leaf. A command parses, calls one function of the library, and draws."""

from __future__ import annotations

from typing import Annotated

import typer

from swatool.cli.average import average
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
    app()
