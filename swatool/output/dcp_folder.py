"""Folders as torch.distributed.checkpoint writes them: `.metadata` describes, `.distcp` files hold.

Each tensor is a torch file of its own inside a `.distcp` file, as a process without ranks stores it. What is
around its bytes is the same for all of one type and shape.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from swatool.errors import CheckpointError, UsageError, printable
from swatool.output.dcp_metadata import StoredItem, pickle_metadata
from swatool.output.layout import Layout, OutputTensor, Piece, one_file, together
from swatool.output.torch_file import lay_out_pickle
from swatool.output.torch_pickle import pickle_tensor
from swatool.output.zip_file import ALIGNMENT, Archive
from swatool.tensors import DTYPES, DType

__all__ = ["lay_out_dcp"]

METADATA = ".metadata"
RANKS = {name: rank for rank, name in enumerate(DTYPES)}


def lay_out_dcp(
    tensors: Iterable[OutputTensor],
    metadata: Mapping[str, str],
    *,
    wrapper: str = "",
    max_file_bytes: int | None = None,
) -> Layout:
    """Return the layout of a folder that `torch.distributed.checkpoint.load` reads.

    Args:
        tensors: what it holds; widest dtype first, then by name, it is written.
        metadata: said of the folder, where torch does not look.
        wrapper: the key under which the state dict is loaded, dotted for several; empty for none.
        max_file_bytes: begin another file rather than exceed this; one tensor is always in one file.

    Raises:
        CheckpointError: a name is empty or comes twice.
        UsageError: no file may have any bytes.
    """
    if max_file_bytes is not None and max_file_bytes < 1:
        raise UsageError(f"files of at most {max_file_bytes} bytes hold nothing")
    ordered = sorted(tensors, key=lambda tensor: (RANKS[tensor.dtype.name], tensor.name))
    _check(ordered)
    above = tuple(wrapper.split(".")) if wrapper else ()
    archives: dict[tuple[DType, tuple[int, ...]], Archive] = {}
    files = [_File("__0_0.distcp")]
    items: list[StoredItem] = []
    for tensor in ordered:
        archive = archives.get((tensor.dtype, tensor.shape))
        if archive is None:
            archive = archives[tensor.dtype, tensor.shape] = lay_out_pickle(
                pickle_tensor(tensor), [tensor.nbytes], {}
            )
        if files[-1].offsets and max_file_bytes and files[-1].end + archive.nbytes > max_file_bytes:
            files.append(_File(f"__0_{len(files)}.distcp"))
        offset = files[-1].add(tensor.name, archive)
        items.append(StoredItem((*above, tensor.name), tensor, files[-1].name, offset, archive.nbytes))
    description = pickle_metadata(items, metadata)
    layouts = {file.name: one_file(file.fixed, file.offsets, file.nbytes) for file in files}
    return together({**layouts, METADATA: one_file([Piece(0, description)], {}, len(description))})


class _File:
    """A `.distcp` file that is being filled with items.

    Attributes:
        name: its name in the folder.
        fixed: what is not tensors.
        offsets: position of each tensor's first byte.
        nbytes: its length.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.fixed: list[Piece] = []
        self.offsets: dict[str, int] = {}
        self.nbytes = 0

    @property
    def end(self) -> int:
        """Where the next item would begin: aligned, so that its tensor is aligned in the file, too."""
        return self.nbytes + -self.nbytes % ALIGNMENT

    def add(self, name: str, archive: Archive) -> int:
        """Append an item, and return where it begins."""
        begin = self.end
        self.fixed += (Piece(begin + position, data) for position, data in archive.fixed)
        (self.offsets[name],) = (begin + position for position in archive.begins)
        self.nbytes = begin + archive.nbytes
        return begin


def _check(tensors: Iterable[OutputTensor]) -> None:
    """Refuse names under which nothing could be loaded again."""
    seen = {""}
    for tensor in tensors:
        if tensor.name in seen:
            raise CheckpointError(
                f"a distributed checkpoint cannot store a tensor under the name {printable(tensor.name)}, "
                "which is empty or used twice: rename it in the checkpoint"
            )
        seen.add(tensor.name)
