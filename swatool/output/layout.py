"""The nouns of an output file: what it holds, and where in it each byte goes.

They are separate from the formats so that whoever fills a file by position need not know its format.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from swatool.tensors import DType

__all__ = ["Layout", "OutputTensor"]


class OutputTensor(NamedTuple):
    """A tensor that will be written, in C order."""

    name: str
    dtype: DType
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Layout:
    """Where every byte of one output file goes.

    Attributes:
        header: the whole beginning of the file, up to the first tensor.
        offsets: position in the file of each tensor's first byte, by name, in the order of the file.
        size: length of the whole file in bytes.
    """

    header: bytes
    offsets: Mapping[str, int]
    size: int
