"""How two checkpoints differ, as data, for people and for machines."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from swatool.averaging.measures import Difference

__all__ = ["ComparedCheckpoint", "DiffReport", "DtypeDifference", "ShapeDifference", "TensorDifference"]

SCHEMA = 1


class ComparedCheckpoint(NamedTuple):
    """A checkpoint that was compared.

    Attributes:
        path: the file or folder.
        format: its format's name for people.
        bytes: of its files.
        key: where the state dict was found; empty for the whole file.
        prefix: what was taken off every name.
        tensors: how many it has.
    """

    path: str
    format: str
    bytes: int
    key: str
    prefix: str
    tensors: int


class ShapeDifference(NamedTuple):
    """A name under which the two have tensors of different shapes, which are not compared."""

    name: str
    a: tuple[int, ...]
    b: tuple[int, ...]


class DtypeDifference(NamedTuple):
    """A name under which the two have tensors of different types, which are compared by value."""

    name: str
    a: str
    b: str


class TensorDifference(NamedTuple):
    """A tensor that both have in the same shape, and how its values differ."""

    name: str
    difference: Difference


@dataclass(frozen=True)
class DiffReport:
    """How checkpoint B differs from checkpoint A.

    Attributes:
        version: of swatool.
        command: always `diff`.
        a: the first checkpoint, which relative differences refer to.
        b: the second one.
        only_in_a: names that B has not.
        only_in_b: names that A has not.
        shapes: tensors whose shapes differ.
        dtypes: tensors whose types differ.
        excluded: names that were left out, as was asked for.
        tensors: those that were compared, the worst first: by relative L2, then by the largest difference.
        total: over all of those that A has as float or complex tensors, as if they were one.
        identical: how many of them have equal values everywhere.
        bit_identical: whether nothing differs at all: no names, shapes, types, and no bit of a tensor.
        tolerance: what was asked for; None if nothing was.
        passed: whether names and shapes agree and no tensor's relative L2 exceeds the tolerance; None without
            one.
        threads: number of workers that were asked for.
        seconds: the whole call, importing torch included.
        bytes_read: from both checkpoints.
        peak_rss_bytes: the process's peak resident memory so far.
        warnings: sentences that deserve attention.
    """

    version: str
    command: str
    a: ComparedCheckpoint
    b: ComparedCheckpoint
    only_in_a: tuple[str, ...]
    only_in_b: tuple[str, ...]
    shapes: tuple[ShapeDifference, ...]
    dtypes: tuple[DtypeDifference, ...]
    excluded: tuple[str, ...]
    tensors: tuple[TensorDifference, ...]
    total: Difference
    identical: int
    bit_identical: bool
    tolerance: float | None
    passed: bool | None
    threads: int
    seconds: float
    bytes_read: int
    peak_rss_bytes: int
    warnings: tuple[str, ...]

    @property
    def beyond(self) -> tuple[TensorDifference, ...]:
        """The tensors that exceed the tolerance, the worst first; without one, those that differ at all."""
        limit = self.tolerance or 0.0
        return tuple(one for one in self.tensors if exceeds(one.difference, limit))

    def as_json(self) -> dict[str, object]:
        """Return the report as plain data for JSON, which has no Inf: an infinite difference is null."""
        data: dict[str, object] = {"schema": SCHEMA, **vars(self)}
        for name in ("a", "b"):
            data[name] = getattr(self, name)._asdict()
        for name in ("shapes", "dtypes"):
            data[name] = [one._asdict() for one in getattr(self, name)]
        data["tensors"] = [{"name": one.name, **_plain(one.difference)} for one in self.tensors]
        data["total"] = _plain(self.total)
        return data


def exceeds(difference: Difference, tolerance: float) -> bool:
    """Tell whether a relative L2 is above the tolerance; above zero is any value that differs."""
    return difference.rel_l2 > tolerance or (not tolerance and difference.differing > 0)


def _plain(difference: Difference) -> dict[str, object]:
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in difference._asdict().items()
    }
