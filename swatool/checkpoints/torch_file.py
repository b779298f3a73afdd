"""Files by torch.save since torch 1.6: a zip of one pickle that describes and one record per storage."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

from swatool.checkpoints.contents import Contents, TensorDescriptor
from swatool.checkpoints.pickle_descriptors import load_descriptors
from swatool.checkpoints.zip_records import TORCHSCRIPT, Record, data_offset, read_directory
from swatool.errors import CheckpointError, printable
from swatool.tensors import Extent, Source, StoredTensor

__all__ = ["read_torch_file"]

MAX_PICKLE = 64 << 20
MAX_EXPANDED = 1 << 20  # elements of an expanded tensor, which are more than its storage holds


def read_torch_file(source: Source) -> Contents:
    """Describe what torch.save wrote; only the directory, the pickle and the byte order are read.

    Raises:
        CheckpointError: the file is damaged or hostile, is another kind of zip file, or is big-endian.
    """
    records = read_directory(source)
    folder = _folder(source, records)
    _check_byte_order(source, records.get(f"{folder}/byteorder"))
    root = load_descriptors(_read_pickle(source, records[f"{folder}/data.pkl"]), printable(source.path))
    return Contents("torch zip", root, _Storages(source, records, f"{folder}/data/").locate)


def _folder(source: Source, records: Mapping[str, Record]) -> str:
    """Return the folder that every record lies in; it is named after the file that was saved first."""
    path = printable(source.path)
    if any(name.endswith("/constants.pkl") or "/code/" in name for name in records):
        raise CheckpointError(f"{path} {TORCHSCRIPT}")
    found = [name for name in records if name.endswith("/data.pkl")]
    if len(found) > 1:
        raise CheckpointError(f"{path} holds {len(found)} pickles named data.pkl: torch.save writes one")
    if not found or found[0].count("/") != 1:
        arrays = records and all(name.endswith(".npy") for name in records)
        kind = "a NumPy archive (.npz)" if arrays else "a zip file without torch's data.pkl"
        raise CheckpointError(f"{path} is {kind}, not a checkpoint written by torch.save")
    return found[0].partition("/")[0]


def _check_byte_order(source: Source, record: Record | None) -> None:
    """Accept little-endian files; those without the record are older than it and were so, too."""
    if record is None:
        return
    length = min(record.size, len(b"little") + 1)
    order = source.read(data_offset(source, record), length)
    if order != b"little":
        found = "big-endian" if order == b"big" else "of unknown byte order"
        raise CheckpointError(
            f"{printable(source.path)} is {found}: load and save it on a little-endian machine first"
        )


def _read_pickle(source: Source, record: Record) -> bytes:
    if record.size > MAX_PICKLE:
        raise CheckpointError(
            f"the pickle of {printable(source.path)} has {record.size:,} bytes, more than {MAX_PICKLE:,}: "
            "save the state dict alone"
        )
    data = source.read(data_offset(source, record), record.size)
    if record.crc and zlib.crc32(data) != record.crc:
        raise CheckpointError(
            f"{printable(source.path)} is damaged: {printable(record.name)} does not match its checksum"
        )
    return data


class _Storages:
    """The records that hold the tensors' bytes; a local header is read when it is first needed."""

    def __init__(self, source: Source, records: Mapping[str, Record], prefix: str) -> None:
        self._source = source
        self._records = records
        self._prefix = prefix
        self._begins: dict[str, int] = {}
        self._shapes: dict[tuple[int, ...], tuple[int, ...]] = {}

    def locate(self, tensor: TensorDescriptor | StoredTensor) -> StoredTensor:
        """Return where a tensor's bytes lie; CheckpointError if it does not fit into its storage."""
        if isinstance(tensor, StoredTensor):
            return tensor
        begin = self._begin(tensor)
        dtype, strides = tensor.dtype, tensor.strides
        shape = self._shapes.setdefault(tensor.shape, tensor.shape)  # equal ones are kept once
        count, reach, in_order = _measure(shape, strides)
        if count == 0:
            return StoredTensor(dtype, shape, ())
        held = tensor.storage_nbytes // dtype.itemsize
        if tensor.offset + reach > held:
            raise self._lie(tensor, f"reaches element {tensor.offset + reach:,} of {held:,}")
        if count > held and (0 not in strides or count > MAX_EXPANDED):
            raise CheckpointError(
                f"a tensor in record {self._shown(tensor)} makes more elements than it can of the "
                f"{held:,} stored ones: save it after .contiguous()"
            )
        begin += tensor.offset * dtype.itemsize
        extent = Extent(self._source, begin, reach * dtype.itemsize)
        return StoredTensor(dtype, shape, (extent,), None if in_order else strides)

    def _begin(self, tensor: TensorDescriptor) -> int:
        record = self._records.get(self._prefix + tensor.storage)
        if record is None:
            raise self._lie(tensor, "is not in the file")
        if record.size != tensor.storage_nbytes:
            raise self._lie(tensor, f"has {record.size:,} bytes instead of {tensor.storage_nbytes:,}")
        begin = self._begins.get(tensor.storage)
        if begin is None:
            begin = self._begins[tensor.storage] = data_offset(self._source, record)
        return begin

    def _shown(self, tensor: TensorDescriptor) -> str:
        return f"{printable(self._prefix + tensor.storage)} of {printable(self._source.path)}"

    def _lie(self, tensor: TensorDescriptor, what: str) -> CheckpointError:
        return CheckpointError(f"record {self._shown(tensor)} {what}")


def _measure(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, int, bool]:
    """Return the number of elements, the elements from the first to the last, and whether in C order."""
    count, reach, in_order = 1, 1, True
    for length, stride in zip(reversed(shape), reversed(strides), strict=True):
        if length == 1:
            continue
        in_order = in_order and stride == count
        count *= length
        reach += (length - 1) * stride
    return count, reach, in_order
