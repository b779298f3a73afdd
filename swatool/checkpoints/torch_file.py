"""Files by torch.save since torch 1.6: a zip of one pickle that describes and one record per storage."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

from swatool.checkpoints.contents import Contents, Opaque
from swatool.checkpoints.pickle_descriptors import next_descriptors
from swatool.checkpoints.pickle_globals import MalformedError, Storage, storage
from swatool.checkpoints.pickle_machine import PIECE
from swatool.checkpoints.storages import Storages
from swatool.checkpoints.zip_records import TORCHSCRIPT, Record, data_offset, read_directory
from swatool.errors import CheckpointError, printable
from swatool.json_text import JsonError, parse_json
from swatool.tensors import Source

__all__ = ["MAX_PICKLE", "read_torch_file"]

MAX_PICKLE = 64 << 20
MAX_METADATA = 1 << 20  # as objects, twenty times that
METADATA = "swatool.json"  # what swatool says of a file that it wrote
MAX_DIGITS = 16  # that are read of a version
NEWEST = 10  # torch's kMaxSupportedFileFormatVersion (caffe2/serialize/versions.h); torch.save writes 3


def read_torch_file(source: Source) -> Contents:
    """Describe what torch.save wrote; only the directory, the pickle and the byte order are read.

    Raises:
        CheckpointError: the file is damaged or hostile, is another kind of zip file, or is big-endian.
    """
    records = read_directory(source)
    folder = _folder(source, records)
    _check_version(source, records.get(f"{folder}/version"))
    _check_byte_order(source, records.get(f"{folder}/byteorder"))
    root = _load_pickle(source, records[f"{folder}/data.pkl"], len(records))
    locate = Storages(source, _Records(source, records, f"{folder}/data/")).locate
    return Contents("torch zip", root, locate, _read_metadata(source, records.get(f"{folder}/{METADATA}")))


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


def _check_version(source: Source, record: Record | None) -> None:
    """Accept the versions that torch reads; a file of its first ones may lack the record."""
    if record is None:
        return
    text = source.read(data_offset(source, record), min(record.size, MAX_DIGITS)).strip()
    if not text.isdigit() or not 1 <= int(text) <= NEWEST:
        raise CheckpointError(
            f"{printable(source.path)} is of version {printable(text.decode(errors='replace'))} of torch's "
            f"format, and at most {NEWEST} is read: it is damaged, or save it with an older torch"
        )


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


def _load_pickle(source: Source, record: Record, storages: int) -> object:
    """Interpret the pickle, in which the values take the more memory the more storages there are."""
    begin = data_offset(source, record)
    _check_pickle(source, record, begin)
    where = printable(source.path)
    end = begin + record.size
    named = _NamedStorages()
    root, reached = next_descriptors(
        source.read, (begin, end), where, persistent=named.persistent, earning=storages
    )
    if reached != end:
        raise CheckpointError(
            f"{where} is damaged or was not written by torch.save: its pickle goes on after its end"
        )
    return root


def _check_pickle(source: Source, record: Record, begin: int) -> None:
    """Refuse a pickle that is too long, or does not match its checksum; 0 is what torch writes for none."""
    if record.size > MAX_PICKLE:
        raise CheckpointError(
            f"the pickle of {printable(source.path)} has {record.size:,} bytes, more than {MAX_PICKLE:,}: "
            "save the state dict alone"
        )
    if not record.crc:
        return
    crc = 0
    for offset in range(0, record.size, PIECE):
        crc = zlib.crc32(source.read(begin + offset, min(PIECE, record.size - offset)), crc)
    if crc != record.crc:
        raise CheckpointError(
            f"{printable(source.path)} is damaged: {printable(record.name)} does not match its checksum"
        )


def _read_metadata(source: Source, record: Record | None) -> Mapping[str, str]:
    """Read what swatool said of a file of its own; nothing where that is not texts by name."""
    if record is None or record.size > MAX_METADATA:
        return {}
    try:
        found = parse_json(source.read(data_offset(source, record), record.size))
    except JsonError:
        return {}
    return {k: v for k, v in found.items() if isinstance(v, str)} if isinstance(found, dict) else {}


class _NamedStorages:
    """The storages that a pickle names; torch takes each as it is named first, so all must say the same."""

    def __init__(self) -> None:
        self._found: dict[str, Opaque] = {}

    def persistent(self, identifier: object) -> Opaque:
        """Return the storage that a persistent id names."""
        found = storage(identifier)
        if type(found) is Storage and self._found.setdefault(found.key, found) != found:
            raise MalformedError(f"gives storage {printable(found.key)} two types or lengths")
        return found


class _Records:
    """The records that hold the tensors' bytes; a local header is read when it is first needed."""

    def __init__(self, source: Source, records: Mapping[str, Record], prefix: str) -> None:
        self._source = source
        self._records = records
        self._prefix = prefix
        self._begins: dict[str, int] = {}

    def size(self, key: str) -> int | None:
        record = self._records.get(self._prefix + key)
        return None if record is None else record.size

    def begin(self, key: str) -> int:
        begin = self._begins.get(key)
        if begin is None:
            begin = self._begins[key] = data_offset(self._source, self._records[self._prefix + key])
        return begin

    def shown(self, key: str) -> str:
        return f"record {printable(self._prefix + key)} of {printable(self._source.path)}"
