"""The commands that read a case, and the folder in which they do: the case, and sound partners of it."""

import functools
import json
from contextlib import closing
from pathlib import Path

import torch

from hostile import models
from hostile.arrays import npy
from hostile.hf import save_safetensors
from hostile.watching import OUTPUT
from swatool.checkpoints.opening import open_checkpoint
from swatool.cli import COMMANDS
from swatool.errors import SwatoolError

__all__ = ["commands_of", "prepare"]

GOOD, OTHER = "good.pt", "other.pt"
GOOD_SAFETENSORS = "good.safetensors"
CLAIMING = "claiming.safetensors"  # says that it is the average of the good one and of the case
RECIPE = "recipe.yaml"  # JSON, which is YAML, too
AVERAGE = ["average", GOOD, OTHER, "-o", OUTPUT]
BEST = ["--best", "2", "--mode", "max", "--metric", "a", "--sort", "given"]
SOUP = ["soup", GOOD, OTHER, "-o", OUTPUT, "--eval", "hostile.models:score", "--mode", "max"]


def commands_of(case, *, widely=False):
    """Yield the name and the arguments of each command that reads what the case is given as.

    Of checkpoints, those that only open one more checkpoint are told apart `widely` only, or for a sample.
    """
    yield from OF_KIND[case.kind](case)
    if case.kind == "checkpoint" and (widely or case.sample):
        yield from as_another_input(case)


def of_a_checkpoint(case):
    average = ["average", partner(case), case.target, "-o", OUTPUT]
    yield "average", average
    yield "dry-run", [*average, "--dry-run"]
    yield "recipe", ["run", RECIPE]
    yield "inspect", ["inspect", case.target]
    yield "stats", ["inspect", "--stats", case.target]
    yield "verify", ["verify", case.target]
    yield "diff", ["diff", case.target, partner(case)]
    yield "reversed", ["diff", partner(case), case.target]
    yield "recalibrate-bn", recalibrate(case, case.target, "rows.npy")


def as_another_input(case):
    """Yield the commands in which the case is not what is averaged, verified or shown."""
    yield "like", [*AVERAGE[:-1], "out.pt", "--like", case.target]
    yield "source", ["verify", CLAIMING, "--sources", partner(case), case.target]
    yield "soup", ["soup", partner(case), case.target, *SOUP[3:]]


def of_data(case):
    yield "recalibrate-bn", recalibrate(case, GOOD, case.spec.format(case.target))
    yield "recipe", ["run", RECIPE]


def of_a_recipe(case):
    yield "metrics", [*AVERAGE, "--metrics", case.target, *BEST]
    if "run" in COMMANDS:
        yield "run", ["run", case.target]


def of_a_table(case):
    yield "metrics", [*AVERAGE, "--metrics", case.target, *BEST]
    yield "recipe", ["run", RECIPE]
    yield "soup", [*SOUP, "--order-by", "a", "--metrics", case.target]


def of_checksums(case):
    yield "verify", ["verify", case.target]
    yield "file", ["verify", f"{case.target}/model.safetensors"]
    yield "required", ["verify", "--require-checksum", case.target]


def of_sidecars(case):
    """Yield what copies them: the case is the last checkpoint, by which sidecars are taken."""
    yield "average", ["average", GOOD, case.target, "-o", "out/", "--sort", "given"]
    yield "dry-run", ["average", GOOD, case.target, "-o", "out/", "--sort", "given", "--dry-run"]
    yield "recipe", ["run", RECIPE]
    yield "soup", ["soup", GOOD, case.target, "-o", "out/", "--sort", "given", *SOUP[5:]]
    yield "recalibrate-bn", [*recalibrate(case, case.target, "rows.npy")[:-2], "out/", "--no-shuffle"]


def of_a_soup(_case):
    yield "soup", SOUP
    yield "dry-run", [*SOUP, "--dry-run"]


OF_KIND = {
    "checkpoint": of_a_checkpoint,
    "data": of_data,
    "recipe": of_a_recipe,
    "table": of_a_table,
    "sums": of_checksums,
    "sidecar": of_sidecars,
    "work": of_a_soup,
}


def partner(case):
    """Return a sound checkpoint of the case's own format."""
    return GOOD_SAFETENSORS if case.target.endswith(".safetensors") else GOOD


def recalibrate(case, checkpoint, data):
    shuffled = [] if case.kind == "data" and case.spec.startswith("wds") else ["--no-shuffle"]
    model = f"hostile.models:{case.model}"
    return ["recalibrate-bn", checkpoint, "--data", data, "--model", model, "-o", OUTPUT, *shuffled]


def prepare(case, *, claims=False):
    """Make the case and its sound partners in the current folder; and what claims to be their average."""
    for name, data in sound(case.model).items():
        Path(name).write_bytes(data)
    recipe = RECIPES.get(case.kind)
    if recipe is not None:
        Path(RECIPE).write_text(json.dumps(recipe(case)))
    case.make(Path(case.target))
    if claims:
        claim(partner(case), case.target)


@functools.cache
def sound(model):
    """Return the bytes of the files that lie in every folder, by name."""
    made = models.state(getattr(models, model))
    torch.save(made, GOOD)
    torch.save(made, OTHER)
    save_safetensors(made, Path(GOOD_SAFETENSORS))
    found = {name: Path(name).read_bytes() for name in (GOOD, OTHER, GOOD_SAFETENSORS)}
    return {**found, "rows.npy": npy((2, 2), bytes(range(16)))}


def claim(*names):
    """Write an output that claims to be the average of these, of the lengths that they have."""
    sources = [
        {"name": Path(name).name, "size": size_of(name), "step": None, "coefficient": 0.5} for name in names
    ]
    said = {"version": "0.1.0", "method": "swa", "parameters": {}, "sources": sources}
    metadata = {"format": "pt", "swatool": json.dumps(said)}
    save_safetensors(models.state(), Path(CLAIMING), metadata)


def size_of(name):
    """Return the bytes of a checkpoint's files; if it is none, some number."""
    try:
        with closing(open_checkpoint(name)) as checkpoint:
            return checkpoint.files.size
    except SwatoolError:
        return 1


RECIPES = {
    "checkpoint": lambda case: {"inputs": [partner(case), case.target], "outputs": OUTPUT},
    "data": lambda case: {
        "inputs": [GOOD, OTHER],
        "outputs": {
            "path": OUTPUT,
            "recalibrate": {
                "path": "bn.safetensors",
                "model": f"hostile.models:{case.model}",
                "data": case.spec.format(case.target),
                **({} if case.spec.startswith("wds") else {"shuffle": False}),
            },
        },
    },
    "sidecar": lambda case: {
        "inputs": [GOOD, case.target],
        "select": {"sort": "given"},
        "outputs": "out/",
    },
    "table": lambda case: {
        "inputs": [GOOD, OTHER],
        "select": {"best": 2, "mode": "max", "metric": "a", "metrics": case.target, "sort": "given"},
        "outputs": OUTPUT,
    },
}
