"""From the parts of a tensor, which several ranks stored, to the one tensor: they must tile it exactly."""

from __future__ import annotations

import itertools
import math
import operator
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from swatool.checkpoints.dcp_parts import Chunk
from swatool.errors import CheckpointError
from swatool.tensors import Box, DType, StoredTensor

__all__ = ["Tile", "fault_of", "joined"]

MAX_SHARDED = 8  # dimensions that a tensor may be cut along


class Tile(NamedTuple):
    """A part of a tensor, and where its bytes lie."""

    chunk: Chunk
    stored: StoredTensor


def fault_of(chunks: Sequence[Chunk], shape: tuple[int, ...]) -> str:
    """Say what is wrong with parts, none of them empty, that should tile a tensor; empty if nothing is."""
    volume = 0
    for offsets, lengths in chunks:
        if any(map(operator.gt, map(operator.add, offsets, lengths), shape)):
            return "has a part that reaches beyond its shape"
        volume += math.prod(lengths)
    whole_volume = math.prod(shape)
    if volume != whole_volume:
        what = "lacks parts: they hold" if volume < whole_volume else "has parts that overlap: they hold"
        return f"{what} {volume:,} elements of {whole_volume:,}"
    if len(chunks) <= 1:
        return ""
    sharded = cut_dimensions(chunks, shape)
    if len(sharded) > MAX_SHARDED:
        return f"is sharded along {len(sharded)} dimensions, and at most {MAX_SHARDED} are read"
    # Boxes sum up to the whole, point by point, if and only if their signed corners do: those are the mixed
    # differences of their indicator functions. That is linear in the parts, which comparing pairs is not.
    corners: Counter[tuple[int, ...]] = Counter()
    signs = [(-1) ** sum(ends) for ends in itertools.product((0, 1), repeat=len(sharded))]
    for chunk in chunks:
        _add_corners(corners, chunk, sharded, signs)
    _add_corners(corners, Chunk((0,) * len(shape), shape), sharded, [-sign for sign in signs])
    return "has parts that overlap and leave holes" if any(corners.values()) else ""


def _add_corners(
    corners: Counter[tuple[int, ...]], box: Chunk, dimensions: Sequence[int], signs: Sequence[int]
) -> None:
    ranges = [(box.offsets[d], box.offsets[d] + box.lengths[d]) for d in dimensions]
    for point, sign in zip(itertools.product(*ranges), signs, strict=True):
        corners[point] += sign


def cut_dimensions(chunks: Sequence[Chunk], shape: tuple[int, ...]) -> list[int]:
    """Return the dimensions that some part does not fill."""
    return [d for d, n in enumerate(shape) if any(chunk.lengths[d] != n for chunk in chunks)]


def joined(dtype: DType, shape: tuple[int, ...], tiles: Sequence[Tile], where: str) -> StoredTensor:
    """Return the tensor that these parts, of a folder that messages call `where`, tile.

    Raises:
        CheckpointError: a part holds another type or shape than it should.
    """
    for chunk, stored in tiles:
        if stored.dtype is not dtype or stored.shape != chunk.lengths:
            raise CheckpointError(
                f"its part at {list(chunk.offsets)} is {stored.dtype.name} {list(stored.shape)} in the file "
                f"and should be {dtype.name} {list(chunk.lengths)}: {where} is damaged"
            )
    tiles = sorted(tiles, key=lambda tile: tile.chunk.offsets)
    if len(tiles) == 1:
        return StoredTensor(dtype, shape, tiles[0].stored.extents, tiles[0].stored.strides)
    extents = tuple(extent for tile in tiles for extent in tile.stored.extents)
    sharded = cut_dimensions([tile.chunk for tile in tiles], shape)
    # Along the first dimension of more than one element: the parts follow each other in C order.
    follow = len(sharded) == 1 and math.prod(shape[: sharded[0]]) == 1
    if follow and all(tile.stored.strides is None for tile in tiles):
        return StoredTensor(dtype, shape, extents)
    boxes = tuple(Box(*tile.chunk, tile.stored.strides) for tile in tiles)
    return StoredTensor(dtype, shape, extents, boxes=boxes)
