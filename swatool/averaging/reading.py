"""Bringing a block's bytes from one checkpoint into a row of a worker's memory, and results in C order."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from swatool.averaging import kernels
from swatool.averaging.blocks import LARGEST_GAP, Block, reads
from swatool.averaging.gathering import Window, block_shape, windows
from swatool.averaging.memory import Memory, Rows, bytes_of
from swatool.averaging.plan import Input
from swatool.checkpoints.opening import Checkpoint
from swatool.tensors import StoredTensor

__all__ = ["BlockReader"]


class BlockReader:
    """Reads blocks for one worker.

    Attributes:
        bytes_read: from all checkpoints, so far.
    """

    def __init__(self, checkpoints: Sequence[Checkpoint], memory: Memory) -> None:
        self.bytes_read = 0
        self._checkpoints = checkpoints
        self._memory = memory
        self._gap = memoryview(bytearray(LARGEST_GAP))

    def fill(self, block: Block, one: Input, rows: Rows, row: int) -> None:
        """Read a block's bytes from one checkpoint into a row, in C order or as they are stored."""
        checkpoint = self._checkpoints[one.checkpoint]
        buffer = rows.buffers[row]
        self.bytes_read += len(buffer)
        if len(block.segments) == 1:
            (segment,) = block.segments
            stored = checkpoint.tensors[segment.tensor.name]
            if stored.is_gathered:
                if block.as_stored:
                    _read_one_after_the_other(block, stored, buffer)
                else:
                    self._gather(block, stored, buffer, rows.host[row])
                return
            if len(stored.extents) == 1:
                source, offset, _ = stored.extents[0]
                source.read_into((buffer,), offset + segment.start * stored.dtype.itemsize)
                return
        position = 0
        for source, offset, pieces in reads(block.segments, checkpoint):
            buffers = []
            for nbytes, kept in pieces:
                buffers.append(buffer[position : position + nbytes] if kept else self._gap[:nbytes])
                position += nbytes if kept else 0
            source.read_into(buffers, offset)

    def _gather(self, block: Block, stored: StoredTensor, buffer: memoryview, row: Tensor) -> None:
        """Read the spans in which elements lie out of order, or beside others, and put them in order."""
        dtype = kernels.torch_dtype(stored.dtype)
        shape = block_shape(block, stored)
        target = row.view(dtype).view(shape)
        for found in windows(block, stored):
            source, offset, nbytes = found.extent
            if found.shape == shape and found.in_order:
                source.read_into((buffer,), offset)
                return
            span = self._memory.take_on_host("span", nbytes)
            source.read_into((bytes_of(span),), offset)
            _place(span.view(dtype), found, target)

    def in_c_order(self, block: Block, result: Tensor) -> Tensor:
        """Return a result's bytes, [bytes], in C order; those of a block that stays as stored are copied.

        That costs one copy for each output, and gathering one for each checkpoint.
        """
        if not block.as_stored:
            return result
        name, first = block.segments[0].tensor.name, block.treatment.inputs[0].checkpoint
        stored, dtype = self._checkpoints[first].tensors[name], kernels.torch_dtype(block.treatment.dtype)
        ordered = self._memory.take_on_host("ordered", len(result))
        target, rest = ordered.view(dtype).view(block_shape(block, stored)), result.view(dtype)
        for found in windows(block, stored):
            _place(rest, found, target)
            rest = rest[math.prod(found.shape) :]
        return ordered


def _read_one_after_the_other(block: Block, stored: StoredTensor, buffer: memoryview) -> None:
    """Fill a buffer with the spans in which elements lie, which have nothing between them."""
    position = 0
    for found in windows(block, stored):
        source, offset, nbytes = found.extent
        source.read_into((buffer[position : position + nbytes],), offset)
        position += nbytes


def _place(elements: Tensor, found: Window, target: Tensor) -> None:
    """Copy a window's elements, which lie as the window says from the first of `elements` on."""
    inside = tuple(slice(b, b + n) for b, n in zip(found.begin, found.shape, strict=True))
    target[inside].copy_(elements.as_strided(found.shape, found.strides))
