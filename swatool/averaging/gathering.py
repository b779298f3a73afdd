"""Which bytes of a file hold a block of a tensor that is not stored as runs in C order, and how they lie.

Pure, as `blocks`: from a block and where a tensor's bytes lie to windows of files. Such a block is a box of
one tensor.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from swatool.averaging.blocks import Block
from swatool.tensors import Box, Extent, StoredTensor, c_strides

__all__ = ["Window", "block_shape", "windows"]

KNOWN = 256  # blocks of the same place in the same boxes, in other tensors and checkpoints


class Window(NamedTuple):
    """A span of a file, the elements of a block that lie in it, and how they lie.

    Attributes:
        extent: the span.
        strides: distance in elements between the block's elements in it.
        begin: where in the block they begin, along each dimension.
        shape: how many there are, along each dimension.
    """

    extent: Extent
    strides: tuple[int, ...]
    begin: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def in_order(self) -> bool:
        """Whether they lie in C order, with nothing between them."""
        steps = c_strides(self.shape)
        return all(n == 1 or s == step for n, s, step in zip(self.shape, self.strides, steps, strict=True))


def windows(block: Block, stored: StoredTensor) -> Iterator[Window]:
    """Yield where a block's elements lie in a checkpoint that stores them out of order or in boxes."""
    (segment,) = block.segments
    boxes = stored.boxes or (Box((0,) * len(stored.shape), stored.shape, stored.strides),)
    itemsize = stored.dtype.itemsize
    for part in _parts(boxes, stored.shape, segment.start, segment.length):
        source, begin, _ = stored.extents[part.box]
        span = Extent(source, begin + part.skipped * itemsize, part.touched * itemsize)
        yield Window(span, part.strides, part.begin, part.shape)


class _Part(NamedTuple):
    """What is the same for a block's window in all checkpoints of the same boxes, in elements."""

    box: int
    skipped: int
    touched: int
    strides: tuple[int, ...]
    begin: tuple[int, ...]
    shape: tuple[int, ...]


@functools.lru_cache(KNOWN)
def _parts(boxes: tuple[Box, ...], whole: tuple[int, ...], start: int, length: int) -> tuple[_Part, ...]:
    wanted = Box(*_box(whole, start, length))
    found = []
    for index, box in enumerate(boxes):
        # Along each dimension, from where to where the two overlap.
        begin = tuple(map(max, box.offsets, wanted.offsets))
        shape = tuple(map(_overlap, begin, box.offsets, box.lengths, wanted.offsets, wanted.lengths))
        if 0 in shape:
            continue
        strides = box.strides or c_strides(box.lengths)
        skipped = sum((b - o) * s for b, o, s in zip(begin, box.offsets, strides, strict=True))
        touched = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        inside = tuple(b - o for b, o in zip(begin, wanted.offsets, strict=True))
        found.append(_Part(index, skipped, touched, strides, inside, shape))
    return tuple(found)


def _overlap(begin: int, first: int, length: int, other_first: int, other_length: int) -> int:
    return max(0, min(first + length, other_first + other_length) - begin)


def block_shape(block: Block, stored: StoredTensor) -> tuple[int, ...]:
    """Return the shape of the box that a block is of its one tensor."""
    (segment,) = block.segments
    return _box(stored.shape, segment.start, segment.length)[1]


def _box(shape: Sequence[int], start: int, length: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return offsets and lengths of a run of elements that is whole slices along one dimension."""
    steps = c_strides(shape)
    offsets = tuple(start // step % n for step, n in zip(steps, shape, strict=True))
    along = next(d for d, step in enumerate(steps) if step <= length)
    return offsets, (*(1,) * along, length // steps[along], *shape[along + 1 :])
