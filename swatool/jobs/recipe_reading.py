"""From a recipe's file to the recipe: what the command line changes in it, and the variables in it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import chdir, contextmanager

from swatool.checkpoints.files import open_regular
from swatool.errors import SettingError, SwatoolError, UsageError, printable
from swatool.jobs.recipe_model import Recipe
from swatool.recipe.building import Place, build, placed, refuse
from swatool.recipe.overriding import overridden
from swatool.recipe.variables import filled
from swatool.recipe.yaml_text import Node, read_yaml

__all__ = ["Mistakes", "in_folder_of", "read_recipe", "read_written_recipe"]

MAX_BYTES = 128 << 10  # of a recipe: a second to tell what is wrong with one that is nothing but mistakes


def read_recipe(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Recipe:
    """Return what a recipe's file says.

    Args:
        path: the file.
        overrides: `key=value`, in which the key is a dotted path into the file, such as
            `outputs.0.parameters.decay`, and the value is read as YAML.

    Raises:
        UsageError: it cannot be read, or says something wrong; every mistake is told with its line.
    """
    return read_written_recipe(path, overrides)[0]


def read_written_recipe(
    path: str | os.PathLike[str], overrides: Sequence[str] = ()
) -> tuple[Recipe, Mistakes]:
    """Return what a recipe's file says, and what notes mistakes that show only when it is carried out.

    Raises:
        UsageError: as `read_recipe`.
    """
    path = os.fspath(path)
    where = printable(path)
    mistakes: list[tuple[int, str]] = []
    document = _spelled_out(read_yaml(_bytes_of(path, where), where, mistakes))
    for override in overrides:
        try:
            document = overridden(Recipe, document, override, "--set")
        except UsageError as error:
            mistakes.append((0, str(error)))
    document, unfilled = filled(document, _declared(document), os.environ)
    with in_folder_of(path):  # the recipe looks whether its files are there
        return build(Recipe, document, where, [*mistakes, *unfilled]), Mistakes(document, where)


class Mistakes:
    """Gathers what is wrong with a recipe, to tell all of it at once, each with its line."""

    def __init__(self, document: Node, where: str) -> None:
        self._document = document
        self._where = where
        self._found: list[tuple[Place, SwatoolError]] = []

    @contextmanager
    def at(self, *place: str | int) -> Iterator[None]:
        """Note the error that the block ends with, as one about this place in the recipe."""
        try:
            yield
        except SwatoolError as error:
            self._found.append((place, error))

    def refuse(self) -> None:
        """Raise what was noted: an error of the kind that they all are, else UsageError."""
        if not self._found:
            return
        told = [placed(self._document, "", place, str(error)) for place, error in self._found]
        kinds = {type(error) for _, error in self._found}
        kind = kinds.pop() if len(kinds) == 1 and SettingError not in kinds else UsageError
        try:
            refuse(told, self._where, kind)
        except SwatoolError as error:
            raise error from self._found[0][1].__cause__


@contextmanager
def in_folder_of(path: str | os.PathLike[str]) -> Iterator[None]:
    """Be in a recipe's folder: what it names, and what the user's own code opens, is found from there."""
    try:
        with chdir(os.path.dirname(os.fspath(path)) or os.curdir):
            yield
    except FileNotFoundError as error:
        raise UsageError(f"the folder of {printable(os.fspath(path))} is gone: {error.strerror}") from error


def _bytes_of(path: str, where: str) -> bytes:
    try:
        with open_regular(path) as file:
            data = file.read(MAX_BYTES + 1)
    except IsADirectoryError as error:
        raise UsageError(f"the recipe {where} is a folder: name the file in it") from error
    except OSError as error:
        raise UsageError(f"cannot read the recipe {where}: {error.strerror}") from error
    if len(data) > MAX_BYTES:
        raise UsageError(f"{where} has more than {MAX_BYTES:,} bytes: no recipe is so long")
    return data


def _spelled_out(document: Node) -> Node:
    """Write an output of which only the path is said as a mapping, so that more of it can be set."""
    if not isinstance(document.value, dict) or "outputs" not in document.value:
        return document
    outputs = document.value["outputs"]
    items = outputs.value if isinstance(outputs.value, list) else [outputs]
    found = [Node({"path": one}, one.line) if isinstance(one.value, str) else one for one in items]
    return Node({**document.value, "outputs": Node(found, outputs.line)}, document.line)


def _declared(document: Node) -> frozenset[str]:
    """Return the names under `environment`, as far as they are any; what else stands there is told later."""
    node = document.value.get("environment") if isinstance(document.value, dict) else None
    names = node.value if node and isinstance(node.value, list) else [node]
    return frozenset(one.value for one in names if one and isinstance(one.value, str))
