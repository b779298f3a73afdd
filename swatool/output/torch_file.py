"""Torch files, as far as writing goes: the zip file of torch.save, laid out before its tensors exist.

Every byte but the tensors' and their checksums is what torch.save writes for such a state dict. The bytes
come later and in any order, so their checksums are 0, as torch writes them after
`torch.serialization.set_crc32_options(False)`. torch.load checks none. Other readers do: Python's zipfile
lists the records and refuses to read a tensor's (`BadZipFile: Bad CRC-32`), `unzip -t` reports them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence

from swatool.errors import CheckpointError, printable
from swatool.output.layout import Layout, OutputTensor, one_file
from swatool.output.torch_pickle import Entry, Plain, Surroundings, pickle_state_dict
from swatool.output.zip_file import ALIGNMENT, Archive, Record, lay_out_zip

__all__ = ["METADATA_RECORD", "lay_out_pickle", "lay_out_torch"]

FOLDER = "archive"  # as torch.save calls it when it does not know the file's name
METADATA_RECORD = "swatool.json"  # torch.load leaves records alone that it does not know
FORMAT_VERSION, ARCHIVE_VERSION = b"1", b"3\n"


def lay_out_torch(
    tensors: Iterable[OutputTensor],
    ties: Mapping[str, str],
    metadata: Mapping[str, str],
    *,
    wrapper: tuple[str, ...] = (),
    beside: Mapping[str, Plain] | None = None,
    prefix: str = "",
) -> Layout:
    """Return the layout of a torch file that holds the tensors, in their order.

    Args:
        tensors: every name of the state dict, those of ties among them.
        ties: for a name that shares another tensor's bytes, that tensor's name. They are stored once, and
            share their storage when they are loaded; the layout has a place for the other tensor only.
        metadata: said of the file, in a record that torch.load does not look at: a state dict must hold
            nothing but its tensors.
        wrapper: keys under which the state dict stands, such as `state_dict`.
        beside: what stands beside the first of these keys.
        prefix: put in front of every name in the file; the layout has the names without it.

    Raises:
        CheckpointError: a name comes twice, or is not Unicode.
    """
    records: dict[str, OutputTensor] = {}  # the tensors that have bytes of their own, by name
    numbers: dict[str, int] = {}
    entries: dict[str, Entry] = {}
    for tensor in tensors:
        _check_name(tensor.name, entries)
        owner = ties.get(tensor.name, tensor.name)
        number = numbers.setdefault(owner, len(numbers))
        records.setdefault(owner, tensor)
        entries[tensor.name] = Entry(prefix + tensor.name, tensor, number)
    pickle = pickle_state_dict(entries.values(), Surroundings(wrapper, beside or {}))
    fixed, places, nbytes = lay_out_pickle(pickle, [one.nbytes for one in records.values()], metadata)
    return one_file(fixed, dict(zip(records, places, strict=True)), nbytes)


def lay_out_pickle(pickle: bytes, storages: Sequence[int], metadata: Mapping[str, str]) -> Archive:
    """Return the layout of the torch file of a pickle and of storages of so many bytes.

    Its `begins` are those of the storages.
    """
    before, after = list(_before(pickle, metadata)), list(_after(pickle))
    pending = (Record(f"{FOLDER}/data/{number}", nbytes) for number, nbytes in enumerate(storages))
    fixed, begins, nbytes = lay_out_zip([*before, *pending, *after])
    return Archive(fixed, begins[len(before) : len(begins) - len(after)], nbytes)


def _check_name(name: str, used: Container[str]) -> None:
    if name in used:
        raise CheckpointError(
            f"the name {printable(name)} is used by two tensors: rename one in the checkpoint"
        )
    try:
        name.encode()
    except UnicodeEncodeError as error:  # a lone surrogate, which some readers refuse
        raise CheckpointError(
            f"the name {printable(name)} is not Unicode: rename it in the checkpoint"
        ) from error


def _before(pickle: bytes, metadata: Mapping[str, str]) -> Iterator[Record]:
    yield _record("data.pkl", pickle)
    yield _record(".format_version", FORMAT_VERSION)
    yield _record(".storage_alignment", str(ALIGNMENT).encode())
    yield _record("byteorder", b"little")
    # Not between the tensors: torch may compute where they are from where the first of them is.
    if metadata:
        yield _record(METADATA_RECORD, json.dumps(dict(metadata)).encode())


def _after(pickle: bytes) -> Iterator[Record]:
    yield _record("version", ARCHIVE_VERSION)
    # Forty digits that tell one file from another; torch makes them of names and checksums.
    digest = int.from_bytes(hashlib.sha256(pickle).digest(), "big")
    yield _record(".data/serialization_id", b"%040d" % (digest % 10**40))


def _record(name: str, data: bytes) -> Record:
    return Record(f"{FOLDER}/{name}", len(data), data)
