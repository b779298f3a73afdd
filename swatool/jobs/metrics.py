"""The value of a metric for each checkpoint: from a table, from what the checkpoint stores, from its name."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Sequence

from swatool.checkpoints.files import last_name
from swatool.checkpoints.selection import STEP_FIELDS, DatedCheckpoint
from swatool.errors import MismatchError, UsageError, printable
from swatool.jobs.evaluation import as_float
from swatool.jobs.metric_tables import NAME, Row, read_table

__all__ = ["MODES", "best", "check_best", "metric_values"]

MODES = ("max", "min")
# The columns by which a row of a table says whose it is.
NAME_COLUMNS = (NAME, "path", "file", "filename", "name", "ckpt")
FILE, PATH = "", "/"  # in place of a column: a row's checkpoint by its name, and with its folder
NUMBER = r"[-+]?(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?"


def best(
    dated: Sequence[DatedCheckpoint],
    count: int,
    values: Sequence[float],
    mode: str,
    table: str | os.PathLike[str] | None = None,
) -> tuple[DatedCheckpoint, ...]:
    """Return the best of the checkpoints, still in their order; of equal ones the later.

    Args:
        dated: the checkpoints.
        count: how many of them.
        values: of each.
        mode: whether `max` or `min` is best.
        table: where the values stand, for messages; None: elsewhere.

    Raises:
        UsageError: the mode is none, there are not so many checkpoints, or the best is infinite.
    """
    if mode not in MODES:
        raise UsageError(f"--mode must be one of {', '.join(MODES)}, not {printable(mode)}")
    if count > len(dated):
        raise UsageError(f"--best {count} is more than the {len(dated)} checkpoints that there are")
    check_best(dated, values, mode, table)
    sign = 1 if mode == "max" else -1
    ranked = sorted(range(len(dated)), key=lambda index: (sign * values[index], index), reverse=True)
    return tuple(dated[index] for index in sorted(ranked[:count]))


def check_best(
    dated: Sequence[DatedCheckpoint],
    values: Sequence[float],
    mode: str,
    table: str | os.PathLike[str] | None = None,
) -> None:
    """Raise UsageError if the best value of some checkpoints is infinite, than which nothing is better."""
    infinite = math.inf if mode == "max" else -math.inf
    if infinite in values:
        path = dated[values.index(infinite)].checkpoint.path
        where = "" if table is None else f" in {printable(os.fspath(table))}"
        raise UsageError(
            f"the best value would be {infinite}, that of {printable(path)}{where}, which is none: leave "
            "that checkpoint out"
        )


def metric_values(
    dated: Sequence[DatedCheckpoint], metric: str, table: str | os.PathLike[str] | None = None
) -> tuple[float, ...]:
    """Return a metric's value for each checkpoint.

    Args:
        dated: the checkpoints.
        metric: its name.
        table: where it stands; None: in the checkpoints' own numbers or, where it is in none of them, in
            their names as `metric=value`.

    Raises:
        CheckpointError: the table cannot be read, or is damaged.
        UsageError: it does not say which row belongs to which checkpoint.
        MismatchError: some checkpoints have no value, or one that is not a number; all are named.
    """
    if table is not None:
        found: list[float | None] = _Table(read_table(table), metric, printable(os.fspath(table))).values(
            dated
        )
    else:
        stored = [one.checkpoint.fields.get(metric) for one in dated]
        found = [None if value is None else as_float(value) for value in stored]
        if all(value is None for value in found):
            found = [_in_name(one.checkpoint.path, metric) for one in dated]
    lacking = [
        f"{printable(one.checkpoint.path)} has {'none' if value is None else 'NaN'}"
        for one, value in zip(dated, found, strict=True)
        if value is None or math.isnan(value)
    ]
    if lacking:
        where = "" if table is None else f" in {printable(os.fspath(table))}"
        raise MismatchError(
            f"the metric {printable(metric)} is not known of every checkpoint{where}:", lacking
        )
    return tuple(float(value) for value in found if value is not None)


def _in_name(path: str, metric: str) -> float | None:
    """Read `metric=value` in a file's name, as Lightning and others write it."""
    pattern = rf"(?<![A-Za-z0-9_]){re.escape(metric)}=({NUMBER})(?![0-9A-Za-z])"
    found = re.findall(pattern, last_name(path))
    return float(found[-1]) if found else None


class _Several:
    """Stands for the value of a key under which a table has several."""


Key = tuple[str, object]  # a column, and what stands in it


class _Table:
    """A table's values of one metric, by whatever its rows call the checkpoints."""

    def __init__(self, rows: Sequence[Row], metric: str, where: str) -> None:
        self._metric, self._where = metric, where
        columns = {name for row in rows for name in row}
        self._names = next((name for name in NAME_COLUMNS if name in columns), None)
        self._steps = [name for name in STEP_FIELDS if name in columns]
        if self._names is None and not self._steps:
            raise UsageError(
                f"the table {where} does not say whose its rows are: it needs a column {NAME} or step"
            )
        if metric not in columns and "" not in columns:
            known = ", ".join(sorted(map(printable, columns))[:10])
            raise UsageError(f"the table {where} has no column {printable(metric)}; it has {known}")
        self._found: dict[Key, float | _Several] = {}
        for row in rows:
            self._add(row)

    def _add(self, row: Row) -> None:
        value = row.get(self._metric, row.get(""))
        if value is None:
            return
        number = self._number(value)
        keys: list[Key] = [(name, self._number(row[name])) for name in self._steps if name in row]
        if self._names is not None and self._names in row:
            path = os.path.normpath(str(row[self._names]))
            keys = [(PATH, path), (FILE, os.path.basename(path))]
        if not keys:
            raise UsageError(f"the table {self._where} has a row that says of no checkpoint whose it is")
        for key in keys:
            before = self._found.setdefault(key, number)
            if not (before == number or (math.isnan(number) and _is_nan(before))):
                self._found[key] = _Several()

    def _number(self, value: object) -> float:
        try:
            if isinstance(value, str | int | float) and not isinstance(value, bool):
                return float(value)
        except (ValueError, OverflowError):
            pass
        wanted = f"a number of {printable(self._metric)} or a step"
        raise UsageError(f"the table {self._where} has {printable(value)} where {wanted} should stand")

    def values(self, dated: Sequence[DatedCheckpoint]) -> list[float | None]:
        """Return the value of each checkpoint; None where there is none."""
        return [self._value(one) for one in dated]

    def _value(self, one: DatedCheckpoint) -> float | None:
        several = ""
        for key in self._keys(one):
            value = self._found.get(key)
            if isinstance(value, float):
                return value
            if value is not None:
                several = several or _shown(key[1])
        if several:
            raise UsageError(
                f"the table {self._where} has several values of {printable(self._metric)} for {several}"
            )
        return None

    def _keys(self, one: DatedCheckpoint) -> Iterator[Key]:
        """Yield what a row about this checkpoint may say of itself, the surest first."""
        path = os.path.normpath(one.checkpoint.path)
        name = last_name(path)
        yield PATH, path
        yield FILE, name
        yield FILE, os.path.splitext(name)[0]
        # Loggers count steps otherwise than checkpoints do, so what bears the same name comes first.
        for field in self._steps:
            if field in one.checkpoint.fields:
                yield field, one.checkpoint.fields[field]  # 3 and 3.0 are one key
        for field in self._steps:
            yield field, one.step


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _shown(key: object) -> str:
    return f"{key:g}" if isinstance(key, int | float) else printable(key)
