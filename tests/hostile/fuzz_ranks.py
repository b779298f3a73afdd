"""Folders by torch.distributed.checkpoint whose metadata, or data, are damaged at random."""

import functools
import io
import pickle
import struct
import warnings
import zipfile
from pathlib import Path

import torch

from hostile import explaining, mutating
from hostile.fuzz_format import Format, folder_with
from hostile.reading import compare_values, read_a_folder, read_parts
from hostile.zips import central_headers

FILE = "__0_0.distcp"
CHECKSUM = 16  # where it lies in an entry of a zip directory


# The data of a rank.


def state():
    """Tensors of which two are stored alike."""
    return {
        "w": torch.arange(6.0).view(2, 3),
        "v": torch.arange(6.0, 12.0).view(2, 3),
        "h": torch.ones(3, dtype=torch.bfloat16),
    }


def empty_state():
    return {name: torch.zeros_like(tensor) for name, tensor in state().items()}


def prepare(folder):
    """Save a folder, whose metadata stay sound."""
    from hostile import dcp

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(folder / "folder", state())
    seed()


@functools.cache
def seed():
    """The file that was saved, and where the items lie in it."""
    metadata = pickle.loads((Path("folder") / ".metadata").read_bytes())
    places = sorted((one.offset, one.offset + one.length) for one in metadata.storage_data.values())
    return (Path("folder") / FILE).read_bytes(), places


def mutant(dice):
    sound, places = seed()
    if not dice.randrange(8):
        return mutating.of_bytes(dice, sound)
    data = sound
    for _ in range(dice.randint(1, 2)):
        begin, end = dice.choice(places)
        change = dice.choice(
            (_with_other_bytes, _with_another_pickle, _with_another_pickle, _with_other_data)
        )
        item = change(dice, sound[begin:end])
        if not dice.randrange(8):  # that of another tensor
            begin, end = dice.choice(places)
        data = data[:begin] + item[: end - begin].ljust(end - begin, b"\0") + data[end:]
    return data


def _with_other_bytes(dice, item):
    """Change bytes where they are, mostly of the directory, which decides where everything lies."""
    place = item.index(b"PK\1\2") if dice.randrange(2) else 0
    return item[:place] + _in_place(dice, item[place:])


def _in_place(dice, data):
    """Change a few bytes, and no length."""
    changed = bytearray(data)
    for _ in range(dice.randint(1, 3)):
        place = dice.randrange(len(changed))
        value = dice.choice(
            (*mutating.INTERESTING, changed[place] ^ 1 << dice.randrange(8), changed[place] + 1)
        )
        changed[place] = value % 256
    return bytes(changed)


def _with_other_data(dice, item):
    """Change the elements, whose checksum nobody reads in a folder."""
    begin, end = _span(item, "/data/0")
    return item[:begin] + _in_place(dice, item[begin:end]) + item[end:]


def _with_another_pickle(dice, item):
    """Change the pickle, whose checksum is right again."""
    begin, end = _span(item, "/data.pkl")
    changed = _in_place(dice, item[begin:end])
    if dice.randrange(2):
        changed = mutating.of_pickle(dice, item[begin:end])[: end - begin].ljust(end - begin, b".")
    with zipfile.ZipFile(io.BytesIO(item)) as archive:
        number = [info.filename.endswith("/data.pkl") for info in archive.infolist()].index(True)
    place = central_headers(item)[number] + CHECKSUM
    item = item[:place] + struct.pack("<I", zipfile.crc32(changed)) + item[place + 4 :]
    return item[:begin] + changed + item[end:]


def _span(item, suffix):
    """Return where the bytes of a record begin and end."""
    with zipfile.ZipFile(io.BytesIO(item)) as archive:
        info = next(info for info in archive.infolist() if info.filename.endswith(suffix))
    lengths = struct.unpack_from("<2H", item, info.header_offset + 26)
    begin = info.header_offset + 30 + sum(lengths)
    return begin, begin + info.file_size


def torch_reads(_mutant):
    """What torch's own loader makes of the folder that lies there; of its metadata nothing is damaged."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.api import CheckpointException

    found = empty_state()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            dcp.load(found, checkpoint_id="folder", no_dist=True)
        except CheckpointException as error:  # is no Exception, and holds that of each rank
            raise error.failures[0][0] from None
    return found


# The metadata. torch's own reader would run a damaged pickle: what is read is compared with what it saved.


def make_folder(folder):
    from hostile.corpus_folders import dcp_folder

    dcp_folder()(folder / "folder")
    metadata_seed()
    honest()


@functools.cache
def metadata_seed():
    return (Path("folder") / ".metadata").read_bytes()


@functools.cache
def honest():
    """The bytes of each tensor that was saved."""
    return {value[2] for value in read_a_folder("folder").values.values()}


def metadata_mutant(dice):
    return mutating.of_pickle(dice, metadata_seed())


def compare_with_saved(ours, theirs):
    """Whatever the damage renames, every tensor that is read has the bytes of one that was saved."""
    strange = [value[:2] for value in ours.values.values() if value[2] and value[2] not in theirs]
    return f"no such bytes were saved: {strange}" if strange else ""


FORMATS = {
    "dcp metadata": Format(
        metadata_mutant,
        lambda mutant: folder_with(".metadata", mutant),
        read_a_folder,
        lambda _: honest(),
        compare_with_saved,
        prepare=make_folder,
    ),
    "dcp data": Format(
        mutant,
        lambda mutant: folder_with(FILE, mutant),
        read_parts,
        torch_reads,
        compare_values,
        explaining.of_torch,
        prepare=prepare,
    ),
}
