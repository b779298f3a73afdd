"""JSON of strangers, read with bounded memory, and refused in words that are not Python's own."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable

from swatool.errors import printable

__all__ = ["BEFORE_A_VALUE", "MOST_VALUES", "JsonError", "parse_json"]

# A value takes up to about a hundred bytes as an object, and three in the text.
MOST_VALUES = 500_000
MOST_WIDE = 4 << 20  # bytes of a text in which each letter may take four
MOST_DIGITS = 400  # more than any float has
SHOWN = 5
BEFORE_A_VALUE = "[{,:"  # what stands before each but the first


class JsonError(ValueError):
    """A text is no JSON, or not such as is read; the message is the end of a sentence."""


def parse_json(data: bytes | str, *, most: int = MOST_VALUES) -> object:
    """Return what a JSON text says: no key twice in an object, and no number that nobody could mean.

    Args:
        data: the text; bytes are UTF-8, without a byte order mark.
        most: about so many values, names of keys included.

    Raises:
        JsonError: it is no JSON, is nested too deep, is too long, or has too many values.
    """
    if isinstance(data, bytes) and len(data) > MOST_WIDE and not data.isascii():
        raise JsonError(
            f"it has {len(data):,} bytes and letters beyond ASCII, and at most {MOST_WIDE:,} are read"
        )
    try:
        text = data.decode() if isinstance(data, bytes) else data
        del data  # which would be there twice
        if sum(map(text.count, BEFORE_A_VALUE)) > most:
            raise JsonError(f"it has more than {most:,} values")
        found: object = json.loads(
            text, object_pairs_hook=_without_duplicates, parse_int=_integer, parse_float=_real
        )
    except JsonError:
        raise
    except UnicodeDecodeError as error:
        raise JsonError(f"it is not UTF-8, near byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise JsonError(f"it is no JSON, see line {error.lineno}, column {error.colno}") from error
    except RecursionError as error:
        raise JsonError("it is nested too deep") from error
    return found


def _integer(text: str) -> int:
    return int(_short(text))


def _real(text: str) -> float:
    return float(_short(text))


def _short(text: str) -> str:
    if len(text) > MOST_DIGITS:
        raise JsonError(f"it has a number of {len(text):,} digits")
    return text


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
        raise JsonError(f"it has the same key twice: {_some(twice)}")
    return found


def _some(names: Iterable[str]) -> str:
    every = list(names)
    more = f" and {len(every) - SHOWN} more" if len(every) > SHOWN else ""
    return ", ".join(map(printable, every[:SHOWN])) + more
