"""The formats that a folder may have, recognised by the names of the files in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from swatool.checkpoints import dcp_folder, dcp_safetensors, deepspeed_folder, hf_folder
from swatool.checkpoints.contents import Contents
from swatool.errors import CheckpointError, printable
from swatool.tensors import Folder

__all__ = ["is_checkpoint", "read_folder"]


class FolderFormat(NamedTuple):
    """How folders of one kind are told from others, and read."""

    recognises: Callable[[Sequence[str]], bool]
    read: Callable[[Folder], Contents]


FORMATS: tuple[FolderFormat, ...] = (
    FolderFormat(dcp_folder.recognises, dcp_folder.read),
    FolderFormat(dcp_safetensors.recognises, dcp_safetensors.read),
    FolderFormat(deepspeed_folder.recognises, deepspeed_folder.read),
    FolderFormat(hf_folder.recognises, hf_folder.read),
)


def is_checkpoint(names: Sequence[str]) -> bool:
    """Tell from the names in a folder whether it is one checkpoint, rather than a folder of several."""
    return any(known.recognises(names) for known in FORMATS)


def read_folder(folder: Folder, variant: str | None = None, index: str | None = None) -> Contents:
    """Describe what a checkpoint's folder holds, with nothing read but its descriptions.

    Args:
        folder: where the files are.
        variant: which of several models is meant; only Hugging Face's folders have them.
        index: the name of the index that is meant, if the user named one.

    Raises:
        CheckpointError: it is of no known format, incomplete, damaged or hostile.
    """
    if variant is not None or index is not None:
        return hf_folder.read(folder, variant, index)
    for known in FORMATS:
        if known.recognises(folder.names):
            return known.read(folder)
    raise CheckpointError(f"{printable(folder.path)} is a folder, and none that holds one checkpoint")
