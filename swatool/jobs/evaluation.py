"""`--eval`: a number of the user's own, of the model before and after."""

from __future__ import annotations

import copy
import math
import numbers
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from swatool.errors import UsageError, printable
from swatool.user_code import describe_failure, load_attribute

if TYPE_CHECKING:
    from torch import nn

__all__ = ["as_float", "as_numbers", "evaluate", "load_function"]


def load_function(spec: str, option: str) -> Callable[..., object]:
    """Import a function that the user names; UsageError if there is none."""
    found = load_attribute(spec, option)
    if not callable(found):
        raise UsageError(f"{option} {printable(spec)} is {printable(type(found).__name__)}, not a function")
    return found


def evaluate(model: nn.Module, spec: str) -> Mapping[str, float]:
    """Call the user's function with a copy of the model, and return its number, or numbers, by name.

    Whatever it does to the copy, and to torch's random numbers, changes nothing that comes after. Of a model
    that cannot be copied, it is given the original.

    Raises:
        UsageError: there is no such function, it raised an error, or what it returned is no number.
    """
    from swatool.batchnorm.borrowed import keeping_random_state

    function = load_function(spec, "--eval")
    given = f"--eval {printable(spec)}"
    try:
        with keeping_random_state():
            found = function(_copied(model))
    except (Exception, SystemExit) as error:
        raise UsageError(f"{given} failed: {describe_failure(error)}; -v shows where") from error
    return as_numbers(found, given, alone=spec.rpartition(":")[2])


def as_numbers(found: object, given: str, *, alone: str) -> Mapping[str, float]:
    """Return what a user's function returned as numbers by name; a single one is called `alone`."""
    if not isinstance(found, Mapping):
        return {alone: _number(found, given)}
    if not found:
        raise UsageError(f"{given} returned no number: return one, or a mapping of names to numbers")
    return {str(name): _number(value, given) for name, value in found.items()}


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception:  # noqa: BLE001 - whatever a module's own __deepcopy__ raises
        return model


def _number(value: object, given: str) -> float:
    item = getattr(value, "item", None)  # what tensors and NumPy's numbers have
    try:
        value = item() if callable(item) else value
    except (RuntimeError, ValueError) as error:
        raise UsageError(f"{given} returned a tensor of more than one number") from error
    if not isinstance(value, numbers.Real):
        raise UsageError(
            f"{given} returned {printable(type(value).__name__)}: return a number, or a mapping of names to "
            "numbers"
        )
    return as_float(value)


def as_float(value: numbers.Real | float) -> float:
    """Return a number as float; one that is too large is infinite."""
    try:
        return float(value)
    except OverflowError:
        return -math.inf if value < 0 else math.inf
