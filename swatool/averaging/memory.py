"""The memory of one worker, which is used again from block to block, and its way to the device.

On the CPU, checkpoints are read straight into the memory that the arithmetic works on. For CUDA they are read
into pinned memory, copied while the next ones are read, and not written over before that copy has ended.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

__all__ = ["Memory", "Rows", "bytes_of", "is_shortage"]

ALIGNMENT = 64
# The last is how the first begins: there may be no memory to say the rest.
SHORTAGES = ("can't allocate memory", "bad_alloc", "[enforce fail a")


def bytes_of(tensor: Tensor) -> memoryview:
    """See a contiguous uint8 tensor in host memory, [n], as a buffer; valid while the tensor lives."""
    address = (ctypes.c_char * len(tensor)).from_address(tensor.data_ptr())
    return memoryview(address).cast("B")


def is_shortage(error: RuntimeError) -> bool:
    """Tell whether torch found no memory; only for CUDA it has a type of error for that."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in SHORTAGES)


class Memory:
    """Named pieces of memory, on the device and on the host, that only ever grow."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._pieces: dict[tuple[str, torch.dtype, bool], Tensor] = {}

    def take(self, name: str, dtype: torch.dtype, count: int) -> Tensor:
        """Return a piece on the device, [count]; taking it again by its name gives the same bytes."""
        return self._take(name, dtype, count, on_host=False)

    def take_on_host(self, name: str, nbytes: int) -> Tensor:
        """Return a piece on the host, [nbytes], as uint8; pinned if the device is another one."""
        return self._take(name, torch.uint8, nbytes, on_host=True)

    def _take(self, name: str, dtype: torch.dtype, count: int, *, on_host: bool) -> Tensor:
        piece = self._pieces.get((name, dtype, on_host))
        if piece is None or len(piece) < count:
            device = torch.device("cpu") if on_host else self.device
            pinned = on_host and self.device.type == "cuda"
            piece = torch.empty(count, dtype=dtype, device=device, pin_memory=pinned)
            self._pieces[name, dtype, on_host] = piece
        return piece[:count]


class Rows:
    """Equally long rows of bytes, one per checkpoint: filled on the host, used on the device.

    Attributes:
        buffers: a buffer for each row, to read into.
        host: the same bytes, [rows, nbytes], as uint8.
        device: the same shape where the arithmetic is done; on the CPU the same memory.
    """

    def __init__(self, memory: Memory, name: str, count: int, nbytes: int) -> None:
        stride = -(-nbytes // ALIGNMENT) * ALIGNMENT
        whole = memory.take_on_host(name, count * stride)
        view = bytes_of(whole)
        self.buffers = [view[row * stride : row * stride + nbytes] for row in range(count)]
        self.host = whole.view(count, stride)[:, :nbytes]
        self.device = self.host
        self._copied: torch.cuda.Event | None = None
        if memory.device.type != "cpu":
            self._whole = whole
            self._copy = memory.take(name, torch.uint8, count * stride)
            self.device = self._copy.view(count, stride)[:, :nbytes]

    def wait(self) -> None:
        """Wait until nothing is still copied from the buffers."""
        if self._copied is not None:
            self._copied.synchronize()

    def upload(self) -> None:
        """Begin to bring the rows to the device."""
        if self.device is not self.host:
            self._copy.copy_(self._whole, non_blocking=True)
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()
