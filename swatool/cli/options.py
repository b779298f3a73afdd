"""Options that several commands have, declared once."""

from __future__ import annotations

from typing import Annotated

import typer

from swatool.errors import UsageError, printable

__all__ = ["AsJson", "Device", "KeepPrefix", "Key", "Overwrite", "Quiet", "StripPrefix", "numbers"]

Key = Annotated[
    str | None,
    typer.Option("--key", help="Where in the checkpoint the state dict is, such as ema.model."),
]
StripPrefix = Annotated[
    list[str] | None,
    typer.Option("--strip-prefix", help="Take this off all names, besides module. and _orig_mod."),
]
KeepPrefix = Annotated[bool, typer.Option("--keep-prefix", help="Leave module. and _orig_mod. on the names.")]
Device = Annotated[str, typer.Option("--device", help="Where to compute: cpu, cuda, cuda:N or auto.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the report as one JSON object.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]


def numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    """Read numbers that commas separate; UsageError if they are none."""
    if text is None:
        return None
    try:
        return tuple(map(float, text.split(",")))
    except ValueError:
        raise UsageError(f"{option} must be numbers separated by commas, not {printable(text)}") from None
