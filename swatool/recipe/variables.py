"""Variables of the environment in the texts of a file, and what no text may hold."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping

from swatool.errors import printable
from swatool.recipe.building import unknown
from swatool.recipe.yaml_text import Node

__all__ = ["NAME", "filled"]

VARIABLE = re.compile(r"\$\$\{|\$\{([^}]*)(\}?)")
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def filled(
    node: Node, declared: Collection[str], environment: Mapping[str, str]
) -> tuple[Node, list[tuple[int, str]]]:
    """Return a node with each `${NAME}` in a text replaced by that variable; `$${` stands for `${`.

    Args:
        node: what the file says; keys stay as they are.
        declared: names of the variables that may be used.
        environment: their values.

    Returns:
        The node, and the line and the sentence of each mistake: a variable is not declared, or not set, or a
        text has what no path and no argument of a command can have.
    """
    filling = _Filling(declared, environment)
    return filling.node(node), filling.mistakes


class _Filling:
    """Fills texts and notes what is wrong with them."""

    def __init__(self, declared: Collection[str], environment: Mapping[str, str]) -> None:
        self._declared = declared
        self._environment = environment
        self.mistakes: list[tuple[int, str]] = []

    def node(self, node: Node) -> Node:
        """Return a node with all texts in it filled."""
        if isinstance(node.value, dict):
            return Node({name: self.node(one) for name, one in node.value.items()}, node.line)
        if isinstance(node.value, list):
            return Node([self.node(one) for one in node.value], node.line)
        if not isinstance(node.value, str):
            return node
        return Node(self._text(node.value, node.line), node.line, filled=bool(VARIABLE.search(node.value)))

    def _text(self, text: str, line: int) -> str:
        pieces, end = [], 0
        for match in VARIABLE.finditer(text):
            pieces += [text[end : match.start()], self._value(match, line)]
            end = match.end()
        found = "".join([*pieces, text[end:]])
        if "\0" in found or _has_surrogates(found):
            self.mistakes.append((line, f"{printable(found)} has a character that no name can have"))
        return found

    def _value(self, match: re.Match[str], line: int) -> str:
        name, closed = match[1], match[2]
        if name is None:
            return "${"
        if not closed or not NAME.fullmatch(name):
            self._note(line, f"{printable(match[0])} is no ${{NAME}}; write $${{ for a plain ${{")
        elif name not in self._declared:
            known = f": {unknown(name, name, self._declared)}" if self._declared else ""
            self._note(line, f"${{{name}}} is not declared under environment{known}")
        elif name not in self._environment:
            self._note(line, f"${{{name}}} is not set in the environment")
        return self._environment.get(name, "") if name in self._declared else match[0]

    def _note(self, line: int, what: str) -> None:
        self.mistakes.append((line, what))


def _has_surrogates(text: str) -> bool:
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return True
    return False
