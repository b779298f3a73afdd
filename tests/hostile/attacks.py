"""Pickles that would call something, in every place where a pickle can hide."""

import functools
import io
import pickle
import zipfile

import torch

from hostile import corpus_folders, legacy, models
from hostile.arrays import npy, zipped
from hostile.cases import Case, of_bytes
from hostile.pickles import attacks, call, placements, program
from hostile.tars import tarred
from hostile.zips import repacked, zip_of

CANARY = "canary"
INERT = {"*": 0}
MKDIR = program(call("os.mkdir", CANARY, 4), 4)
REFUSED = "would call .* when unpickled: refused"


def in_zips():
    """Of every function that attacks call, and in every place of a pickle."""
    for number, (name, data) in enumerate(attacks(CANARY)):
        made = functools.partial(zip_of, [("archive/data.pkl", data)])
        yield of_bytes("P1", f"attack: {name} {number} in a zip", "bad.pt", made, f"would call {name}")


def in_legacy():
    """In each of the five pickles of such a file."""
    sound = legacy.legacy([legacy.identifier("0", 4)])
    ends = [place + 1 for place in range(len(sound)) if is_end(sound, place)][:5]
    begins = [0, *ends[:-1]]
    for number, what in enumerate(("the magic number", "the version", "sys_info", "the object", "the keys")):
        made = sound[: begins[number]] + MKDIR + sound[ends[number] :]
        said = f"{REFUSED}|plain pickle" if number == 0 else REFUSED
        yield of_bytes("P1", f"attack: in {what} of a legacy file", "bad.pt", made, said)
    for place, data in placements(call("os.mkdir", CANARY, 2), 2).items():
        made = sound[: begins[3]] + data + sound[ends[3] :]
        yield of_bytes(
            "P1", f"attack: {place} of a legacy object", "bad.pt", made, f"{REFUSED}|persistent id"
        )


def is_end(data, place):
    """Tell whether a pickle ends here, which another one or a number of elements follows."""
    return data[place : place + 1] == b"." and data[place + 1 :][:2] in (b"\x80\2", b"\4\0")


class Call:
    """What makes a folder when it is unpickled."""

    def __reduce__(self):
        import os

        return os.mkdir, (CANARY,)


def in_folders():
    """In the metadata of torch.distributed.checkpoint, and in its byte entries, which nobody reads."""
    for place, data in placements(call("os.mkdir", CANARY, 4), 4).items():
        make = corpus_folders.dcp_folder(data=data)
        yield Case("D1", f"attack: {place} in .metadata", "bad", make, f"{REFUSED}|persistent id")
    make = corpus_folders.dcp_folder(kind="bytes")
    yield Case("D4", "attack: in a byte entry", "bad", make, "", codes=INERT)


def in_records_that_nobody_reads():
    """In a zip file, beside the pickle of the state dict."""
    file = io.BytesIO()
    torch.save(models.state(), file)
    evil = [("archive/extra.pkl", MKDIR), ("archive/.data/x", MKDIR)]
    data = file.getvalue()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        kept = [(name, archive.read(name)) for name in archive.namelist()]
    yield of_bytes(
        "P1", "attack: in a record that nobody reads", "bad.pt", zip_of(kept + evil), "", codes=INERT
    )
    changed = repacked(data, lambda name, body: (name, MKDIR if name.endswith("/byteorder") else body))
    yield of_bytes("P1", "attack: as byte order", "bad.pt", changed, "byte order")


def in_data():
    """In arrays of objects, and in members of archives."""
    objects = npy((1,), MKDIR, "|O")
    yield of_bytes("N1", "attack: in an array", "bad.npy", objects, "object array", kind="data")
    yield of_bytes("N1", "attack: as an array", "bad.npy", MKDIR, "no .npy array", kind="data")
    for name, member in (("x.npy", objects), ("x.npy", MKDIR), ("x.pkl", MKDIR)):
        data = bytes(zipped((name, member)))
        title = f"attack: in {name} of an archive, {len(member)}"
        yield of_bytes(
            "N1", title, "bad.npz", data, "object array|no .npy|no arrays", kind="data", spec="{}:x"
        )
    for suffix in ("npy", "pyd", "pickle", "pkl", "pth", "pt", "cls", "json"):
        data = tarred((f"0.{suffix}", objects if suffix == "npy" else MKDIR))
        said = "object array" if suffix == "npy" else "holds no samples"
        yield of_bytes(
            "N3", f"attack: in a .{suffix} of a tar", "bad.tar", data, said, kind="data", spec="wds:{}"
        )


def attacks_everywhere():
    yield from in_zips()
    yield from in_legacy()
    yield from in_folders()
    yield from in_records_that_nobody_reads()
    yield from in_data()
    plain = pickle.dumps(Call())
    yield of_bytes("P1", "attack: a plain pickle", "bad.pt", plain, "plain pickle|no checkpoint")
