"""Arrays in .npy, .npz and .safetensors files, read sample by sample: never mapped, never whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from swatool.checkpoints.files import LocalFile
from swatool.checkpoints.safetensors_file import read_safetensors
from swatool.data.files import check_unchanged, open_file, telling_of_data
from swatool.data.indexed import IndexedData
from swatool.data.npy_header import MAX_BEGINNING, NpyHeader, read_npy_header
from swatool.data.npz import Archive
from swatool.data.options import DEFAULT_BATCH_SIZE, MAX_BATCH, DataOptions, refuse_unused
from swatool.data.pixels import normalised
from swatool.errors import DataError, UsageError, printable
from swatool.tensors import DType, StoredTensor

__all__ = ["StoredArray", "array_from_bytes", "open_arrays"]

SHOWN_KEYS = 20
USED = ("batch_size", "samples", "shuffle", "seed", "mean", "std")
READABLE = ("float16", "float32", "float64", "bfloat16", "bool")  # and integers


@dataclass(frozen=True)
class StoredArray:
    """An array whose elements lie in one piece, in C order.

    Attributes:
        file: where it lies.
        begin: offset of its first element.
        dtype: element type.
        shape: length of each dimension; the first one counts the samples.
        swapped: whether its bytes are in the other order than this machine's.
    """

    file: LocalFile
    begin: int
    dtype: DType
    shape: tuple[int, ...]
    swapped: bool = False

    @property
    def row(self) -> int:
        """Bytes of one sample."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    def rows(self, positions: Sequence[int]) -> Tensor:
        """Read samples, [positions, ...], in the order of the positions; neighbours at once."""
        row = self.row
        buffer = bytearray(len(positions) * row)
        view = memoryview(buffer)
        for first, slots in _runs(positions):
            pieces = [view[start * row : stop * row] for start, stop in slots]
            self.file.read_into(pieces, self.begin + first * row)
        raw = torch.frombuffer(buffer, dtype=torch.uint8)
        return _typed(raw, self.dtype, self.swapped).view(-1, *self.shape[1:])


def array_from_bytes(data: bytes, where: str) -> Tensor:
    """Return the array that an .npy file of this content holds; DataError if it is damaged."""
    header = _whole_header(data[:MAX_BEGINNING], len(data), where)
    if not math.prod(header.shape):
        raise DataError(f"{where} has the shape {list(header.shape)}: it holds no values")
    raw = torch.frombuffer(bytearray(data[header.begin :]), dtype=torch.uint8)
    return _typed(raw, header.dtype, header.swapped).view(header.shape)


def _typed(raw: Tensor, dtype: DType, swapped: bool) -> Tensor:
    if dtype.name == "bool":
        return raw != 0  # a byte that is neither 0 nor 1 would be a bool of undefined behaviour
    if swapped:
        raw = raw.view(-1, dtype.itemsize).flip(1).view(-1)
    return raw.view(cast(torch.dtype, getattr(torch, dtype.name)))


def _runs(positions: Sequence[int]) -> list[tuple[int, list[tuple[int, int]]]]:
    """Group positions that follow one another in the file: the first, and the slots of the batch to fill.

    Slots are half-open ranges, so that an unshuffled batch is one run of one range.
    """
    runs: list[tuple[int, list[tuple[int, int]]]] = []
    following = slot = -1
    for place in sorted(range(len(positions)), key=positions.__getitem__):
        position = positions[place]
        if position != following:
            runs.append((position, [(place, place + 1)]))
        elif place == slot:
            slots = runs[-1][1]
            slots[-1] = (slots[-1][0], place + 1)
        else:
            runs[-1][1].append((place, place + 1))
        following, slot = position + 1, place + 1
    return runs


def open_arrays(name: str, path: str, key: str | None, options: DataOptions) -> IndexedData:
    """Open the array of a file as a data set; `key` names one of several.

    Raises:
        UsageError: the key is missing or not in the file, or an option does not apply.
        DataError: the file cannot be read, or the array holds no samples that could be.
    """
    refuse_unused(options, name, USED, "it holds arrays, not images")
    file = open_file(path)
    array = None
    try:
        array = _READERS[path.rpartition(".")[2].lower()](file, key)
        _check_samples(array, name, options)
        return _data(name, array, file, options)
    except BaseException:
        file.close()
        if array is not None:
            array.file.close()
        raise


def _data(name: str, array: StoredArray, file: LocalFile, options: DataOptions) -> IndexedData:
    def read(positions: Sequence[int]) -> Tensor:
        with telling_of_data():
            batch = array.rows(positions)
        check_unchanged(file)
        return normalised(batch, options, name)

    def close() -> None:
        file.close()
        array.file.close()  # an unpacked copy

    return IndexedData(name, array.shape[0], read, options, close=close)


def _check_samples(array: StoredArray, name: str, options: DataOptions) -> None:
    if array.dtype.kind != "integer" and array.dtype.name not in READABLE:
        raise DataError(f"{printable(name)} is of type {array.dtype.name}: save it as float32")
    if not array.shape or not math.prod(array.shape):
        raise DataError(f"{printable(name)} has the shape {list(array.shape)}: it holds no samples")
    batch = min(options.batch_size or DEFAULT_BATCH_SIZE, array.shape[0])
    if batch * array.row > MAX_BATCH:
        raise UsageError(
            f"a batch of {batch:,} samples of {printable(name)} has {batch * array.row:,} bytes, more than "
            f"{MAX_BATCH:,}: give a smaller --batch-size"
        )


def _npy(file: LocalFile, key: str | None) -> StoredArray:
    where = printable(file.path)
    if key is not None:
        raise UsageError(f"{where} holds one array without a name: leave out ':{key}'")
    with telling_of_data():
        beginning = file.read(0, min(file.size, MAX_BEGINNING))
    return _npy_array(file, 0, file.size, beginning, where)


def _npy_array(file: LocalFile, begin: int, size: int, beginning: bytes, where: str) -> StoredArray:
    header = _whole_header(beginning, size, where)
    return StoredArray(file, begin + header.begin, header.dtype, header.shape, header.swapped)


def _whole_header(beginning: bytes, size: int, where: str) -> NpyHeader:
    header = read_npy_header(beginning, where)
    if header.end != size:
        raise DataError(
            f"{where} is truncated or damaged: {header.dtype.name} {list(header.shape)} takes {header.end:,} "
            f"bytes with its header, and there are {size:,}"
        )
    return header


def _npz(file: LocalFile, key: str | None) -> StoredArray:
    archive = Archive(file)

    def kind(key: str) -> str:
        header = read_npy_header(archive.beginning(key, MAX_BEGINNING), printable(key))
        return f"{header.dtype.name} {list(header.shape)}"

    if key is not None and key not in archive.keys:
        key = key.removesuffix(".npy")
    key = _chosen(file, key, archive.keys, kind)
    where = f"array {printable(key)} of {printable(file.path)}"
    # Before it is unpacked, so that a bomb must at least describe an array of its size.
    size, beginning = archive.size(key), archive.beginning(key, MAX_BEGINNING)
    _npy_array(file, 0, size, beginning, where)
    found, begin = archive.locate(key)
    return _npy_array(found, begin, size, beginning, where)


def _safetensors(file: LocalFile, key: str | None) -> StoredArray:
    with telling_of_data():
        tensors = cast(Mapping[str, StoredTensor], read_safetensors(file).root)
    key = _chosen(
        file, key, tuple(tensors), lambda key: f"{tensors[key].dtype.name} {list(tensors[key].shape)}"
    )
    tensor = tensors[key]
    begin = tensor.extents[0].offset if tensor.extents else 0
    return StoredArray(file, begin, tensor.dtype, tensor.shape)


def _chosen(file: LocalFile, key: str | None, keys: Sequence[str], kind: Callable[[str], str]) -> str:
    """Return the key that was given, or the only one there is."""
    where = printable(file.path)
    if not keys:
        raise DataError(f"{where} holds no arrays")
    if key is None and len(keys) == 1:
        return keys[0]
    if key is not None and key in keys:
        return key
    found = [f"{printable(one)} ({_described(one, kind)})" for one in keys[:SHOWN_KEYS]]
    more = f" and {len(keys) - SHOWN_KEYS} more" if len(keys) > SHOWN_KEYS else ""
    what = f"holds {len(keys)} arrays" if key is None else f"has no array {printable(key)}"
    raise UsageError(f"{where} {what}: name one of {', '.join(found)}{more} after a colon, as in file:key")


def _described(key: str, kind: Callable[[str], str]) -> str:
    try:
        return kind(key)
    except DataError:
        return "unreadable"


_READERS: Mapping[str, Callable[[LocalFile, str | None], StoredArray]] = {
    "npy": _npy,
    "npz": _npz,
    "safetensors": _safetensors,
}
