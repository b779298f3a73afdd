"""What a batch is, and what is done to one: counted, joined, moved, checked, and given to the model.

A batch is a tensor, a tuple or list whose first item is the model's input, or a mapping of keyword arguments.
Samples lie along dimension 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from swatool.errors import DataError

__all__ = [
    "Batch",
    "Forward",
    "call",
    "check_finite",
    "describe",
    "joined",
    "moved",
    "pair",
    "signature",
    "size_of",
    "sliced",
]

Batch = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]
Forward = Callable[[nn.Module, Any], object]


def _inputs(batch: Batch) -> list[Tensor]:
    """Return the tensors that the model is given: the first item's, or all of a mapping's."""
    if isinstance(batch, tuple | list):
        batch = batch[0] if batch else ()
    return [leaf for leaf in _leaves(batch) if isinstance(leaf, Tensor)]


def _leaves(value: object) -> Iterator[object]:
    if isinstance(value, tuple | list):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _leaves(item)
    else:
        yield value


def _mapped(value: object, change: Callable[[object], object]) -> object:
    """Return the same structure with every leaf changed."""
    if isinstance(value, tuple | list):
        return _rebuilt(value, [_mapped(item, change) for item in value])
    if isinstance(value, Mapping):
        return {key: _mapped(item, change) for key, item in value.items()}
    return change(value)


def _rebuilt(like: tuple[object, ...] | list[object], items: list[object]) -> object:
    """Return a sequence of the same type, which may be a named tuple, with other items."""
    make: Callable[..., object] = type(like)
    return make(*items) if hasattr(like, "_fields") else make(items)


def size_of(batch: Batch) -> int:
    """Return the number of samples, from the first tensor that the model is given; DataError without one."""
    if not isinstance(batch, Tensor | tuple | list | Mapping):
        raise DataError(
            f"a batch is of type {type(batch).__name__}: batches are tensors, tuples or lists whose first "
            "item is the input, or mappings of keyword arguments"
        )
    inputs = _inputs(batch)
    if not inputs or not inputs[0].dim():
        raise DataError(f"a batch holds {describe(batch)}: a tensor with samples along dimension 0 is needed")
    return inputs[0].shape[0]


def describe(batch: Batch) -> str:
    """Return shape and type of the first tensor that the model is given."""
    inputs = _inputs(batch)
    if not inputs:
        return "no tensor"
    return f"shape {tuple(inputs[0].shape)} and dtype {str(inputs[0].dtype).removeprefix('torch.')}"


def signature(batch: Batch) -> Hashable:
    """Return what a model's path may depend on apart from the values: the batch's structure and shapes."""
    if isinstance(batch, tuple | list):
        return (type(batch).__name__, *(signature(item) for item in batch))
    if isinstance(batch, Mapping):
        return tuple((key, signature(item)) for key, item in batch.items())
    if isinstance(batch, Tensor):
        return (batch.shape, batch.dtype)
    # Of anything else it is not known whether two are alike.
    return batch if batch is None or isinstance(batch, bool | int | float | str) else object()


def joined(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Give the batches in order, the last one joined to the one before if it has a single sample.

    Batches without samples are left out. One batch is read ahead.
    """
    waiting: list[Batch] = []  # the newest batch, and the one before if the newest has a single sample
    for batch in batches:
        size = size_of(batch)
        if size:
            waiting.append(batch)
            while len(waiting) > (2 if size == 1 else 1):
                yield waiting.pop(0)
    yield from pair(*waiting) if len(waiting) == 2 else waiting


def pair(first: Batch, second: Batch) -> list[Batch]:
    """Return two batches as one, or as they are if they do not fit together, as images of two sizes."""
    try:
        return [cast(Batch, _concatenated(first, second, size_of(first), size_of(second)))]
    except _UnlikeError:
        return [first, second]


class _UnlikeError(Exception):
    """Two batches are not built alike."""


def _concatenated(first: object, second: object, size: int, extra: int) -> object:
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        if first.dim() and second.dim() and (first.shape[0], second.shape[0]) == (size, extra):
            if first.shape[1:] != second.shape[1:] or first.dtype != second.dtype:
                raise _UnlikeError
            return torch.cat([first, second])
        return first
    if type(first) is not type(second):
        raise _UnlikeError
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        if first.keys() != second.keys():
            raise _UnlikeError
        return {key: _concatenated(first[key], second[key], size, extra) for key in first}
    if isinstance(first, tuple | list) and isinstance(second, tuple | list):
        if len(first) == len(second):
            pairs = zip(first, second, strict=True)
            return _rebuilt(first, [_concatenated(one, two, size, extra) for one, two in pairs])
        if (len(first), len(second)) != (size, extra):
            raise _UnlikeError
        return _rebuilt(first, [*first, *second])
    return first


def sliced(batch: Batch, count: int) -> Batch:
    """Return the first samples of a batch: views of the tensors that have the samples along dimension 0."""
    size = size_of(batch)

    def cut(leaf: object) -> object:
        return leaf[:count] if isinstance(leaf, Tensor) and leaf.shape[:1] == (size,) else leaf

    return cast(Batch, _mapped(batch, cut))


def moved(batch: Batch, device: torch.device | None, dtype: torch.dtype | None) -> Batch:
    """Return a batch on a device, its floating tensors in a type; None leaves them where or as they are."""

    def move(leaf: object) -> object:
        if not isinstance(leaf, Tensor):
            return leaf
        return leaf.to(device=device, dtype=dtype if leaf.is_floating_point() else None)

    return cast(Batch, _mapped(batch, move))


def check_finite(batch: Batch, number: int) -> None:
    """Raise DataError if what the model is given holds NaN or Inf."""
    for tensor in _inputs(batch):
        if tensor.is_floating_point() and tensor.numel() and not _is_finite(tensor):
            raise DataError(
                f"batch {number} of the data ({describe(batch)}) holds NaN or Inf: "
                "statistics need finite values"
            )


def _is_finite(tensor: Tensor) -> bool:
    if tensor.dtype.itemsize == 1:
        tensor = tensor.float()  # there is no arithmetic for those
    # NaN and Inf make any sum so. A sum of large values may be infinite by itself: then the extremes tell.
    if math.isfinite(tensor.sum().item()):
        return True
    return bool(torch.stack(torch.aminmax(tensor)).isfinite().all())


def call(model: nn.Module, batch: Batch, forward: Forward | None) -> None:
    """Run the model: a tensor or the first item of a sequence as its argument, a mapping as its keywords."""
    if forward is not None:
        forward(model, batch)
    elif isinstance(batch, Mapping):
        model(**batch)
    else:
        model(batch[0] if isinstance(batch, tuple | list) else batch)
