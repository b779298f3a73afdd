"""All that swatool reads of a checkpoint, values and bytes, to be compared with what others read."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass

from hostile import comparing
from swatool.checkpoints.contents import TensorDescriptor
from swatool.checkpoints.file_formats import read_file
from swatool.checkpoints.files import LocalFile, LocalFiles, LocalFolder
from swatool.checkpoints.folder_formats import read_folder
from swatool.checkpoints.opening import open_checkpoint
from swatool.errors import SwatoolError
from swatool.models.weights import read_tensor
from swatool.tensors import StoredTensor


@dataclass(frozen=True)
class Reading:
    """What swatool made of a file.

    Attributes:
        root: its root.
        values: dtype, shape and bytes of each tensor, by the identity of what describes it there.
    """

    root: object
    values: Mapping[int, tuple[str, tuple[int, ...], bytes]]


def everything_of(contents):
    """Read all tensors; raises what swatool raises."""
    values = {}
    for leaf in leaves(contents.root):
        values[id(leaf)] = comparing.raw(read_tensor(contents.locate(leaf)))
    return Reading(contents.root, values)


def leaves(root):
    """Yield the descriptions of tensors, each once; what is cyclic or shared is gone through once."""
    pending, seen = [root], set()
    while pending:
        value = pending.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, dict):
            pending += value.values()
        elif isinstance(value, list | tuple):
            pending += value
        elif isinstance(value, TensorDescriptor | StoredTensor):
            yield value


def read_one(path):
    """Open a file as commands do, and return all that it holds."""
    open_and_locate(path)
    with contextlib.closing(LocalFile(path)) as file:
        return everything_of(read_file(file))


def open_and_locate(path):
    """Find the state dict, which may be refused for what it is, as commands do."""
    with contextlib.suppress(SwatoolError):
        open_checkpoint(path).close()


def read_a_folder(path):
    open_and_locate(path)
    return read_parts(path)


def read_parts(path):
    """Return all that lies in a folder."""
    with contextlib.closing(LocalFiles()) as files:
        return everything_of(read_folder(LocalFolder(path, files)))


def compare_values(ours, theirs):
    return comparing.difference(ours.root, theirs, ours.values)
