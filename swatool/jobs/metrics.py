"""The value of a metric for each checkpoint: from a table, from what the checkpoint stores, from its name."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence

from swatool.checkpoints.selection import STEP_FIELDS, DatedCheckpoint
from swatool.errors import MismatchError, UsageError, printable
from swatool.jobs.metric_tables import NAME, Row, read_table

__all__ = ["MODES", "best", "metric_values"]

MODES = ("max", "min")
# The columns by which a row of a table says whose it is.
NAME_COLUMNS = (NAME, "path", "file", "filename", "name", "ckpt")
NUMBER = r"[-+]?(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?"


def best(
    dated: Sequence[DatedCheckpoint], count: int, values: Sequence[float], mode: str
) -> tuple[DatedCheckpoint, ...]:
    """Return the best of the checkpoints, still in their order; of equal ones the later.

    Raises:
        UsageError: the mode is none, or there are not so many checkpoints.
    """
    if mode not in MODES:
        raise UsageError(f"--mode must be one of {', '.join(MODES)}, not {printable(mode)}")
    if count > len(dated):
        raise UsageError(f"--best {count} is more than the {len(dated)} checkpoints that there are")
    sign = 1 if mode == "max" else -1
    ranked = sorted(range(len(dated)), key=lambda index: (sign * values[index], index), reverse=True)
    return tuple(dated[index] for index in sorted(ranked[:count]))


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
        UsageError: the table cannot be read, or does not say which row belongs to which checkpoint.
        MismatchError: some checkpoints have no value, or one that is not a number; all are named.
    """
    if table is not None:
        found = _Table(read_table(table), metric, printable(os.fspath(table))).values(dated)
    else:
        found = [one.checkpoint.fields.get(metric) for one in dated]
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
    found = re.findall(pattern, os.path.basename(os.path.normpath(path)))
    return float(found[-1]) if found else None


class _Table:
    """A table's values of one metric, by whatever its rows call the checkpoints."""

    def __init__(self, rows: Sequence[Row], metric: str, where: str) -> None:
        self._metric, self._where = metric, where
        columns = {name for row in rows for name in row}
        self._names = next((name for name in NAME_COLUMNS if name in columns), None)
        self._step = next((name for name in STEP_FIELDS if name in columns), None)
        if self._names is None and self._step is None:
            raise UsageError(
                f"the table {where} does not say whose its rows are: it needs a column {NAME} or step"
            )
        if metric not in columns and "" not in columns:
            known = ", ".join(sorted(map(printable, columns))[:10])
            raise UsageError(f"the table {where} has no column {printable(metric)}; it has {known}")
        self._found: dict[object, float] = {}
        for row in rows:
            self._add(row)

    def _add(self, row: Row) -> None:
        value = row.get(self._metric, row.get(""))
        if value is None:
            return
        number = self._number(value)
        if self._names is not None and self._names in row:
            key: object = os.path.basename(os.path.normpath(str(row[self._names])))
        else:
            key = self._number(row.get(self._step or "", ""))
        if self._found.setdefault(key, number) != number and not math.isnan(number):
            several = f"several values of {printable(self._metric)} for {_shown(key)}"
            raise UsageError(f"the table {self._where} has {several}")

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
        name = os.path.basename(os.path.normpath(one.checkpoint.path))
        keys: list[object] = [name, os.path.splitext(name)[0]]
        if self._step is not None:
            stored = one.checkpoint.fields.get(self._step)
            keys.append(stored if stored is not None else one.step)  # 3 and 3.0 are one key
        return next((self._found[key] for key in keys if key in self._found), None)


def _shown(key: object) -> str:
    return f"{key:g}" if isinstance(key, float) else printable(key)
