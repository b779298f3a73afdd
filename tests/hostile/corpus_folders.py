"""Hostile safetensors files, folders, and files that are something else."""

import atexit
import functools
import json
import os
import shutil
import tempfile
import warnings
from pathlib import Path

import torch

from hostile import hf, models
from hostile.cases import Case, of_bytes
from hostile.corpus_torch import WEIGHTS
from hostile.pickles import call, program, tensor, text, tuple_of
from hostile.safetensors_headers import BAD, assembled, entry
from swatool.checkpoints.hf_folder import MAX_INDEX

FILE = "bad.safetensors"
FOLDER = "bad"
INERT = {"*": 0}


# What memory and time the reader takes for these is another row of the table.
AMPLIFYING = (
    "header too long",
    "deep lists",
    "deep objects",
    "rank 1,000,000",
    "header longer than the file",
)
TOO_SHORT = ("no bytes", "seven bytes")


def safetensors():
    for name, data in BAD.items():
        row = "S2" if name in AMPLIFYING else "U1" if name in TOO_SHORT else "S1"
        yield of_bytes(row, f"safetensors: {name}", FILE, data, "")
    many = {f"t{number}": entry(shape=[0], offsets=(0, 0)) for number in range(60_000)}
    yield of_bytes(
        "S2",
        "safetensors: 60,000 empty tensors and a lie",
        FILE,
        lambda: assembled(many, b"x"),
        "after its last",
    )
    yield from (
        of_bytes("S2", f"safetensors: 24 MB of {name}", FILE, long_header(text), "more in it than entries")
        for name, text in (
            ("lists", b'"%d":[[],[],[],[],[],[],[],[]]'),
            ("objects", b'"%d":{}'),
            ("metadata", b'"%d":""'),
        )
    )
    said = {"format": "pt", "swatool": "[" + "{}," * 2_000_000 + "{}]"}
    yield Case(
        "S2",
        "safetensors: metadata of two million objects",
        FILE,
        lambda path: hf.save_safetensors(models.state(), path, said),
        "itself an average|does not say where it comes from",
        codes={
            **dict.fromkeys(("average", "dry-run", "soup"), 2),
            **dict.fromkeys(("inspect", "stats", "diff", "reversed", "recalibrate-bn", "like", "source"), 0),
        },
    )
    for name in ("\x1b[2J\x1b]0;owned\x07", "a\nerror: b", "\u202eevil", "n" * 100_000):
        title = f"safetensors: a tensor named {name[:20]!a}"
        lie = assembled({name: entry(shape=[3])}, bytes(8))
        yield of_bytes("S1", title, FILE, lie, "does not fill its 8 bytes")


def long_header(text):
    """A header of 24 MB in which these texts, numbered, stand one after the other."""

    def make():
        header = b"{" + b",".join(text % number for number in range(24_000_000 // (len(text) + 6))) + b"}"
        return len(header).to_bytes(8, "little") + header

    return make


# Hugging Face folders.


def nothing(_path):
    """Make nothing."""


def hf_folder(index=None, name=hf.INDEX, prepare=nothing):
    """Make a folder of two sound shards, with this index instead of the honest one."""

    def make(folder):
        folder.mkdir()
        for shard in hf.SHARDS:
            tensors = {n: t for n, t in hf.STATE.items() if hf.PLACES[n] == shard}
            hf.save_safetensors(tensors, folder / shard)
        if index is None:
            hf.write_index(folder, hf.PLACES)
        elif isinstance(index, dict):
            hf.write_index(folder, index, name)
        else:
            (folder / name).write_bytes(index)
        prepare(folder)

    return make


def cut(folder):
    shard = folder / hf.SHARDS[1]
    shard.write_bytes(shard.read_bytes()[:-1])


def without_a_shard(folder):
    (folder / hf.SHARDS[1]).unlink()


def long_index(folder):
    with open(folder / hf.INDEX, "r+b") as file:
        file.truncate(MAX_INDEX + 1)


def fifo(folder):
    (folder / hf.SHARDS[1]).unlink()
    os.mkfifo(folder / hf.SHARDS[1])


def subfolder(folder):
    (folder / hf.SHARDS[1]).unlink()
    (folder / hf.SHARDS[1]).mkdir()


def twice(folder):
    hf.save_safetensors({n: hf.STATE[n] for n in ("a.bias", "b.weight", "b.count")}, folder / hf.SHARDS[1])


def leftovers(folder):
    (folder / "model-00003-of-00003.safetensors").write_bytes(b"")


def pickled_shard(folder):
    (folder / hf.SHARDS[1]).write_bytes(WEIGHTS)


def wrong_total(folder):
    index = {"metadata": {"total_size": 10**30}, "weight_map": dict.fromkeys(models.state(), hf.SHARDS[0])}
    (folder / hf.SHARDS[1]).unlink()
    hf.save_safetensors(models.state(), folder / hf.SHARDS[0])
    (folder / hf.INDEX).write_text(json.dumps(index))


def named_outside(file):
    """A folder whose index assigns a tensor to this file; the index is what is given."""

    def make(index):
        hf_folder()(index.parent)
        hf.write_index(index.parent, {"a.weight": file}, index.name)

    return make


def indexes():
    for number, name in enumerate(hf.OUTSIDE):
        for index in (hf.INDEX, "pytorch_model.bin.index.json"):
            said = "outside its folder|not in its folder|hold no weights by their names"
            title = f"index: a way out {number}, {index}"
            yield Case("H1", title, f"{FOLDER}/{index}", named_outside(name), said)
    for name, (raw, said) in hf.BAD_INDEXES.items():
        make = hf_folder(raw.encode(errors="surrogateescape"))
        yield Case("H2", f"index: {name}", FOLDER, make, said.replace("(", r"\("))
    for name, prepare, said in (
        ("a shard that is cut", cut, "truncated"),
        ("a shard that is missing", without_a_shard, "not in its folder"),
        ("too long", long_index, "an index of at most"),
        ("a shard that is a FIFO", fifo, "not a regular file"),
        ("a shard that is a folder", subfolder, "not a regular file"),
        ("a tensor in two shards", twice, "does not fit its shards"),
        ("a shard of another save", leftovers, "does not name"),
        ("a shard that is a pickle", pickled_shard, "does not fit its shards"),
    ):
        yield Case("H2", f"index: {name}", FOLDER, hf_folder(prepare=prepare), said)
    for name, places in (
        ("a tensor that no shard has", hf.PLACES | {"c": hf.SHARDS[0]}),
        ("a tensor that only a shard has", {"a.weight": hf.SHARDS[0], "b.weight": hf.SHARDS[1]}),
        ("a name for the terminal", hf.PLACES | {"\x1b[2J\u202e": hf.SHARDS[0]}),
    ):
        yield Case("H2", f"index: {name}", FOLDER, hf_folder(places), "does not fit its shards")
    said = "gives '1000000000000000019884624838656' as the bytes|gives '10+' as the bytes"
    yield Case(
        "H2", "index: a total size that lies", FOLDER, hf_folder(prepare=wrong_total), said, codes=INERT
    )


# Folders by torch.distributed.checkpoint.


class Canary:
    """What makes a folder when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("canary",)


@functools.cache
def saved(kind):
    """A folder that torch saved, made once."""
    from hostile import dcp

    folder = Path(tempfile.mkdtemp(prefix="swatool-hostile-"))
    atexit.register(shutil.rmtree, folder)
    state = {"w": torch.rand(5, 3), "other": torch.rand(7)}
    if kind == "bytes":
        state = {"model": models.state(), "canary": Canary()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(folder / kind, state)
        if kind == "plain":
            dcp.save(folder / "other", state)
    return folder / kind


def dcp_folder(how=None, kind="plain", data=None):
    def make(folder):
        from hostile import dcp

        shutil.copytree(saved(kind), folder)
        if how is not None:
            dcp.change(folder, how)
        if data is not None:
            (folder / ".metadata").write_bytes(data)

    return make


def set_canary(field):
    return lambda metadata: setattr(metadata, field, Canary())


def uncommitted(*names):
    def make(folder):
        folder.mkdir()
        for name in names:
            (folder / name).write_bytes(b"x")

    return make


# What earns a pickle memory: records of four bytes each, and lists that take it.
CHEAP = (
    b"ctorch.distributed.checkpoint.metadata\nMetadata\nq\0(" + b"h\0)R" * 37_500 + b"]" * 1_050_000 + b"t"
)
ROW_OF = {
    **dict.fromkeys(
        ("hole", "overlap", "one place twice", "overlap and hole", "overrun", "other rank"), "D3"
    ),
    **dict.fromkeys(("negative chunk", "other sizes", "parts without places", "no chunk"), "D3"),
    **dict.fromkeys(("outside", "absolute", "missing file", "no name of a file", "beyond the file"), "D2"),
    **dict.fromkeys(("too long", "negative", "huge", "no number", "empty item", "cut item"), "D2"),
    **dict.fromkeys(("shifted item", "transform", "place of another", "stored nowhere"), "D2"),
}


def metadata():
    from hostile import dcp

    for name, (how, said) in dcp.BAD_METADATA.items():
        yield Case(ROW_OF.get(name, "D1"), f"dcp: {name}", FOLDER, dcp_folder(how), said)
    for field in ("storage_meta", "planner_data", "version", "new"):
        said = r"would call posix\.mkdir when unpickled"
        yield Case("D1", f"dcp: a call in {field}", FOLDER, dcp_folder(set_canary(field)), said)
    for name, data, said in (
        ("a call", program(call("os.system", "mkdir canary", 4), 4), r"would call os\.system"),
        ("a state dict", program(b"}" + text("w") + tensor() + b"s"), "should be a Metadata"),
        ("a memo bomb", program(b"]0" * 600_000 + b"N"), "far more than its tensors need"),
        ("records that cost nothing", program(CHEAP), "far more than its tensors need"),
        ("a deep value", program(b"N" + b"\x85" * 300_000), "should be a Metadata"),
        ("an empty file", b"", "ends too early"),
        ("a persistent id", program(tuple_of(text("storage")) + b"Q"), "persistent id"),
        ("more behind its end", program(b"N") + b"x", "after its end"),
    ):
        yield Case("D1", f"dcp: metadata that are {name}", FOLDER, dcp_folder(data=data), said)
    yield Case("D4", "dcp: a byte entry", FOLDER, dcp_folder(kind="bytes"), "", codes=INERT)
    for names in (("__0_0.distcp",), ("__0_0.distcp", ".metadata.tmp"), (".metadata.tmp",)):
        yield Case("D5", f"dcp: only {' '.join(names)}", FOLDER, uncommitted(*names), "not committed")


def cases():
    yield from safetensors()
    yield from indexes()
    yield from metadata()
