"""Folders by torch.distributed.checkpoint: a `.metadata` that describes and `*.distcp` files, one per rank.

Every rank stored its parts of the tensors; here they become tensors whose bytes lie in several files. What is
no tensor is a pickle in those files, which is never read.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from swatool.checkpoints.contents import Contents, Opaque, TensorDescriptor, UnsupportedTensor
from swatool.checkpoints.dcp_items import ItemReader
from swatool.checkpoints.dcp_metadata import Metadata, read_metadata
from swatool.checkpoints.dcp_tiles import Tile, fault_of, joined
from swatool.errors import CheckpointError, printable
from swatool.tensors import DType, Folder, StoredTensor, c_strides

__all__ = ["read", "recognises"]

KNOWN_CUTS = 64
METADATA = ".metadata"
PICKLED = Opaque("a pickle among the distributed tensors")


def recognises(names: Sequence[str]) -> bool:
    """Tell from the names in a folder whether torch.distributed.checkpoint wrote it, or began to."""
    return any(name.endswith((".distcp", METADATA, f"{METADATA}.tmp")) for name in names)


def read(folder: Folder) -> Contents:
    """Describe what a folder holds; of the tensors' files nothing is read until a tensor is located.

    Raises:
        CheckpointError: it is incomplete, damaged or hostile.
    """
    where = printable(folder.path)
    if METADATA not in folder.names:
        if any(name.endswith(METADATA) for name in folder.names):
            raise CheckpointError(
                f"{where} has a .metadata for each rank and none for all: save it with the ranks' collectives"
            )
        raise CheckpointError(
            f"{where} is a distributed checkpoint that was not committed: it has no .metadata, which is "
            "written last; use another one"
        )
    metadata = read_metadata(folder.open(METADATA))
    return Contents("torch distributed", _tree(metadata), _Tensors(folder, metadata).locate, metadata.notes)


def _tree(metadata: Metadata) -> dict[str | int, object]:
    """Return the nested state dict that was saved, as far as the planner noted its paths."""
    root: dict[str | int, object] = {}
    for name in (*metadata.tensors, *metadata.others):
        leaf = _leaf(metadata, name)
        *above, last = metadata.paths.get(name, (name,))
        node = root
        for key in above:
            inner = node.setdefault(key, {})
            if not isinstance(inner, dict):
                raise _collision(metadata, name)
            node = inner
        if last in node:
            raise _collision(metadata, name)
        node[last] = leaf
    return root


def _leaf(metadata: Metadata, name: str) -> object:
    """Return what stands for a name, until it is located: a descriptor whose storage is the name itself."""
    entry = metadata.tensors.get(name)
    if entry is None:
        return PICKLED
    if not isinstance(entry.dtype, DType):
        return UnsupportedTensor(entry.dtype)
    return TensorDescriptor(entry.dtype, entry.shape, c_strides(entry.shape), name, 0, 0)


def _collision(metadata: Metadata, name: str) -> CheckpointError:
    return CheckpointError(
        f"{metadata.where} is damaged: {printable(name)} has the place of something else in the state dict"
    )


class _Tensors:
    """The tensors of a folder, whose parts are looked for when they are located."""

    def __init__(self, folder: Folder, metadata: Metadata) -> None:
        self._metadata = metadata
        self._items = ItemReader(folder)
        # Most tensors are cut as some other one is.
        self._fault_of = functools.lru_cache(KNOWN_CUTS)(fault_of)

    def locate(self, leaf: TensorDescriptor | StoredTensor) -> StoredTensor:
        """Return where a tensor's bytes lie; CheckpointError if its parts do not make it up."""
        if isinstance(leaf, StoredTensor):
            return leaf
        metadata, name = self._metadata, leaf.storage
        # A rank that got nothing of a tensor stores an empty part of it.
        chunks = tuple([chunk for chunk in metadata.chunks_of(name) if 0 not in chunk.lengths])
        fault = self._fault_of(chunks, leaf.shape)
        if fault:
            raise CheckpointError(f"it {fault}: {metadata.where} is damaged")
        tiles: list[Tile] = []
        for chunk in chunks:
            item = metadata.items.get((name, chunk.offsets))
            if item is None:
                raise CheckpointError(
                    f"its part at {list(chunk.offsets)} is stored nowhere: {metadata.where} is damaged"
                )
            tiles.append(Tile(chunk, self._items.locate(item, (leaf.dtype, chunk.lengths))))
        if not tiles:
            return StoredTensor(leaf.dtype, leaf.shape, ())
        return joined(leaf.dtype, leaf.shape, tiles, metadata.where)
