"""Bringing a block's bytes from one checkpoint into a row of a worker's memory, in C order."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from swatool.averaging import kernels
from swatool.averaging.blocks import LARGEST_GAP, Block, reads
from swatool.averaging.gathering import block_shape, windows
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
        """Read a block's bytes from one checkpoint into a row, in C order."""
        checkpoint = self._checkpoints[one.checkpoint]
        buffer = rows.buffers[row]
        self.bytes_read += len(buffer)
        if len(block.segments) == 1:
            (segment,) = block.segments
            stored = checkpoint.tensors[segment.tensor.name]
            if stored.is_gathered:
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
            inside = tuple(slice(b, b + n) for b, n in zip(found.begin, found.shape, strict=True))
            target[inside].copy_(span.view(dtype).as_strided(found.shape, found.strides))
