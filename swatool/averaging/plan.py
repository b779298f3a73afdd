"""The plan: everything that is decided before the first weight is read, as frozen data.

It matches the checkpoints' tensors, decides what is done with each (average, copy, drop), and says in which
type and order they are written. `blocks.cut` turns it into units of work.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from swatool.averaging.policies import Policies
from swatool.checkpoints.opening import Checkpoint
from swatool.errors import MismatchError, UsageError, printable
from swatool.tensors import DTYPES, DType, Extent, StoredTensor, rows_interleave

__all__ = [
    "Action",
    "Input",
    "Plan",
    "PlannedTensor",
    "Treatment",
    "make_plan",
    "memory_warnings",
]

LARGE = 16 * 2**20  # bytes of a tensor that is worth a word when it must be taken whole


class Action(Enum):
    """What is done with a tensor."""

    AVERAGE = "average"
    COPY_LAST = "copy from the last"
    COPY_FIRST = "copy from the first"
    MUST_EQUAL = "must be equal"
    EXCLUDED = "excluded, copy from the last"
    MEASURE = "measure, write nothing"


Coefficients = tuple[float | None, ...]


class Input(NamedTuple):
    """One checkpoint's part in a tensor.

    Attributes:
        checkpoint: its place in the plan.
        dtype: the tensor's type there.
        coefficients: its factor in each output; None in those that it is no part of.
    """

    checkpoint: int
    dtype: DType
    coefficients: tuple[float | None, ...]


@dataclass(frozen=True, eq=False)
class Treatment:
    """What is done with all tensors of one kind; neighbours with the same treatment share blocks.

    There is one object for each treatment in a plan, so that it is cheaply compared and looked up.

    Attributes:
        action: average or copy.
        inputs: the checkpoints that are read, oldest first.
        dtype: type of the result.
        accumulator: torch name of the type of the sums; empty for copies.
    """

    action: Action
    inputs: tuple[Input, ...]
    dtype: DType
    accumulator: str

    @property
    def averages(self) -> bool:
        """Whether arithmetic is done, rather than bytes compared and copied."""
        return self.action is Action.AVERAGE


class PlannedTensor(NamedTuple):
    """A tensor of the output."""

    name: str
    shape: tuple[int, ...]
    treatment: Treatment

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Plan:
    """All decisions about one average.

    Attributes:
        checkpoints: what is read, oldest first.
        coefficients: their factors in each output; None for those that an output leaves out.
        tensors: what is computed, in no particular order.
        ties: for a name that shares another tensor's bytes, that tensor's name; such names are not computed.
        dropped: names that are left out.
        skipped: entries of the state dicts that are no tensors, and are left out, too.
        warnings: sentences for the user.
    """

    checkpoints: tuple[Checkpoint, ...]
    coefficients: tuple[Coefficients, ...]
    tensors: tuple[PlannedTensor, ...]
    ties: Mapping[str, str]
    dropped: tuple[str, ...]
    skipped: tuple[str, ...]
    warnings: tuple[str, ...]


def make_plan(
    checkpoints: Sequence[Checkpoint], coefficients: Sequence[Sequence[float | None]], policies: Policies
) -> Plan:
    """Match the checkpoints and decide what is done with each tensor.

    Args:
        checkpoints: all that are read, oldest first.
        coefficients: for each output, one per checkpoint; None leaves the checkpoint out of that output.
        policies: what is done where there is a choice.

    Raises:
        MismatchError: names, shapes or types do not match; it carries every difference.
        UsageError: a pattern of `exclude` matches nothing.
    """
    names, dropped, differences = _match_names(checkpoints, policies, outputs=len(coefficients))
    excluded = _excluded(names, policies.exclude)
    ties = _ties(checkpoints, names, excluded)
    treatments: dict[tuple[object, ...], Treatment] = {}
    tensors: list[PlannedTensor] = []
    for name in names:
        stored = [(index, c.tensors[name]) for index, c in enumerate(checkpoints) if name in c.tensors]
        found = _differences(name, stored, checkpoints, policies, name in excluded)
        differences += found
        if name in ties or found:
            continue
        key = (name in excluded, *((index, tensor.dtype.name) for index, tensor in stored))
        if key not in treatments:
            treatments[key] = _treatment(name, stored, coefficients, policies, name in excluded)
        tensors.append(PlannedTensor(name, stored[0][1].shape, treatments[key]))
    if differences:
        raise MismatchError(f"the checkpoints do not match ({len(differences)} differences):", differences)
    skipped = tuple(dict.fromkeys(name for checkpoint in checkpoints for name in checkpoint.skipped))
    return Plan(
        checkpoints=tuple(checkpoints),
        coefficients=tuple(map(tuple, coefficients)),
        tensors=tuple(tensors),
        ties=ties,
        dropped=tuple(dropped),
        skipped=skipped,
        warnings=(*_warnings(tensors, ties, dropped, skipped), *memory_warnings(tensors, checkpoints)),
    )


def _match_names(
    checkpoints: Sequence[Checkpoint], policies: Policies, outputs: int
) -> tuple[list[str], list[str], list[str]]:
    """Return the names to write, the names to drop, and what is wrong."""
    everywhere = set(checkpoints[0].tensors).intersection(*(c.tensors for c in checkpoints[1:]))
    union = list(dict.fromkeys(name for checkpoint in checkpoints for name in checkpoint.tensors))
    partial = [name for name in union if name not in everywhere]
    if partial and outputs > 1 and policies.match != "exact":
        raise MismatchError(
            "several averages at a time need checkpoints with the same tensors, whatever --match is: make "
            "the averages one by one",
            [_missing(name, checkpoints) for name in partial],
        )
    if policies.match == "union":
        return union, [], []
    if policies.match == "intersection":
        if not everywhere:
            raise MismatchError("the checkpoints have no tensor name in common")
        return [name for name in union if name in everywhere], partial, []
    return (
        [name for name in union if name in everywhere],
        [],
        [_missing(name, checkpoints) for name in partial],
    )


def _missing(name: str, checkpoints: Sequence[Checkpoint]) -> str:
    lacking = [checkpoint.path for checkpoint in checkpoints if name not in checkpoint.tensors]
    others = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
    return f"{printable(name)} is missing in {printable(lacking[0])}{others}"


def _excluded(names: Sequence[str], patterns: Iterable[str]) -> set[str]:
    excluded: set[str] = set()
    for pattern in patterns:
        matches = fnmatch.filter(names, pattern)
        if not matches:
            raise UsageError(f"--exclude {printable(pattern)} matches no tensor")
        excluded.update(matches)
    return excluded


def _ties(checkpoints: Sequence[Checkpoint], names: Sequence[str], excluded: set[str]) -> dict[str, str]:
    """Find names that show the same bytes in every checkpoint, so that one of them can stand for all."""
    sharing: dict[tuple[Extent, ...], list[str]] = {}
    for name in names:
        # Extents hold open files, which compare by identity: equal ones are the same bytes.
        extents = next(c.tensors[name].extents for c in checkpoints if name in c.tensors)
        if extents:
            sharing.setdefault(extents, []).append(name)
    ties: dict[str, str] = {}
    for group in sharing.values():
        if len(group) == 1:
            continue
        firsts: dict[tuple[object, ...], str] = {}  # looked up, as a group may hold all names there are
        for name in group:
            everywhere = tuple(checkpoint.tensors.get(name) for checkpoint in checkpoints)
            first = firsts.setdefault((name in excluded, *everywhere), name)
            if first != name:
                ties[name] = first
    return ties


def _differences(
    name: str,
    stored: Sequence[tuple[int, StoredTensor]],
    checkpoints: Sequence[Checkpoint],
    policies: Policies,
    excluded: bool,
) -> list[str]:
    """Say how a tensor of later checkpoints differs from that of the first which has it."""
    first_index, first = stored[0]
    found: list[str] = []
    for index, tensor in stored[1:]:
        if tensor.shape == first.shape and tensor.dtype is first.dtype:
            continue
        here, there = printable(checkpoints[index].path), printable(checkpoints[first_index].path)
        if tensor.shape != first.shape:
            found.append(
                f"{printable(name)} has shape {list(tensor.shape)} in {here}, {list(first.shape)} in {there}"
            )
        elif not excluded:
            convertible = tensor.dtype.averageable and tensor.dtype.kind == first.dtype.kind
            if not convertible or policies.dtype == "same":
                advice = "; name the output's type with --dtype" if convertible else ""
                types = f"{tensor.dtype.name} in {here}, {first.dtype.name} in {there}"
                found.append(f"{printable(name)} is {types}{advice}")
    return found


def _treatment(
    name: str,
    stored: Sequence[tuple[int, StoredTensor]],
    coefficients: Sequence[Sequence[float | None]],
    policies: Policies,
    excluded: bool,
) -> Treatment:
    last = stored[-1][1]
    rows: list[Sequence[float | None]] = [[row[index] for index, _ in stored] for row in coefficients]
    if excluded:
        rows = [_only_the_last(row) for row in rows]
        return Treatment(Action.EXCLUDED, _inputs(stored, rows), last.dtype, "")
    if not last.dtype.averageable:
        actions = {"last": Action.COPY_LAST, "first": Action.COPY_FIRST, "equal": Action.MUST_EQUAL}
        return Treatment(actions[policies.integers], _inputs(stored, rows), last.dtype, "")
    rows = [
        _without_zeros(_renormalized(name, row, every)) for row, every in zip(rows, coefficients, strict=True)
    ]
    return Treatment(
        Action.AVERAGE,
        _inputs(stored, rows),
        _output_dtype([tensor.dtype for _, tensor in stored], policies.dtype),
        _accumulator([tensor.dtype for _, tensor in stored], policies.accumulate),
    )


def _inputs(
    stored: Sequence[tuple[int, StoredTensor]], rows: Sequence[Sequence[float | None]]
) -> tuple[Input, ...]:
    """Return the checkpoints that any output needs, with their coefficients in all of them."""
    columns = zip(*rows, strict=True)
    return tuple(
        Input(index, tensor.dtype, column)
        for (index, tensor), column in zip(stored, columns, strict=True)
        if column.count(None) < len(column)
    )


def _only_the_last(row: Sequence[float | None]) -> list[float | None]:
    last = max(index for index, one in enumerate(row) if one is not None)
    return [1.0 if index == last else None for index in range(len(row))]


def _without_zeros(row: Sequence[float | None]) -> Sequence[float | None]:
    """Leave out checkpoints whose factor is zero: they need not be read, and their NaN is nobody's."""
    kept = [None if one == 0 else one for one in row]
    return kept if kept.count(None) < len(kept) else row


def _renormalized(
    name: str, present: Sequence[float | None], every: Sequence[float | None]
) -> Sequence[float | None]:
    """Scale the coefficients of the checkpoints that have a tensor so that they sum to what all sum to."""
    if len(present) == len(every):
        return present
    some, whole = [c for c in present if c is not None], [c for c in every if c is not None]
    total = math.fsum(some)
    if abs(total) <= 1e-12 * math.fsum(map(abs, whole)):
        raise MismatchError(
            f"the checkpoints that have {printable(name)} have a weight of zero together; exclude it, or use "
            "--match intersection"
        )
    return [None if c is None else c / total * math.fsum(whole) for c in present]


def _output_dtype(dtypes: Sequence[DType], wanted: str) -> DType:
    if wanted == "same":
        return dtypes[0]
    if any(dtype.kind == "complex" for dtype in dtypes):
        return DTYPES["complex64"]
    return DTYPES[wanted]


def _accumulator(dtypes: Sequence[DType], wanted: str) -> str:
    if wanted != "auto":
        return wanted
    return "float64" if any(dtype.name in ("float64", "complex128") for dtype in dtypes) else "float32"


def _warnings(
    tensors: Sequence[PlannedTensor], ties: Mapping[str, str], dropped: Sequence[str], skipped: Sequence[str]
) -> Iterable[str]:
    if any(t.name.endswith("running_var") and t.treatment.averages for t in tensors):
        yield (
            "BatchNorm running statistics are averaged like weights, which does not give those of the "
            "averaged model: swatool recalibrate-bn computes them from data"
        )
    if dropped:
        yield f"{len(dropped)} tensors that only some checkpoints have are dropped"
    if skipped:
        names = ", ".join(map(printable, skipped[:5]))
        yield f"{len(skipped)} entries that are no tensors with a name are dropped: {names}"
    if not tensors and not ties:
        yield "there is no tensor to write"


def memory_warnings(tensors: Sequence[PlannedTensor], checkpoints: Sequence[Checkpoint]) -> Iterable[str]:
    """Tell of tensors whose rows interleave in a file, so that they cannot be worked on in blocks."""
    transposed = {
        tensor.name: stored.nbytes
        for tensor in tensors
        for one in tensor.treatment.inputs
        if rows_interleave(stored := checkpoints[one.checkpoint].tensors[tensor.name])
    }
    largest = max(transposed.values(), default=0)
    if largest >= LARGE:
        yield (
            f"{len(transposed)} tensors are stored transposed and are taken whole: the largest, of "
            f"{largest:,} bytes, takes about three times its size in memory"
        )
