"""Opening a checkpoint: a file or a folder becomes the tensors of one state dict, and where they lie."""

from __future__ import annotations

import os
import re
import struct
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from swatool.checkpoints.contents import Contents, TensorDescriptor
from swatool.checkpoints.file_formats import read_file
from swatool.checkpoints.files import LocalFiles, LocalFolder
from swatool.checkpoints.folder_formats import read_folder
from swatool.checkpoints.hf_folder import is_index
from swatool.checkpoints.state_dicts import StateDict, find_state_dict, without_prefixes
from swatool.errors import CheckpointError, UsageError, listed, printable
from swatool.tensors import StoredTensor

__all__ = ["Checkpoint", "Reading", "choose_state_dict", "open_checkpoint", "read_contents"]

MAX_SCALARS = 100
FLOAT = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?", re.ASCII)
MOST_DIGITS = 40
NUMBERS = {"int64": "<q", "int32": "<i", "float64": "<d", "float32": "<f"}


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a checkpoint is read.

    Attributes:
        key: which state dict, as a dotted path; None finds the only one.
        strip_prefix: prefixes that are taken off every name, besides `module.` and `_orig_mod.`.
        keep_prefix: leave `module.` and `_orig_mod.` where they are.
        variant: which of the models in a Hugging Face folder, such as `fp16`; None is the plain one, or the
            only one that there is.
    """

    key: str | None = None
    strip_prefix: tuple[str, ...] = ()
    keep_prefix: bool = False
    variant: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.strip_prefix, str):
            raise UsageError("strip_prefix must be a tuple of prefixes, not one text")
        if not all(self.strip_prefix):
            raise UsageError("--strip-prefix is empty: name the prefix that is to be taken off")
        if self.variant == "":
            raise UsageError("--variant is empty: name the variant, such as fp16, or leave the option out")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One saved state of the model, open for reading.

    Attributes:
        path: how the user named it.
        files: the open files.
        format: the format's name for people.
        key: where in the file the state dict was found; empty for the whole file.
        tensors: what is averaged, by name without prefixes.
        skipped: names in the state dict that are no tensors.
        fields: numbers beside the state dict (step, epoch, metrics).
        opaque: names beside the state dict whose values are of an unknown class.
        metadata: strings that the format keeps beside the tensors.
        warnings: sentences for the user.
        prefix: what was taken off every name.
        others: keys of other models that lie beside the state dict.
    """

    path: str
    files: LocalFiles
    format: str
    key: str
    tensors: Mapping[str, StoredTensor]
    skipped: tuple[str, ...]
    fields: Mapping[str, int | float]
    opaque: tuple[str, ...]
    metadata: Mapping[str, str]
    warnings: tuple[str, ...] = ()
    prefix: str = ""
    others: tuple[str, ...] = ()

    def close(self) -> None:
        """Close the files."""
        self.files.close()


def open_checkpoint(path: str | os.PathLike[str], reading: Reading | None = None) -> Checkpoint:
    """Open a checkpoint and read its descriptions, no weights.

    Raises:
        CheckpointError: it is missing, of an unknown format, damaged, or holds no single state dict.
        MismatchError: a prefix that should be taken off is not on every name.
    """
    reading = reading or Reading()
    path = os.fspath(path)
    files = LocalFiles()
    try:
        contents = read_contents(path, files, reading.variant)
        return choose_state_dict(contents, path, files, reading)
    except BaseException:
        files.close()
        raise


def choose_state_dict(contents: Contents, path: str, files: LocalFiles, reading: Reading) -> Checkpoint:
    """Find the state dict in what a checkpoint holds; raises what `open_checkpoint` raises."""
    state_dict = find_state_dict(contents, path, reading.key)
    names = without_prefixes(
        list(state_dict.leaves),
        path,
        automatic=not reading.keep_prefix,
        given=reading.strip_prefix,
    )
    tensors = {
        sys.intern(names[name]): _locate(contents, name, leaf) for name, leaf in state_dict.leaves.items()
    }
    scalars = _scalars(contents, state_dict)
    stored, short = next(iter(names.items()), ("", ""))
    return Checkpoint(
        path=path,
        files=files,
        format=contents.format,
        key=state_dict.key,
        tensors=tensors,
        skipped=state_dict.skipped,
        fields={
            **_metadata_numbers(contents.metadata),
            **contents.fields,
            **scalars,
            **state_dict.fields,
        },
        opaque=state_dict.opaque,
        metadata=contents.metadata,
        warnings=(*contents.warnings, *_left_out(state_dict, path, reading)),
        prefix=stored.removesuffix(short),
        others=state_dict.others,
    )


def _left_out(state_dict: StateDict, path: str, reading: Reading) -> Iterator[str]:
    """Tell of weights around a state dict that nobody has chosen by its key."""
    if state_dict.around and reading.key is None:
        yield (
            f"around the state dict {printable(state_dict.key)} of {printable(path)} lie tensors that are "
            f"left out: {listed(state_dict.around)}; --key says which state dict is meant"
        )


def read_contents(path: str, files: LocalFiles, variant: str | None = None) -> Contents:
    """Describe what a file or a folder holds, which its index may stand for; CheckpointError if it is bad."""
    if os.path.isdir(path):
        return read_folder(LocalFolder(path, files), variant)
    folder, name = os.path.split(path)
    if is_index(name):
        return read_folder(LocalFolder(folder or os.curdir, files), index=name)
    return read_file(files.open(path))


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


def _metadata_numbers(metadata: Mapping[str, str]) -> dict[str, int | float]:
    """Read the numbers among a safetensors file's metadata, such as a step."""
    numbers: dict[str, int | float] = {}
    for name, value in metadata.items():
        if value.isascii() and value.isdigit() and len(value) < 19:
            numbers[name] = int(value)
        elif len(value) <= MOST_DIGITS and not value.isdigit() and FLOAT.fullmatch(value):
            numbers[name] = float(value)
    return numbers
