"""Memory that checkpoints are read into, a row for each, and its way to the device.

On the CPU the rows are the device's own memory. For CUDA they are pinned, are copied while the next rows are
read, and are not written to again before that copy has ended.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

__all__ = ["HostBuffer", "Rows", "bytes_of"]

ALIGNMENT = 64


def bytes_of(tensor: Tensor) -> memoryview:
    """See a contiguous uint8 tensor in host memory, [n], as a buffer; valid while the tensor lives."""
    address = (ctypes.c_char * len(tensor)).from_address(tensor.data_ptr())
    return memoryview(address).cast("B")


class HostBuffer:
    """Bytes that both the system's read and write calls and torch can use, pinned if a device needs it."""

    def __init__(self, device: torch.device) -> None:
        self._pinned = device.type == "cuda"
        self._bytes = torch.empty(0, dtype=torch.uint8)
        self._view = memoryview(b"")

    def take(self, nbytes: int) -> tuple[Tensor, memoryview]:
        """Return the first `nbytes` bytes, as a tensor and as a buffer; grows if need be."""
        if len(self._bytes) < nbytes:
            self._bytes = torch.empty(nbytes, dtype=torch.uint8, pin_memory=self._pinned)
            self._view = bytes_of(self._bytes)
        return self._bytes[:nbytes], self._view[:nbytes]


class Rows:
    """Rows of equal length that are filled on the host and used on the device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._host = HostBuffer(device)
        self._on_device = torch.empty(0, dtype=torch.uint8, device=device)
        self._copied: torch.cuda.Event | None = None
        self._shape = (0, 0, 0)

    def take(self, count: int, nbytes: int) -> list[memoryview]:
        """Return `count` buffers of `nbytes` bytes each, once nothing is still read from them."""
        if self._copied is not None:
            self._copied.synchronize()
            self._copied = None
        stride = -(-nbytes // ALIGNMENT) * ALIGNMENT
        if self._shape != (count, nbytes, stride):
            self._shape = (count, nbytes, stride)
            whole, view = self._host.take(count * stride)
            self._filled = whole
            self._views = [view[row * stride : row * stride + nbytes] for row in range(count)]
            self._rows = whole.view(count, stride)[:, :nbytes]
        return self._views

    def on_device(self) -> Tensor:
        """Return the rows, [count, nbytes], as uint8, where the arithmetic is done."""
        if self._device.type == "cpu":
            return self._rows
        count, nbytes, stride = self._shape
        if len(self._on_device) < count * stride:
            self._on_device = torch.empty(count * stride, dtype=torch.uint8, device=self._device)
        copy = self._on_device[: count * stride]
        copy.copy_(self._filled, non_blocking=True)
        self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._copied.record()
        return copy.view(count, stride)[:, :nbytes]
