"""Folders by torch.distributed.checkpoint: a `.metadata` that describes and `*.distcp` files, one per rank.

Every rank stored its parts of the tensors; here they become tensors whose bytes lie in several files. What is
no tensor is a pickle in those files, which is never read.
"""

from __future__ import annotations

from collections.abc import Sequence

from swatool.checkpoints.contents import Contents, Opaque, TensorDescriptor, UnsupportedTensor
from swatool.checkpoints.dcp_items import ItemReader
from swatool.checkpoints.dcp_metadata import Metadata
from swatool.checkpoints.dcp_runs import Described, describe
from swatool.checkpoints.dcp_tiles import Tile, joined
from swatool.errors import CheckpointError, printable
from swatool.tensors import DType, Folder, StoredTensor, c_strides

__all__ = ["read", "recognises"]

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
    source = folder.open(METADATA)
    where, described = printable(source.path), describe(source)
    tensors = _Tensors(folder, described, where)
    tree = _tree(described.metadata, where)
    return Contents("torch distributed", tree, tensors.locate, described.metadata.notes)


def _tree(metadata: Metadata, where: str) -> dict[str | int, object]:
    """Return the nested state dict that was saved, as far as the planner noted its paths."""
    root: dict[str | int, object] = {}
    for name in (*metadata.tensors, *metadata.others):
        leaf = _leaf(metadata, name)
        *above, last = metadata.paths.get(name, (name,))
        node = root
        for key in above:
            inner = node.setdefault(key, {})
            if not isinstance(inner, dict):
                raise _collision(where, name)
            node = inner
        if last in node:
            raise _collision(where, name)
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


def _collision(where: str, name: str) -> CheckpointError:
    return CheckpointError(
        f"{where} is damaged: {printable(name)} has the place of something else in the state dict"
    )


class _Tensors:
    """The tensors of a folder, whose parts are looked for when they are located."""

    def __init__(self, folder: Folder, described: Described, where: str) -> None:
        self._metadata = described.metadata
        self._where = where
        self._items = ItemReader(folder, described.items)

    def locate(self, leaf: TensorDescriptor | StoredTensor) -> StoredTensor:
        """Return where a tensor's bytes lie; CheckpointError if its parts do not make it up."""
        if isinstance(leaf, StoredTensor):
            return leaf
        parts = self._metadata.parts_of(leaf.storage, self._where)
        if not parts:
            return StoredTensor(leaf.dtype, leaf.shape, ())
        tiles = [Tile(chunk, self._items.locate(item, (leaf.dtype, chunk.lengths))) for chunk, item in parts]
        return joined(leaf.dtype, leaf.shape, tiles, self._where)
