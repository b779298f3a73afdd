"""Reducers: what is done to one block. Later families (several outputs, medians) are new reducers, not loops.

A reducer is started with a block, is given its checkpoints' rows in order, and hands out the finished bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from swatool.averaging import kernels
from swatool.averaging.blocks import Block, Window
from swatool.averaging.plan import Action, Input, Treatment

__all__ = ["CopyReducer", "Group", "LinearReducer", "Reducer", "Signal", "groups", "typed_values"]


@dataclass(frozen=True, eq=False)
class Group:
    """Neighbouring checkpoints of one type that are read and added together.

    Attributes:
        inputs: the checkpoints; one alone where it is stored out of order.
        coefficients: their factors, [len(inputs)], in the type of the sums, on the device.
    """

    inputs: tuple[Input, ...]
    coefficients: Tensor


def groups(treatment: Treatment, device: torch.device, *, strided: bool) -> tuple[Group, ...]:
    """Divide a treatment's checkpoints into groups of equal length, as far as their types allow."""
    wide = wide_dtype(treatment)
    most = kernels.fused_rows(device, wide) if treatment.averages and not strided else 1
    turns = -(-len(treatment.inputs) // most)
    most = -(-len(treatment.inputs) // turns)
    parts: list[list[Input]] = []
    for one in treatment.inputs:
        if parts and len(parts[-1]) < most and parts[-1][-1].dtype is one.dtype:
            parts[-1].append(one)
        else:
            parts.append([one])
    return tuple(
        Group(tuple(part), torch.tensor([one.coefficient for one in part], dtype=wide, device=device))
        for part in parts
    )


def wide_dtype(treatment: Treatment) -> torch.dtype:
    """Return the type of the sums."""
    return torch.float64 if treatment.accumulator == "float64" else torch.float32


class Reducer(Protocol):
    """What turns the rows of a block into its result."""

    def start(self, block: Block) -> None:
        """Begin a block."""

    def add(self, group: Group, rows: Tensor, window: Window | None) -> None:
        """Take the bytes of the group's checkpoints, [len(inputs), bytes], as uint8."""

    def finish(self) -> Tensor:
        """Return the result's bytes, [bytes], as uint8; valid until the next start."""


@dataclass
class Signal:
    """Squared norms that tell how much of what averaging changed survives a narrower type.

    Attributes:
        rounding: of the rounded average minus the average.
        change: of the average minus the last checkpoint.
    """

    rounding: float = 0.0
    change: float = 0.0


class LinearReducer:
    """The weighted sum in a wide type, cast once."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._memory: dict[tuple[str, torch.dtype], Tensor] = {}

    def start(self, block: Block) -> None:
        """Begin a block of averages."""
        treatment = block.treatment
        self._block = block
        self._wide = wide_dtype(treatment)
        scalars = block.count * (2 if treatment.inputs[0].dtype.kind == "complex" else 1)
        self._sums = self._take("sums", self._wide, scalars)
        self._last: Tensor | None = None

    def add(self, group: Group, rows: Tensor, window: Window | None) -> None:
        """Widen the rows if need be and add them."""
        wide = self._widened(group.inputs[0], rows, window)
        kernels.accumulate(self._sums, wide, group.coefficients, first=self._last is None)
        self._last = wide[-1]

    def _widened(self, one: Input, rows: Tensor, window: Window | None) -> Tensor:
        """See the rows as numbers of the wide type, [r, scalars], copying only where they are not."""
        is_complex = one.dtype.kind == "complex"
        native = torch.float32 if one.dtype.name == "complex64" else torch.float64
        if window is None and is_complex and native is self._wide:
            return rows.view(native)
        dtype = kernels.torch_dtype(one.dtype)
        if window is None and dtype is self._wide:
            return rows.view(dtype)
        wide = self._take("wide", self._wide, len(rows) * len(self._sums)).view(len(rows), -1)
        target = kernels.complex_view(wide.view(-1)) if is_complex else wide
        if window is None:
            target.view(len(rows), -1).copy_(rows.view(dtype))
        else:
            source = rows[0].view(dtype).as_strided(window.shape, window.strides)
            target.view(window.shape).copy_(source)
        return wide

    def finish(self) -> Tensor:
        """Cast the sums to the type of the output."""
        dtype = kernels.torch_dtype(self._block.treatment.dtype)
        sums = self._sums
        if dtype.is_complex:
            sums = kernels.complex_view(sums)
        if dtype is sums.dtype:
            return sums.view(torch.uint8)
        return self._take("result", dtype, len(sums)).copy_(sums).view(torch.uint8)

    def fits(self) -> bool:
        """Tell whether the result holds no NaN and no Inf."""
        dtype = kernels.torch_dtype(self._block.treatment.dtype)
        if dtype.is_complex:
            dtype = torch.float64 if dtype is torch.complex128 else torch.float32
        return kernels.fits(self._sums, dtype)

    def measure(self, result: Tensor, signal: Signal) -> None:
        """Add this block's share to the signal, from the finished bytes and the last row."""
        assert self._last is not None
        rounded = result.view(kernels.torch_dtype(self._block.treatment.dtype)).to(self._wide)
        signal.rounding += float(torch.linalg.vector_norm(rounded - self._sums)) ** 2
        signal.change += float(torch.linalg.vector_norm(self._sums - self._last)) ** 2

    def _take(self, name: str, dtype: torch.dtype, count: int) -> Tensor:
        """Return memory that is reused from block to block."""
        memory = self._memory.get((name, dtype))
        if memory is None or len(memory) < count:
            memory = self._memory[name, dtype] = torch.empty(count, dtype=dtype, device=self._device)
        return memory[:count]


class CopyReducer:
    """One checkpoint's bytes unchanged, compared with those of the others."""

    def __init__(self) -> None:
        self._kept: Tensor | None = None
        self.differing: dict[str, int] = {}

    def start(self, block: Block) -> None:
        """Begin a block of copies."""
        self._block = block
        self._kept = None
        self._first: Tensor | None = None

    def add(self, group: Group, rows: Tensor, window: Window | None) -> None:
        """Compare the rows with the first one and keep the one that is asked for."""
        for one, row in zip(group.inputs, rows, strict=True):
            values = typed_values(row, one, window).view(torch.uint8)
            if self._first is None:
                self._first = self._kept = values.clone()
            elif not torch.equal(values, self._first):
                self._note_differences(values, one)
                if self._block.treatment.action is not Action.COPY_FIRST:
                    self._kept = values.clone()
            elif self._block.treatment.action is not Action.COPY_FIRST:
                self._kept = self._first

    def _note_differences(self, values: Tensor, one: Input) -> None:
        assert self._first is not None
        position = 0
        for tensor, _, count in self._block.segments:
            end = position + count * one.dtype.itemsize
            if not torch.equal(values[position:end], self._first[position:end]):
                self.differing.setdefault(tensor.name, one.checkpoint)
            position = end

    def finish(self) -> Tensor:
        """Return the bytes that were kept."""
        assert self._kept is not None
        return self._kept


def typed_values(row: Tensor, one: Input, window: Window | None) -> Tensor:
    """See a row's bytes as values in C order, [n], copying only where they are not."""
    dtype = kernels.torch_dtype(one.dtype)
    if window is None:
        return row.view(dtype)
    return row.view(dtype).as_strided(window.shape, window.strides).contiguous().view(-1)
