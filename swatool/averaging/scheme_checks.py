"""Checks that the schemes share: of their parameters, and of the steps that they are given.

Every refusal names the parameter as the command line's option.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Sequence
from typing import TypeGuard

from swatool.averaging.scheme import Steps
from swatool.choices import not_among
from swatool.errors import SettingError, UsageError, printable

__all__ = [
    "LARGEST_WEIGHT",
    "SPACINGS",
    "check_choice",
    "check_flag",
    "check_number",
    "check_whole",
    "increasing_steps",
    "is_finite",
    "known_steps",
    "option",
    "positions",
    "resolved_spacing",
    "tuple_of_numbers",
]

LARGEST_WEIGHT = 1e30  # beyond it the sums, in float32, cannot be finite
SPACINGS = ("auto", "index", "steps")


def option(field: str) -> str:
    """Return the command line's name of a parameter: `--sigma-rel` for sigma_rel."""
    return f"--{field.replace('_', '-')}"


def is_finite(value: object) -> TypeGuard[int | float]:
    """Tell whether it is a number that float64 can hold; True and False are none."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and abs(value) <= sys.float_info.max  # type: ignore[arg-type]


def check_number(
    field: str, value: object, low: float = -math.inf, high: float = math.inf, *, without: str = ""
) -> None:
    """Raise SettingError unless the value is a finite number between two bounds.

    Args:
        field: the parameter's name.
        value: what was given for it.
        low: the least that is allowed.
        high: the most that is allowed.
        without: which bounds are not allowed themselves, `low`, `high` or `low high`.
    """
    open_low, open_high = "low" in without.split(), "high" in without.split()
    if is_finite(value):
        above = value > low if open_low else value >= low
        below = value < high if open_high else value <= high
        if above and below:
            return
    if high < math.inf:
        wanted = f"lie in {'(' if open_low else '['}{low:.6g}, {high:.6g}{')' if open_high else ']'}"
    elif low > -math.inf:
        wanted = f"be a finite number {'above' if open_low else 'of at least'} {low:g}"
    else:
        wanted = "be a finite number"
    raise SettingError(field, f"must {wanted}, not {_shown(value)}")


def check_whole(field: str, value: object, low: int) -> None:
    """Raise SettingError unless the value is a whole number of at least `low`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise SettingError(field, f"must be a whole number of at least {low}, not {_shown(value)}")


def tuple_of_numbers(
    field: str, values: object, low: float = -math.inf, *, per: str = "checkpoint"
) -> tuple[float, ...]:
    """Return a list or a tuple as a tuple; SettingError unless all are finite numbers of at least `low`."""
    if not isinstance(values, list | tuple) or not all(is_finite(v) and v >= low for v in values):
        least = f" of at least {low:g}" if low > -math.inf else ""
        raise SettingError(field, f"must be finite numbers{least}, one per {per}")
    return tuple(values)


def check_choice(field: str, value: object, choices: Sequence[str]) -> None:
    """Raise SettingError unless the value is one of a few words."""
    if value not in choices:
        raise SettingError(field, not_among(choices, value, {}))


def check_flag(field: str, value: object) -> None:
    """Raise SettingError unless the value is True or False."""
    if not isinstance(value, bool):
        raise SettingError(field, f"must be true or false, not {_shown(value)}")


def known_steps(steps: Steps, what: str) -> tuple[int, ...]:
    """Return the steps; UsageError if one is not known or below 0.

    Args:
        steps: of the checkpoints.
        what: needs them, for the message.
    """
    for number, step in enumerate(steps, 1):
        if step is None:
            raise UsageError(
                f"{what} needs the training step of every checkpoint, and checkpoint {number} of "
                f"{len(steps)} has none, neither stored nor in its name"
            )
        if step < 0:
            raise UsageError(f"{what} needs steps of at least 0, and checkpoint {number} has {step}")
    return tuple(step for step in steps if step is not None)


def increasing_steps(steps: Steps, what: str) -> tuple[int, ...]:
    """Return the steps; UsageError if one is not known, comes twice, or is below the one before it."""
    known = known_steps(steps, what)
    for number, (earlier, later) in enumerate(itertools.pairwise(known), 1):
        if earlier >= later:
            how = "the same step" if earlier == later else "steps that fall"
            raise UsageError(
                f"{what} needs steps that increase, and checkpoints {number} and {number + 1} have {how}: "
                f"{earlier} and {later}"
            )
    return known


def resolved_spacing(spacing: str, steps: Steps) -> str:
    """Return `index` or `steps`; `auto` is steps where all are known."""
    if spacing != "auto":
        return spacing
    return "index" if None in steps else "steps"


def positions(steps: Steps, spacing: str, method: str) -> tuple[int, ...]:
    """Return where each checkpoint stands in time: its step, or its number from 1.

    Raises:
        UsageError: steps are used that are not known, or do not increase.
    """
    if resolved_spacing(spacing, steps) == "index":
        return tuple(range(1, len(steps) + 1))
    return increasing_steps(steps, f"--method {method} with --spacing steps")


def _shown(value: object) -> str:
    return printable(value) if isinstance(value, str) else printable(value)[1:-1]
