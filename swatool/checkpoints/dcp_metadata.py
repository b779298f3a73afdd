"""The `.metadata` of a torch.distributed.checkpoint folder: which tensors there are, where their parts lie.

It is a pickle of Metadata objects. It is interpreted, never unpickled: each object is an inert record here,
whose fields are checked before they are used.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field

from swatool.checkpoints.contents import Opaque
from swatool.checkpoints.dcp_parts import Chunk, Item, Lengths, Part, are_lengths
from swatool.checkpoints.dcp_tiles import fault_of
from swatool.checkpoints.pickle_descriptors import next_descriptors
from swatool.checkpoints.pickle_records import Record
from swatool.errors import CheckpointError, printable
from swatool.tensors import DTYPES, DType

__all__ = ["NOTES", "Metadata", "TensorEntry", "interpreted"]

MAX_BYTES = 256 << 20
MAX_PARTS = 1_000_000  # of tensors, and what is said of each; more may not take more memory
BYTES_OF_EACH = 36  # at least, as torch writes them
MAX_DEPTH = 64
KNOWN_CUTS = 64
NOTES = "swatool_notes"  # an attribute of swatool's own outputs, which torch does not look at

HOMES = ("torch.distributed.checkpoint.metadata", "torch.distributed._shard.checkpoint.metadata")
OBJECTS = (
    *("Metadata", "MetadataIndex", "TensorStorageMetadata", "BytesStorageMetadata"),
    *("ChunkStorageMetadata", "TensorProperties", "StorageMeta", "_MEM_FORMAT_ENCODING"),
)
FILES = ("torch.distributed.checkpoint.filesystem", "torch.distributed._shard.checkpoint.filesystem")
RECORDS = frozenset(
    {
        *(f"{home}.{name}" for home in HOMES for name in OBJECTS),
        *(f"{home}.{name}" for home in FILES for name in ("_StorageInfo", "_StoragePrefix")),
        "torch.distributed._shard.sharded_tensor.metadata.TensorProperties",
    }
)


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """A tensor as the metadata describe it.

    Attributes:
        dtype: element type; a name for one that cannot be averaged.
        shape: length of each dimension.
        chunks: the parts, still as they were found; `parts_of` checks them.
    """

    dtype: DType | str
    shape: Lengths
    chunks: Sequence[object]


@dataclass(frozen=True, slots=True)
class Metadata:
    """All that a `.metadata` says, whichever folder it lies in.

    Attributes:
        tensors: what there is, by name.
        others: names of what is no tensor: pickles, which stay unread.
        items: where each part of each tensor lies, by the tensor's name and the part's offsets.
        paths: the keys that lead to each name in the state dict that was saved; may lack names.
        notes: texts that swatool keeps in its own outputs.
    """

    tensors: Mapping[str, TensorEntry]
    others: tuple[str, ...]
    items: Mapping[tuple[str, Lengths], Item]
    paths: Mapping[str, tuple[str | int, ...]]
    notes: Mapping[str, str]
    _parts: dict[str, tuple[Part, ...]] = field(default_factory=dict)
    # Most tensors are cut as some other one is.
    _fault_of: Callable[[tuple[Chunk, ...], Lengths], str] = field(
        default_factory=lambda: functools.lru_cache(KNOWN_CUTS)(fault_of)
    )

    def parts_of(self, name: str, where: str) -> tuple[Part, ...]:
        """Return a tensor's parts, none of them empty.

        They are checked once, as checkpoints may share one description.

        Args:
            name: the tensor's name.
            where: the file, fit to be printed, for messages.

        Raises:
            CheckpointError: they are no boxes of its rank, do not make it up, or are stored nowhere.
        """
        parts = self._parts.get(name)
        if parts is None:
            parts = self._parts[name] = self._checked_parts(name, where)
        return parts

    def _checked_parts(self, name: str, where: str) -> tuple[Part, ...]:
        entry = self.tensors[name]
        rank = len(entry.shape)
        found = [_chunk(one, rank, name, where) for one in entry.chunks]
        # A rank that got nothing of a tensor stores an empty part of it.
        chunks = tuple([chunk for chunk in found if 0 not in chunk.lengths])
        fault = self._fault_of(chunks, entry.shape)
        if fault:
            raise CheckpointError(f"it {fault}: {where} is damaged")
        return tuple([Part(chunk, self._item_of(name, chunk, where)) for chunk in chunks])

    def _item_of(self, name: str, chunk: Chunk, where: str) -> Item:
        item = self.items.get((name, chunk.offsets))
        if item is None:
            raise CheckpointError(f"its part at {list(chunk.offsets)} is stored nowhere: {where} is damaged")
        return item


def interpreted(read: Callable[[int, int], bytes], size: int, where: str) -> Metadata:
    """Interpret the `.metadata` of a folder.

    Args:
        read: gives its bytes, by their position and number, or fewer where a piece of it ends.
        size: its length in bytes.
        where: the file, fit to be printed, for messages.

    Raises:
        CheckpointError: it is too large, damaged or hostile, or describes something else.
    """
    if size > MAX_BYTES:
        raise CheckpointError(f"{where} has {size:,} bytes; at most {MAX_BYTES:,} are read")
    earning = min(MAX_PARTS, size // BYTES_OF_EACH)
    root, end = next_descriptors(read, (0, size), where, records=RECORDS, earning=earning)
    if end != size:
        raise CheckpointError(f"{where} is damaged: it goes on after its end")
    fields = _fields(root, "Metadata", where)
    entries, items = fields.get("state_dict_metadata"), fields.get("storage_data")
    if not isinstance(entries, dict) or not isinstance(items, dict):
        raise CheckpointError(
            f"{where} does not say which tensors there are and where they lie: it was not written by "
            "torch.distributed.checkpoint to a folder"
        )
    tensors, others = _entries(entries, where)
    found = _items(items, where)
    # Each part has an item of its own; a list of parts that many tensors share would be long to check.
    if sum(len(entry.chunks) for entry in tensors.values()) > len(found):
        raise CheckpointError(f"{where} is damaged: it describes more parts of tensors than it places")
    return Metadata(tensors, others, found, _paths(fields, {*tensors, *others}, where), _notes(fields))


def _fields(value: object, kind: str, where: str) -> dict[str, object]:
    """Return the fields of an object of this class."""
    state = value.state if type(value) is Record and value.name.endswith(f".{kind}") else None
    if type(state) is not dict:
        raise CheckpointError(
            f"{where} is damaged or was not written by torch.distributed.checkpoint: something in it should "
            f"be a {kind} and is not"
        )
    return state


def _entries(found: Mapping[object, object], where: str) -> tuple[Mapping[str, TensorEntry], tuple[str, ...]]:
    tensors: dict[str, TensorEntry] = {}
    others: list[str] = []
    for name, value in found.items():
        if type(name) is not str or type(value) is not Record:
            raise CheckpointError(f"{where} is damaged: it describes something that has no name")
        if value.name.endswith(".BytesStorageMetadata"):
            others.append(name)
        else:
            tensors[sys.intern(name)] = _entry(name, value, where)
    return tensors, tuple(others)


def _entry(name: str, value: Record, where: str) -> TensorEntry:
    fields = _fields(value, "TensorStorageMetadata", where)
    properties, shape, chunks = fields.get("properties"), fields.get("size"), fields.get("chunks")
    state = properties.state if type(properties) is Record else None
    dtype = state[0] if type(state) is tuple and state else None
    if type(dtype) is not Opaque or not are_lengths(shape) or type(chunks) is not list:
        raise _damaged(name, where, "has no dtype, shape or parts")
    short = dtype.name.removeprefix("torch.")
    return TensorEntry(DTYPES.get(short, dtype.name), shape, chunks)


def _chunk(value: object, rank: int, name: str, where: str) -> Chunk:
    fields = _fields(value, "ChunkStorageMetadata", where)
    offsets, lengths = fields.get("offsets"), fields.get("sizes")
    if not are_lengths(offsets) or not are_lengths(lengths):
        raise _damaged(name, where, "has a part without place and shape")
    if not len(offsets) == len(lengths) == rank:
        raise _damaged(name, where, "has a part of another number of dimensions")
    return Chunk(offsets, lengths)


def _items(found: Mapping[object, object], where: str) -> Mapping[tuple[str, Lengths], Item]:
    """Return where tensors' parts lie; what has no offsets is no tensor."""
    items: dict[tuple[str, Lengths], Item] = {}
    for key, value in found.items():
        index = _fields(key, "MetadataIndex", where)
        name, offsets = index.get("fqn"), index.get("offset")
        if type(name) is not str or (offsets is not None and not are_lengths(offsets)):
            raise CheckpointError(f"{where} is damaged: it places something that has no name")
        if offsets is None:
            continue
        at = (sys.intern(name), offsets)
        if at in items:
            raise _damaged(name, where, "has two parts at one place")
        items[at] = _item(name, value, where)
    return items


def _item(name: str, value: object, where: str) -> Item:
    fields = _fields(value, "_StorageInfo", where)
    file, offset, nbytes = fields.get("relative_path"), fields.get("offset"), fields.get("length")
    if fields.get("transform_descriptors"):
        raise CheckpointError(
            f"{where}: tensor {printable(name)} was packed by an extension when it was saved: save it without"
        )
    span = (offset, nbytes)
    if type(file) is not str or not are_lengths(span):
        raise _damaged(name, where, "lies at no place in a file")
    return Item(sys.intern(file), *span)


def _paths(fields: Mapping[str, object], names: Set[str], where: str) -> Mapping[str, tuple[str | int, ...]]:
    """Return what the planner noted of the nested state dict; other planners may note something else.

    Each name consists of the keys that lead to it, so that torch finds a tensor by either; one that is found
    by its keys alone would be another one to torch.
    """
    found = fields.get("planner_data")
    paths: dict[str, tuple[str | int, ...]] = {}
    for name, path in found.items() if type(found) is dict else ():
        if name not in names or not isinstance(name, str) or not isinstance(path, tuple | list):
            continue
        if len(path) > MAX_DEPTH:
            raise _damaged(name, where, f"lies more than {MAX_DEPTH} dicts deep")
        if all(type(key) is str or type(key) is int for key in path):
            if ".".join(map(str, path)) != name:
                raise _damaged(name, where, "has the place of something else in the state dict")
            paths[name] = tuple(path)
    return paths


def _notes(fields: Mapping[str, object]) -> Mapping[str, str]:
    found = fields.get(NOTES)
    pairs = found.items() if type(found) is dict else ()
    return {name: text for name, text in pairs if type(name) is str and type(text) is str}


def _damaged(name: str, where: str, what: str) -> CheckpointError:
    return CheckpointError(f"{where} is damaged: tensor {printable(name)} {what}")
