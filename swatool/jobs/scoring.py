"""What the user's own evaluation says of a file: a command that prints numbers, or a function of the path."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import shutil
from collections.abc import Iterable, Mapping
from contextlib import chdir
from dataclasses import dataclass
from typing import Literal

from swatool.errors import CheckFailedError, UsageError, listed, printable
from swatool.jobs.evaluation import as_float, as_numbers, load_function
from swatool.jobs.process_group import run_in_group
from swatool.user_code import describe_failure, find_module, names_code, speaking_on_stderr

__all__ = ["Scoring", "check_comparable", "check_evaluation", "score"]

PLACE = "{path}"
NUMBER = re.compile(
    r"(?<![\w.])[-+]?(?:(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?|nan|inf(?:inity)?)(?!\w|\.\w)", re.IGNORECASE
)
GROUPED = re.compile(r"(?<![\w.,])[-+]?\d{1,3}(?:,\d{3})+(?:\.\d*)?\Z")  # as people write 1,234.5
SHELL_WORDS = frozenset({"|", "||", "&", "&&", ";", "<", ">", ">>", "2>", "2>&1"})
MOST_OBJECTS = 10_000  # braces at which an object is looked for
SHOWN_LINES = 3


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """How files are told apart.

    Attributes:
        evaluate: a command with `{path}` in it, whose last number or JSON object on stdout counts; or a
            function, as `module:function`, that is called with the path.
        metric: which of several numbers counts; None is the only one.
        mode: whether the largest (`max`) or the smallest (`min`) is best.
    """

    evaluate: str
    metric: str | None = None
    mode: Literal["max", "min"]

    def __post_init__(self) -> None:
        if self.mode not in ("max", "min"):
            raise UsageError(f"--mode must be max or min, not {printable(self.mode)}")
        if PLACE not in self.evaluate and not names_code(self.evaluate):
            given = f"--eval {printable(self.evaluate)}"
            raise UsageError(f"{given} is neither a command with {PLACE} in it nor module:function")
        if PLACE in self.evaluate:
            _words(self.evaluate)

    def better(self, one: float, other: float) -> bool:
        """Tell whether one value is better than the other."""
        return one > other if self.mode == "max" else one < other


def check_evaluation(evaluate: str, option: str = "--eval", *, import_code: bool = True) -> None:
    """Refuse an evaluation that cannot be run, before the work that it is to judge.

    Args:
        evaluate: as `Scoring.evaluate`.
        option: what it was given as, for messages.
        import_code: import a function, which runs the user's code; else only look for its module.

    Raises:
        UsageError: there is no such program, or no such function.
    """
    if PLACE not in evaluate:
        if import_code:
            load_function(evaluate, option)
        else:
            find_module(evaluate, option)
        return
    words = shlex.split(evaluate)
    meant = next((word for word in words if word in SHELL_WORDS), None)
    if meant is not None:
        raise UsageError(
            f"{option} {printable(evaluate)}: no shell sees it, and {meant} would be an argument; put "
            "it into a script, or quote it"
        )
    if not words or shutil.which(words[0]) is None:
        shown = printable(words[0]) if words else "program"
        raise UsageError(f"{option} {printable(evaluate)}: there is no such program as {shown}")


def score(path: str, scoring: Scoring, others: Iterable[str] = ()) -> tuple[float, Mapping[str, float]]:
    """Evaluate a file; return the number that counts, and all numbers by name.

    Args:
        path: the file.
        scoring: how it is evaluated.
        others: files that must be there afterwards as well.

    Raises:
        CheckFailedError: the evaluation failed, removed a file, or gave no number of that name, NaN, or an
            infinite one that would be the best.
    """
    given = f"--eval {printable(scoring.evaluate)}"
    were_there = [one for one in dict.fromkeys((path, *others)) if os.path.lexists(one)]
    if PLACE in scoring.evaluate:
        found = _of_command(path, scoring.evaluate)
    else:
        found = _of_function(path, scoring.evaluate)
    gone = next((one for one in were_there if not os.path.lexists(one)), None)
    if gone is not None:
        raise CheckFailedError(f"{given} removed {printable(gone)} when it was to evaluate {printable(path)}")
    name = scoring.metric
    if name is None and len(found) > 1:
        raise CheckFailedError(
            f"{given} gives {listed(found)} of {printable(path)}: say with --metric which counts"
        )
    value = (
        next(iter(found.values())) if name is None or (len(found) == 1 and "" in found) else found.get(name)
    )
    if value is None:
        raise CheckFailedError(f"{given} gives no {printable(name)} of {printable(path)}")
    if math.isnan(value) or value == (math.inf if scoring.mode == "max" else -math.inf):
        shown = "NaN" if math.isnan(value) else f"{value}, than which nothing is better,"
        raise CheckFailedError(f"{given} gives {shown} for {printable(path)}")
    return value, {key or name or "value": number for key, number in found.items()}


def check_comparable(
    scoring: Scoring, one: tuple[str, Mapping[str, float]], other: tuple[str, Mapping[str, float]]
) -> None:
    """Raise CheckFailedError if the numbers that count of two files, with all of each, are of two kinds."""
    if scoring.metric is not None or one[1].keys() == other[1].keys():
        return
    first, second = (f"{listed(found)} of {printable(path)}" for path, found in (one, other))
    raise CheckFailedError(f"the evaluation gives {first} and {second}, which cannot be compared")


def _words(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError as error:
        raise UsageError(f"--eval {printable(command)} is no command: {error}") from error


def _of_command(path: str, command: str) -> Mapping[str, float]:
    words = [word.replace(PLACE, path) for word in _words(command)]
    given = f"--eval {printable(command)}"
    try:
        done = run_in_group(words)
    except OSError as error:
        raise CheckFailedError(f"{given} cannot be run: {error.strerror}") from error
    if done.returncode != 0:
        how = f"by signal {-done.returncode}" if done.returncode < 0 else f"with {done.returncode}"
        raise CheckFailedError(f"{given} ended {how} on {printable(path)}")
    return _said(done.stdout.decode(errors="replace"), given)


def _said(text: str, given: str) -> Mapping[str, float]:
    """Read the last JSON object with numbers in it or, if there is none, the last number."""
    numbers = _last_object(text)
    if numbers:
        return numbers
    last = list(NUMBER.finditer(text))
    if last and GROUPED.search(text[: last[-1].end()]):
        shown = printable(GROUPED.search(text[: last[-1].end()])[0])  # type: ignore[index]
        raise CheckFailedError(
            f"{given} printed {shown} at last, whose commas may part thousands or numbers: print one number"
        )
    if not last:
        shown = printable("\n".join(text.strip().splitlines()[-SHOWN_LINES:]))
        raise CheckFailedError(f"{given} printed no number on stdout, but {shown}")
    return {"": float(last[-1][0])}


def _last_object(text: str) -> dict[str, float]:
    """Return the numbers of the last JSON object that has any, wherever it stands among other lines."""
    decoder = json.JSONDecoder()
    found: dict[str, float] = {}
    position = text.find("{")
    for _ in range(MOST_OBJECTS):
        if position < 0:
            break
        try:
            value, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError):
            position += 1
        else:
            found = _numbers_of(value) or found
        position = text.find("{", position)
    return found


def _numbers_of(value: Mapping[object, object]) -> dict[str, float]:
    return {
        str(name): as_float(one)
        for name, one in value.items()
        if isinstance(one, int | float) and not isinstance(one, bool)
    }


def _of_function(path: str, spec: str) -> Mapping[str, float]:
    function = load_function(spec, "--eval")
    given = f"--eval {printable(spec)}"
    try:
        # Stdout is for the report, and paths go on to be relative to this folder.
        with speaking_on_stderr(), chdir(os.curdir):
            found = function(path)
    except (Exception, SystemExit) as error:
        raise CheckFailedError(
            f"{given} failed on {printable(path)}: {describe_failure(error)}; -v shows where"
        ) from error
    try:
        return as_numbers(found, given, alone="")
    except UsageError as error:
        raise CheckFailedError(str(error)) from error
