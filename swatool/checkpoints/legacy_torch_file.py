"""Files by torch.save before torch 1.6, which it still writes on request: pickles, then the storages' bytes.

A magic number, a version, a description of the machine, the object, and the list of storage keys are pickled
one after the other. For each key follow the number of elements and the bytes. Only the pickles and those
numbers are read; what the list says, the object says and the numbers say must be the same.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from swatool.checkpoints.contents import Contents, Opaque
from swatool.checkpoints.pickle_descriptors import next_descriptors
from swatool.checkpoints.pickle_globals import NOT_AN_IDENTIFIER, MalformedError, Storage, storage
from swatool.checkpoints.pickle_machine import PIECE
from swatool.checkpoints.storages import Storages
from swatool.checkpoints.torch_file import MAX_PICKLE
from swatool.errors import CheckpointError, printable
from swatool.tensors import Source

__all__ = ["read_legacy_torch_file"]

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
PROTOCOL_VERSION = 1001
MAX_PREAMBLE = 64 << 10  # bytes of the three pickles before the object
# For so many tensors the values take more memory; files of that time hold a few thousand.
MAX_EARNING = 100_000
COUNT = struct.Struct("<q")

Persistent = Callable[[object], object]

# Quantized tensors are not read, but what lies behind their bytes is.
QUANTIZED_SIZES: Mapping[str, int] = {
    "torch.QInt8Storage": 1,
    "torch.QUInt8Storage": 1,
    "torch.QInt32Storage": 4,
    "torch.QUInt4x2Storage": 1,
    "torch.QUInt2x4Storage": 1,
}


def read_legacy_torch_file(source: Source) -> Contents:
    """Describe what torch.save wrote; only the pickles and the lengths of the storages are read.

    Raises:
        CheckpointError: the file is damaged or hostile, is of another version, or is big-endian.
    """
    position = _check_preamble(source)
    named = _NamedStorages()
    root, position = _next_pickle(source, position, named.persistent)
    keys, position = _next_pickle(source, position, _no_identifier)
    places = _walk(source, named.spans, _checked_keys(source, named.spans, keys), position)
    return Contents("torch legacy", root, Storages(source, places).locate)


def _check_preamble(source: Source) -> int:
    """Check magic number, version and byte order; return where the object's pickle begins."""
    where = printable(source.path)
    limit = min(source.size, MAX_PREAMBLE)
    found: list[object] = []
    position = 0
    for _ in range(3):
        value, position = next_descriptors(
            source.read, (position, limit), where, persistent=_no_identifier, earning=0
        )
        found.append(value)
    magic, version, machine = found
    if magic != MAGIC_NUMBER or type(version) is not int or not isinstance(machine, dict):
        raise CheckpointError(
            f"{where} is damaged or was not written by torch.save: it begins with other values"
        )
    if version != PROTOCOL_VERSION:
        raise CheckpointError(
            f"{where} has version {printable(version)} of torch's format, not {PROTOCOL_VERSION}"
        )
    if machine.get("little_endian") is not True:
        raise CheckpointError(
            f"{where} is big-endian or of unknown byte order: load and save it on a little-endian machine "
            "first"
        )
    return position


def _next_pickle(source: Source, begin: int, persistent: Persistent) -> tuple[object, int]:
    """Interpret a pickle whose length is not known; CheckpointError if it is too long."""
    where = printable(source.path)

    def read(offset: int, nbytes: int) -> bytes:
        if offset + nbytes - begin > MAX_PICKLE + PIECE:
            raise CheckpointError(
                f"the pickle of {where} has more than {MAX_PICKLE:,} bytes: save the state dict alone"
            )
        return source.read(offset, nbytes)

    return next_descriptors(read, (begin, source.size), where, persistent=persistent, earning=MAX_EARNING)


class _Span(NamedTuple):
    """A storage as the pickle names it: its type, the bytes and the number of its elements."""

    kind: str
    itemsize: int
    elements: int


class _NamedStorages:
    """The storages that the object names; all that it says of one must be the same.

    Attributes:
        spans: what was said of each, by its key.
    """

    def __init__(self) -> None:
        self.spans: dict[str, _Span] = {}
        self._parts: dict[str, tuple[str, int, int]] = {}

    def persistent(self, identifier: object) -> Opaque:
        """Return the storage that a persistent id names, or the class of a pickled module."""
        if type(identifier) is not tuple or len(identifier) not in (4, 6):
            raise MalformedError(NOT_AN_IDENTIFIER)
        if len(identifier) == 4:
            return _module_class(identifier)
        found = storage(identifier[:5])
        key, count = str(identifier[2]), int(identifier[4])
        span = _Span(found.name, _itemsize(found), count)
        if self.spans.setdefault(key, span) != span or key in self._parts:
            raise MalformedError(f"gives storage {printable(key)} two types or lengths")
        if identifier[5] is not None:
            return self._part(found, key, count, identifier[5])
        return found

    def _part(self, base: Opaque, key: str, count: int, view: object) -> Opaque:
        """Return a part of a storage, which was a storage with a key of its own in torch 0.1."""
        if type(view) is not tuple or list(map(type, view)) != [str, int, int]:
            raise MalformedError(NOT_AN_IDENTIFIER)
        name, first, length = view
        part = (key, first, length)
        if (
            min(first, length) < 0
            or first + length > count
            or name in self.spans
            or self._parts.setdefault(name, part) != part
            or not isinstance(base, Storage)
            or base.dtype is None
        ):
            raise MalformedError(f"gives storage {printable(name)} an impossible place in {printable(key)}")
        return Storage(base.name, base.dtype, key, base.nbytes, (first, length))


def _module_class(identifier: tuple[object, ...]) -> Opaque:
    """Return the class of a pickled module, beside which its source text is kept."""
    tag, kind = identifier[:2]
    if tag != "module" or type(kind) is not Opaque:
        raise MalformedError(NOT_AN_IDENTIFIER)
    return kind


def _itemsize(found: Opaque) -> int:
    if isinstance(found, Storage):
        return found.dtype.itemsize if found.dtype is not None else 1
    if found.name not in QUANTIZED_SIZES:
        raise MalformedError(f"names a storage of the unknown type {printable(found.name)}")
    return QUANTIZED_SIZES[found.name]


def _no_identifier(_identifier: object) -> object:
    raise MalformedError(NOT_AN_IDENTIFIER)


class _Walked:
    """Where the storages lie in the file, by their keys."""

    def __init__(self, source: Source, places: Mapping[str, tuple[int, int]]) -> None:
        self._source = source
        self._places = places

    def size(self, key: str) -> int | None:
        return self._places[key][1] if key in self._places else None

    def begin(self, key: str) -> int:
        return self._places[key][0]

    def shown(self, key: str) -> str:
        return _shown(self._source, key)


def _walk(source: Source, spans: Mapping[str, _Span], keys: Sequence[str], position: int) -> _Walked:
    """Go from storage to storage; CheckpointError unless they are as long as the object says, to the end."""
    places: dict[str, tuple[int, int]] = {}
    for key in keys:
        span = spans[key]
        begin, nbytes = position + COUNT.size, span.elements * span.itemsize
        position = begin + nbytes
        if position > source.size:
            raise CheckpointError(
                f"{_shown(source, key)} ends at byte {position:,} of {source.size:,}: the file is truncated "
                "or damaged, copy or save it again"
            )
        (count,) = COUNT.unpack(source.read(begin - COUNT.size, COUNT.size))
        if count != span.elements:
            raise CheckpointError(
                f"{_shown(source, key)} has {count:,} elements instead of {span.elements:,}"
            )
        places[key] = begin, nbytes
    if position != source.size:
        raise CheckpointError(
            f"{printable(source.path)} goes on for {source.size - position:,} bytes after its last storage: "
            "it is damaged, or something was appended to it"
        )
    return _Walked(source, places)


def _checked_keys(source: Source, spans: Mapping[str, _Span], keys: object) -> list[str]:
    """Return the keys in the order of the bytes, if they are those of the object's storages, each once."""
    where = printable(source.path)
    if type(keys) is not list or not all(type(key) is str for key in keys):
        raise CheckpointError(f"{where} is damaged or was not written by torch.save: it lists no storages")
    listed = set(keys)
    if len(listed) != len(keys):
        raise CheckpointError(f"{where} is damaged: it lists a storage twice")
    for key in keys:
        if key not in spans:
            raise CheckpointError(f"{where} is damaged: it lists {_shown(source, key)}, which no tensor uses")
    for key in spans:
        if key not in listed:
            raise CheckpointError(f"{_shown(source, key)} is not in the file")
    return keys


def _shown(source: Source, key: str) -> str:
    return f"storage {printable(key)} of {printable(source.path)}"
