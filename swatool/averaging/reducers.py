"""Reducers: what is done to one block. Later families (several outputs, medians) are new reducers, not loops.

A reducer is made for one treatment and one number of elements, holds all that blocks of that shape need, and
is used for one block after the other: started, given its groups of rows in order, and finished.
"""

from __future__ import annotations

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
    """What turns the rows of a block into its result."""

    @property
    def groups(self) -> Sequence[Group]:
        """The checkpoints, in the order in which they are added."""

    def start(self, block: Block) -> None:
        """Begin a block."""

    def add(self, turn: int) -> None:
        """Take the filled rows of the group with this number."""

    def finish(self) -> Tensor:
        """Return the result's bytes, [bytes], as uint8; valid until the next start."""


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


class Tile(NamedTuple):
    """A part of a group's rows as numbers, small enough that it is still in the cache when it is added.

    Attributes:
        values: the rows in their own type, [rows, n] or complex.
        target: memory of the same shape in the wide type that they are copied to; None if they are wide.
        columns: the rows in the wide type, [scalars, rows]: the same memory as the target or as the values.
        sums: what they are added to, [scalars].
    """

    values: Tensor
    target: Tensor | None
    columns: Tensor
    sums: Tensor


class Term(NamedTuple):
    """A group as numbers: its tiles, and its coefficients, [rows], as numbers and in the wide type."""

    tiles: tuple[Tile, ...]
    factors: tuple[float, ...]
    coefficients: Tensor


class LinearReducer:
    """The weighted sum in a wide type, cast once."""

    def __init__(self, treatment: Treatment, count: int, memory: Memory, *, alone: bool = False) -> None:
        """Prepare for blocks of `count` elements; `alone` takes the checkpoints singly, to save memory."""
        self._wide = torch.float64 if treatment.accumulator == "float64" else torch.float32
        self._dtype = kernels.torch_dtype(treatment.dtype)
        is_complex = treatment.inputs[0].dtype.kind == "complex"
        most = 1 if alone else kernels.most_together(memory.device, self._wide)
        self.groups = make_groups(treatment, count, memory, most)
        self._sums = memory.take("sums", self._wide, count * (2 if is_complex else 1))
        self._terms = [self._term(group, memory) for group in self.groups]
        self._typed = kernels.complex_view(self._sums) if is_complex else self._sums
        self._result = self._typed
        if self._dtype is not self._typed.dtype:
            self._result = memory.take("result", self._dtype, count)
        self._bytes = self._result.view(torch.uint8)

    def _term(self, group: Group, memory: Memory) -> Term:
        values = group.rows.device.view(kernels.torch_dtype(group.inputs[0].dtype))
        reals = kernels.real_view(values)
        if reals.dtype is self._wide:
            tiles = [Tile(values, None, reals.t(), self._sums)]
        else:
            scalars = TILE * reals.shape[1] // values.shape[1]
            parts = zip(_split(values, TILE), _split(self._sums, scalars), strict=True)
            tiles = [self._widening_tile(part, sums, memory) for part, sums in parts]
        factors = tuple(one.coefficient for one in group.inputs)
        coefficients = torch.tensor(factors, dtype=torch.float64).to(self._wide).to(memory.device)
        return Term(tuple(tiles), factors, coefficients)

    def _widening_tile(self, values: Tensor, sums: Tensor, memory: Memory) -> Tile:
        wide = memory.take("wide", self._wide, len(values) * len(sums)).view(len(values), -1)
        return Tile(values, kernels.complex_view(wide) if values.is_complex() else wide, wide.t(), sums)

    def start(self, block: Block) -> None:
        """Begin a block of averages."""

    def add(self, turn: int) -> None:
        """Widen the rows if need be and add them."""
        tiles, factors, coefficients = self._terms[turn]
        first = turn == 0
        for values, target, columns, sums in tiles:
            if target is not None:
                target.copy_(values)
            if len(factors) == 1:
                kernels.accumulate(sums, columns[:, 0], factors[0], first=first)
            else:
                kernels.accumulate_together(sums, columns, coefficients, first=first)

    def finish(self) -> Tensor:
        """Cast the sums to the type of the output."""
        if self._result is not self._typed:
            self._result.copy_(self._typed)
        return self._bytes

    def fits(self) -> bool:
        """Tell whether the result holds no NaN and no Inf."""
        return kernels.fits(self._sums, self._dtype)

    def unfit(self, block: Block) -> list[str]:
        """Return the names of the block's tensors for which that does not hold."""
        parts = block.split(self._sums)
        return [segment.tensor.name for segment, part in parts if not kernels.fits(part, self._dtype)]

    def measure(self, signal: Signal) -> None:
        """Add the beginning of the finished block to the signal; the last rows must still be there."""
        last = kernels.real_view(self._terms[-1].tiles[0].values[-1])[:TILE].to(self._wide)
        sums = self._sums[: len(last)]
        rounded = kernels.real_view(self._result)[: len(last)].to(self._wide)
        signal.rounding += float(torch.linalg.vector_norm(rounded - sums)) ** 2
        signal.change += float(torch.linalg.vector_norm(sums - last)) ** 2


def _split(tensor: Tensor, length: int) -> list[Tensor]:
    """Cut a tensor along its last dimension into views of at most this length."""
    return [tensor[..., start : start + length] for start in range(0, tensor.shape[-1], length)]


class CopyReducer:
    """One checkpoint's bytes unchanged, compared with those of the others."""

    def __init__(self, treatment: Treatment, count: int, memory: Memory, differing: dict[str, int]) -> None:
        """Prepare for blocks of `count` elements; names of tensors that differ are noted in `differing`."""
        self._action = treatment.action
        self._differing = differing
        self.groups = make_groups(treatment, count, memory, 1)
        self._first = memory.take_on_host("first", count * treatment.dtype.itemsize)

    def start(self, block: Block) -> None:
        """Begin a block of copies."""
        self._block = block

    def add(self, turn: int) -> None:
        """Keep the first row, and compare the others with it."""
        row = self.groups[turn].rows.host[0]
        if turn == 0:
            self._first.copy_(row)
        elif not torch.equal(row, self._first):
            self._note_differences(row, self.groups[turn].inputs[0].checkpoint)

    def _note_differences(self, row: Tensor, checkpoint: int) -> None:
        parts = zip(self._block.split(row), self._block.split(self._first), strict=True)
        for (segment, here), (_, there) in parts:
            if not torch.equal(here, there):
                self._differing.setdefault(segment.tensor.name, checkpoint)

    def finish(self) -> Tensor:
        """Return the bytes that are asked for."""
        if self._action is Action.COPY_FIRST:
            return self._first
        return self.groups[-1].rows.host[0]
