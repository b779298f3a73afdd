"""Placing the tensors of a torch file in the storages that hold their bytes, the same for every container."""

from __future__ import annotations

from typing import Protocol

from swatool.checkpoints.contents import TensorDescriptor
from swatool.errors import CheckpointError
from swatool.tensors import Extent, Source, StoredTensor

__all__ = ["StoragePlaces", "Storages"]

MAX_EXPANDED = 1 << 20  # elements of an expanded tensor, which are more than its storage holds


class StoragePlaces(Protocol):
    """Where a container keeps the storages, by their keys."""

    def size(self, key: str) -> int | None:
        """Return the bytes of a storage; None if there is none of this key."""

    def begin(self, key: str) -> int:
        """Return where in the file the bytes of a storage that is there begin."""

    def shown(self, key: str) -> str:
        """Return what a storage is called in messages, with the file."""


class Storages:
    """The storages of a file, in which tensors are placed."""

    def __init__(self, source: Source, places: StoragePlaces) -> None:
        self._source = source
        self._places = places
        self._shapes: dict[tuple[int, ...], tuple[int, ...]] = {}

    def locate(self, tensor: TensorDescriptor | StoredTensor) -> StoredTensor:
        """Return where a tensor's bytes lie; CheckpointError if it does not fit into its storage."""
        if isinstance(tensor, StoredTensor):
            return tensor
        self._check_size(tensor)
        begin = self._places.begin(tensor.storage)
        dtype, strides = tensor.dtype, tensor.strides
        shape = self._shapes.setdefault(tensor.shape, tensor.shape)  # equal ones are kept once
        count, reach, in_order = _measure(shape, strides)
        if count == 0:
            return StoredTensor(dtype, shape, ())
        held = tensor.storage_nbytes // dtype.itemsize
        if tensor.offset + reach > held:
            raise self._lie(tensor, f"reaches element {tensor.offset + reach:,} of {held:,}")
        if count > held and (0 not in strides or count > MAX_EXPANDED):
            raise CheckpointError(
                f"a tensor in {self._places.shown(tensor.storage)} makes more elements than it can of the "
                f"{held:,} stored ones: save it after .contiguous()"
            )
        begin += tensor.offset * dtype.itemsize
        extent = Extent(self._source, begin, reach * dtype.itemsize)
        return StoredTensor(dtype, shape, (extent,), None if in_order else strides)

    def _check_size(self, tensor: TensorDescriptor) -> None:
        size = self._places.size(tensor.storage)
        if size is None:
            raise self._lie(tensor, "is not in the file")
        if size != tensor.storage_nbytes:
            raise self._lie(tensor, f"has {size:,} bytes instead of {tensor.storage_nbytes:,}")

    def _lie(self, tensor: TensorDescriptor, what: str) -> CheckpointError:
        return CheckpointError(f"{self._places.shown(tensor.storage)} {what}")


def _measure(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, int, bool]:
    """Return the number of elements, the elements from the first to the last, and whether in C order."""
    count, reach, in_order = 1, 1, True
    for length, stride in zip(reversed(shape), reversed(strides), strict=True):
        if length == 1:
            continue
        in_order = in_order and stride == count
        count *= length
        reach += (length - 1) * stride
    return count, reach, in_order
