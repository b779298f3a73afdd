"""The digits example: training leaves ordinary checkpoints, and compare.py reads what is made of them."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

pytest.importorskip("sklearn")

DIGITS = Path(__file__).parents[2] / "recipes" / "digits"
SHORT = ["--warmup-epochs=1", "--falling-epochs=1", "--constant-epochs=3", "--save-every=1"]
STEPS = [93, 124, 155]  # 31 batches of 32 images in an epoch; the rate is constant after the second


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits") / "run"
    python("train.py", folder, *SHORT)
    return folder


def python(script, *arguments):
    command = [sys.executable, "-W", "error", DIGITS / script, *arguments]
    completed = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert completed.returncode == 0, completed.stderr
    assert completed.stderr == ""
    return completed.stdout


def build():
    spec = importlib.util.spec_from_file_location("digits_model", DIGITS / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.build()


def checkpoint(folder, step):
    return torch.load(folder / f"ckpt-{step}.pt", weights_only=True)


def test_saves_a_checkpoint_per_interval_of_the_constant_phase(run):
    assert {path.name for path in run.iterdir()} == {f"ckpt-{step}.pt" for step in STEPS}


@pytest.mark.parametrize(("step", "epoch"), [(93, 3), (124, 4), (155, 5)])
def test_checkpoint_has_the_documented_keys(run, step, epoch):
    saved = checkpoint(run, step)
    assert set(saved) == {"model", "optimizer", "step", "epoch", "val_accuracy"}
    assert (saved["step"], saved["epoch"]) == (step, epoch)
    assert type(saved["val_accuracy"]) is float
    assert 0.5 < saved["val_accuracy"] <= 1
    assert saved["optimizer"]["param_groups"][0]["lr"] == 0.05
    build().load_state_dict(saved["model"], strict=True)


def test_same_seed_gives_the_same_weights(run, tmp_path):
    python("train.py", tmp_path, *SHORT)
    first, again = (checkpoint(folder, STEPS[-1])["model"] for folder in (run, tmp_path))
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_compare_takes_the_last_checkpoint_by_step_and_adds_a_row_per_average(run, tmp_path):
    for step in STEPS:
        save_file(checkpoint(run, step)["model"], tmp_path / f"{step}.safetensors")
    table = python("compare.py", run, *(f"step {step}={tmp_path}/{step}.safetensors" for step in STEPS))
    rows = dict(re.findall(r"│ (.+?) +│ +(\S+% │ +\S+) │", table))
    assert list(rows) == [
        "last checkpoint",
        "mean of the 3 single checkpoints",
        *(f"step {step}" for step in STEPS),
    ]
    assert rows["last checkpoint"] == rows["step 155"] != rows["step 93"]
