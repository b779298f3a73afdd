"""From YAML to typed, frozen dataclasses: the fields' types and defaults are the whole schema.

Every mistake in a file is found before one is told, each with its line.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar, Union

from swatool.choices import KEYS, refusal, tried
from swatool.errors import SettingError, SwatoolError, UsageError, printable
from swatool.recipe.yaml_text import UNREAD, Node, plain, scalar_of

__all__ = [
    "WRONG",
    "Place",
    "PlacedError",
    "build",
    "dump",
    "fields_of",
    "is_required",
    "placed",
    "refuse",
    "unknown",
]

T = TypeVar("T")

Place = Sequence[str | int]  # the way from a dataclass to a value in it: names of fields, and indexes

# What stands in quotes is somebody's own.
OPTION = re.compile(r"""(?<!\w)('[^']*'|"[^"]*")|--(?:no-)?([a-z][a-z0-9]*(?:-[a-z0-9]+)*)|-o\b""")
SHOWN_MISTAKES = 20
WRONG = object()  # stands for a value that could not be made
# A class that says so is made with `WRONG` in it, too, to tell what else is wrong; nobody else sees that.
CHECKS_THE_REST = "checks_the_rest"
KINDS: Mapping[object, str] = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}


class PlacedError(UsageError):
    """What a dataclass refuses about values that lie deep in it.

    Attributes:
        mistakes: where, and what is wrong there.
    """

    def __init__(self, mistakes: Iterable[tuple[Place, str]]) -> None:
        self.mistakes = tuple(mistakes)
        super().__init__("; ".join(what for _, what in self.mistakes))


def build(cls: type[T], node: Node, where: str, noted: Iterable[tuple[int, str]] = ()) -> T:
    """Make a dataclass of a mapping; its fields may be dataclasses, tuples and mappings of such.

    Args:
        cls: a dataclass whose fields are typed as str, int, float, bool, Literal, None, dataclasses,
            `tuple[X, ...]`, `Mapping[str, X]`, or unions with None. A field of type `object` takes anything.
        node: what the file says.
        where: the file, fit to be printed, for messages.
        noted: mistakes that were found before, which are told with the others.

    Raises:
        UsageError: it tells of every unknown or missing key, of every value of another type, and of what the
            dataclasses themselves refuse, each with its line. Options of the command line that those speak
            of are told as the fields that they stand for.
    """
    builder = _Builder()
    builder.mistakes += noted
    found = builder.value(cls, node, "")
    refuse(builder.mistakes, where)
    return typing.cast(T, found)


def refuse(
    mistakes: Collection[tuple[int, str]], where: str, error: Callable[[str], Exception] = UsageError
) -> None:
    """Raise an error if there are mistakes: it tells the first 20 by line; line 0 is none."""
    lines = [f"line {line}: {what}" if line else what for line, what in sorted(set(mistakes))]
    if len(lines) == 1:
        raise error(f"{where}, {lines[0]}")
    if lines:
        hidden = len(lines) - SHOWN_MISTAKES
        more = [f"... and {hidden} more"] if hidden > 0 else []
        raise error("\n  ".join([f"{where} has {len(lines)} mistakes:", *lines[:SHOWN_MISTAKES], *more]))


def fields_of(cls: type) -> Mapping[str, tuple[Any, dataclasses.Field[Any]]]:
    """Return the type and the field by name of what a file may say of a dataclass."""
    return _fields_of(cls)


@functools.cache
def _fields_of(cls: type) -> Mapping[str, tuple[Any, dataclasses.Field[Any]]]:
    hints = typing.get_type_hints(cls)
    return {field.name: (hints[field.name], field) for field in dataclasses.fields(cls) if field.init}


def is_required(field: dataclasses.Field[Any]) -> bool:
    """Tell whether a field has no default."""
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def dump(value: object) -> object:
    """Return what a file would say of a dataclass: plain values, defaults left out."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        said = {}
        for name, (_, field) in fields_of(type(value)).items():
            one = getattr(value, name)
            default = field.default_factory() if callable(field.default_factory) else field.default
            if is_required(field) or one != default:
                said[name] = dump(one)
        return said
    if isinstance(value, Mapping):
        return {str(name): dump(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [dump(one) for one in value]
    return value


class _MistakeError(Exception):
    """A value could not be made; why is noted."""


class _Builder:
    """Makes values of nodes and notes what is wrong with them."""

    def __init__(self) -> None:
        self.mistakes: list[tuple[int, str]] = []

    def value(self, wanted: object, node: Node, place: str) -> object:
        """Return the value of a node, of the wanted type; `WRONG`, and a note, if it is none."""
        if node.value is UNREAD:
            return WRONG
        try:
            return self._made(wanted, node, place)
        except _MistakeError:
            return WRONG

    def _made(self, wanted: object, node: Node, place: str) -> object:
        origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
        if origin in (Union, types.UnionType):
            return self._one_of(arguments, node, place)
        if origin is Literal:
            return self._literal(arguments, node, place)
        if origin is tuple:
            return self._tuple(arguments[0], node, place)
        if isinstance(origin, type) and issubclass(origin, Mapping):
            return self._mapping(arguments[1], node, place)
        if dataclasses.is_dataclass(wanted):
            return self._dataclass(typing.cast(type, wanted), node, place)
        if wanted is object:
            return plain(node)
        return self._scalar(wanted, node, place)

    def _one_of(self, choices: tuple[object, ...], node: Node, place: str) -> object:
        if node.value is None and type(None) in choices:
            return None
        left = [choice for choice in choices if choice is not type(None)]
        if len(left) == 1:
            return self._made(left[0], node, place)
        # Mistakes inside a mapping, or a list, are told as such, if only one choice is of that kind.
        alike = [choice for choice in left if _takes(choice, node)]
        if len(alike) == 1 and isinstance(node.value, dict | list):
            return self._made(alike[0], node, place)
        for choice in alike:
            trial = _Builder()
            found = trial.value(choice, node, place)
            if not trial.mistakes:
                return found
        raise self._mistake(node, place, " or ".join(map(_kind, left)))

    def _literal(self, choices: tuple[object, ...], node: Node, place: str) -> object:
        if not isinstance(node.value, dict | list) and node.value in choices:
            return node.value
        raise self._mistake(node, place, f"one of {', '.join(map(str, choices))}")

    def _tuple(self, item: object, node: Node, place: str) -> object:
        # A single value is a list of one: people write it so.
        nodes = node.value if isinstance(node.value, list) else [node]
        if node.value is None:
            raise self._mistake(node, place, "a list")
        return tuple(self.value(item, one, f"{place}[{index}]") for index, one in enumerate(nodes))

    def _mapping(self, item: object, node: Node, place: str) -> object:
        if not isinstance(node.value, dict):
            raise self._mistake(node, place, "a mapping")
        return {name: self.value(item, one, _inside(place, name)) for name, one in node.value.items()}

    def _dataclass(self, cls: type, node: Node, place: str) -> object:
        if not isinstance(node.value, dict):
            raise self._mistake(node, place, "a mapping")
        known = fields_of(cls)
        before = len(self.mistakes)
        self._refuse_unknown(node.value, known, place)
        given = {
            name: self._field(*known[name], one, _inside(place, name))
            for name, one in node.value.items()
            if name in known
        }
        for name, (_, field) in known.items():
            if is_required(field) and name not in node.value:
                self.mistakes.append((node.line, f"{_inside(place, name)} is missing"))
                given[name] = WRONG
        wrong = len(self.mistakes) > before or any(value is WRONG for value in given.values())
        required = [name for name, (_, field) in known.items() if is_required(field)]
        if wrong and not getattr(cls, CHECKS_THE_REST, False):
            given = {name: value for name, value in given.items() if value is not WRONG}
            if not given.keys() >= set(required):
                raise _MistakeError
        made, errors = tried(cls, given, required)
        for error in errors:
            self._refused(error, node, place, is_whole=not wrong)
        if wrong or errors:
            raise _MistakeError
        return made

    def _refused(self, error: SwatoolError, node: Node, place: str, *, is_whole: bool) -> None:
        """Note what a dataclass refused, unless that may come of what else is wrong in it."""
        inner = node.value.get(error.field) if isinstance(error, SettingError) else None  # type: ignore[union-attr]
        if isinstance(error, PlacedError):
            self.mistakes += [placed(node, place, *mistake) for mistake in error.mistakes]
        elif isinstance(error, SettingError) and inner is not None:
            self._note(inner, _inside(place, error.field), error.what)
        elif is_whole:
            self.mistakes.append(placed(node, place, (), str(error)))

    def _field(self, wanted: object, field: dataclasses.Field[Any], node: Node, place: str) -> object:
        """Return the value of a field, which may take less than its type does."""
        if KEYS in field.metadata and isinstance(node.value, dict):
            self._refuse_unknown(node.value, field.metadata[KEYS], place)
        found = self.value(wanted, node, place)
        what = refusal(field, found) if isinstance(found, str) else ""
        if what:
            self._note(node, place, what)
        return WRONG if what else found

    def _refuse_unknown(self, given: Mapping[str, Node], known: Collection[str], place: str) -> None:
        for name, one in given.items():
            if name not in known:
                self.mistakes.append((one.line, unknown(_inside(place, name), name, known)))

    def _scalar(self, wanted: object, node: Node, place: str) -> object:
        value = node.value
        if node.filled and isinstance(value, str) and wanted is not str:
            value = scalar_of(value)
        if wanted is float and type(value) is int:
            return float(value)
        if type(value) is wanted:
            return value
        raise self._mistake(node, place, KINDS[wanted])

    def _mistake(self, node: Node, place: str, wanted: str) -> _MistakeError:
        if isinstance(node.value, dict | list):
            found = "a mapping" if isinstance(node.value, dict) else "a list"
        else:
            found = "nothing" if node.value is None else printable(node.value)
        self._note(node, place, f"must be {wanted}, not {found}")
        return _MistakeError()

    def _note(self, node: Node, place: str, what: str) -> None:
        self.mistakes.append((node.line, f"{place or 'the file'} {_without_options(what)}"))


def _inside(place: str, name: str) -> str:
    shown = printable(name)[1:-1]
    return f"{place}.{shown}" if place else shown


def _takes(choice: object, node: Node) -> bool:
    """Tell whether a type is of a node's kind: a list, a mapping, or a single value."""
    if isinstance(node.value, list):
        return typing.get_origin(choice) is tuple
    return isinstance(node.value, dict) == (_kind(choice) == "a mapping")


def _kind(choice: object) -> str:
    return KINDS.get(choice) or ("a list" if typing.get_origin(choice) is tuple else "a mapping")


def placed(node: Node, place: str, below: Place, what: str) -> tuple[int, str]:
    """Return the line and the sentence of a mistake below a node, as far down as the file says something."""
    for step in below:
        inner: Node | None = None
        if isinstance(node.value, dict) and isinstance(step, str):
            inner = node.value.get(step)
        elif isinstance(step, int):
            items = node.value if isinstance(node.value, list) else [node]  # a single value is a list of one
            inner = items[step] if step < len(items) else None
        if inner is None:
            break
        node, place = inner, f"{place}[{step}]" if isinstance(step, int) else _inside(place, step)
    told = _without_options(what)
    return node.line, f"{place}: {told}" if place else told


def _without_options(what: str) -> str:
    """Return a sentence in which options of the command line are the fields that they stand for."""
    return OPTION.sub(lambda match: match[1] or (match[2] or "path").replace("-", "_"), what)


def unknown(place: str, name: str, known: Iterable[str]) -> str:
    """Say that a name is unknown, and which one may have been meant."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
    return f"{place} is unknown; {hint}"
