"""Bringing a block's bytes from one checkpoint into a row of a worker's memory, in C order."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from swatool.averaging import kernels
from swatool.averaging.blocks import LARGEST_GAP, Block, Window, reads, window
from swatool.averaging.memory import Memory, Rows, bytes_of
from swatool.averaging.plan import Input
from swatool.checkpoints.opening import Checkpoint

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
            if stored.strides is not None:
                self._gather(window(block, stored), one, rows.host[row])
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

    def _gather(self, found: Window, one: Input, row: Tensor) -> None:
        """Read the span in which elements lie out of order, and put them in order."""
        source, offset, nbytes = found.extent
        span = self._memory.take_on_host("span", nbytes)
        source.read_into((bytes_of(span),), offset)
        dtype = kernels.torch_dtype(one.dtype)
        row.view(dtype).view(found.shape).copy_(span.view(dtype).as_strided(found.shape, found.strides))
