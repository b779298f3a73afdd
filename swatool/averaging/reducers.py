"""Reducers: what is done to one block. Later families (medians, say) are new reducers, not loops.

A reducer is made for one treatment and one number of elements, holds all that blocks of that shape need, and
is used for one block after the other: started, given its groups of rows in order, and finished.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from swatool.averaging import kernels
from swatool.averaging.blocks import Block
from swatool.averaging.memory import Memory, Rows
from swatool.averaging.plan import Action, Input, Treatment

__all__ = ["CopyReducer", "Group", "LinearReducer", "Reducer", "Signal"]

TILE = 64 * 1024  # elements that are widened at a time
SHARED_TILE = 32 * 1024  # numbers that are added to the sums of several outputs while they are in the cache


@dataclass(frozen=True, eq=False)
class Group:
    """Checkpoints that are read and added together; neighbours, of one type.

    Attributes:
        inputs: the checkpoints.
        rows: the memory that they are read into, in C order.
    """

    inputs: tuple[Input, ...]
    rows: Rows


class Reducer(Protocol):
    """What turns the rows of a block into its result, or into one for each of several outputs."""

    @property
    def groups(self) -> Sequence[Group]:
        """The checkpoints, in the order in which they are added."""

    def start(self, block: Block) -> None:
        """Begin a block."""

    def add(self, turn: int) -> None:
        """Take the filled rows of the group with this number."""

    def finish(self, output: int = 0) -> Tensor:
        """Return an output's bytes, [bytes], as uint8; valid until the next one is asked for."""


def make_groups(treatment: Treatment, count: int, memory: Memory, most: int) -> tuple[Group, ...]:
    """Divide a treatment's checkpoints into groups of at most `most`, as equal as their types allow."""
    turns = -(-len(treatment.inputs) // most)
    most = -(-len(treatment.inputs) // turns)
    parts: list[list[Input]] = []
    for one in treatment.inputs:
        if parts and len(parts[-1]) < most and parts[-1][-1].dtype is one.dtype:
            parts[-1].append(one)
        else:
            parts.append([one])
    # While the device copies and adds one set of rows, the next one is read into another.
    sets = 1 if memory.device.type == "cpu" else 2
    return tuple(
        Group(tuple(part), Rows(memory, f"rows {turn % sets}", len(part), count * part[0].dtype.itemsize))
        for turn, part in enumerate(parts)
    )


@dataclass
class Signal:
    """Squared norms that tell how much of what averaging changed survives a narrower type.

    Attributes:
        rounding: of the rounded average minus the average.
        change: of the average minus the last checkpoint.
    """

    rounding: float = 0.0
    change: float = 0.0


class Addition(NamedTuple):
    """What some neighbouring rows of a tile add to one output.

    Attributes:
        sums: of the output, [scalars].
        columns: the rows in the wide type, [scalars, rows].
        factors: [rows], as numbers.
        coefficients: [rows], in the wide type.
        first: whether the sums hold nothing yet.
    """

    sums: Tensor
    columns: Tensor
    factors: tuple[float, ...]
    coefficients: Tensor
    first: bool


class Tile(NamedTuple):
    """A part of a group's rows as numbers, small enough that it is still in the cache when it is added.

    Attributes:
        values: the rows in their own type, [rows, n] or complex.
        target: memory of the same shape in the wide type that they are copied to; None if they are wide.
        additions: what is done with it.
    """

    values: Tensor
    target: Tensor | None
    additions: tuple[Addition, ...]


class Run(NamedTuple):
    """Neighbouring checkpoints of a group that one output has."""

    output: int
    begin: int
    end: int
    factors: tuple[float, ...]
    coefficients: Tensor
    first: bool


class LinearReducer:
    """The weighted sums, one for each output, in a wide type, cast once."""

    def __init__(self, treatment: Treatment, count: int, memory: Memory, *, alone: bool = False) -> None:
        """Prepare for blocks of `count` elements; `alone` takes the checkpoints singly, to save memory."""
        self._memory = memory
        self._wide = torch.float64 if treatment.accumulator == "float64" else torch.float32
        self._dtype = kernels.torch_dtype(treatment.dtype)
        self._complex = treatment.inputs[0].dtype.kind == "complex"
        most = 1 if alone else kernels.most_together(memory.device, self._wide)
        self.groups = make_groups(treatment, count, memory, most)
        self._count = count
        scalars = count * (2 if self._complex else 1)
        outputs = len(treatment.inputs[0].coefficients)
        self._sums = memory.take("sums", self._wide, outputs * scalars).view(outputs, scalars)
        self._last = [one is not None for one in treatment.inputs[-1].coefficients]
        seen: set[int] = set()
        self._terms = [self._term(group, seen) for group in self.groups]

    def _term(self, group: Group, seen: set[int]) -> tuple[Tile, ...]:
        values = group.rows.device.view(kernels.torch_dtype(group.inputs[0].dtype))
        reals = kernels.real_view(values)
        runs = self._runs(group, seen)
        if reals.dtype is self._wide:
            length = SHARED_TILE if len(self._sums) > 1 else reals.shape[1]
            whole = zip(_split(reals, length), _split(self._sums, length), strict=True)
            return tuple(Tile(part, None, _additions(runs, part, sums)) for part, sums in whole)
        scalars = TILE * reals.shape[1] // values.shape[1]
        parts = zip(_split(values, TILE), _split(self._sums, scalars), strict=True)
        return tuple(self._widening_tile(part, sums, runs) for part, sums in parts)

    def _runs(self, group: Group, seen: set[int]) -> list[Run]:
        """Divide a group's checkpoints into those neighbours that an output has, for all outputs."""
        runs = []
        for output in range(len(self._sums)):
            column = [one.coefficients[output] for one in group.inputs]
            begin = 0
            for present, neighbours in itertools.groupby(column, lambda one: one is not None):
                some = list(neighbours)
                end = begin + len(some)
                if present:
                    factors = tuple(one for one in some if one is not None)
                    wide = torch.tensor(factors, dtype=torch.float64).to(self._wide).to(self._memory.device)
                    runs.append(Run(output, begin, end, factors, wide, output not in seen))
                    seen.add(output)
                begin = end
        return runs

    def _widening_tile(self, values: Tensor, sums: Tensor, runs: Sequence[Run]) -> Tile:
        rows, scalars = len(values), sums.shape[1]
        wide = self._memory.take("wide", self._wide, rows * scalars).view(rows, scalars)
        target = kernels.complex_view(wide) if values.is_complex() else wide
        return Tile(values, target, _additions(runs, wide, sums))

    def start(self, block: Block) -> None:
        """Begin a block of averages."""

    def add(self, turn: int) -> None:
        """Widen the rows if need be and add them."""
        for values, target, additions in self._terms[turn]:
            if target is not None:
                target.copy_(values)
            for sums, columns, factors, coefficients, first in additions:
                if len(factors) == 1:
                    kernels.accumulate(sums, columns[:, 0], factors[0], first=first)
                else:
                    kernels.accumulate_together(sums, columns, coefficients, first=first)

    def finish(self, output: int = 0) -> Tensor:
        """Cast the sums of an output to its type."""
        return self._cast(output).view(torch.uint8)

    def _cast(self, output: int) -> Tensor:
        sums = self._sums[output]
        typed = kernels.complex_view(sums) if self._complex else sums
        if self._dtype is typed.dtype:
            return typed
        return self._memory.take("result", self._dtype, self._count).copy_(typed)

    def fits(self, output: int = 0) -> bool:
        """Tell whether an output's result holds no NaN and no Inf."""
        return kernels.fits(self._sums[output], self._dtype)

    def unfit(self, block: Block, output: int = 0) -> list[str]:
        """Return the names of the block's tensors for which that does not hold."""
        parts = block.split(self._sums[output])
        return [segment.tensor.name for segment, part in parts if not kernels.fits(part, self._dtype)]

    def negative(self, block: Block, output: int = 0) -> list[str]:
        """Return the names of the block's tensors that have real values below 0."""
        if self._complex:
            return []
        parts = block.split(self._sums[output])
        return [segment.tensor.name for segment, part in parts if bool((part < 0).any())]

    def measure(self, signal: Signal, output: int = 0) -> None:
        """Add the beginning of the finished block to the signal; the last rows must still be there.

        An output without the last checkpoint is not measured.
        """
        if not self._last[output]:
            return
        last = kernels.real_view(self._terms[-1][0].values[-1])[:TILE].to(self._wide)
        sums = self._sums[output, : len(last)]
        rounded = kernels.real_view(self._cast(output))[: len(last)].to(self._wide)
        signal.rounding += float(torch.linalg.vector_norm(rounded - sums)) ** 2
        signal.change += float(torch.linalg.vector_norm(sums - last)) ** 2


def _additions(runs: Sequence[Run], rows: Tensor, sums: Tensor) -> tuple[Addition, ...]:
    """Return what the runs of rows, [rows, scalars], add to the sums, [outputs, scalars]."""
    return tuple(
        Addition(sums[run.output], rows[run.begin : run.end].t(), run.factors, run.coefficients, run.first)
        for run in runs
    )


def _split(tensor: Tensor, length: int) -> list[Tensor]:
    """Cut a tensor along its last dimension into views of at most this length."""
    return [tensor[..., start : start + length] for start in range(0, tensor.shape[-1], length)]


class CopyReducer:
    """One checkpoint's bytes unchanged, for each output, compared with those of its others."""

    def __init__(
        self, treatment: Treatment, count: int, memory: Memory, differing: Sequence[dict[str, int]]
    ) -> None:
        """Prepare for blocks of `count` elements.

        The names of tensors that differ are noted in `differing`, one dict for each output.
        """
        self._differing = differing
        self.groups = make_groups(treatment, count, memory, 1)
        outputs = range(len(differing))
        parts = [
            [turn for turn, one in enumerate(treatment.inputs) if one.coefficients[output] is not None]
            for output in outputs
        ]
        wanted = 0 if treatment.action is Action.COPY_FIRST else -1
        self._chosen = [part[wanted] for part in parts]
        # Which outputs compare a turn's row with that of an earlier turn.
        self._compared: list[dict[int, list[int]]] = [{} for _ in self.groups]
        for output, (first, *others) in enumerate(parts):
            for turn in others:
                self._compared[turn].setdefault(first, []).append(output)
        needed = {part[0] for part in parts} | set(self._chosen)
        nbytes = count * treatment.dtype.itemsize
        # The last row is still there when the others are done.
        self._kept = {
            turn: memory.take_on_host(f"row {turn}", nbytes)
            for turn in needed
            if turn != len(self.groups) - 1
        }

    def start(self, block: Block) -> None:
        """Begin a block of copies."""
        self._block = block

    def add(self, turn: int) -> None:
        """Keep the row if it is needed later, and compare it with those that it must be compared with."""
        row = self.groups[turn].rows.host[0]
        if turn in self._kept:
            self._kept[turn].copy_(row)
        for first, outputs in self._compared[turn].items():
            if not torch.equal(row, self._kept[first]):
                self._note_differences(row, self._kept[first], turn, outputs)

    def _note_differences(self, row: Tensor, other: Tensor, turn: int, outputs: Sequence[int]) -> None:
        checkpoint = self.groups[turn].inputs[0].checkpoint
        for (segment, here), (_, there) in zip(self._block.split(row), self._block.split(other), strict=True):
            if not torch.equal(here, there):
                for output in outputs:
                    self._differing[output].setdefault(segment.tensor.name, checkpoint)

    def finish(self, output: int = 0) -> Tensor:
        """Return the bytes that an output asks for."""
        chosen = self._chosen[output]
        return self._kept[chosen] if chosen in self._kept else self.groups[chosen].rows.host[0]
