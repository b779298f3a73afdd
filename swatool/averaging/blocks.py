"""Cutting a plan into blocks: spans of output bytes small enough for the CPU cache, and what fills them.

Pure: from the plan and the places of its tensors in the output to an iterator of blocks. Neighbouring small
tensors share a block, so that ten thousand of them cost as little as one large one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, Self, TypeVar

from swatool.averaging.plan import Plan, PlannedTensor, Treatment
from swatool.checkpoints.opening import Checkpoint
from swatool.tensors import Box, Source, StoredTensor, c_strides, rows_interleave

__all__ = ["Block", "Place", "Read", "Segment", "block_elements", "cut", "reads"]

LARGEST_GAP = 4096  # bytes between two tensors in a file that are cheaper read than skipped
# So large that the interpreter lock, which every read and operator takes, costs little.
LARGEST_BLOCK = 512 * 1024
SMALLEST_BLOCK = 4 * 1024
BLOCKS_PER_WORKER = 32  # at least, so that small models take little memory and all workers end together
MEMORY_BUDGET = 24 * 2**20  # bytes, of all workers together
ROWS = 4  # checkpoints that a worker holds at a time, at most


class Sliceable(Protocol):
    """A tensor or a buffer."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> Self: ...


V = TypeVar("V", bound=Sliceable)


class Place(NamedTuple):
    """Where the next `length` elements of a block go in the output."""

    length: int
    offset: int


class Segment(NamedTuple):
    """A run of `length` elements of one tensor in C order, from element `start`."""

    tensor: PlannedTensor
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class Block:
    """The unit of work.

    Attributes:
        treatment: what is done with its elements.
        segments: what they are; a tensor that is gathered in some checkpoint is alone, and a box of it.
        count: number of elements.
        places: where they go, one after the other; a single one where the tensors are neighbours.
        as_stored: whether the elements stay in the order that all checkpoints have them in, box by box, until
            the result is put in C order.
    """

    treatment: Treatment
    segments: tuple[Segment, ...]
    count: int
    places: tuple[Place, ...]
    as_stored: bool = False

    def split(self, values: V) -> Iterator[tuple[Segment, V]]:
        """Divide something of the block's length, or a whole multiple of it, among the segments."""
        scale = len(values) // self.count
        position = 0
        for segment in self.segments:
            yield segment, values[position : position + segment.length * scale]
            position += segment.length * scale


class Read(NamedTuple):
    """One ranged read that fills several pieces of a row: (length, whether it is kept) each."""

    source: Source
    offset: int
    pieces: tuple[tuple[int, bool], ...]


def cut(plan: Plan, offsets: Mapping[str, int], elements: int, *, as_stored: bool = False) -> Iterator[Block]:
    """Yield blocks of at most `elements` elements, in the order of the output.

    Only a tensor that is stored transposed, so that its rows interleave, is taken whole, whatever its size.
    One that must be gathered, from strides or from boxes, shares no block with others.

    Args:
        plan: what is to be computed.
        offsets: position of each tensor in the output, in its order.
        elements: size of a block.
        as_stored: whether what all checkpoints have in the same order out of C order may stay in it.
    """
    tensors = {tensor.name: tensor for tensor in plan.tensors}
    gathered = {name for c in plan.checkpoints for name, t in c.tensors.items() if t.is_gathered}
    run: list[tuple[PlannedTensor, int]] = []
    end = 0  # where the run ends in the output
    for name, offset in offsets.items():
        tensor = tensors.get(name)
        if tensor is None or tensor.numel == 0:
            continue
        if run and (
            offset - end > LARGEST_GAP or tensor.treatment is not run[0][0].treatment or name in gathered
        ):
            yield from _cut_run(run, elements)
            run = []
        if name in gathered:
            yield from _gathered_blocks(plan, tensor, offset, elements, as_stored)
        else:
            run.append((tensor, offset))
            end = offset + tensor.numel * tensor.treatment.dtype.itemsize
    yield from _cut_run(run, elements)


def _cut_run(run: Sequence[tuple[PlannedTensor, int]], elements: int) -> Iterator[Block]:
    """Cut neighbours of one treatment, which follow each other in the output with small gaps at most."""
    segments: list[Segment] = []
    places: list[Place] = []
    filled = end = 0
    for tensor, offset in run:
        itemsize = tensor.treatment.dtype.itemsize
        start = 0
        while start < tensor.numel:
            count = min(tensor.numel - start, elements - filled)
            segments.append(Segment(tensor, start, count))
            position = offset + start * itemsize
            if places and position == end:
                places[-1] = Place(places[-1].length + count, places[-1].offset)
            else:
                places.append(Place(count, position))
            start, filled, end = start + count, filled + count, position + count * itemsize
            if filled == elements:
                yield Block(tensor.treatment, tuple(segments), filled, tuple(places))
                segments, places, filled = [], [], 0
    if segments:
        yield Block(segments[0].tensor.treatment, tuple(segments), filled, tuple(places))


def _gathered_blocks(
    plan: Plan, tensor: PlannedTensor, offset: int, elements: int, as_stored: bool
) -> Iterator[Block]:
    """Cut into boxes: whole slices along one dimension, at one place along those before it.

    That is the first dimension whose slices fit a block; or the first of all, for bytes that are not in C
    order, and without any cut unless the slices lie apart in every file.
    """
    shape, itemsize = tensor.shape, tensor.treatment.dtype.itemsize
    stored = [plan.checkpoints[i.checkpoint].tensors[tensor.name] for i in tensor.treatment.inputs]
    steps = c_strides(shape)
    spans = [strides[0] for one in stored for strides in _out_of_order(one)]
    dimension = 0 if spans else next(d for d, step in enumerate(steps) if step <= elements)
    slices, one_slice = shape[dimension], steps[dimension]
    most = slices if any(map(rows_interleave, stored)) else max(1, elements // max((one_slice, *spans)))
    as_stored = as_stored and _are_alike(stored)
    for outer in range(tensor.numel // (slices * one_slice)):
        for first in range(0, slices, most):
            start = (outer * slices + first) * one_slice
            count = (min(first + most, slices) - first) * one_slice
            place = Place(count, offset + start * itemsize)
            yield Block(tensor.treatment, (Segment(tensor, start, count),), count, (place,), as_stored)


def _out_of_order(stored: StoredTensor) -> list[tuple[int, ...]]:
    """Return the strides of what is not stored in C order."""
    every = [box.strides for box in stored.boxes or ()] + [stored.strides]
    return [strides for strides in every if strides is not None]


def _are_alike(stored: Sequence[StoredTensor]) -> bool:
    """Tell whether checkpoints hold a tensor's elements in the same order, with nothing between them."""
    shape, strides, boxes = stored[0].shape, stored[0].strides, stored[0].boxes
    if any(one.strides != strides or one.boxes != boxes for one in stored[1:]):
        return False
    return all(_is_dense(box.lengths, box.strides) for box in boxes or (Box((), shape, strides),))


def _is_dense(lengths: Sequence[int], strides: Sequence[int] | None) -> bool:
    step = 1
    for stride, length in sorted(zip(strides or c_strides(lengths), lengths, strict=True)):
        if length > 1 and stride != step:
            return False
        step *= length
    return True


def reads(segments: Sequence[Segment], checkpoint: Checkpoint) -> list[Read]:
    """Return the reads that bring the segments' bytes from one checkpoint, neighbours joined."""
    found: list[Read] = []
    source: Source | None = None
    begin = end = 0
    pieces: list[tuple[int, bool]] = []
    for place, offset, nbytes in _ranges(segments, checkpoint):
        gap = offset - end
        if place is source and gap == 0:
            pieces[-1] = (pieces[-1][0] + nbytes, True)
        elif place is source and 0 < gap <= LARGEST_GAP:
            pieces += ((gap, False), (nbytes, True))
        else:
            if source is not None:
                found.append(Read(source, begin, tuple(pieces)))
            source, begin, pieces = place, offset, [(nbytes, True)]
        end = offset + nbytes
    if source is not None:
        found.append(Read(source, begin, tuple(pieces)))
    return found


def _ranges(segments: Sequence[Segment], checkpoint: Checkpoint) -> Iterator[tuple[Source, int, int]]:
    """Yield the byte ranges, as source, offset and length, of segments of C-ordered tensors."""
    tensors = checkpoint.tensors
    for tensor, start, count in segments:
        stored = tensors[tensor.name]
        skip, wanted = start * stored.dtype.itemsize, count * stored.dtype.itemsize
        for source, offset, nbytes in stored.extents:
            if skip < nbytes and wanted:
                taken = min(nbytes - skip, wanted)
                yield source, offset + skip, taken
                wanted -= taken
            skip = max(skip - nbytes, 0)


def block_elements(plan: Plan, threads: int) -> int:
    """Return how many elements a block has: so many that each worker gets a few blocks within its memory."""
    per_element = max((_bytes_per_element(tensor.treatment) for tensor in plan.tensors), default=1)
    shared = sum(tensor.numel for tensor in plan.tensors) // (threads * BLOCKS_PER_WORKER)
    return max(SMALLEST_BLOCK, min(LARGEST_BLOCK, shared, MEMORY_BUDGET // (threads * per_element)))


def _bytes_per_element(treatment: Treatment) -> int:
    """Memory for some rows as they are read, for the sums of each output and for a result."""
    itemsize = max(one.dtype.itemsize for one in treatment.inputs)
    outputs = len(treatment.inputs[0].coefficients)
    if not treatment.averages:
        # A row, and for each output one to compare with and one to write, unless they are the same.
        return (2 + (2 * outputs if outputs > 1 else 1)) * itemsize
    wide = 8 if treatment.accumulator == "float64" else 4
    if treatment.inputs[0].dtype.kind == "complex":
        wide *= 2
    return ROWS * itemsize + outputs * wide + treatment.dtype.itemsize
