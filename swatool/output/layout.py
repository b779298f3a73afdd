"""The nouns of an output: what it holds, and where in it each byte goes.

They are separate from the formats so that whoever fills an output by position need not know its format.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from swatool.tensors import DType

__all__ = ["Layout", "OutputFile", "OutputTensor", "Piece", "one_file", "together"]

BETWEEN_FILES = 1 << 20  # wider than any padding in a file, so that no unit of work spans two


class OutputTensor(NamedTuple):
    """A tensor that will be written, in C order."""

    name: str
    dtype: DType
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
        return math.prod(self.shape) * self.dtype.itemsize


class Piece(NamedTuple):
    """Bytes of an output that belong to no tensor, such as a header, and where they go."""

    position: int
    data: bytes


class OutputFile(NamedTuple):
    """One file of an output.

    Attributes:
        name: its name in the output's folder; empty where the output is this file alone.
        begin: position of its first byte in the output.
        nbytes: its length.
    """

    name: str
    begin: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Layout:
    """Where every byte of an output goes, which may be several files.

    Positions count through all files, with a gap between one and the next, so that whoever fills them need
    not know how many there are.

    Attributes:
        fixed: what is not tensors; the rest, such as padding, is zero.
        offsets: position of each tensor's first byte, by name, in the order of the output.
        files: what the output consists of, in the order of their positions.
    """

    fixed: tuple[Piece, ...]
    offsets: Mapping[str, int]
    files: tuple[OutputFile, ...]

    @property
    def is_folder(self) -> bool:
        """Whether the files lie in a folder of their own, rather than being a single one."""
        return any(file.name for file in self.files)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.nbytes for file in self.files)

    @property
    def fixed_nbytes(self) -> int:
        """Bytes that are not tensors."""
        return sum(len(piece.data) for piece in self.fixed)


def one_file(fixed: Sequence[Piece], offsets: Mapping[str, int], nbytes: int) -> Layout:
    """Return the layout of an output that is a single file."""
    return Layout(tuple(fixed), offsets, (OutputFile("", 0, nbytes),))


def together(files: Mapping[str, Layout]) -> Layout:
    """Return the layout of a folder that holds these single files, by name."""
    fixed: list[Piece] = []
    offsets: dict[str, int] = {}
    outputs: list[OutputFile] = []
    begin = 0
    for name, layout in files.items():
        fixed += (Piece(begin + position, data) for position, data in layout.fixed)
        offsets |= {tensor: begin + position for tensor, position in layout.offsets.items()}
        outputs.append(OutputFile(name, begin, layout.size))
        begin += layout.size + BETWEEN_FILES
    return Layout(tuple(fixed), offsets, tuple(outputs))
