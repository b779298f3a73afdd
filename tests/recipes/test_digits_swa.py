"""The example of averaging while training runs, and its files are checkpoints for swatool."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import swatool

pytest.importorskip("sklearn")

DIGITS = Path(__file__).parents[2] / "recipes" / "digits"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits") / "run"
    command = [sys.executable, "-W", "error", DIGITS / "train_swa.py", folder, "--epochs=5", "--swa-start=2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return folder, done.stdout


def test_scores_are_printed_and_good(run):
    rows = dict(re.findall(r"^(last weights|SWA|EMA) +accuracy ([\d.]+)%", run[1], re.MULTILINE))
    assert list(rows) == ["last weights", "SWA", "EMA"]
    assert min(map(float, rows.values())) > 80
    assert run[1].count("validation accuracy of the EMA") == 5


def test_averages_are_checkpoints(run, tmp_path):
    folder, _ = run
    assert {path.name for path in folder.iterdir()} == {"swa.pt", *(f"swa-{epoch}.pt" for epoch in (2, 3, 4))}
    swatool.average(str(folder / "swa-*.pt"), tmp_path / "out.safetensors")
    spec = importlib.util.spec_from_file_location("digits_model_swa", DIGITS / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.build()
    model.load_state_dict(load_file(tmp_path / "out.safetensors"))
    model.load_state_dict(torch.load(folder / "swa.pt", weights_only=True)["model"])
