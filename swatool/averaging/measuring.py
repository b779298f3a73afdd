"""Measuring tensors block by block: statistics of one checkpoint, differences between two.

All arithmetic is done in float64 on the exact values, tile by tile; the sums of the tiles are added without
rounding (see `measures`). Tiles do not depend on the number of threads, and so neither do the results.
Counts, extremes and largest differences do not depend on the tiles either; sums do, in their last bits.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol, Self, TypeVar

import torch
from torch import Tensor

from swatool.averaging import kernels
from swatool.averaging.blocks import Block, Segment, cut
from swatool.averaging.measures import (
    Difference,
    DifferenceSums,
    Measuring,
    Statistics,
    StatisticsSums,
)
from swatool.averaging.memory import Memory, Rows
from swatool.averaging.plan import PlannedTensor
from swatool.averaging.reading import BlockReader
from swatool.averaging.widening import Values, extremes, largest, part_of, scaled, widen
from swatool.averaging.workers import run_blocks

__all__ = ["Differences", "measure_differences", "measure_statistics"]

TILE = 64 * 1024  # elements of a block, and those that are widened at a time
MEMORY_BUDGET = 32 * 2**20  # bytes, of all workers together
# Between this and its inverse, a sum of squares has lost nothing that matters, and others like it fit.
SAFE = 1e-280

Progress = Callable[[int], None]


class Sums(Protocol):
    """What has been seen of a tensor."""

    seen: int

    def merge(self, other: Self) -> None:
        """Take in what was seen of another part."""


S = TypeVar("S", bound=Sums)


Measure = Callable[[Sequence[Values], Memory], S]


class Differences(NamedTuple):
    """What was found between two checkpoints.

    Attributes:
        tensors: by name.
        total: over all float and complex ones together.
    """

    tensors: dict[str, Difference]
    total: Difference


def measure_statistics(
    measuring: Measuring, *, threads: int, progress: Progress | None = None
) -> dict[str, Statistics]:
    """Read the tensors of one checkpoint and return what their values are like, by name.

    Args:
        measuring: what is read.
        threads: number of workers, at most.
        progress: is told, ten times a second, how many bytes have been read.

    Raises:
        CheckpointError: the checkpoint cannot be read.
    """
    found: dict[str, Statistics] = {}

    def finished(name: str, sums: StatisticsSums) -> None:
        found[name] = sums.finish()

    _run(measuring, _statistics, StatisticsSums, finished, threads, progress)
    return found


def measure_differences(
    measuring: Measuring, *, threads: int, progress: Progress | None = None
) -> Differences:
    """Read the tensors of two checkpoints and return how they differ.

    Args:
        measuring: what is read.
        threads: number of workers, at most.
        progress: is told, ten times a second, how many bytes have been read.

    Raises:
        CheckpointError: one of them cannot be read.
    """
    found: dict[str, Difference] = {}
    total = DifferenceSums()
    first = measuring.plan.checkpoints[0]

    def finished(name: str, sums: DifferenceSums) -> None:
        found[name] = sums.finish()
        # Counters of steps and batches are far larger than weights, and would hide how those differ.
        if first.tensors[name].dtype.averageable:
            total.merge(sums)

    _run(measuring, _difference, DifferenceSums, finished, threads, progress)
    return Differences(found, total.finish())


def _run(
    measuring: Measuring,
    measure: Measure[S],
    nothing: Callable[[], S],
    finished: Callable[[str, S], None],
    threads: int,
    progress: Progress | None,
) -> None:
    """Measure tensors; `finished` is told of each name once, and never by two threads at a time."""
    collection = _Collection(measuring, finished)
    per_element = max(map(_bytes_per_element, measuring.plan.tensors), default=1)
    count = min(threads, max(1, MEMORY_BUDGET // (TILE * per_element)))
    workers = [_Worker(measuring, collection, measure) for _ in range(count)]
    blocks = cut(measuring.plan, measuring.offsets, TILE)
    run_blocks(blocks, workers, torch.device("cpu"), progress)
    for name in measuring.empty:
        finished(name, nothing())


def _bytes_per_element(tensor: PlannedTensor) -> int:
    """Memory for the rows as they are read, for each of them widened, and for their difference."""
    inputs = tensor.treatment.inputs
    width = 2 if any(one.dtype.kind == "complex" for one in inputs) else 1
    return sum(one.dtype.itemsize for one in inputs) + 8 * width * (len(inputs) + 1)


class _Collection:
    """Puts the parts of tensors together as the workers deliver them."""

    def __init__(self, measuring: Measuring, finished: Callable[[str, S], None]) -> None:
        self._names = measuring.names
        self._finished: Callable[[str, Sums], None] = finished  # type: ignore[assignment]
        self._begun: dict[str, Sums] = {}
        self._lock = threading.Lock()

    def take(self, tensor: PlannedTensor, part: Sums) -> None:
        """Add a part, and pass the whole on when nothing is missing."""
        with self._lock:
            sums = self._begun.pop(tensor.name, None)
            if sums is None:
                sums = part
            else:
                sums.merge(part)
            if sums.seen < tensor.numel:
                self._begun[tensor.name] = sums
                return
            for name in self._names[tensor.name]:
                self._finished(name, sums)


class _Worker:
    """One thread's share of the work, with memory of its own that it uses again from block to block."""

    def __init__(self, measuring: Measuring, collection: _Collection, measure: Measure[S]) -> None:
        self._collection = collection
        self._measure = measure
        self._memory = Memory(torch.device("cpu"))
        self._reader = BlockReader(measuring.plan.checkpoints, self._memory)

    @property
    def bytes_read(self) -> int:
        """From all checkpoints, so far."""
        return self._reader.bytes_read

    def work(self, number: int, block: Block) -> None:  # noqa: ARG002
        """Measure a block."""
        stored = []
        for one in block.treatment.inputs:
            row = Rows(self._memory, f"row {one.checkpoint}", 1, block.count * one.dtype.itemsize)
            self._reader.fill(block, one, row, 0)
            stored.append(row.host[0].view(kernels.torch_dtype(one.dtype)))
        for segments, tile in _tiles(block, stored):
            widened = widen(tile, self._memory)
            position = 0
            for segment in segments:
                end = position + segment.length
                parts = [part_of(values, position, end) for values in widened]
                self._collection.take(segment.tensor, self._measure(parts, self._memory))
                position = end


def _tiles(block: Block, stored: Sequence[Tensor]) -> Iterator[tuple[Sequence[Segment], list[Tensor]]]:
    """Divide a block that is larger than a tile because its tensor had to be taken whole."""
    if block.count <= TILE:
        yield block.segments, list(stored)
        return
    (segment,) = block.segments
    for start in range(0, block.count, TILE):
        length = min(TILE, block.count - start)
        part = Segment(segment.tensor, segment.start + start, length)
        yield (part,), [values[start : start + length] for values in stored]


def _statistics(parts: Sequence[Values], memory: Memory) -> StatisticsSums:  # noqa: ARG001
    """Measure a part of one tensor."""
    (values,) = parts
    found = StatisticsSums(seen=len(values.stored))
    numbers = values.wide
    squares = float(torch.dot(numbers, numbers))
    if not math.isfinite(squares):
        found.nan = values.nan()
        found.inf = values.infinite()
        numbers = numbers[numbers.isfinite()]
        if not len(numbers):
            return found
    found.finite = len(numbers)
    found.minimum, found.maximum = extremes(values.stored, numbers)
    safe, exponent = (numbers, 0) if SAFE < squares < math.inf else scaled(numbers)
    found.squares.add(float(torch.dot(safe, safe)), 2 * exponent)
    for some in (safe,) if values.low is None else (values.high, values.low):
        found.total.add(float(some.sum()), exponent)
    return found


def _difference(parts: Sequence[Values], memory: Memory) -> DifferenceSums:
    """Measure how a part of one tensor differs from the same part of another."""
    a, b = parts
    found = DifferenceSums(seen=len(a.stored))
    x, y = a.wide, b.wide
    d = torch.sub(a.high, b.high, out=memory.take("difference", torch.float64, len(x)))
    if a.low is not None:
        d += a.low
    if b.low is not None:
        d -= b.low
    aa, bb = float(torch.dot(x, x)), float(torch.dot(y, y))
    unequal = None
    if not (math.isfinite(aa) and math.isfinite(bb)):
        x, y, d, unequal = _without_nonfinite(a, b, d, found)
    found.max_abs = largest(d)
    if found.max_abs or unequal is not None:
        flags = d if unequal is None and a.width == 1 else (d != 0)
        found.differing = a.elements(flags if unequal is None else flags | unequal)
    found.same_bits = not found.differing and _same_bits(a.stored, b.stored)
    dd = float(torch.dot(d, d)) if found.max_abs else 0.0
    if all(SAFE < one < 1 / SAFE for one in (aa, bb, dd or 1.0)) and bool(dd) == bool(found.max_abs):
        found.aa.add(aa)
        found.bb.add(bb)
        found.ab.add(float(torch.dot(x, y)))
        found.dd.add(dd)
    else:
        _add_scaled(found, x, y, d)
    return found


def _without_nonfinite(
    a: Values, b: Values, d: Tensor, found: DifferenceSums
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Count NaN and Inf, put zeros in their places, and return where they differ, too."""
    found.nan = (a.nan(), b.nan())
    found.inf = (a.infinite(), b.infinite())
    finite = a.wide.isfinite() & b.wide.isfinite()
    unequal = (a.wide != b.wide) & ~(a.wide.isnan() & b.wide.isnan()) & ~finite
    found.unbounded = bool(unequal.any())
    zero = d.new_zeros(())
    return a.wide.where(finite, zero), b.wide.where(finite, zero), d.where(finite, zero), unequal


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype is b.dtype and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def _add_scaled(found: DifferenceSums, x: Tensor, y: Tensor, d: Tensor) -> None:
    """Add products of numbers whose squares would leave the range of float64."""
    halves = 0
    if found.max_abs == math.inf:
        d, halves = x * 0.5 - y * 0.5, 1
    x, x_exponent = scaled(x)
    y, y_exponent = scaled(y)
    d, d_exponent = scaled(d)
    found.aa.add(float(torch.dot(x, x)), 2 * x_exponent)
    found.bb.add(float(torch.dot(y, y)), 2 * y_exponent)
    found.ab.add(float(torch.dot(x, y)), x_exponent + y_exponent)
    found.dd.add(float(torch.dot(d, d)), 2 * (d_exponent + halves))
