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
from swatool.tensors import Extent, Source, StoredTensor, c_strides, rows_interleave

__all__ = ["Block", "Place", "Read", "Segment", "Window", "block_elements", "cut", "reads", "window"]

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
        segments: what they are; a tensor that some checkpoint stores out of order is alone.
        count: number of elements.
        places: where they go, one after the other; a single one where the tensors are neighbours.
    """

    treatment: Treatment
    segments: tuple[Segment, ...]
    count: int
    places: tuple[Place, ...]

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


class Window(NamedTuple):
    """The span of a file in which a strided segment's elements lie, and how they lie in it."""

    extent: Extent
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def cut(plan: Plan, offsets: Mapping[str, int], elements: int) -> Iterator[Block]:
    """Yield blocks of at most `elements` elements, in the order of the output.

    Only a tensor that is stored transposed, so that its rows interleave, is taken whole, whatever its size.

    Args:
        plan: what is to be computed.
        offsets: position of each tensor in the output, in its order.
        elements: size of a block.
    """
    tensors = {tensor.name: tensor for tensor in plan.tensors}
    strided = {name for c in plan.checkpoints for name, t in c.tensors.items() if t.strides is not None}
    run: list[tuple[PlannedTensor, int]] = []
    end = 0  # where the run ends in the output
    for name, offset in offsets.items():
        tensor = tensors.get(name)
        if tensor is None or tensor.numel == 0:
            continue
        if run and (
            offset - end > LARGEST_GAP or tensor.treatment is not run[0][0].treatment or name in strided
        ):
            yield from _cut_run(run, elements)
            run = []
        if name in strided:
            yield from _strided_blocks(plan, tensor, offset, elements)
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


def _strided_blocks(plan: Plan, tensor: PlannedTensor, offset: int, elements: int) -> Iterator[Block]:
    """Cut along the first dimension where its rows lie apart in every file."""
    rows = tensor.shape[0]
    row = tensor.numel // rows
    stored = [plan.checkpoints[i.checkpoint].tensors[tensor.name] for i in tensor.treatment.inputs]
    spans = [(one.strides or c_strides(one.shape))[0] for one in stored]
    step = rows if any(map(rows_interleave, stored)) else max(1, elements // max(row, *spans))
    for start in range(0, rows, step):
        count = (min(start + step, rows) - start) * row
        place = offset + start * row * tensor.treatment.dtype.itemsize
        segment = Segment(tensor, start * row, count)
        yield Block(tensor.treatment, (segment,), count, (Place(count, place),))


def window(block: Block, stored: StoredTensor) -> Window:
    """Return where a strided block's elements lie in a checkpoint that stores them out of order."""
    strides = stored.strides or c_strides(stored.shape)
    (segment,) = block.segments
    row = stored.numel // stored.shape[0]
    shape = (segment.length // row, *stored.shape[1:])
    itemsize = stored.dtype.itemsize
    touched = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    source, offset, _ = stored.extents[0]
    skipped = segment.start // row * strides[0] * itemsize
    return Window(Extent(source, offset + skipped, touched * itemsize), shape, strides)


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
    """Memory for some rows as they are read, for the sums and for the result."""
    itemsize = max(one.dtype.itemsize for one in treatment.inputs)
    wide = 0 if not treatment.averages else 8 if treatment.accumulator == "float64" else 4
    if treatment.inputs[0].dtype.kind == "complex":
        wide *= 2
    return ROWS * itemsize + wide + treatment.dtype.itemsize
