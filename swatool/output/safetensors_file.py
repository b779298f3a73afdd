"""The safetensors format, as far as writing goes: an 8-byte length, a JSON header, the tensors back to back.

The arrangement is the reference writer's to the byte: what reads its files reads these.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence

from swatool.errors import CheckpointError, OutputError, UsageError, printable
from swatool.output.layout import Layout, OutputTensor, Piece, one_file
from swatool.tensors import DTYPES

__all__ = ["lay_out"]

LENGTH_BYTES = 8  # the header's length stands before it, and it is padded to a multiple of this
MAX_HEADER_BYTES = 100_000_000  # the reference reader refuses to open more
METADATA_KEY = "__metadata__"
RANKS = {name: rank for rank, name in enumerate(DTYPES)}


def lay_out(tensors: Iterable[OutputTensor], metadata: Mapping[str, str]) -> Layout:
    """Return the layout of a safetensors file that holds the tensors, widest dtype first, then by name.

    Raises:
        UsageError: safetensors cannot store a dtype.
        CheckpointError: safetensors cannot store a name, or a name comes twice.
        OutputError: the header would be too long to be read again.
    """
    # Python compares code points, which is the order of UTF-8 bytes, in which the reference compares.
    ordered = sorted(tensors, key=lambda tensor: (RANKS[tensor.dtype.name], tensor.name))
    _check(ordered)
    entries = [f"{_json(METADATA_KEY)}:{_json(dict(metadata))}"] if metadata else []
    starts: dict[str, int] = {}
    position = 0
    for tensor in ordered:
        end = position + tensor.nbytes
        entry = {"dtype": tensor.dtype.code, "shape": tensor.shape, "data_offsets": (position, end)}
        # As text at once, because a hundred thousand entries as dicts would take memory of their own.
        entries.append(f"{_json(tensor.name)}:{_json(entry)}")
        starts[tensor.name] = position
        position = end
    header = _encode("{" + ",".join(entries) + "}")
    offsets = {name: len(header) + start for name, start in starts.items()}
    return one_file([Piece(0, header)], offsets, len(header) + position)


def _check(tensors: Sequence[OutputTensor]) -> None:
    """Refuse what a safetensors header cannot say."""
    seen = {"", METADATA_KEY}
    for name, dtype, _ in tensors:
        if not dtype.code:
            raise UsageError(
                f"tensor {printable(name)} is {dtype.name}, which safetensors cannot store: "
                "choose another type, such as --dtype float32"
            )
        if name in seen or not _is_unicode(name):
            raise CheckpointError(
                f"safetensors cannot store a tensor under the name {printable(name)}, which is empty, "
                "reserved, not Unicode or used twice: rename it in the checkpoint"
            )
        seen.add(name)


def _is_unicode(name: str) -> bool:
    """Whether the name can be encoded: a lone surrogate, which pickles may hold, cannot."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def _encode(text: str) -> bytes:
    """Return the header with its length before it and spaces behind it."""
    # Names are known to be Unicode; metadata may quote a path that is not, and is only informative.
    encoded = text.encode(errors="replace")
    padded = encoded + b" " * (-len(encoded) % LENGTH_BYTES)
    if len(padded) > MAX_HEADER_BYTES:
        raise OutputError(
            f"the safetensors header would take {len(padded):,} bytes, and readers accept at most "
            f"{MAX_HEADER_BYTES:,}: average fewer tensors, or tensors with shorter names"
        )
    return len(padded).to_bytes(LENGTH_BYTES, "little") + padded
