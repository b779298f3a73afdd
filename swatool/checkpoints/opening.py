"""Opening a checkpoint: its format is recognised by its bytes, whatever its name says."""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from swatool.checkpoints.contents import Contents, TensorDescriptor
from swatool.checkpoints.files import LocalFile
from swatool.checkpoints.safetensors_file import looks_like_safetensors, read_safetensors
from swatool.checkpoints.state_dicts import StateDict, find_state_dict, without_prefixes
from swatool.checkpoints.torch_file import read_torch_file
from swatool.errors import CheckpointError, UsageError, printable
from swatool.tensors import StoredTensor

__all__ = ["Checkpoint", "Reading", "open_checkpoint"]

BEGINNING = 512
LEGACY_MAGIC = (
    b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch.serialization.MAGIC_NUMBER, pickled by any protocol
)
LEGACY_BEGINNING = 32
TAR_MAGIC = slice(257, 262)
MAX_SCALARS = 100
NUMBERS = {"int64": "<q", "int32": "<i", "float64": "<d", "float32": "<f"}
ZIP_MAGIC = b"PK\x03\x04"
# What people hand over by mistake, by its first bytes.
OTHER_FORMATS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself: run `git lfs pull`"),
    (b"<!DOCTYPE", "a web page: the download went wrong"),
    (b"<!doctype", "a web page: the download went wrong"),
    (b"<?xml", "a web page: the download went wrong"),
    (b"<!--", "a web page: the download went wrong"),
    (b"<html", "a web page: the download went wrong"),
    (b"<HTML", "a web page: the download went wrong"),
    (b"PK\x05\x06", "an empty zip archive"),
    (b"GGUF", "a GGUF file: give the checkpoint that it was made from"),
    (b"\x89HDF", "an HDF5 file: give a torch or safetensors checkpoint"),
    (b"\x93NUMPY", "a NumPy array: give a torch or safetensors checkpoint"),
    (b"\x1f\x8b", "a gzip archive: unpack it first"),
    (b"\x80", "a plain pickle: save a state dict with torch.save"),
    (b"{", "a JSON text: give the file that holds the weights"),
)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a checkpoint is read.

    Attributes:
        key: which state dict, as a dotted path; None finds the only one.
        strip_prefix: prefixes that are taken off every name, besides `module.` and `_orig_mod.`.
        keep_prefix: leave `module.` and `_orig_mod.` where they are.
    """

    key: str | None = None
    strip_prefix: tuple[str, ...] = ()
    keep_prefix: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.strip_prefix, str):
            raise UsageError("strip_prefix must be a tuple of prefixes, not one text")
        if not all(self.strip_prefix):
            raise UsageError("--strip-prefix is empty: name the prefix that is to be taken off")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One saved state of the model, open for reading.

    Attributes:
        path: how the user named it.
        file: the open file.
        format: the format's name for people.
        key: where in the file the state dict was found; empty for the whole file.
        tensors: what is averaged, by name without prefixes.
        skipped: names in the state dict that are no tensors.
        fields: numbers beside the state dict (step, epoch, metrics).
        opaque: names beside the state dict whose values are of an unknown class.
        metadata: strings that the format keeps beside the tensors.
    """

    path: str
    file: LocalFile
    format: str
    key: str
    tensors: Mapping[str, StoredTensor]
    skipped: tuple[str, ...]
    fields: Mapping[str, int | float]
    opaque: tuple[str, ...]
    metadata: Mapping[str, str]

    def close(self) -> None:
        """Close the file."""
        self.file.close()


def open_checkpoint(path: str | os.PathLike[str], reading: Reading | None = None) -> Checkpoint:
    """Open a checkpoint and read its descriptions, no weights.

    Raises:
        CheckpointError: it is missing, of an unknown format, damaged, or holds no single state dict.
        MismatchError: a prefix that should be taken off is not on every name.
    """
    reading = reading or Reading()
    file = LocalFile(path)
    try:
        contents = _read_contents(file)
        state_dict = find_state_dict(contents, file.path, reading.key)
        names = without_prefixes(
            list(state_dict.leaves),
            file.path,
            automatic=not reading.keep_prefix,
            given=reading.strip_prefix,
        )
        tensors = {
            sys.intern(names[name]): _locate(contents, name, leaf) for name, leaf in state_dict.leaves.items()
        }
        scalars = _scalars(contents, state_dict)
    except BaseException:
        file.close()
        raise
    return Checkpoint(
        path=file.path,
        file=file,
        format=contents.format,
        key=state_dict.key,
        tensors=tensors,
        skipped=state_dict.skipped,
        fields=_metadata_numbers(contents.metadata) | scalars | dict(state_dict.fields),
        opaque=state_dict.opaque,
        metadata=contents.metadata,
    )


def _locate(contents: Contents, name: str, leaf: TensorDescriptor | StoredTensor) -> StoredTensor:
    try:
        return contents.locate(leaf)
    except CheckpointError as error:
        raise CheckpointError(f"tensor {printable(name)}: {error}") from error


def _scalars(contents: Contents, state_dict: StateDict) -> dict[str, int | float]:
    """Read the numbers beside a state dict that are tensors of no dimension, such as a step."""
    numbers: dict[str, int | float] = {}
    for name, leaf in state_dict.scalars.items():
        if leaf.dtype.name in NUMBERS and len(numbers) < MAX_SCALARS:
            (extent,) = _locate(contents, name, leaf).extents
            data = extent.source.read(extent.offset, extent.nbytes)
            (numbers[name],) = struct.unpack(NUMBERS[leaf.dtype.name], data)
    return numbers


def _read_contents(file: LocalFile) -> Contents:
    beginning = file.read(0, min(BEGINNING, file.size))
    where = printable(file.path)
    if not beginning:
        raise CheckpointError(f"{where} is empty: the checkpoint was not written, or its download failed")
    if beginning.startswith(ZIP_MAGIC):
        return read_torch_file(file)
    if looks_like_safetensors(beginning, file.size):
        return read_safetensors(file)
    if beginning[TAR_MAGIC] == b"ustar":
        raise CheckpointError(f"{where} is a tar archive: unpack it, or save the checkpoint again")
    if LEGACY_MAGIC in beginning[:LEGACY_BEGINNING]:
        raise CheckpointError(
            f"{where} is a torch file in the format before torch 1.6: load it and save it again with "
            "torch.save"
        )
    for magic, what in OTHER_FORMATS:
        if beginning.lstrip().startswith(magic):
            raise CheckpointError(f"{where} is {what}")
    raise CheckpointError(
        f"{where} is no checkpoint: neither a safetensors file nor a zip file by torch.save"
    )


def _metadata_numbers(metadata: Mapping[str, str]) -> dict[str, int | float]:
    """Read the numbers among a safetensors file's metadata, such as a step."""
    return {
        name: int(value)
        for name, value in metadata.items()
        if value.isascii() and value.isdigit() and len(value) < 19
    }
