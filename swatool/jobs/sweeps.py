"""Sweeps: several averages that differ in a few settings, each under a name that says in which."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import re
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from swatool.errors import UsageError, printable

__all__ = ["MOST_VARIANTS", "Variant", "as_axes", "fill", "fill_none", "sweep"]

T = TypeVar("T")

MOST_VARIANTS = 256
PLACE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
AXIS = re.compile(r"([a-z][a-z0-9-]*)=(.+)")
VALUE = re.compile(r"\.?[A-Za-z0-9][A-Za-z0-9._+-]*|-[0-9.][0-9.eE+-]*")

KINDS: Mapping[type, str] = {int: "a whole number", float: "a number", bool: "true or false"}
BOOLS = {"true": True, "false": False}

Variant = Mapping[str, str]


def as_axes(values: Mapping[str, Iterable[object]]) -> list[str]:
    """Return the values of swept settings, by name, as axes of `sweep`."""
    return [f"{name.replace('_', '-')}={','.join(map(_word, some))}" for name, some in values.items()]


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def sweep(settings: T, axes: Sequence[str], allowed: Sequence[str]) -> list[tuple[Variant, T]]:
    """Return the settings of each variant of a sweep, with its values as they were written.

    Args:
        settings: a dataclass, of which the variants differ in the swept fields only.
        axes: `name=value,value,...` each; several are crossed, the last one varies fastest.
        allowed: names of the fields that may be swept.

    Raises:
        UsageError: an axis is none, its field is unknown or swept twice, or a value is not of its type.
    """
    parsed = [_parsed(axis, allowed) for axis in axes]
    names = [name for name, _ in parsed]
    repeated = [name for index, name in enumerate(names) if name in names[:index]]
    if repeated:
        raise UsageError(f"--sweep {repeated[0]} is given twice: give all its values at once")
    count = 1
    for _, values in parsed:
        count *= len(values)
    if count > MOST_VARIANTS:
        raise UsageError(f"--sweep gives {count:,} averages, more than {MOST_VARIANTS}: give fewer values")
    found: list[tuple[Variant, T]] = []
    seen: list[dict[str, object]] = []
    for combination in itertools.product(*(values for _, values in parsed)):
        variant = dict(zip(names, combination, strict=True))
        typed = {_field(name): _typed(settings, name, text) for name, text in variant.items()}
        if typed in seen:
            raise UsageError("--sweep has a value twice: each average needs values of its own")
        seen.append(typed)
        found.append((variant, dataclasses.replace(settings, **typed)))  # type: ignore[type-var]
    return found


def fill(template: str, variants: Sequence[Variant]) -> list[str]:
    """Return the output's path for each variant: `{name}` stands for the value; `{{` and `}}` for braces.

    Raises:
        UsageError: the template lacks the place of a swept name, has one that is not swept, or gives two
            variants one path.
    """
    places = [match[1] for match in PLACE.finditer(template) if match[1] is not None]
    for name in variants[0]:
        if name not in places:
            raise UsageError(
                f"-o {printable(template)} needs {{{name}}}, so that the averages get different names"
            )
    for name in places:
        if name not in variants[0]:
            raise UsageError(
                f"-o {printable(template)} has {{{name}}}, which is not swept; write {{{{ for a brace"
            )
    paths = [_filled(template, variant) for variant in variants]
    if len(set(paths)) != len(paths):
        raise UsageError("--sweep has a value twice: each average needs a name of its own")
    return paths


def fill_none(template: str, allowed: Sequence[str]) -> str:
    """Return a path where nothing is swept, as it is; UsageError if it has the place of a swept setting."""
    for match in PLACE.finditer(template):
        if match[1] is not None and _field(match[1]) in allowed:
            raise UsageError(f"-o {printable(template)} has {match[0]}, and nothing is swept: give --sweep")
    return template


def _parsed(axis: str, allowed: Sequence[str]) -> tuple[str, list[str]]:
    match = AXIS.fullmatch(axis)
    if match is None:
        raise UsageError(f"--sweep must be name=value,value,..., such as last=2,4,8, not {printable(axis)}")
    name, values = match[1], match[2].split(",")
    if _field(name) not in allowed:
        options = [field.replace("_", "-") for field in allowed]
        near = difflib.get_close_matches(name, options, n=1)
        hint = f"did you mean {near[0]}?" if near else f"what can is {', '.join(options)}"
        raise UsageError(f"--sweep {printable(name)[1:-1]} cannot be swept; {hint}")
    for value in values:
        if not VALUE.fullmatch(value):
            raise UsageError(f"--sweep {name} has the value {printable(value)}: give numbers or plain names")
    return name, values


def _field(name: str) -> str:
    return name.replace("-", "_")


def _typed(settings: object, name: str, text: str) -> object:
    """Convert a value's text to the type of its field."""
    wanted = typing.get_type_hints(type(settings))[_field(name)]
    choices = [one for one in typing.get_args(wanted) or (wanted,) if one is not type(None)]
    for kind in choices:
        if kind is bool and text not in BOOLS:
            continue
        if kind is bool:
            return BOOLS[text]
        if kind is str:
            return text
        try:
            return kind(text)
        except (TypeError, ValueError):
            continue
    kinds = " or ".join(KINDS.get(kind, kind.__name__) for kind in choices)
    raise UsageError(f"--sweep {name} must be {kinds}, not {printable(text)}")


def _filled(template: str, variant: Variant) -> str:
    def value(match: re.Match[str]) -> str:
        if match[1] is not None:
            return variant[match[1]]
        if len(match[0]) == 2:
            return match[0][0]
        raise UsageError(f"-o {printable(template)} has a single brace: write {{{{ or }}}} for a brace")

    return PLACE.sub(value, template)
