"""The nouns of distributed checkpoints: the parts that ranks stored of a tensor, and where they lie."""

from __future__ import annotations

from typing import NamedTuple, TypeGuard

__all__ = ["Chunk", "Item", "Lengths", "Part", "are_lengths"]

MAX_RANK = 64
MAX_LENGTH = 2**63

Lengths = tuple[int, ...]


class Chunk(NamedTuple):
    """A part of a tensor: where in the tensor it begins, and its shape."""

    offsets: Lengths
    lengths: Lengths


class Item(NamedTuple):
    """Where the file of one part lies: a range of bytes in a file of the folder."""

    file: str
    offset: int
    nbytes: int


class Part(NamedTuple):
    """A part of a tensor, and where its file lies."""

    chunk: Chunk
    item: Item


def are_lengths(value: object) -> TypeGuard[Lengths]:
    """Tell whether this is a tuple of lengths or offsets, of a rank that tensors have."""
    # By type, because True is an int to Python.
    if type(value) is not tuple or len(value) > MAX_RANK or not set(map(type, value)) <= {int}:
        return False
    return not value or (min(value) >= 0 and max(value) < MAX_LENGTH)
