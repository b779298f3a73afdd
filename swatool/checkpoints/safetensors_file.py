"""Reading a safetensors file: an own reader of its header, so that tensors are read by position.

Format: https://github.com/huggingface/safetensors#format. Stricter than the reference reader where that lets
two readers disagree about one file: duplicate keys and unknown fields are refused.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeGuard

from swatool.checkpoints.contents import Contents, TensorDescriptor
from swatool.errors import CheckpointError, printable
from swatool.tensors import DTYPES, DType, Extent, Source, StoredTensor

__all__ = ["looks_like_safetensors", "read_safetensors"]

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 25_000_000  # what the Hugging Face hub accepts; parsing takes several times as much memory
MAX_TENSORS = 200_000  # as many as a torch file may hold; each takes a kilobyte and more until all is done
MAX_UNUSUAL = 1 << 20  # bytes of a header in any form, and four times as many with letters beyond ASCII
MAX_RANK = 64
MAX_LENGTH = 2**63
MAX_PAIRS = 10_000  # of metadata in a long header
FIELDS = {"dtype", "shape", "data_offsets"}


# What writers write. JSON in other forms takes fifty times its bytes in memory: so a long header must match.
SPACE = r"[ \t\r\n]*+"
TEXT = r'"(?:[^"\\]++|\\.)*+"'
LENGTHS = rf"\[{SPACE}(?:\d{{1,20}}+{SPACE},?{SPACE}){{0,{MAX_RANK}}}+\]"
FIELD = rf"{SPACE}{TEXT}{SPACE}:{SPACE}(?:{TEXT}|{LENGTHS}){SPACE},?"
ENTRY = rf"{SPACE}{TEXT}{SPACE}:{SPACE}\{{(?:{FIELD}){{3}}{SPACE}\}}{SPACE},?"
PAIR = rf"{SPACE}{TEXT}{SPACE}:{SPACE}{TEXT}{SPACE},?"
PAIRS = rf'{SPACE}"__metadata__"{SPACE}:{SPACE}\{{(?:{PAIR}){{0,{MAX_PAIRS}}}+{SPACE}\}}{SPACE},?'
USUAL = re.compile(rf"\{{(?:{PAIRS})?+(?:{ENTRY})*+(?:{PAIRS})?+{SPACE}\}}{SPACE}".encode(), re.DOTALL)


class Entry(NamedTuple):
    """What a header says of a tensor, of any JSON type: as a dict, it would take three times the memory."""

    dtype: object
    shape: object
    data_offsets: object


DTYPE_OF_CODE: Mapping[str, DType] = {dtype.code: dtype for dtype in DTYPES.values() if dtype.code}


def looks_like_safetensors(beginning: bytes, size: int) -> bool:
    """Tell from its first bytes and its size whether a file is meant to be a safetensors file."""
    if beginning[LENGTH_BYTES : LENGTH_BYTES + 1] != b"{":
        return False
    # A JSON text can have a brace there, too, but makes no sense as a length.
    return beginning[:1] != b"{" or int.from_bytes(beginning[:LENGTH_BYTES], "little") <= size


def read_safetensors(source: Source) -> Contents:
    """Describe the tensors of a safetensors file; CheckpointError if the header is damaged or lies."""
    where = printable(source.path)
    length = int.from_bytes(source.read(0, LENGTH_BYTES), "little")
    data = LENGTH_BYTES + length
    if data > source.size:
        raise CheckpointError(
            f"{where} is truncated or damaged: its header claims {length} bytes, the file has {source.size}"
        )
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(f"{where} has a header of {length} bytes; at most {MAX_HEADER_BYTES} are read")
    entries = _parse_header(source.read(LENGTH_BYTES, length), where)
    metadata: Mapping[str, str] = {}
    tensors: dict[str, StoredTensor] = {}
    shapes: dict[tuple[int, ...], tuple[int, ...]] = {}
    ranges: list[tuple[int, int, str]] = []
    if len(entries) - ("__metadata__" in entries) > MAX_TENSORS:
        raise _too_many(where)
    for name in list(entries):
        entry = entries.pop(name)
        if name == "__metadata__":
            metadata = _metadata(entry, where)
        else:
            # Many checkpoints repeat the same names and shapes: kept once, they cost a third of the memory.
            tensors[sys.intern(name)] = _stored_tensor(source, name, entry, data, shapes, ranges)
    _check_tiling(ranges, data, source.size, where)
    return Contents("safetensors", tensors, _locate, metadata)


def _locate(leaf: TensorDescriptor | StoredTensor) -> StoredTensor:
    if not isinstance(leaf, StoredTensor):
        raise TypeError(f"not a leaf of a safetensors file: {leaf!r}")
    return leaf


def _parse_header(header: bytes, where: str) -> dict[str, object]:
    if header[:1] != b"{":
        raise CheckpointError(f"{where} has no safetensors header: it does not begin with '{{'")
    if len(header) > MAX_UNUSUAL:
        _check_usual(header, where)
    try:
        # A function for each number takes long, and names may hold a minus, too.
        parse_int = _no_negative_zero if b"-0" in header else None
        entries = json.loads(header.decode("utf-8"), object_pairs_hook=_Objects(where), parse_int=parse_int)
        if b"\\u" in header:  # an escape may be half a surrogate pair, which is no text and fails to encode
            json.dumps(entries, ensure_ascii=False).encode("utf-8")
    except ValueError as error:
        raise CheckpointError(f"{where} has a damaged safetensors header: {error}") from error
    except RecursionError as error:
        raise CheckpointError(f"{where} has a damaged safetensors header: it is nested too deep") from error
    if isinstance(entries, Entry):  # of tensors that are called so
        return entries._asdict()
    if not isinstance(entries, dict):
        raise CheckpointError(f"{where} has a damaged safetensors header: not an object")
    return entries


def _no_negative_zero(text: str) -> int:
    """Return a number as JSON has it; ValueError for -0, which is no integer to the reference reader."""
    if text == "-0":
        raise ValueError("-0 is no length")
    return int(text)


def _check_usual(header: bytes, where: str) -> None:
    """Refuse a long header of which the objects would take far more memory than those of tensors."""
    if not header.isascii() and len(header) > 4 * MAX_UNUSUAL:
        what = f"and letters beyond ASCII; at most {4 * MAX_UNUSUAL:,} are read of such a one"
    elif USUAL.fullmatch(header) is None:
        what = f"and more in it than entries of tensors; at most {MAX_UNUSUAL:,} are read of such a one"
    else:
        return
    raise CheckpointError(f"{where} has a safetensors header of {len(header):,} bytes, {what}")


def _too_many(where: str) -> CheckpointError:
    return CheckpointError(f"{where} holds more than {MAX_TENSORS:,} tensors, which are not read")


class _Objects:
    """Makes what the objects of a header are kept as, up to as many as there may be tensors."""

    def __init__(self, where: str) -> None:
        self._left = MAX_TENSORS + 2  # the metadata, and the whole
        self._where = where

    def __call__(self, pairs: list[tuple[str, object]]) -> Entry | dict[str, object]:
        """Return the object of these pairs, whose lists are tuples in what is said of a tensor."""
        self._left -= 1
        if self._left < 0:
            raise CheckpointError(
                f"{self._where} holds more than {MAX_TENSORS:,} tensors, which are not read"
            )
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key stands twice")
        if found.keys() != FIELDS:
            return found
        return Entry(
            **{name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}
        )


def _metadata(entry: object, where: str) -> Mapping[str, str]:
    if isinstance(entry, Entry):  # of keys that are called so
        entry = entry._asdict()
    if not isinstance(entry, dict) or not all(isinstance(value, str) for value in entry.values()):
        raise CheckpointError(f"{where} has safetensors metadata that are not strings")
    return entry


def _stored_tensor(
    source: Source,
    name: str,
    entry: object,
    data: int,
    shapes: dict[tuple[int, ...], tuple[int, ...]],
    ranges: list[tuple[int, int, str]],
) -> StoredTensor:
    if not isinstance(entry, Entry) or not name or "\0" in name:
        raise _bad_entry(source, name, "its fields must be dtype, shape and data_offsets")
    code, shape, offsets = entry
    dtype = DTYPE_OF_CODE.get(code) if type(code) is str else None
    if dtype is None:
        shown = printable(code) if type(code) is str else f"of type {type(code).__name__}"
        raise _bad_entry(source, name, f"dtype {shown} is not supported")
    if not _are_lengths(shape) or len(shape) > MAX_RANK:
        raise _bad_entry(source, name, "its shape is not a list of at most 64 lengths")
    if not _are_lengths(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _bad_entry(source, name, "its data_offsets are not a range")
    begin, end = offsets
    nbytes = end - begin
    if math.prod(shape) * dtype.itemsize != nbytes:
        raise _bad_entry(source, name, f"{dtype.name} {list(shape)} does not fill its {nbytes} bytes")
    ranges.append((data + begin, data + end, name))
    extents = (Extent(source, data + begin, nbytes),) if nbytes else ()
    return StoredTensor(dtype, shapes.setdefault(shape, shape), extents)


def _are_lengths(value: object) -> TypeGuard[tuple[int, ...]]:
    if type(value) is not tuple:
        return False
    # By type, because JSON's true and false are ints to Python. A generator would take twice as long.
    for one in value:  # noqa: SIM110
        if type(one) is not int or not 0 <= one < MAX_LENGTH:
            return False
    return True


def _bad_entry(source: Source, name: str, why: str) -> CheckpointError:
    return CheckpointError(
        f"{printable(source.path)} has a damaged entry for tensor {printable(name)}: {why}"
    )


def _check_tiling(ranges: Sequence[tuple[int, int, str]], begin: int, size: int, where: str) -> None:
    """Every byte after the header belongs to exactly one tensor, as the format demands."""
    position = begin
    for start, end, name in sorted(ranges):
        if start != position:
            kind = "overlaps another tensor" if start < position else "is preceded by bytes of no tensor"
            raise CheckpointError(f"{where} is damaged: tensor {printable(name)} {kind}")
        position = end
    if position != size:
        what = "is truncated" if position > size else "has bytes after its last tensor"
        raise CheckpointError(f"{where} {what}: its header describes {position} bytes, the file has {size}")
