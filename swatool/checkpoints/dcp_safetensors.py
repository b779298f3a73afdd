"""Folders of safetensors files that torch.distributed.checkpoint wrote, one or more by each rank.

Each file's metadata say where in the whole tensors its own parts begin; how long the whole ones are, only all
files together tell. So a folder that lacks its last ranks' files is seen to be incomplete only where some
tensor is left with a hole.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import cast

from swatool.checkpoints.contents import Contents, TensorDescriptor
from swatool.checkpoints.dcp_parts import Chunk, are_lengths
from swatool.checkpoints.dcp_tiles import Tile, fault_of, joined
from swatool.checkpoints.safetensors_file import read_safetensors
from swatool.errors import CheckpointError, printable
from swatool.json_text import JsonError, parse_json
from swatool.tensors import Folder, Source, StoredTensor

__all__ = ["read", "recognises"]

SHARD = re.compile(r"shard-\d{5,}-model-\d{5,}-of-\d{5,}\.safetensors")
SHARDING = "DCP_SHARDING_INFO"
OFFSETS = "saved_offsets"


def recognises(names: Sequence[str]) -> bool:
    """Tell from the names in a folder whether ranks wrote their parts into it as safetensors files."""
    return any(map(SHARD.fullmatch, names))


def read(folder: Folder) -> Contents:
    """Describe the tensors whose parts lie in the folder's files.

    Raises:
        CheckpointError: a file is damaged, or the parts do not tile the tensors.
    """
    tiles: dict[str, list[Tile]] = {}
    notes: dict[str, str] = {}
    for name in filter(SHARD.fullmatch, folder.names):
        source = folder.open(name)
        contents = read_safetensors(source)
        tensors = cast(Mapping[str, StoredTensor], contents.root)
        offsets = _offsets(contents.metadata.get(SHARDING), source)
        notes |= {key: value for key, value in contents.metadata.items() if key != SHARDING}
        for tensor, stored in tensors.items():
            chunk = Chunk(_offset(tensor, stored, offsets, source), stored.shape)
            tiles.setdefault(tensor, []).append(Tile(chunk, stored))
    where = printable(folder.path)
    root = {name: _tensor(name, parts, where) for name, parts in tiles.items()}
    return Contents("sharded safetensors", root, _locate, notes)


def _locate(leaf: TensorDescriptor | StoredTensor) -> StoredTensor:
    if not isinstance(leaf, StoredTensor):
        raise TypeError(f"not a leaf of a safetensors file: {leaf!r}")
    return leaf


def _offsets(text: str | None, source: Source) -> Mapping[object, object]:
    """Return what a file says of the places of its parts, by tensor."""
    try:
        found = parse_json(text or "")
    except JsonError:
        found = None
    if not isinstance(found, dict):
        raise CheckpointError(
            f"{printable(source.path)} does not say where its parts of the tensors begin ({SHARDING} is "
            "missing from its metadata, or damaged): save the checkpoint again"
        )
    return found


def _offset(
    name: str, stored: StoredTensor, places: Mapping[object, object], source: Source
) -> tuple[int, ...]:
    place = places.get(name)
    found = place.get(OFFSETS) if isinstance(place, dict) else None
    offsets = tuple(found) if isinstance(found, list) else None
    if not are_lengths(offsets) or len(offsets) != len(stored.shape):
        raise CheckpointError(
            f"{printable(source.path)} does not say where its part of tensor {printable(name)} begins: it is "
            "damaged"
        )
    return offsets


def _tensor(name: str, tiles: Sequence[Tile], where: str) -> StoredTensor:
    """Put a tensor together, which is as long as its parts reach."""
    dtype, rank = tiles[0].stored.dtype, len(tiles[0].stored.shape)
    if any(len(tile.stored.shape) != rank or tile.stored.dtype is not dtype for tile in tiles):
        raise CheckpointError(
            f"tensor {printable(name)} of {where} has parts of several types or ranks: the files are damaged "
            "or not of one checkpoint"
        )
    ends = [[o + n for o, n in zip(*tile.chunk, strict=True)] for tile in tiles]
    shape = tuple(map(max, zip(*ends, strict=True)))
    held = [tile for tile in tiles if 0 not in tile.chunk.lengths]
    fault = fault_of([tile.chunk for tile in held], shape)
    if fault:
        raise CheckpointError(
            f"tensor {printable(name)} of {where} {fault}: a file is missing or not of this checkpoint"
        )
    return joined(dtype, shape, held, where) if held else StoredTensor(dtype, shape, ())
