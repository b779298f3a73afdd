"""Reducers: what is done to one block. Later families (several outputs, medians) are new reducers, not loops.

A reducer is made for one treatment and one number of elements, holds all that blocks of that shape need, and
is used for one block after the other: started, given its groups of rows in order, and finished.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from swatool.averaging import kernels
from swatool.averaging.blocks import Block
from swatool.averaging.memory import Memory, Rows
from swatool.averaging.plan import Action, Input, Treatment

__all__ = ["CopyReducer", "Group", "LinearReducer", "Reducer", "Signal"]


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


@dataclass(frozen=True, eq=False)
class Term:
    """A group as numbers.

    Attributes:
        values: its rows in their own type, [rows, scalars] or complex.
        target: memory of the same shape in the wide type that they are copied to; None if they are wide.
        wide: the rows in the wide type, [rows, scalars]: the same memory as the target or as the values.
        coefficients: [rows], in the wide type.
    """

    values: Tensor
    target: Tensor | None
    wide: Tensor
    coefficients: Tensor


class LinearReducer:
    """The weighted sum in a wide type, cast once."""

    def __init__(self, treatment: Treatment, count: int, memory: Memory, *, alone: bool = False) -> None:
        """Prepare for blocks of `count` elements; `alone` takes the checkpoints singly, to save memory."""
        self._wide = torch.float64 if treatment.accumulator == "float64" else torch.float32
        self._dtype = kernels.torch_dtype(treatment.dtype)
        scalars = count * (2 if treatment.inputs[0].dtype.kind == "complex" else 1)
        most = 1 if alone else kernels.fused_rows(memory.device, self._wide)
        self.groups = make_groups(treatment, count, memory, most)
        self._terms = [self._term(group, scalars, memory) for group in self.groups]
        self._sums = memory.take("sums", self._wide, scalars)
        self._typed = kernels.complex_view(self._sums) if self._dtype.is_complex else self._sums
        self._result = self._typed
        if self._dtype is not self._typed.dtype:
            self._result = memory.take("result", self._dtype, count)
        self._bytes = self._result.view(torch.uint8)

    def _term(self, group: Group, scalars: int, memory: Memory) -> Term:
        first = group.inputs[0].dtype
        values = group.rows.device.view(kernels.torch_dtype(first))
        coefficients = [one.coefficient for one in group.inputs]
        tensor = torch.tensor(coefficients, dtype=torch.float64).to(self._wide).to(memory.device)
        reals = torch.view_as_real(values).flatten(1) if values.is_complex() else values
        if reals.dtype is self._wide:
            return Term(values, None, reals, tensor)
        wide = memory.take("wide", self._wide, len(group.inputs) * scalars).view(-1, scalars)
        target = kernels.complex_view(wide) if values.is_complex() else wide
        return Term(values, target, wide, tensor)

    def start(self, block: Block) -> None:
        """Begin a block of averages."""

    def add(self, turn: int) -> None:
        """Widen the rows if need be and add them."""
        term = self._terms[turn]
        if term.target is not None:
            term.target.copy_(term.values)
        kernels.accumulate(self._sums, term.wide, term.coefficients, first=turn == 0)

    def finish(self) -> Tensor:
        """Cast the sums to the type of the output."""
        if self._result is not self._typed:
            self._result.copy_(self._typed)
        return self._bytes

    def fits(self) -> bool:
        """Tell whether the result holds no NaN and no Inf."""
        return kernels.fits(self._sums, self._dtype)

    def measure(self, signal: Signal) -> None:
        """Add the finished block's share to the signal; the last rows must still be there."""
        rounded = self._result
        reals = torch.view_as_real(rounded).flatten() if rounded.is_complex() else rounded
        signal.rounding += float(torch.linalg.vector_norm(reals.to(self._wide) - self._sums)) ** 2
        signal.change += float(torch.linalg.vector_norm(self._sums - self._terms[-1].wide[-1])) ** 2


class CopyReducer:
    """One checkpoint's bytes unchanged, compared with those of the others."""

    def __init__(self, treatment: Treatment, count: int, memory: Memory, differing: dict[str, int]) -> None:
        """Prepare for blocks of `count` elements; names of tensors that differ are noted in `differing`."""
        self._action = treatment.action
        self._itemsize = treatment.dtype.itemsize
        self._differing = differing
        self.groups = make_groups(treatment, count, memory, 1)
        self._first = memory.take_on_host("first", count * self._itemsize)

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
        position = 0
        for tensor, _, count in self._block.segments:
            end = position + count * self._itemsize
            if not torch.equal(row[position:end], self._first[position:end]):
                self._differing.setdefault(tensor.name, checkpoint)
            position = end

    def finish(self) -> Tensor:
        """Return the bytes that are asked for."""
        if self._action is Action.COPY_FIRST:
            return self._first
        return self.groups[-1].rows.host[0]
