"""What fields of settings take besides their types: declared once, for checks, files and their schema."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import Field, field, fields
from typing import Any, TypeVar

from swatool.errors import SettingError, SwatoolError, printable

__all__ = [
    "KEYS",
    "PATTERN",
    "check_choices",
    "choice",
    "choices_of",
    "nearest",
    "not_among",
    "refusal",
    "tried",
]

T = TypeVar("T")

# In a field's metadata.
CHOICES, OTHER_NAMES = "choices", "other names"
KEYS = "keys"  # the names that a mapping takes
PATTERN = "pattern"  # a regular expression that a whole text matches
LONGEST = 100  # characters of a word of which it is asked what may be meant


def choice(
    choices: Iterable[str], *, default: str | None, other_names: Mapping[str, str] | None = None
) -> Any:  # noqa: ANN401 - as dataclasses.field does
    """Return a field of a dataclass that is one of a few words, or None where that is its default.

    Args:
        choices: the words.
        default: one of them, or None.
        other_names: what people may say instead, and what it is called here.
    """
    return field(default=default, metadata={CHOICES: tuple(choices), OTHER_NAMES: other_names or {}})


def choices_of(one: Field[Any]) -> tuple[str, ...]:
    """Return the words that a field takes; none: it takes others than words, or any."""
    return tuple(one.metadata.get(CHOICES, ()))


def refusal(one: Field[Any], value: object) -> str:
    """Say why a field does not take a value, as the end of a sentence; empty if it takes it."""
    choices = choices_of(one)
    if not choices or value in choices or (value is None and one.default is None):
        return ""
    return not_among(choices, value, one.metadata[OTHER_NAMES])


def nearest(word: str, words: Collection[str]) -> str | None:
    """Return the one of a few words that is most like another, if any is."""
    return next(iter(difflib.get_close_matches(word[:LONGEST], words, n=1)), None)


def not_among(choices: Collection[str], value: object, other_names: Mapping[str, str]) -> str:
    """Say that a value is none of a few words, and which may be meant, as the end of a sentence."""
    name = str(value)[:LONGEST].lower().replace("_", "-")
    near = nearest(name, choices)
    hint = f"; did you mean {near}?" if near else ""
    if name in other_names:
        hint = f"; that is {other_names[name]}"
    shown = printable(value)
    shown = shown[1:-1] if isinstance(value, bool | int | float | None) else shown
    return f"must be one of {', '.join(choices)}, not {shown}{hint}"


def check_choices(settings: Any) -> None:  # noqa: ANN401 - any dataclass
    """Raise SettingError if a field of a dataclass is none of the words that it takes."""
    for one in fields(settings):
        what = refusal(one, getattr(settings, one.name))
        if what:
            raise SettingError(one.name, what)


def tried(
    make: Callable[..., T], given: Mapping[str, object], required: Collection[str] = ()
) -> tuple[T | None, list[SwatoolError]]:
    """Make something of settings, or find all that is wrong with them.

    A setting that is refused is left out, and the rest tried again. What is wrong between settings is told
    only where each by itself is right.

    Args:
        make: is called with the settings.
        given: the settings by name.
        required: those that cannot be left out.

    Returns:
        What was made, None if something is wrong; and what is wrong.
    """
    left, found = dict(given), list[SwatoolError]()
    while True:
        try:
            made = make(**left)
        except SettingError as error:
            found.append(error)
            if error.field not in left or error.field in required:
                return None, found
            del left[error.field]
        except SwatoolError as error:
            return None, found or [error]
        else:
            return (None if found else made), found
