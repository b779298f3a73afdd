"""Finding what the user names in Python code: `package.module:attribute` or `path/file.py:attribute`.

Such code is the user's own and trusted, as opposed to checkpoints and data.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from difflib import get_close_matches
from importlib.machinery import PathFinder
from types import ModuleType

from swatool.errors import UsageError, printable

__all__ = ["describe_failure", "find_module", "load_attribute", "names_code", "speaking_on_stderr"]

FORMS = "give package.module:name or path/file.py:name"
SHOWN_LINE = 300
STDOUT, STDERR = 1, 2


def names_code(spec: str) -> bool:
    """Tell from its form whether a text names something in Python code."""
    place, colon, name = spec.rpartition(":")
    if not colon or not _dotted(name):
        return False
    return place.endswith(".py") or _dotted(place)


def load_attribute(spec: str, option: str) -> object:
    """Import what `spec` names, from the current folder, too.

    Args:
        spec: `package.module:name` or `path/file.py:name`; the name may be dotted.
        option: the option that it was given for, for messages.

    Raises:
        UsageError: there is no such module, file or name, or importing it raised an error, the cause.
    """
    given = f"{option} {printable(spec)}"
    place, colon, name = spec.rpartition(":")
    if not colon:
        raise UsageError(f"{given} names nothing in a module: {FORMS}")
    if not names_code(spec):
        raise UsageError(f"{given} is no name in Python code: {FORMS}")
    found: object = _from_file(place, given) if place.endswith(".py") else _from_module(place, given)
    for part in name.split("."):
        found = _attribute(found, part, given)
    return found


def find_module(spec: str, option: str) -> None:
    """Refuse a name in a module, or a file, that is not there; nothing is imported, and no code is run.

    Raises:
        UsageError: there is no such module or file.
    """
    given = f"{option} {printable(spec)}"
    place = spec.rpartition(":")[0]
    if place.endswith(".py"):
        _refuse_missing(place, given)
        return
    _make_importable("")
    importlib.invalidate_caches()
    inside: Sequence[str] | None = None
    name = ""
    for part in place.split("."):
        name = f"{name}.{part}" if name else part
        if name in sys.builtin_module_names or name in sys.modules:
            inside = getattr(sys.modules.get(name), "__path__", None)
            continue
        found = PathFinder.find_spec(name, inside)
        if found is None:
            raise _no_module(given, name)
        inside = found.submodule_search_locations


def _refuse_missing(path: str, given: str) -> None:
    if not os.path.isfile(path):
        raise UsageError(f"{given}: there is no file {printable(path)}")


def _no_module(given: str, name: str) -> UsageError:
    return UsageError(
        f"{given}: there is no module {printable(name)}; it is looked for in the current folder and where "
        "Python finds packages"
    )


def describe_failure(error: BaseException) -> str:
    """Return what was raised in user code, as one line: its type and the first line of its message."""
    lines = str(error).strip().splitlines() or [""]
    if "in DataLoader worker process" in lines[0]:
        return _shown(lines[-1])  # a worker hands on a whole traceback, which ends with what was raised
    return f"{type(error).__name__}: {_shown(lines[0])}" if lines[0] else type(error).__name__


@contextmanager
def speaking_on_stderr() -> Iterator[None]:
    """Send what user code prints, and the processes that it starts, to stderr: stdout is for the report."""
    sys.stdout.flush()
    try:
        kept = os.dup(STDOUT)
    except OSError:  # it is closed
        kept = -1
    try:
        if kept >= 0:
            os.dup2(STDERR, STDOUT)
        with redirect_stdout(sys.stderr):
            yield
    finally:
        if kept >= 0:
            os.dup2(kept, STDOUT)
            os.close(kept)


def _shown(line: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in line)[:SHOWN_LINE]


def _dotted(text: str) -> bool:
    return all(part.isidentifier() for part in text.split("."))


def _from_module(name: str, given: str) -> ModuleType:
    _make_importable("")  # the current folder, as for `python -m`
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise _failed(given, error) from error
        raise _no_module(given, error.name) from error
    except (Exception, SystemExit) as error:
        raise _failed(given, error) from error


def _from_file(path: str, given: str) -> ModuleType:
    _refuse_missing(path, given)
    path = os.path.realpath(path)
    # One file is one module, whichever options name it; the hash keeps it apart from all others.
    name = f"_swatool_{hashlib.sha256(os.fsencode(path)).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    _make_importable(os.path.dirname(path))  # as for `python path/file.py`
    description = importlib.util.spec_from_file_location(name, path)
    if description is None or description.loader is None:
        raise UsageError(f"{given}: {printable(path)} cannot be imported")
    module = importlib.util.module_from_spec(description)
    sys.modules[name] = module  # before it runs: pickle and dataclasses look there
    try:
        description.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, Exception | SystemExit):
            raise _failed(given, error) from error
        raise
    return module


def _make_importable(folder: str) -> None:
    if folder not in sys.path:
        sys.path.insert(0, folder)


def _failed(given: str, error: BaseException) -> UsageError:
    return UsageError(f"importing {given} failed: {describe_failure(error)}")


def _attribute(found: object, name: str, given: str) -> object:
    try:
        return getattr(found, name)
    except AttributeError as error:
        close = get_close_matches(name, [one for one in dir(found) if not one.startswith("_")])
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise UsageError(f"{given}: there is no {printable(name)} in it{hint}") from error
