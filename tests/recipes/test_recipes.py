"""Every recipe is planned, as it stands, against inputs like those that it speaks of; some are run."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
import typer
import yaml
from safetensors.torch import load_file, save_file

from swatool.cli import app
from swatool.jobs.recipes import run_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
CI = [RECIPES / "ci" / "github.yml", RECIPES / "ci" / "gitlab.yml"]
FILES = sorted({*RECIPES.rglob("*.yaml"), *RECIPES.rglob("*.yml")} - set(CI))
STEPS = range(1000, 8000, 1000)


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A copy of the recipes, without what a run of the demo left."""
    shutil.copytree(RECIPES, tmp_path / "recipes", ignore=shutil.ignore_patterns("run", "__pycache__"))
    monkeypatch.chdir(tmp_path / "recipes")
    monkeypatch.setenv("RUN_DIR", "run")
    return tmp_path / "recipes"


def state(step):
    generator = torch.Generator().manual_seed(step)
    return {"w": torch.randn(6, 4, generator=generator), "b": torch.randn(6, generator=generator)}


def digits():
    os.makedirs("digits/run")
    for step in STEPS:
        torch.save({"model": state(step), "step": step}, f"digits/run/ckpt-{step}.pt")
    save_file(state(0), "digits/run/train.npz")  # a dry run looks only whether it is there


def speech():
    os.makedirs("exp/asr")
    with open("exp/asr/valid.csv", "w") as table:
        table.write("epoch,val_loss\n")
        for epoch in range(1, 13):
            torch.save({"state_dict": state(epoch), "epoch": epoch}, f"exp/asr/epoch-{epoch}.pt")
            table.write(f"{epoch},{abs(epoch - 7) + 0.5}\n")


def trainer():
    for step in STEPS:
        folder = Path("run", f"checkpoint-{step}")
        folder.mkdir(parents=True)
        weights = {name: value.bfloat16() for name, value in state(step).items()}
        for number, (name, value) in enumerate(weights.items(), 1):
            save_file({name: value}, folder / f"model-0000{number}-of-00002.safetensors", {"format": "pt"})
        files = {name: f"model-0000{number}-of-00002.safetensors" for number, name in enumerate(weights, 1)}
        index = {"metadata": {"total_size": 60}, "weight_map": files}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        (folder / "config.json").write_text("{}")


def distributed():
    for step in STEPS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dcp.save({"model": state(step)}, checkpoint_id=f"run/step-{step}", no_dist=True)


def snapshots():
    os.mkdir("snapshots")
    for step in STEPS:
        for width in ("0.050", "0.100"):
            save_file(state(step), f"snapshots/phema-{step}-{width}.safetensors")


def trained():
    os.makedirs("ci/run")
    for step in STEPS:
        torch.save({"model": state(step), "step": step}, f"ci/run/ckpt-{step}.pt")
    for name in ("model.py", "train.npz"):
        Path("ci", name).touch()


INPUTS = {
    "digits/swa.yaml": (digits, 4),
    "speech_best_k.yaml": (speech, 1),
    "llm_last_n.yaml": (trainer, 3),
    "llm_last_n_dcp.yaml": (distributed, 2),
    "edm2_posthoc.yaml": (snapshots, 3),
    "ci/average.yaml": (trained, 1),
}


def test_every_recipe_has_its_test_and_stands_in_the_list():
    assert {str(path.relative_to(RECIPES)) for path in FILES} == set(INPUTS)
    listed = (RECIPES / "README.md").read_text()
    for path in (*FILES, *CI, RECIPES / "greedy_soup.sh"):
        assert f"({path.relative_to(RECIPES)})" in listed
        assert path.read_text().startswith("#")


@pytest.mark.parametrize("name", INPUTS)
def test_it_is_planned_as_it_stands(name, place, monkeypatch):
    make, outputs = INPUTS[name]
    make()
    programs = place / "bin"
    programs.mkdir()
    (programs / "python").symlink_to(sys.executable)
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)
    before = sorted(place.rglob("*"))
    report = run_recipe(name, dry_run=True)
    assert len(report.outputs) == outputs
    assert sorted(place.rglob("*")) == before


def test_the_best_epochs_are_those_with_the_lowest_loss():
    speech()
    report = run_recipe("speech_best_k.yaml")
    assert [one.step for one in report.outputs[0].average.checkpoints] == [5, 6, 7, 8, 9]
    expected = sum(state(epoch)["w"].double() for epoch in range(5, 10)) / 5
    made = torch.load("exp/asr/avg-best5.pt", weights_only=True)["state_dict"]["w"]
    assert torch.allclose(made.double(), expected, atol=1e-6)


def test_the_merges_of_a_run_are_folders_that_load():
    trainer()
    run_recipe("llm_last_n.yaml")
    mean = sum(state(step)["w"].bfloat16().double() for step in STEPS[-4:]) / 4
    made = load_file("merged-lawa/model.safetensors")["w"]
    assert torch.equal(made, mean.bfloat16())
    assert sorted(os.listdir("merged-pma")) == ["config.json", "model.safetensors"]


def test_the_merges_of_distributed_checkpoints():
    distributed()
    run_recipe("llm_last_n_dcp.yaml")
    assert load_file("merged-lawa/model.safetensors").keys() == {"w", "b"}
    assert ".metadata" in os.listdir("merged-wsm-dcp")


def test_the_digits_are_averaged_recalibrated_evaluated_and_checked():
    pytest.importorskip("sklearn")
    # In one process, because importing everything takes longer than all else.
    everything = (
        "import data, pathlib, sys, train, torch\n"
        "from swatool.cli import main\n"
        "torch.set_num_threads(1)\n"
        "short = dict(warmup_epochs=1, falling_epochs=1, constant_epochs=2, save_every=1)\n"
        "train.train(pathlib.Path('run'), train.Settings(**short))\n"
        "sys.argv = ['data.py', 'run/train.npz']\n"
        "data.main()\n"
        "sys.argv = ['swatool', 'run', 'swa.yaml', '--set', 'run.threads=1']\n"
        "main()"
    )
    command = [sys.executable, "-c", everything]
    done = subprocess.run(command, timeout=120, cwd="digits", capture_output=True, text=True, check=False)
    assert done.returncode in (0, 6), done.stderr  # after so little training, who knows what is better
    report = json.loads(Path("digits/run/recipe.json").read_text())
    assert len(report["checks"]) == 3
    assert report["passed"] == all(one["passed"] for one in report["checks"]) == (done.returncode == 0)
    assert all(0.5 < one["evaluation"]["value"] <= 1 for one in report["outputs"])
    assert [one["kept"] for one in report["outputs"]] == [True, True, False, False]
    for one in report["outputs"][:2]:
        averaged, recalibrated = (
            load_file(f"digits/{path}") for path in (one["average"]["output"]["path"], one["recalibrated"])
        )
        assert not torch.equal(averaged["1.running_mean"], recalibrated["1.running_mean"])
        assert torch.equal(averaged["0.weight"], recalibrated["0.weight"])
    assert report["recipe"]["run"] == {"threads": 1}


def commands_in(path):
    """Command lines of swatool in a file, without comments."""
    text = re.sub(r"`#.*?`", "", path.read_text()).replace("\\\n", " ")
    for line in text.splitlines():
        found = re.search(r"(?:^|- |run: )\s*(swatool .*)$", re.sub(r"(^|\s)#.*", "", line))
        if found:
            yield shlex.split(found[1])[1:]


@pytest.mark.parametrize("path", [*CI, RECIPES / "greedy_soup.sh"], ids=lambda path: path.name)
def test_the_command_lines_exist_as_they_are_written(path):
    found = list(commands_in(path))
    assert found
    for command, *arguments in found:
        parsed = typer.main.get_command(app).commands[command].make_context(command, arguments)
        if command == "run":
            assert (RECIPES / "ci" / parsed.params["recipe"]).is_file()


@pytest.mark.parametrize("path", CI, ids=lambda path: path.name)
def test_a_step_of_ci_is_yaml_and_checks_before_it_uploads(path):
    assert yaml.safe_load(path.read_text())
    text = path.read_text()
    order = [
        text.index(word) for word in ("train.py --out", "--dry-run", "run average.yaml #", "report.json")
    ]
    assert order == sorted(order)
