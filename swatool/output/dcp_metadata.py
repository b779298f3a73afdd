"""The `.metadata` of a torch.distributed.checkpoint folder: a pickle of Metadata objects.

Written opcode by opcode, because Python's pickler would have to import what it names. Every tensor is one
part, as a single process without ranks stores it.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from swatool.output.layout import OutputTensor

__all__ = ["NOTES", "StoredItem", "pickle_metadata"]

NOTES = "swatool_notes"  # an attribute that torch does not look at
VERSION = "1.0.0"  # of torch's format
OBJECTS, FILES = "torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem"
PROTOCOL_2, STOP, POP, NONE, FALSE = b"\x80\x02", b".", b"0", b"N", b"\x89"
MARK, EMPTY_DICT, EMPTY_LIST, EMPTY_TUPLE = b"(", b"}", b"]", b")"
APPENDS, BUILD, NEW_OBJECT, REDUCE, SET_ITEMS, TUPLE = b"e", b"b", b"\x81", b"R", b"u", b"t"


class StoredItem(NamedTuple):
    """A tensor that is stored as one part.

    Attributes:
        path: the keys that lead to it in the state dict.
        tensor: its type and shape.
        file: the file that holds it.
        offset: where in that file it begins.
        nbytes: how long it is there.
    """

    path: tuple[str, ...]
    tensor: OutputTensor
    file: str
    offset: int
    nbytes: int

    @property
    def name(self) -> str:
        """The name under which it is stored."""
        return ".".join(self.path)


def pickle_metadata(items: Sequence[StoredItem], notes: Mapping[str, str]) -> bytes:
    """Return the pickle that describes these items.

    Args:
        items: the tensors, in the order of the state dict.
        notes: texts to be kept with them.
    """
    memo = _Memo()
    names = [_text(item.name) for item in items]
    described = _dict(zip(names, (memo.tensor(item.tensor) for item in items), strict=True))
    indices = map(memo.index, names, items)
    stored = _dict(zip(indices, map(memo.place, items), strict=True))
    paths = _dict(zip(names, (_tuple(map(_text, item.path)) for item in items), strict=True))
    digest = hashlib.sha256(described + stored).digest()
    save_id = str(uuid.UUID(bytes=digest[:16], version=4))
    about = {"checkpoint_id": NONE, "save_id": _text(save_id), "load_id": NONE, "modules": EMPTY_LIST}
    fields = {
        "state_dict_metadata": described,
        "planner_data": paths,
        "storage_data": stored,
        "storage_meta": memo.new("StorageMeta", about),
        "version": _text(VERSION),
        NOTES: _dict((_text(key), _text(value)) for key, value in notes.items()),
    }
    root = memo.new("Metadata", fields)
    return PROTOCOL_2 + b"".join(memo.prologue) + root + STOP


class _Memo:
    """Makes the opcodes of the objects; what comes again and again is written once, at the beginning.

    Attributes:
        prologue: what puts that into the unpickler's memo.
    """

    def __init__(self) -> None:
        self.prologue: list[bytes] = []
        self._recalls: dict[bytes, bytes] = {}

    def known(self, value: bytes) -> bytes:
        """What recalls a value."""
        recall = self._recalls.get(value)
        if recall is None:
            number = len(self._recalls).to_bytes(4, "little")
            self.prologue.append(value + b"r" + number + POP)
            recall = self._recalls[value] = b"j" + number
        return recall

    def text(self, value: str) -> bytes:
        """A text that comes again."""
        return self.known(_text(value))

    def size(self, lengths: Sequence[int]) -> bytes:
        """A torch.Size."""
        numbers = _tuple(map(_integer, lengths))
        return self.known(self.known(_name("torch", "Size")) + _tuple([numbers]) + REDUCE)

    def properties(self, dtype: str) -> bytes:
        """A TensorProperties: type, layout, requires_grad, memory format (as a number), pin_memory."""
        layout = _name("torch.serialization", "_get_layout") + _tuple([_text("torch.strided")]) + REDUCE
        memory_format = _name(OBJECTS, "_MEM_FORMAT_ENCODING") + _tuple([_integer(0)]) + REDUCE
        state = _tuple([_name("torch", dtype), layout, FALSE, memory_format, FALSE])
        return self.known(_name(OBJECTS, "TensorProperties") + EMPTY_TUPLE + NEW_OBJECT + state + BUILD)

    def new(self, kind: str, fields: Mapping[str, bytes], module: str = OBJECTS) -> bytes:
        """An object of a class, with these fields."""
        state = _dict((self.text(name), value) for name, value in fields.items())
        return self.known(_name(module, kind)) + EMPTY_TUPLE + NEW_OBJECT + state + BUILD

    def tensor(self, tensor: OutputTensor) -> bytes:
        """A TensorStorageMetadata, of one part that is the whole."""
        size = self.size(tensor.shape)
        part = self.new("ChunkStorageMetadata", {"offsets": self._begin(tensor), "sizes": size})
        fields = {
            "properties": self.properties(tensor.dtype.name),
            "size": size,
            "chunks": EMPTY_LIST + MARK + part + APPENDS,
        }
        return self.new("TensorStorageMetadata", fields)

    def index(self, name: bytes, item: StoredItem) -> bytes:
        """A MetadataIndex: the name, where the part begins, and its number."""
        fields = {"fqn": name, "index": _integer(0), "offset": self._begin(item.tensor)}
        return self.new("MetadataIndex", fields)

    def place(self, item: StoredItem) -> bytes:
        """A _StorageInfo: where the part lies."""
        fields = {
            "relative_path": self.text(item.file),
            "offset": _integer(item.offset),
            "length": _integer(item.nbytes),
        }
        return self.new("_StorageInfo", fields, FILES)

    def _begin(self, tensor: OutputTensor) -> bytes:
        return self.size((0,) * len(tensor.shape))


def _name(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _text(value: str) -> bytes:
    # A lone surrogate, which pickles may hold, is kept; those of a path that is not Unicode, too.
    data = value.encode(errors="surrogatepass")
    return b"X" + len(data).to_bytes(4, "little") + data


def _integer(value: int) -> bytes:
    """A length or an offset."""
    if value < 1 << 31:
        return b"K%c" % value if value < 256 else b"J" + value.to_bytes(4, "little")
    return b"\x8a\x09" + value.to_bytes(9, "little")


def _tuple(values: Iterable[bytes]) -> bytes:
    return MARK + b"".join(values) + TUPLE


def _dict(pairs: Iterable[tuple[bytes, bytes]]) -> bytes:
    return EMPTY_DICT + MARK + b"".join(key + value for key, value in pairs) + SET_ITEMS
