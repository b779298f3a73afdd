"""Changing single values of a file from outside: `outputs.0.parameters.decay=0.9`."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Union

from swatool.errors import UsageError, printable
from swatool.recipe.building import fields_of, unknown
from swatool.recipe.yaml_text import Node, read_yaml

__all__ = ["overridden"]

NOTHING = Node(None, 0)


def overridden(cls: type, document: Node, text: str, option: str) -> Node:
    """Return a document in which one value is another.

    Args:
        cls: the dataclass that the document is meant for; the key is looked up in it, not in the document, so
            that values can be set that the document leaves out.
        document: what the file says.
        text: `key=value`: the key is names and indexes between dots, the value is read as YAML.
        option: how the text was given, for messages.

    Raises:
        UsageError: there is no such key, or the value is no YAML.
    """
    key, equals, value = text.partition("=")
    if not (equals and key):
        raise UsageError(f"{option} must be key=value, not {printable(text)}")
    given = f"{option} {printable(key)[1:-1]}"
    found = Node(read_yaml(value, given).value, 0)
    return _Override(given, found).into(document, cls, key.split("."))


class _Override:
    """A value on its way to its place."""

    def __init__(self, given: str, value: Node) -> None:
        self._given = given
        self._value = value

    def into(self, node: Node, wanted: object, way: Sequence[str]) -> Node:
        """Return a node, meant for a type, in which what the way leads to is the value."""
        if not way:
            return self._value
        for choice in _choices(wanted):
            if typing.get_origin(choice) is tuple:
                return self._into_list(node, typing.get_args(choice)[0], way)
            below = self._below(choice, way[0])
            if below is not None:
                inner = dict(node.value) if isinstance(node.value, dict) else {}
                inner[way[0]] = self.into(inner.get(way[0], NOTHING), below, way[1:])
                return Node(inner, node.line)
        raise UsageError(
            f"{self._given}: there is nothing called {printable('.'.join(way))} in a single value"
        )

    def _into_list(self, node: Node, item: object, way: Sequence[str]) -> Node:
        # A single value is a list of one.
        items = list(node.value) if isinstance(node.value, list) else [node]
        if not way[0].isdecimal() and len(items) == 1:
            inner = self.into(items[0], item, way)
            return Node([inner], node.line) if isinstance(node.value, list) else inner
        if not way[0].isdecimal() or int(way[0]) >= len(items):
            raise UsageError(
                f"{self._given}: {printable(way[0])} is no index: there are {len(items)}, counted from 0"
            )
        index = int(way[0])
        items[index] = self.into(items[index], item, way[1:])
        return Node(items, node.line)

    def _below(self, choice: object, name: str) -> Any:  # noqa: ANN401 - a type, or a form of typing
        """Return the type of what is called so in a value of a type; None if nothing can be in it."""
        if dataclasses.is_dataclass(choice):
            known = fields_of(typing.cast(type, choice))
            if name not in known:
                raise UsageError(f"{self._given}: {unknown(printable(name)[1:-1], name, known)}")
            return known[name][0]
        origin = typing.get_origin(choice)
        return (
            typing.get_args(choice)[1] if isinstance(origin, type) and issubclass(origin, Mapping) else None
        )


def _choices(wanted: object) -> Iterator[object]:
    """Yield the types that a union is made of."""
    if typing.get_origin(wanted) in (Union, types.UnionType):
        yield from typing.get_args(wanted)
    else:
        yield wanted
