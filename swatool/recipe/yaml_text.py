"""Reading YAML from people: plain data only, with the line of everything, and every mistake told.

Apart from PyYAML's own loader, which accepts what makes a file mean something else than it seems: a key that
stands twice, an alias that multiplies what it names, `no` for false, `1e-3` for a text. Scalars are those of
YAML 1.2's core schema.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto

import yaml

from swatool.errors import UsageError, printable

__all__ = ["UNREAD", "Node", "Unread", "is_plain_text", "plain", "read_yaml", "scalar_of"]

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
MAX_DIGITS = 40

NULLS = frozenset({"", "~", "null", "Null", "NULL"})
BOOLS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
BASES = {"0o": 8, "0x": 16}
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
SPECIAL = re.compile(r"([-+]?)\.(inf|Inf|INF|nan|NaN|NAN)")
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where PyYAML was built with it

Scalar = str | int | float | bool | None


class Unread(Enum):
    """Stands for a value that was not read, because of a mistake that is told."""

    UNREAD = auto()


UNREAD = Unread.UNREAD


@dataclass(frozen=True, slots=True)
class Node:
    """A value, and the line of the file where it begins, counted from 1.

    Attributes:
        value: a scalar, a list of nodes, a dict of nodes by text, or `UNREAD`.
        line: where it begins.
        filled: whether it is a text into which a variable was put, and may stand for a number.
    """

    value: Scalar | list[Node] | dict[str, Node] | Unread
    line: int
    filled: bool = False


def read_yaml(text: str | bytes, where: str, mistakes: list[tuple[int, str]] | None = None) -> Node:
    """Return what a YAML text says.

    Args:
        text: the whole text; bytes are UTF-8.
        where: the file, fit to be printed, for messages.
        mistakes: takes the line and the sentence of each mistake that leaves the rest readable; None: the
            first one is raised.

    Raises:
        UsageError: it is too large, no YAML, or uses what plain data need not: several documents, aliases,
            tags, keys that are no texts or stand twice, nesting without end.
    """
    if len(text) > MAX_BYTES:
        raise UsageError(f"{where} has more than {MAX_BYTES:,} characters: no recipe or table is so long")
    try:
        decoded = text.decode() if isinstance(text, bytes) else text
        return _Reader(yaml.parse(decoded, Loader=LOADER), where, mistakes).document()
    except UnicodeDecodeError as error:
        raise UsageError(f"{where} is not UTF-8, near byte {error.start}") from error
    except UnicodeEncodeError as error:  # half a character, as the system hands on bytes that are no text
        raise UsageError(f"{where} is not UTF-8, near character {error.start}") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UsageError(f"{where}, line {line}: {error.problem or 'this is no YAML'}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{where} is no YAML: {str(error).partition(chr(10))[0]}") from error


def plain(node: Node) -> object:
    """Return a node's value without the lines: scalars, lists and dicts."""
    if isinstance(node.value, dict):
        return {name: plain(value) for name, value in node.value.items()}
    if isinstance(node.value, list):
        return [plain(item) for item in node.value]
    return node.value


def is_plain_text(text: str) -> bool:
    """Tell whether a text is one without quotes, too, and not a number or the like."""
    special = text in NULLS or text in BOOLS or SPECIAL.fullmatch(text)
    return not (special or INTEGER.fullmatch(text) or FLOAT.fullmatch(text))


def scalar_of(text: str) -> Scalar:
    """Return what a text without quotes stands for; a number of very many digits stays a text."""
    if text in NULLS:
        return None
    if text in BOOLS:
        return BOOLS[text]
    if INTEGER.fullmatch(text):
        return int(text, BASES.get(text[:2], 10)) if len(text) <= MAX_DIGITS else text
    special = SPECIAL.fullmatch(text)
    if special:
        return float(special[1] + special[2])
    return float(text) if FLOAT.fullmatch(text) else text


class _Reader:
    """Builds nodes from the parser's events."""

    def __init__(
        self, events: Iterator[yaml.Event], where: str, mistakes: list[tuple[int, str]] | None
    ) -> None:
        self._events = events
        self._where = where
        self._mistakes = mistakes

    def document(self) -> Node:
        """Return the only document's node; an empty text is None."""
        next(self._events)  # the stream begins
        begin = next(self._events)
        if isinstance(begin, yaml.StreamEndEvent):
            return Node(None, 1)
        node = self._node(next(self._events), 0)
        next(self._events)  # the document ends
        following = next(self._events)
        if not isinstance(following, yaml.StreamEndEvent):
            raise self._refusal(following, "a second document begins: one file is one document")
        return node

    def _node(self, event: yaml.Event, depth: int) -> Node:
        if isinstance(event, yaml.AliasEvent):
            self._note(event, "aliases (*name) are refused: write the value again")
            return Node(UNREAD, _line(event))
        if isinstance(event, yaml.NodeEvent) and event.anchor is not None:
            self._note(event, "anchors (&name) are refused: write the value where it is needed")
        if depth > MAX_DEPTH:
            raise self._refusal(event, f"this is nested more than {MAX_DEPTH} deep")
        if isinstance(event, yaml.ScalarEvent):
            return Node(self._scalar(event), _line(event))
        if isinstance(event, yaml.CollectionStartEvent) and event.tag not in (None, "!"):
            self._note(event, f"tags ({printable(event.tag)}) are refused: write plain values")
        if isinstance(event, yaml.MappingStartEvent):
            found: list[Node] | dict[str, Node] = self._mapping(depth)
        else:
            found = list(self._items(depth))
        return Node(UNREAD if getattr(event, "tag", None) not in (None, "!") else found, _line(event))

    def _items(self, depth: int) -> Iterator[Node]:
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            yield self._node(event, depth + 1)

    def _mapping(self, depth: int) -> dict[str, Node]:
        found: dict[str, Node] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent) or event.tag not in (None, "!"):
                raise self._refusal(event, "a key must be a plain text")
            name = event.value
            merges = name == "<<" and not event.style
            if merges:
                self._note(event, "merging (<<) is refused: write the values again")
            if name in found:
                self._note(event, f"{printable(name)} stands twice, first in line {found[name].line}")
            node = self._node(next(self._events), depth + 1)
            if not merges:
                found.setdefault(name, node)
        return found

    def _scalar(self, event: yaml.ScalarEvent) -> Scalar | Unread:
        text = event.value
        if event.tag not in (None, "!"):
            self._note(event, f"tags ({printable(event.tag)}) are refused: write plain values")
            return UNREAD
        if event.style:  # quoted, or a block of text
            return text
        if len(text) > MAX_DIGITS and INTEGER.fullmatch(text):
            self._note(event, f"a number of more than {MAX_DIGITS} digits: quote a text")
            return UNREAD
        return scalar_of(text)

    def _note(self, event: yaml.Event, what: str) -> None:
        """Note a mistake after which the rest can still be read; raise it if nobody takes notes."""
        if self._mistakes is None:
            raise self._refusal(event, what)
        self._mistakes.append((_line(event), what))

    def _refusal(self, event: yaml.Event, what: str) -> UsageError:
        return UsageError(f"{self._where}, line {_line(event)}: {what}")


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 1
