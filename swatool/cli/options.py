"""Options that several commands have, declared once."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from swatool.errors import UsageError, printable

if TYPE_CHECKING:
    from swatool.averaging.scheme_choice import SchemeOption

__all__ = [
    "AsJson",
    "Checksum",
    "Device",
    "KeepPrefix",
    "Key",
    "Overwrite",
    "Quiet",
    "StripPrefix",
    "Threads",
    "Variant",
    "numbers",
    "with_scheme_options",
]

Key = Annotated[
    str | None,
    typer.Option("--key", help="Where in the checkpoint the state dict is, such as ema.model."),
]
StripPrefix = Annotated[
    list[str] | None,
    typer.Option("--strip-prefix", help="Take this off all names, besides module. and _orig_mod."),
]
Variant = Annotated[
    str | None,
    typer.Option("--variant", help="Of several models in a Hugging Face folder, such as fp16."),
]
KeepPrefix = Annotated[bool, typer.Option("--keep-prefix", help="Leave module. and _orig_mod. on the names.")]
Device = Annotated[str, typer.Option("--device", help="Where to compute: cpu, cuda, cuda:N or auto.")]
Threads = Annotated[
    int | None, typer.Option("--threads", "-j", help="Workers; default: the cores that may be used.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")]
Checksum = Annotated[
    bool,
    typer.Option(
        "--checksum", help="Record SHA-256 of the inputs and of the output; check torch files' CRCs."
    ),
]
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


def with_scheme_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command, in place of its `**parameters`, an option for each parameter of the schemes.

    They are made of the table of schemes, so that a scheme brings its options with it.
    """
    from swatool.averaging.scheme_choice import scheme_options  # other commands do without the schemes

    signature = inspect.signature(command, eval_str=True)
    own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    place = next(index for index, p in enumerate(own) if p.name == "method") + 1
    made = [_parameter(one) for one in scheme_options().values()]

    @functools.wraps(command)
    def wrapped(**given: object) -> None:
        for one in scheme_options().values():
            if one.many:
                given[one.field] = numbers(one.option, given[one.field])  # type: ignore[arg-type]
                if one.type is int and given[one.field] is not None:
                    given[one.field] = tuple(map(int, given[one.field]))  # type: ignore[call-overload]
        command(**given)

    parameters = [*own[:place], *made, *own[place:]]
    keyword = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
    wrapped.__signature__ = inspect.Signature(keyword)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {p.name: p.annotation for p in keyword}
    return wrapped


def _parameter(one: SchemeOption) -> inspect.Parameter:
    kind = str if one.many else one.type
    name = f"{one.option}/--no-{one.option[2:]}" if kind is bool else one.option
    annotation = Annotated[kind | None, typer.Option(name, help=f"{one.help}.")]  # type: ignore[valid-type]
    return inspect.Parameter(one.field, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
