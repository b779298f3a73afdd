"""The layout of a Hugging Face folder: one safetensors file, or shards of a limited size and their index.

What is in which shard, what they are called and what the index says are as huggingface_hub has it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence

from swatool.errors import CheckpointError, SettingError, printable
from swatool.output.layout import Layout, OutputTensor, Piece, one_file, together
from swatool.output.safetensors_file import lay_out

__all__ = ["DEFAULT_SHARD_SIZE", "lay_out_shards", "parse_size"]

DEFAULT_SHARD_SIZE = "5GB"
SINGLE = "model.safetensors"
SHARD = "model-{:05d}-of-{:05d}.safetensors"
INDEX = "model.safetensors.index.json"
FORMAT_KEY = "format"  # of each file rather than of the whole, so that it is not in the index
SIZE = re.compile(r"\s*(\d{1,15}(?:\.\d{1,15})?)\s*([a-z]*)\s*", re.IGNORECASE | re.ASCII)
UNITS = {
    **{"": 1, "b": 1},
    **{f"{letter}b": 1000**power for power, letter in enumerate("kmgt", 1)},
    **{f"{letter}ib": 1024**power for power, letter in enumerate("kmgt", 1)},
}


def parse_size(text: str) -> int:
    """Read a number of bytes, such as `5GB`, `1.5GiB` or `800000`; GB is a power of ten, GiB of two.

    Raises:
        SettingError: it is none, or less than one byte.
    """
    match = SIZE.fullmatch(text)
    unit = UNITS.get(match[2].lower()) if match else None
    nbytes = int(float(match[1]) * unit) if match and unit else 0
    if nbytes < 1:
        raise SettingError(
            "max_shard_size",
            f"must be a number of bytes, such as 5GB, 500MB or 800000, not {printable(text)}",
        )
    return nbytes


def lay_out_shards(
    tensors: Iterable[OutputTensor],
    metadata: Mapping[str, str],
    max_shard_bytes: int | None,
    sidecars: Mapping[str, bytes] | None = None,
) -> Layout:
    """Return the layout of a folder that holds the tensors, and other files as they are.

    The metadata is in every shard, because each may be met alone, and in the index.

    Args:
        tensors: what is written, in the order in which shards are filled.
        metadata: what each shard says of itself; the index says it, too, but for the format.
        max_shard_bytes: of the tensors in one shard; only one that is larger alone makes a larger shard.
            None: no limit.
        sidecars: contents of the other files, by name.

    Raises:
        UsageError: safetensors cannot store a dtype.
        CheckpointError: safetensors cannot store a name, or a name comes twice.
        OutputError: a header would be too long to be read again.
    """
    ordered = list(tensors)
    _refuse_repeated_names(ordered)
    shards = _split(ordered, max_shard_bytes)
    names = [SHARD.format(number, len(shards)) for number in range(1, len(shards) + 1)]
    others = dict(sidecars or {})
    if len(shards) == 1:
        names = [SINGLE]
    else:
        others[INDEX] = _index(dict(zip(names, shards, strict=True)), metadata)
    files = {name: lay_out(shard, metadata) for name, shard in zip(names, shards, strict=True)}
    files |= {name: one_file([Piece(0, data)], {}, len(data)) for name, data in others.items()}
    return together(files)


def _refuse_repeated_names(tensors: Sequence[OutputTensor]) -> None:
    seen: set[str] = set()
    for tensor in tensors:
        if tensor.name in seen:
            raise CheckpointError(f"the tensor {printable(tensor.name)} would be written twice: rename one")
        seen.add(tensor.name)


def _split(tensors: Sequence[OutputTensor], limit: int | None) -> list[list[OutputTensor]]:
    """Fill one shard after the other; a tensor above the limit gets its own at once, before the one begun."""
    shards: list[list[OutputTensor]] = []
    current: list[OutputTensor] = []
    filled = 0
    for tensor in tensors:
        nbytes = tensor.nbytes
        if limit is not None and nbytes > limit:
            shards.append([tensor])
            continue
        if limit is not None and filled + nbytes > limit:
            shards.append(current)
            current, filled = [], 0
        current.append(tensor)
        filled += nbytes
    return [*shards, current] if current or not shards else shards


def _index(shards: Mapping[str, Sequence[OutputTensor]], metadata: Mapping[str, str]) -> bytes:
    total = sum(tensor.nbytes for shard in shards.values() for tensor in shard)
    said = {name: value for name, value in metadata.items() if name not in (FORMAT_KEY, "total_size")}
    weight_map = {tensor.name: name for name, shard in shards.items() for tensor in shard}
    index = {"metadata": {"total_size": total, **said}, "weight_map": weight_map}
    return json.dumps(index, indent=2).encode()
