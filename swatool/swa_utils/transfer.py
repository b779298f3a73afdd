"""Bringing together tensors of different types or devices, piece by piece, in memory of bounded size.

An average in float32 of a model in bfloat16, or on the CPU of a model on the GPU, is updated without a copy
of the model: a piece is copied into a small buffer, widened there, and averaged from there. From CUDA to the
CPU there are two buffers of pinned memory, so that one is filled while the other is averaged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from swatool.averaging.kernels import copy_together

__all__ = ["Apply", "Route", "Transfer"]

Apply = Callable[[Sequence[Tensor], Sequence[Tensor]], None]

CACHED = 1 << 18  # elements at a time where the CPU widens: they stay in its cache
CARRIED = 1 << 23  # elements at a time between devices or on an accelerator
DENSE = (torch.contiguous_format, torch.channels_last, torch.channels_last_3d)


class Route(NamedTuple):
    """From where and what to where and what values go."""

    source_device: torch.device
    source_dtype: torch.dtype
    device: torch.device
    dtype: torch.dtype

    @classmethod
    def of(cls, average: Tensor, model: Tensor) -> Route:
        """Return the route from a model's tensor to its average."""
        return cls(model.device, model.dtype, average.device, average.dtype)

    @property
    def is_direct(self) -> bool:
        """Whether there is nowhere to go."""
        return self.source_device == self.device and self.source_dtype is self.dtype

    @property
    def downloads(self) -> bool:
        """Whether copies run beside the CPU, which has to wait for them."""
        return self.source_device.type == "cuda" and self.device.type == "cpu"


@dataclass(frozen=True)
class Piece:
    """What is brought over at a time: a span of one large tensor, or several small ones whole."""

    first: int
    last: int
    span: slice | None = None


class Transfer:
    """The pieces that some tensors are cut into, and the memory that they pass through."""

    def __init__(self, route: Route, averages: Sequence[Tensor], models: Sequence[Tensor]) -> None:
        """Cut, and take the memory; `averages` and `models` are all of this route."""
        self._route = route
        on_cpu = route.source_device.type == route.device.type == "cpu"
        self._pieces = list(_cut(averages, models, CACHED if on_cpu else CARRIED))
        self._cut = sorted({piece.first for piece in self._pieces if piece.span is not None})
        self._strides = self._strides_now(averages, models)
        size = max((_elements(piece, averages) for piece in self._pieces), default=0)
        with torch.inference_mode(False):  # else they could not be written outside of that mode
            self._lanes = [_Lane(route, size) for _ in range(2 if route.downloads else 1)]

    def fits(self, averages: Sequence[Tensor], models: Sequence[Tensor]) -> bool:
        """Tell whether the tensors that are cut still lie in memory in the order that they were cut in."""
        return self._strides == self._strides_now(averages, models)

    def _strides_now(self, averages: Sequence[Tensor], models: Sequence[Tensor]) -> list[tuple[int, ...]]:
        return [tensors[index].stride() for tensors in (averages, models) for index in self._cut]

    def run(self, averages: Sequence[Tensor], models: Sequence[Tensor], apply: Apply) -> None:
        """Apply something to all averages and what the models' tensors are in their type and place."""
        waiting: list[tuple[_Lane, list[Tensor], list[Tensor]]] = []
        for turn, piece in enumerate(self._pieces):
            lane = self._lanes[turn % len(self._lanes)]
            targets = _views(averages, piece)
            waiting.append((lane, targets, lane.send(_views(models, piece))))
            if len(waiting) == len(self._lanes):
                self._receive(*waiting.pop(0), apply)
        for one in waiting:
            self._receive(*one, apply)

    def _receive(self, lane: _Lane, targets: list[Tensor], arrived: list[Tensor], apply: Apply) -> None:
        apply(targets, lane.receive(arrived))


class _Lane:
    """Memory that one piece at a time passes through."""

    def __init__(self, route: Route, size: int) -> None:
        changes_device = route.source_device != route.device
        changes_dtype = route.source_dtype is not route.dtype
        self._landing = self._wide = None
        if changes_device:
            self._landing = torch.empty(
                size, dtype=route.source_dtype, device=route.device, pin_memory=route.downloads
            )
        if changes_dtype:
            self._wide = torch.empty(size, dtype=route.dtype, device=route.device)
        self._arrival: torch.cuda.Event | None = None
        if route.downloads:
            self._arrival = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._source_device = route.source_device

    def send(self, models: list[Tensor]) -> list[Tensor]:
        """Start bringing a piece to the device of the averages; return it as it will be there."""
        if self._landing is None:
            return models
        landing = _laid_out(self._landing, models)
        copy_together(landing, models, non_blocking=True)
        if self._arrival is not None:
            self._arrival.record(torch.cuda.current_stream(self._source_device))
        return landing

    def receive(self, arrived: list[Tensor]) -> list[Tensor]:
        """Wait for the piece and return it in the type of the averages."""
        if self._arrival is not None:
            self._arrival.synchronize()
        if self._wide is None:
            return arrived
        wide = _laid_out(self._wide, arrived)
        copy_together(wide, arrived)
        return wide


def _cut(averages: Sequence[Tensor], models: Sequence[Tensor], size: int) -> Iterator[Piece]:
    """Divide tensors into pieces of at most `size` elements; what lies in no common order stays whole."""
    first = gathered = 0
    for index, (average, model) in enumerate(zip(averages, models, strict=True)):
        count = average.numel()
        if gathered + count > size and gathered:
            yield Piece(first, index)
            first, gathered = index, 0
        if count > size:
            if _order(average, model) is None:
                yield Piece(index, index + 1)
            else:
                for start in range(0, count, size):
                    yield Piece(index, index + 1, slice(start, start + size))
            first = index + 1
        else:
            gathered += count
    if gathered:
        yield Piece(first, len(averages))


def _order(average: Tensor, model: Tensor) -> torch.memory_format | None:
    """Return an order in which both tensors lie without gaps."""
    for order in DENSE:
        if _lies_in(average, order) and _lies_in(model, order):
            return order
    return None


def _lies_in(tensor: Tensor, order: torch.memory_format) -> bool:
    return tensor.is_contiguous(memory_format=order)


def _elements(piece: Piece, tensors: Sequence[Tensor]) -> int:
    if piece.span is not None:
        return int(piece.span.stop - piece.span.start)  # the last one may end before
    return sum(tensor.numel() for tensor in tensors[piece.first : piece.last])


def _views(tensors: Sequence[Tensor], piece: Piece) -> list[Tensor]:
    """Return the parts of the tensors that belong to a piece, without gradients."""
    some = [tensor.detach() for tensor in tensors[piece.first : piece.last]]
    if piece.span is None:
        return some
    # Without gaps, so in the order of the memory it is one row, whatever the order of its dimensions.
    row = some[0].as_strided((some[0].numel(),), (1,))
    return [row[piece.span]]


def _laid_out(memory: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Return tensors of the given shapes, one after the other in this memory."""
    sizes = [tensor.numel() for tensor in like]
    parts = torch.split(memory[: sum(sizes)], sizes)
    return [part.view(tensor.shape) for part, tensor in zip(parts, like, strict=True)]
