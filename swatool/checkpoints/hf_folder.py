"""Folders as Hugging Face's libraries write them: one file of weights, or an index and its shards.

An index assigns each tensor to a shard; here both must agree to the letter, so that no half of another save
goes unnoticed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from swatool.checkpoints.contents import Contents, TensorDescriptor, UnsupportedTensor
from swatool.checkpoints.file_formats import read_file
from swatool.checkpoints.files import leads_outside
from swatool.checkpoints.hf_names import choose, is_index, recognises, shards_of
from swatool.errors import CheckpointError, printable
from swatool.json_text import JsonError, parse_json
from swatool.tensors import Folder, Source, StoredTensor

__all__ = ["is_index", "read", "recognises"]

MAX_INDEX = 25_000_000  # as for headers
MOST_VALUES = 300_000  # of an index: 150,000 tensors and their files
MAX_TRAINER_STATE = 8 << 20  # it holds a log of the whole run: some 40,000 entries
TRAINER_STATE = "trainer_state.json"
TRAINER_FIELDS = ("global_step", "epoch", "best_metric")
SUFFIXES = (".safetensors", ".bin")
SHOWN = 20

Located = StoredTensor | UnsupportedTensor


def read(folder: Folder, variant: str | None = None, index: str | None = None) -> Contents:
    """Describe the tensors of a folder, with nothing read but their descriptions.

    Args:
        folder: where the files are.
        variant: the one to take; None is the plain one, or the only one that there is.
        index: the name of an index to go by, whatever else is there.

    Raises:
        CheckpointError: it is incomplete, damaged or hostile, or it is not clear what is meant.
    """
    entry = index or choose(folder.names, variant, folder.path)
    contents = _read_shards(folder, entry) if is_index(entry) else read_file(folder.open(entry))
    fields, warnings = _trainer_fields(folder)
    return replace(
        contents,
        format=f"Hugging Face folder, {contents.format}",
        fields=fields,
        warnings=(*contents.warnings, *warnings),
    )


def _read_shards(folder: Folder, index: str) -> Contents:
    """Read the shards of an index, which must hold exactly the tensors that it assigns to them."""
    source = folder.open(index)
    where = printable(source.path)
    assigned, total_size = _read_index(source)
    files = sorted(set(assigned.values()))
    _check_files(files, folder.names, shards_of(index, folder.names), where)
    tensors: dict[str, Located] = {}
    shards: list[Contents] = []
    misplaced: list[str] = []
    for file in files:
        shard_source = folder.open(file)
        shard = read_file(shard_source)
        shards.append(replace(shard, root=None))
        for name, leaf in _leaves(shard, printable(shard_source.path)):
            tensors[name] = leaf
            if assigned.get(name) != file:
                misplaced.append(_misplaced(name, file, assigned.get(name)))
    if len(tensors) < len(assigned) or misplaced:
        lacking = (name for name in assigned if name not in tensors)
        misplaced += (f"{printable(name)} is not in {printable(assigned[name])}" for name in lacking)
        raise CheckpointError(
            f"{where} does not fit its shards, so that they are of different saves or incomplete: "
            f"{_some(misplaced)}"
        )
    formats = " and ".join(dict.fromkeys(shard.format for shard in shards))
    return Contents(
        format=f"{len(shards)} shards, {formats}",
        root=tensors,
        locate=_located,
        metadata=next((shard.metadata for shard in shards if shard.metadata), {}),
        warnings=tuple(_size_warnings(tensors, total_size, where)),
    )


def _misplaced(name: str, file: str, assigned: str | None) -> str:
    where = (
        "and the index does not name it" if assigned is None else f"and by the index in {printable(assigned)}"
    )
    return f"{printable(name)} is in {printable(file)} {where}"


def _read_index(source: Source) -> tuple[dict[str, str], object]:
    """Return which file each tensor is in, and what the index says of their size."""
    where = printable(source.path)
    if source.size > MAX_INDEX:
        raise CheckpointError(f"{where} has {source.size:,} bytes; an index of at most {MAX_INDEX:,} is read")
    try:
        found = parse_json(source.read(0, source.size), most=MOST_VALUES)
    except JsonError as error:
        raise CheckpointError(f"{where} is a damaged index: {error}") from error
    index = found if isinstance(found, dict) else {}
    assigned = index.get("weight_map")
    if not isinstance(assigned, dict) or not assigned:
        raise CheckpointError(f"{where} is a damaged index: it has no weight_map that maps tensors to files")
    wrong = [printable(name) for name, file in assigned.items() if not name or not isinstance(file, str)]
    if wrong:
        raise CheckpointError(f"{where} is a damaged index: its weight_map names no file for {_some(wrong)}")
    metadata = index.get("metadata")
    return assigned, metadata.get("total_size") if isinstance(metadata, dict) else None


def _check_files(files: Sequence[str], present: Sequence[str], shards: Sequence[str], where: str) -> None:
    """Compare the files that an index names with those that are there, and nowhere else."""
    foreign = [printable(file) for file in files if not file.endswith(SUFFIXES)]
    if foreign:
        raise CheckpointError(f"{where} names files that hold no weights by their names: {_some(foreign)}")
    outside = [printable(file) for file in files if leads_outside(file)]
    if outside:
        raise CheckpointError(f"{where} names files outside its folder: {_some(outside)}: refused")
    missing = [printable(file) for file in sorted(set(files).difference(present))]
    if missing:
        raise CheckpointError(
            f"{where} names files that are not in its folder: {_some(missing)}; the save or the download is "
            "incomplete"
        )
    unnamed = [printable(name) for name in sorted(set(shards).difference(files))]
    if unnamed:
        raise CheckpointError(
            f"{where} does not name {_some(unnamed)}, which lie beside its shards: the folder holds parts of "
            "two saves, so move away what is left of the other"
        )


def _leaves(shard: Contents, where: str) -> Iterator[tuple[str, Located]]:
    """Yield the tensors of a shard by name, located."""
    if not isinstance(shard.root, dict):
        raise CheckpointError(f"{where} is no shard of a model: it holds no dict of tensors")
    for name, leaf in shard.root.items():
        if not isinstance(name, str) or not isinstance(leaf, Located | TensorDescriptor):
            raise CheckpointError(
                f"{where} is no shard of a model: it holds {printable(name)}, which is no tensor"
            )
        try:
            yield name, leaf if isinstance(leaf, UnsupportedTensor) else shard.locate(leaf)
        except CheckpointError as error:
            raise CheckpointError(f"tensor {printable(name)}: {error}") from error


def _located(leaf: TensorDescriptor | StoredTensor) -> StoredTensor:
    if not isinstance(leaf, StoredTensor):
        raise TypeError(f"not a leaf of a folder: {leaf!r}")
    return leaf


def _size_warnings(tensors: Mapping[str, Located], total_size: object, where: str) -> Iterator[str]:
    """Tell of a total size that is wrong; tensors that share their bytes may be counted once or each."""
    stored = [tensor for tensor in tensors.values() if isinstance(tensor, StoredTensor)]
    each = sum(tensor.nbytes for tensor in stored)
    if total_size is None or total_size == each:
        return
    once = sum({tensor.extents: tensor.nbytes for tensor in stored}.values())
    if total_size != once:
        yield f"{where} gives {printable(total_size)} as the bytes of its tensors, which have {each:,}"


def _trainer_fields(folder: Folder) -> tuple[Mapping[str, int | float], tuple[str, ...]]:
    """Read the step that a Trainer notes beside the weights; of what cannot be read, warn.

    It is no error: of these weights nothing else depends on it, and the folder's name tells the step, too.
    """
    if TRAINER_STATE not in folder.names:
        return {}, ()
    try:
        source = folder.open(TRAINER_STATE)
        if source.size > MAX_TRAINER_STATE:
            raise JsonError(f"it has {source.size:,} bytes, and at most {MAX_TRAINER_STATE:,} are read")
        state = parse_json(source.read(0, source.size))
        if not isinstance(state, dict):
            raise JsonError("it is no object")
    except (CheckpointError, JsonError) as error:
        where = printable(os.path.join(folder.path, TRAINER_STATE))
        return {}, (f"no step and no metric is read from {where}: {error}",)
    return {
        name: value for name, value in state.items() if name in TRAINER_FIELDS and type(value) in (int, float)
    }, ()


def _some(texts: Iterable[str]) -> str:
    """Join the first of them, and say how many there are besides."""
    every = list(texts)
    more = f" and {len(every) - SHOWN} more" if len(every) > SHOWN else ""
    return ", ".join(every[:SHOWN]) + more
