"""The pickle in a torch file: what torch.save says of a state dict, in the opcodes that it says it in.

Written here opcode by opcode, because Python's pickler would have to import what it names.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from swatool.output.layout import OutputTensor
from swatool.tensors import c_strides

__all__ = ["Entry", "Plain", "Surroundings", "pickle_state_dict", "pickle_tensor"]

V = TypeVar("V")
# What may stand beside a state dict: plain values, and lists, tuples and dicts of them.
Plain = str | int | float | bool | None | Sequence["Plain"] | Mapping[str | int, "Plain"]

# The others have no storage class of their own, and are said to be views of bytes.
STORAGES: Mapping[str, str] = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "int16": "ShortStorage",
    "int8": "CharStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
    "complex64": "ComplexFloatStorage",
    "complex128": "ComplexDoubleStorage",
}
PROTOCOL_2 = b"\x80\x02"
BATCH = 1000  # entries that are put into a dict or a list at a time
MARK, STOP, NONE, TRUE, FALSE = b"(", b".", b"N", b"\x88", b"\x89"
REDUCE, PERSISTENT = b"R", b"Q"
EMPTY_TUPLE, TUPLE, SHORT_TUPLES = b")", b"t", (b"", b"\x85", b"\x86", b"\x87")
EMPTY_DICT, SET_ITEM, SET_ITEMS = b"}", b"s", b"u"
EMPTY_LIST, APPEND, APPENDS = b"]", b"a", b"e"
ORDERED_DICT = ("collections", "OrderedDict")


class Entry(NamedTuple):
    """A tensor of the state dict.

    Attributes:
        name: the name that is written.
        tensor: its type and shape.
        storage: number of the record that holds its bytes.
    """

    name: str
    tensor: OutputTensor
    storage: int


class Surroundings(NamedTuple):
    """What a state dict stands in.

    Attributes:
        wrapper: the keys that lead to it; none where the file is the state dict itself.
        beside: what stands beside the first of these keys.
    """

    wrapper: tuple[str, ...] = ()
    beside: Mapping[str, Plain] = {}


def pickle_state_dict(entries: Iterable[Entry], surroundings: Surroundings) -> bytes:
    """Return the pickle of an OrderedDict of contiguous tensors, inside the dicts of its wrapper."""
    writer = _Writer()
    _write_dicts(writer, surroundings.wrapper, surroundings.beside, entries)
    return bytes(writer.data + STOP)


def pickle_tensor(tensor: OutputTensor) -> bytes:
    """Return the pickle of one contiguous tensor, whose bytes are record 0; its name does not matter."""
    writer = _Writer()
    _write_tensor(writer, tensor, 0)
    return bytes(writer.data + STOP)


def _write_dicts(
    writer: _Writer, wrapper: tuple[str, ...], beside: Mapping[str, Plain], entries: Iterable[Entry]
) -> None:
    if not wrapper:
        writer.ordered_dict()
        writer.fill(list(entries), lambda entry: _write_entry(writer, entry), SET_ITEM, SET_ITEMS)
        return

    def write(name: str) -> None:
        writer.text(name)
        if name == wrapper[0]:
            _write_dicts(writer, wrapper[1:], {}, entries)
        else:
            writer.plain(beside[name])

    writer.begin(EMPTY_DICT)
    writer.fill([wrapper[0], *(name for name in beside if name != wrapper[0])], write, SET_ITEM, SET_ITEMS)


def _write_entry(writer: _Writer, entry: Entry) -> None:
    writer.text(entry.name)
    _write_tensor(writer, entry.tensor, entry.storage)


def _write_tensor(writer: _Writer, tensor: OutputTensor, storage: int) -> None:
    """Write torch._utils._rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, hooks)."""
    dtype = tensor.dtype
    kind = STORAGES.get(dtype.name)
    data = writer.data
    writer.name("torch._utils", "_rebuild_tensor_v2" if kind else "_rebuild_tensor_v3")
    data += MARK + MARK
    writer.constant("storage")
    if kind:
        writer.name("torch", kind)
    else:
        writer.name("torch.storage", "UntypedStorage")
    writer.constant(str(storage))
    writer.constant("cpu")
    writer.integer(tensor.nbytes // dtype.itemsize if kind else tensor.nbytes)
    data += TUPLE
    writer.memoize()
    data += PERSISTENT
    writer.integer(0)
    writer.group(tensor.shape, writer.integer)
    writer.group(c_strides(tensor.shape), writer.integer)
    data += FALSE
    writer.ordered_dict()
    if not kind:
        writer.name("torch", dtype.name)
    data += TUPLE
    writer.memoize()
    data += REDUCE
    writer.memoize()


class _Writer:
    """Opcodes, and the memo: every object has a number, by which constants are referred to again."""

    def __init__(self) -> None:
        self.data = bytearray(PROTOCOL_2)
        self._count = 0
        self._known: dict[object, int] = {}

    def memoize(self) -> None:
        """Give the object that was just written the next number."""
        number = self._count
        self.data += b"q%c" % number if number < 256 else b"r" + number.to_bytes(4, "little")
        self._count = number + 1

    def name(self, module: str, name: str) -> None:
        """Write a class or a function."""
        if not self._again((module, name)):
            self.data += f"c{module}\n{name}\n".encode()
            self.memoize()

    def constant(self, value: str) -> None:
        """Write a text that may come again."""
        if not self._again(value):
            self.text(value)

    def ordered_dict(self) -> None:
        """Write an empty OrderedDict."""
        self.name(*ORDERED_DICT)
        self.data += EMPTY_TUPLE + REDUCE
        self.memoize()

    def text(self, value: str) -> None:
        """Write a text, which may hold lone surrogates, as in any pickle."""
        data = value.encode(errors="surrogatepass")
        self.data += b"X" + len(data).to_bytes(4, "little") + data
        self.memoize()

    def integer(self, value: int) -> None:
        """Write an integer in the shortest way."""
        if 0 <= value < 1 << 8:
            self.data += b"K%c" % value
        elif 0 <= value < 1 << 16:
            self.data += b"M" + value.to_bytes(2, "little")
        elif -1 << 31 <= value < 1 << 31:
            self.data += b"J" + value.to_bytes(4, "little", signed=True)
        else:
            length = max(value, ~value).bit_length() // 8 + 1  # one bit is for the sign
            self.data += b"\x8a%c" % length + value.to_bytes(length, "little", signed=True)

    def group(self, values: Sequence[V], write: Callable[[V], None]) -> None:
        """Write a tuple."""
        if not values:
            self.data += EMPTY_TUPLE
            return
        short = len(values) < len(SHORT_TUPLES)
        if not short:
            self.data += MARK
        for value in values:
            write(value)
        self.data += SHORT_TUPLES[len(values)] if short else TUPLE
        self.memoize()

    def begin(self, empty: bytes) -> None:
        """Write an empty container."""
        self.data += empty
        self.memoize()

    def fill(self, items: Sequence[V], write: Callable[[V], None], one: bytes, many: bytes) -> None:
        """Put items, which `write` writes, into the container that was begun before."""
        for start in range(0, len(items), BATCH):
            batch = items[start : start + BATCH]
            if len(batch) > 1:
                self.data += MARK
            for item in batch:
                write(item)
            self.data += many if len(batch) > 1 else one

    def plain(self, value: Plain) -> None:
        """Write a plain value."""
        if value is None or isinstance(value, bool):
            self.data += NONE if value is None else TRUE if value else FALSE
        elif isinstance(value, int):
            self.integer(value)
        elif isinstance(value, float):
            self.data += struct.pack(">cd", b"G", value)
        elif isinstance(value, str):
            self.text(value)
        elif isinstance(value, Mapping):
            self.begin(EMPTY_DICT)
            self.fill(list(value.items()), self._item, SET_ITEM, SET_ITEMS)
        elif isinstance(value, tuple):
            self.group(value, self.plain)
        else:
            self.begin(EMPTY_LIST)
            self.fill(value, self.plain, APPEND, APPENDS)

    def _item(self, item: tuple[str | int, Plain]) -> None:
        self.plain(item[0])
        self.plain(item[1])

    def _again(self, key: object) -> bool:
        """Refer to what was written before, or note that it is about to be written."""
        number = self._known.setdefault(key, self._count)
        if number == self._count:
            return False
        self.data += b"h%c" % number if number < 256 else b"j" + number.to_bytes(4, "little")
        return True
