"""The nouns that every part of swatool shares: what is known of a tensor without reading it.

Nothing here needs torch, so that plans, headers and help are made without importing it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

__all__ = [
    "DTYPES",
    "Box",
    "DType",
    "Extent",
    "Folder",
    "Source",
    "StoredTensor",
    "c_strides",
    "rows_interleave",
]

Buffer = bytearray | memoryview
Kind = Literal["float", "complex", "integer", "bool"]


class DType(NamedTuple):
    """A tensor element type.

    Attributes:
        name: torch's name, such as `bfloat16`.
        code: safetensors' name, such as `BF16`; empty where safetensors has none.
        itemsize: bytes per element.
        kind: how averaging treats it.
    """

    name: str
    code: str
    itemsize: int
    kind: Kind

    @property
    def averageable(self) -> bool:
        """Whether a mean of such values means anything: true of float and complex types."""
        return self.kind in ("float", "complex")


# In the order of the reference writer, which lays out the widest types first.
DTYPES: Mapping[str, DType] = {
    dtype.name: dtype
    for dtype in (
        DType("uint64", "U64", 8, "integer"),
        DType("int64", "I64", 8, "integer"),
        DType("float64", "F64", 8, "float"),
        DType("complex64", "C64", 8, "complex"),
        DType("float32", "F32", 4, "float"),
        DType("uint32", "U32", 4, "integer"),
        DType("int32", "I32", 4, "integer"),
        DType("bfloat16", "BF16", 2, "float"),
        DType("float16", "F16", 2, "float"),
        DType("uint16", "U16", 2, "integer"),
        DType("int16", "I16", 2, "integer"),
        DType("float8_e5m2fnuz", "F8_E5M2FNUZ", 1, "float"),
        DType("float8_e4m3fnuz", "F8_E4M3FNUZ", 1, "float"),
        DType("float8_e8m0fnu", "F8_E8M0", 1, "float"),
        DType("float8_e4m3fn", "F8_E4M3", 1, "float"),
        DType("float8_e5m2", "F8_E5M2", 1, "float"),
        DType("int8", "I8", 1, "integer"),
        DType("uint8", "U8", 1, "integer"),
        DType("bool", "BOOL", 1, "bool"),
        DType("complex128", "", 16, "complex"),
    )
}


class Source(Protocol):
    """A file that tensors are read from by position; local today, remote ones fit the same four members."""

    @property
    def path(self) -> str:
        """How the user named it, for messages."""

    @property
    def size(self) -> int:
        """Its length in bytes when it was opened."""

    def read(self, offset: int, nbytes: int) -> bytes:
        """Return exactly `nbytes` bytes from `offset`; CheckpointError if they are not there."""

    def read_into(self, buffers: Sequence[Buffer], offset: int) -> None:
        """Fill the buffers one after the other from `offset`; CheckpointError if they cannot be filled."""


class Folder(Protocol):
    """A place that holds a checkpoint's files by name; local today, a remote one fits the same members."""

    @property
    def path(self) -> str:
        """How the user named it, for messages."""

    @property
    def names(self) -> Sequence[str]:
        """What lies in it, sorted."""

    def open(self, name: str) -> Source:
        """Open a file in it; CheckpointError if it is not there or the name leads out of the folder."""


class Extent(NamedTuple):
    """Where a contiguous run of a tensor's bytes lies."""

    source: Source
    offset: int
    nbytes: int


class Box(NamedTuple):
    """A part of a tensor that is stored by itself: it fills a range of each dimension.

    Attributes:
        offsets: where it begins in the tensor, along each dimension.
        lengths: its shape.
        strides: as those of a StoredTensor; None if its elements are stored in C order.
    """

    offsets: tuple[int, ...]
    lengths: tuple[int, ...]
    strides: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor inside a checkpoint: its type, its shape, and where its bytes lie.

    Attributes:
        dtype: element type.
        shape: length of each dimension.
        extents: the runs that hold the elements in C order, one after the other; with `strides`, the one run
            that holds every element somewhere, the first of them at its beginning; with `boxes`, the run of
            each box.
        strides: distance in elements between neighbours along each dimension, for a tensor whose bytes are
            not in C order (channels_last, transposed, sliced); None for one that is.
        boxes: the parts of a tensor that several ranks stored, where the bytes of one do not follow those of
            another in C order (sharded along a dimension other than the first); they tile it. Else None.
    """

    dtype: DType
    shape: tuple[int, ...]
    extents: tuple[Extent, ...]
    strides: tuple[int, ...] | None = None
    boxes: tuple[Box, ...] | None = None

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the elements themselves, whatever surrounds them in the file."""
        return self.numel * self.dtype.itemsize

    @property
    def is_gathered(self) -> bool:
        """Whether its bytes have to be put in C order after they were read."""
        return self.strides is not None or self.boxes is not None


def c_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the strides, in elements, of a C-ordered tensor of this shape."""
    strides: list[int] = []
    step = 1
    for length in reversed(shape):
        strides.append(step)
        step *= max(length, 1)
    return tuple(reversed(strides))


def rows_interleave(tensor: StoredTensor) -> bool:
    """Tell whether the slices along the first dimension do not lie apart, as in a transposed matrix."""
    if tensor.boxes is not None:
        return any(_rows_interleave(box.lengths, box.strides) for box in tensor.boxes)
    return _rows_interleave(tensor.shape, tensor.strides)


def _rows_interleave(shape: Sequence[int], strides: Sequence[int] | None) -> bool:
    if strides is None or shape[0] == 1:
        return False
    touched = 1 + sum((n - 1) * s for n, s in zip(shape[1:], strides[1:], strict=True))
    return strides[0] < touched
