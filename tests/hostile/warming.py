"""Sound inputs of every kind, on which all commands succeed or fail as they should."""

import zlib

import torch

from hostile import hf, models
from hostile.arrays import npy, png, zipped
from hostile.cases import Case, of_bytes
from hostile.corpus_folders import dcp_folder
from hostile.corpus_torch import state_pickle
from hostile.tars import tarred

GOOD = {"*": 0}
ROWS = npy((2, 2), bytes(range(16)))
PICTURE = png(4, 4, zlib.compress((b"\0" + bytes(range(12))) * 4))
TABLE = b"good.pt: {a: 1}\nother.pt: {a: 2}\n"
TAR = tarred(("0.npy", npy((2,), bytes(8))), ("1.npy", npy((2,), bytes(8))))


def pictures(folder):
    folder.mkdir()
    (folder / "x.png").write_bytes(PICTURE)


def no_picture(folder):
    """What makes Pillow import all of its formats."""
    folder.mkdir()
    (folder / "x.png").write_bytes(b"what")


def safetensors(path):
    hf.save_safetensors(models.state(), path)


def legacy(path):
    torch.save(models.state(), path, _use_new_zipfile_serialization=False)


CASES = (
    of_bytes("", "zip", "x.pt", state_pickle(), "", codes=GOOD),
    Case("", "legacy", "x.pt", legacy, "", codes=GOOD),
    Case("", "safetensors", "x.safetensors", safetensors, "", codes=GOOD),
    Case("", "dcp", "x", dcp_folder(kind="bytes"), "", codes=GOOD),
    of_bytes("", "bad", "x.pt", b"", "", codes={"*": 3}),
    of_bytes("", "npy", "x.npy", ROWS, "", kind="data", codes=GOOD),
    of_bytes("", "npz", "x.npz", bytes(zipped(("x.npy", ROWS), method=8)), "", kind="data", codes=GOOD),
    of_bytes("", "tar", "x.tar", TAR, "", kind="data", codes=GOOD, spec="wds:{}"),
    Case("", "images", "x", pictures, "", kind="data", codes=GOOD, spec="imagefolder:{}", model="image"),
    Case("", "no image", "x", no_picture, "", kind="data", spec="imagefolder:{}", model="image"),
    of_bytes("", "yaml", "x.yaml", TABLE, "", kind="recipe", codes={"metrics": 0, "*": 2}),
    of_bytes("", "csv", "x.csv", b"file,a\ngood.pt,1\nother.pt,2\n", "", kind="table", codes=GOOD),
)  # fmt: skip
