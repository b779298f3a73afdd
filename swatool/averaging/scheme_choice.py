"""Every parameter of every scheme, as settings to be given by keyword, and as options of a command line."""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, fields

from swatool.averaging.mean_schemes import SCHEDULES
from swatool.averaging.scheme import Scheme
from swatool.averaging.scheme_checks import SPACINGS, option
from swatool.averaging.schemes import OTHER_NAMES, SCHEMES, make_scheme
from swatool.choices import choice

__all__ = ["SchemeChoice", "SchemeOption", "scheme_options"]


@dataclass(frozen=True, kw_only=True)
class SchemeChoice:
    """The scheme and its parameters; what is None is as the scheme has it by default.

    What each means to which scheme is written in the schemes, and `scheme_options()` collects it.

    Attributes:
        method: the scheme; None is `weights` if weights are given, else `swa`.
    """

    method: str | None = choice(SCHEMES, default=None, other_names=OTHER_NAMES)
    decay: float | None = None
    debias: bool | None = None
    per_step: int | None = None
    inv_gamma: float | None = None
    power: float | None = None
    min_decay: float | None = None
    gamma: float | None = None
    sigma_rel: float | None = None
    spacing: str | None = choice(SPACINGS, default=None)
    target_step: int | None = None
    normalize: bool | str | None = None
    profile: str | None = None
    sigma_rels: tuple[float, ...] | None = None
    snapshot_steps: tuple[int, ...] | None = None
    schedule: str | None = choice(SCHEDULES, default=None)
    alpha: float | None = None
    eta: float | None = None
    lrs: tuple[float, ...] | None = None
    kappa: float | None = None
    rho: float | None = None
    factor: float | None = None
    window: int | None = None
    counts: tuple[float, ...] | None = None
    weights: tuple[float, ...] | None = None

    def scheme(self) -> Scheme:
        """Return the scheme that is asked for; UsageError if its parameters do not fit it."""
        method = self.method or ("swa" if self.weights is None else "weights")
        return make_scheme(method, {name: getattr(self, name) for name in scheme_options()})


@dataclass(frozen=True)
class SchemeOption:
    """One parameter, as an option of a command line.

    Attributes:
        field: its name in the schemes and in `SchemeChoice`.
        option: its name on the command line.
        type: of one value: float, int, str or bool.
        many: whether it is several values, which commas separate.
        schemes: that take it.
        help: what it means to each.
    """

    field: str
    option: str
    type: type
    many: bool
    schemes: tuple[str, ...]
    help: str


@functools.cache
def scheme_options() -> Mapping[str, SchemeOption]:
    """Return all parameters by field name, in the schemes' order, from their fields and docstrings."""
    takers: dict[str, list[str]] = {}
    for name, scheme in SCHEMES.items():
        for field in fields(scheme):
            takers.setdefault(field.name, []).append(name)
    return {field: _option(field, tuple(names)) for field, names in takers.items()}


def _option(field: str, names: tuple[str, ...]) -> SchemeOption:
    annotations = [typing.get_type_hints(SCHEMES[name])[field] for name in names]
    kind, many = _kind(annotations[0])
    if any(_kind(annotation) != (kind, many) for annotation in annotations):
        kind, many = str, False  # such as a flag of one scheme and a word of another
    meanings: dict[str, list[str]] = {}
    for name in names:
        meanings.setdefault(_documented(SCHEMES[name])[field], []).append(name)
    text = "; ".join(f"{', '.join(takers)}: {meaning}" for meaning, takers in meanings.items())
    return SchemeOption(field, option(field), kind, many, names, text)


def _kind(annotation: object) -> tuple[type, bool]:
    """Return the type of one value and whether there are many: of `tuple[float, ...]`, `int | None`, ..."""
    if isinstance(annotation, types.UnionType):
        annotation = next(one for one in typing.get_args(annotation) if one is not types.NoneType)
    if typing.get_origin(annotation) is tuple:
        return typing.get_args(annotation)[0], True
    return typing.cast(type, annotation), False


def _documented(scheme: type) -> Mapping[str, str]:
    """Return what a class's docstring says of its attributes."""
    found: dict[str, str] = {field.name: "" for field in fields(scheme)}
    _, _, listed = inspect.cleandoc(scheme.__doc__ or "").partition("Attributes:\n")
    name = ""
    for line in listed.splitlines():
        text = line.strip()
        if line.startswith("    ") and not line.startswith("     "):
            name, _, text = text.partition(": ")
        if name in found:
            found[name] = f"{found[name]} {text}".strip().removesuffix(".")
    return found
