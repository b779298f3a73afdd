"""The formats that are damaged at random: how each is written, damaged and read, and by whom."""

import functools
import io
import zipfile
from pathlib import Path

import torch

from hostile import (
    comparing,
    explaining,
    fuzz_arrays,
    fuzz_images,
    fuzz_ranks,
    fuzz_recipes,
    fuzz_tables,
    fuzz_tars,
    hf,
    models,
    mutating,
)
from hostile.fuzz_format import Format, folder_with, written_to
from hostile.reading import compare_values, read_a_folder, read_one
from hostile.safetensors_headers import assembled
from hostile.zips import repacked


def seed_state():
    """Tensors of several types and layouts, and what may stand beside them."""
    base = torch.arange(24.0).view(4, 6)
    return {
        "model": {"w": base, "t": base.t(), "v": base[1:3, ::2], "h": torch.ones(3).to(torch.bfloat16)},
        "n": torch.arange(3),
        "p": torch.nn.Parameter(torch.ones(2)),
        "step": 7,
        "more": [1.5, "x", None, True, (1, 2), 2**40],
        "state": models.state(),
    }


def saved(legacy=False):
    file = io.BytesIO()
    torch.save(seed_state(), file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


# Files by torch.save.


@functools.cache
def zip_seed():
    data = saved()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return data, archive.read("archive/data.pkl")


def zip_mutant(dice):
    data, pickle = zip_seed()
    change = dice.randrange(8)
    if change == 0:
        return mutating.of_bytes(dice, data)
    if change == 1:  # the directory, which decides where everything lies
        place = data.index(b"PK\1\2")
        return data[:place] + mutating.of_bytes(dice, data[place:])
    if change == 2:
        names = [f"archive/data/{number}" for number in range(9)]
        chosen = dice.choice(names)
        return repacked(data, lambda n, b: (n, mutating.of_bytes(dice, b)) if n == chosen else (n, b))
    changed = mutating.of_pickle(dice, pickle)
    return repacked(data, lambda n, b: (n, changed if n.endswith("data.pkl") else b))


@functools.cache
def legacy_seed():
    return mutating.pickles_in(saved(legacy=True), 5)


def legacy_mutant(dice):
    pickles, rest = legacy_seed()
    change = dice.randrange(6)
    if change == 0:
        return mutating.of_bytes(dice, b"".join(pickles) + rest)
    if change == 1:
        return b"".join(pickles) + mutating.of_bytes(dice, rest)
    chosen = dice.choice((3, 3, 3, 3, 4, dice.randrange(5)))
    changed = [mutating.of_pickle(dice, one) if n == chosen else one for n, one in enumerate(pickles)]
    return b"".join(changed) + rest


# Files by safetensors.


@functools.cache
def safetensors_seed():
    folder = Path("seed.safetensors")
    hf.save_safetensors(hf.STATE | models.state(), folder, {"format": "pt", "step": "7"})
    data = folder.read_bytes()
    folder.unlink()
    length = int.from_bytes(data[:8], "little")
    return data[8 : 8 + length], data[8 + length :]


def safetensors_mutant(dice):
    header, data = safetensors_seed()
    change = dice.randrange(6)
    if change == 0:
        return mutating.of_bytes(dice, assembled(header, data))
    if change == 1:
        return assembled(mutating.of_bytes(dice, header), data)
    if change == 2:
        return assembled(mutating.of_json(dice, header), mutating.of_bytes(dice, data, 1))
    return assembled(mutating.of_json(dice, header), data)


def compare_described(ours, theirs):
    found = {name: ours.values[id(leaf)] for name, leaf in ours.root.items()}
    return "" if found == theirs else f"{sorted(set(found.items()) ^ set(theirs.items()))[:2]}"


# Folders.


def make_hf_folder(folder):
    from hostile.corpus_folders import hf_folder

    hf_folder()(folder / "folder")
    index_seed()


@functools.cache
def index_seed():
    return (Path("folder") / hf.INDEX).read_bytes()


def index_mutant(dice):
    change = dice.randrange(4)
    return mutating.of_bytes(dice, index_seed()) if change == 0 else mutating.of_json(dice, index_seed())


FORMATS = {
    "safetensors": Format(
        safetensors_mutant,
        written_to("x.safetensors"),
        read_one,
        comparing.safetensors_reads,
        compare_described,
    ),
    "torch zip": Format(
        zip_mutant,
        written_to("x.pt"),
        read_one,
        comparing.torch_reads,
        compare_values,
        explaining.of_torch,
    ),
    "torch legacy": Format(
        legacy_mutant,
        written_to("x.pt"),
        read_one,
        comparing.torch_reads,
        compare_values,
        explaining.of_torch,
    ),
    "hf index": Format(
        index_mutant,
        lambda mutant: folder_with(hf.INDEX, mutant),
        read_a_folder,
        lambda _: comparing.folder_reads(Path("folder"), hf.INDEX),
        compare_described,
        prepare=make_hf_folder,
    ),
    "npy": Format(
        fuzz_arrays.npy_mutant,
        written_to("x.npy"),
        fuzz_arrays.rows_of(None),
        fuzz_arrays.numpy_reads(None),
        fuzz_arrays.compare_arrays,
    ),
    "npz": Format(
        fuzz_arrays.npz_mutant,
        written_to("x.npz"),
        fuzz_arrays.rows_of("x"),
        fuzz_arrays.numpy_reads("x"),
        fuzz_arrays.compare_arrays,
        explaining.of_archives,
    ),
    **fuzz_ranks.FORMATS,
    **fuzz_recipes.FORMATS,
    **fuzz_images.FORMATS,
    **fuzz_tars.FORMATS,
    **fuzz_tables.FORMATS,
}
