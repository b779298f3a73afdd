"""The files of single parts inside a `.distcp` file: each is a torch zip file of its own, of one tensor."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import NamedTuple

from swatool.checkpoints.contents import TensorDescriptor, UnsupportedTensor
from swatool.checkpoints.dcp_parts import Item
from swatool.checkpoints.files import leads_outside
from swatool.checkpoints.torch_file import read_torch_file
from swatool.checkpoints.zip_records import CENTRAL, END, IN_ZIP64_32, data_offset, read_directory
from swatool.errors import CheckpointError, printable
from swatool.tensors import Buffer, DType, Extent, Folder, Source, StoredTensor

__all__ = ["ItemReader", "KnownItems"]

WINDOW = 2048  # bytes in which a small item's directory, or its pickle, lies
MAX_KNOWN = 2000
# Of the zip format: the beginning of an entry of the directory, and places in it and in its end.
ENTRY = b"PK\1\2"
CHECKSUM = 16
LENGTH_FIELDS = slice(10, 13)
DIRECTORY_FIELD = 6


class Part:
    """A range of a file that is a file of its own; a Source.

    What describes a tensor lies at the range's two ends, in a few records each: one read brings a whole end.
    """

    def __init__(self, whole: Source, begin: int, size: int) -> None:
        self.path = whole.path
        self.size = size
        self.whole = whole
        self.begin = begin
        self._windows: list[tuple[int, bytes]] = []

    def read(self, offset: int, nbytes: int) -> bytes:
        """Return bytes of the range; CheckpointError if it does not have them."""
        end = offset + nbytes
        for begin, data in self._windows:
            if begin <= offset and end <= begin + len(data):
                return data[offset - begin : end - begin]
        self._check(offset, end)
        begin = min(offset, max(0, self.size - WINDOW))
        data = self.whole.read(self.begin + begin, max(end - begin, min(WINDOW, self.size - begin)))
        self._windows.append((begin, data))
        return data[offset - begin : end - begin]

    def read_into(self, buffers: Sequence[Buffer], offset: int) -> None:
        """Fill the buffers one after the other; CheckpointError if the range does not have the bytes."""
        self._check(offset, offset + sum(map(len, buffers)))
        self.whole.read_into(buffers, self.begin + offset)

    def _check(self, offset: int, end: int) -> None:
        if not 0 <= offset <= end <= self.size:
            raise CheckpointError(f"{printable(self.path)} is damaged: a part in it ends too early")


class Held(NamedTuple):
    """What an item holds: a tensor, and its runs of bytes by their places in the item and their lengths."""

    dtype: DType
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None
    runs: tuple[tuple[int, int], ...]


class Alike(NamedTuple):
    """An item that was read, to tell others by that are the same but for their elements.

    Attributes:
        head: its bytes before the elements: the pickle, and what precedes the elements.
        rest: where the bytes after the elements begin that are looked at: those of the version of the format,
            before the directory.
        spans: what of the rest must be the same: the version, and the directory but for the checksums of what
            is not read here.
        cut: those bytes, span by span.
        held: what it holds.
    """

    head: bytes
    rest: int
    spans: tuple[tuple[int, int], ...]
    cut: Sequence[bytes]
    held: Held


# By the item's length, and what it should hold.
KnownItems = dict[tuple[int, Hashable], Alike | None]


class ItemReader:
    """Finds the tensors in the items of a folder.

    Most items of a checkpoint differ from some other one in nothing but their elements and checksums. Those
    are compared with it instead of being taken apart, which takes a tenth of the time.
    """

    def __init__(self, folder: Folder, known: KnownItems) -> None:
        """Read items of a folder; `known` are those of this one or another to compare with, and grow."""
        self._folder = folder
        self._known = known
        self._names = frozenset(folder.names)
        self._opened: dict[str, Source] = {}

    def locate(self, item: Item, expected: Hashable) -> StoredTensor:
        """Return the one tensor that an item holds.

        Args:
            item: where it lies.
            expected: equal for items that should hold equally long tensors of one type.

        Raises:
            CheckpointError: its file is not there, ends before it, or the item holds something else.
        """
        whole = self._open(item)
        key = (item.nbytes, expected)
        known = self._known.get(key)
        if known is not None and _is_alike(whole, item, known):
            held = known.held
        else:
            part = Part(whole, item.offset, item.nbytes)
            held = _read(part)
            if known is None and len(self._known) < MAX_KNOWN:
                self._known[key] = _taken_as_a_model(part, held)
        extents = tuple([Extent(whole, item.offset + begin, nbytes) for begin, nbytes in held.runs])
        return StoredTensor(held.dtype, held.shape, extents, held.strides)

    def _open(self, item: Item) -> Source:
        if item.file not in self._names:  # nor is any path that leads out of the folder
            raise _not_there(self._folder.path, item.file)
        whole = self._opened.get(item.file)
        if whole is None:
            whole = self._opened[item.file] = self._folder.open(item.file)
        if item.offset + item.nbytes > whole.size:
            raise CheckpointError(
                f"{printable(whole.path)} is truncated or damaged: a part should end at byte "
                f"{item.offset + item.nbytes:,}, and the file has {whole.size:,}"
            )
        return whole


def _not_there(folder: str, file: str) -> CheckpointError:
    if leads_outside(file):
        return CheckpointError(
            f"the .metadata of {printable(folder)} names a file outside the folder, {printable(file)}: "
            "refused"
        )
    return CheckpointError(
        f"{printable(folder)} is incomplete: {printable(file)}, which its .metadata names, is not in it; "
        "copy the whole folder"
    )


def _read(part: Part) -> Held:
    """Take an item apart."""
    contents = read_torch_file(part)
    if isinstance(contents.root, UnsupportedTensor):
        raise CheckpointError(
            f"it cannot be averaged from its bytes ({contents.root.kind}): save it as a plain dense tensor"
        )
    if not isinstance(contents.root, TensorDescriptor):
        raise CheckpointError(
            f"{printable(part.path)} is damaged: the part at byte {part.begin:,} of it is no tensor"
        )
    stored = contents.locate(contents.root)
    runs = tuple([(begin, nbytes) for _, begin, nbytes in stored.extents])
    return Held(stored.dtype, stored.shape, stored.strides, runs)


def _taken_as_a_model(part: Part, held: Held) -> Alike | None:
    """Return what others are compared with; None for an item that torch would have written in another order.

    All that says what the elements are lies before them, and after them nothing but the version and the
    directory.
    """
    records = read_directory(part)
    (folder,) = [name.partition("/")[0] for name in records if name.endswith("/data.pkl")]
    version = records.get(f"{folder}/version")
    directory = END.unpack(part.read(part.size - END.size, END.size))[DIRECTORY_FIELD]
    if directory == IN_ZIP64_32 or version is None:  # beyond 4 GiB; not as torch writes it
        return None
    said = [records[name] for name in (f"{folder}/data.pkl", f"{folder}/byteorder") if name in records]
    head = max(data_offset(part, record) + record.size for record in said)
    elements = held.runs[0][0] if held.runs else head
    rest = version.header
    if not head <= elements <= WINDOW or not part.size - WINDOW <= rest <= directory:
        return None
    data = part.read(rest, part.size - rest)
    checked = data_offset(part, version) + version.size - rest
    spans = ((0, checked), *_spans_without_checksums(data, directory - rest))
    return Alike(part.read(0, elements), rest, spans, _cut(data, spans), held)


def _spans_without_checksums(data: bytes, directory: int) -> Iterator[tuple[int, int]]:
    """Yield what of a directory is not the checksum of a record; that of the pickle is one that counts."""
    start = entry = directory
    while data[entry : entry + 4] == ENTRY:
        fields = CENTRAL.unpack_from(data, entry)
        lengths = fields[LENGTH_FIELDS]
        name = data[entry + CENTRAL.size : entry + CENTRAL.size + lengths[0]]
        if not name.endswith(b"/data.pkl"):
            yield start, entry + CHECKSUM
            start = entry + CHECKSUM + 4
        entry += CENTRAL.size + sum(lengths)
    yield start, len(data)


def _cut(data: bytes, spans: Sequence[tuple[int, int]]) -> list[bytes]:
    return [data[begin:end] for begin, end in spans]


def _is_alike(whole: Source, item: Item, known: Alike) -> bool:
    """Tell whether an item of the same length describes the same tensor, at the same place in it."""
    if whole.read(item.offset, len(known.head)) != known.head:
        return False
    data = whole.read(item.offset + known.rest, item.nbytes - known.rest)
    return _cut(data, known.spans) == known.cut
