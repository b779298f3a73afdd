import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from swatool.cli import app

CODE = """
import torch
from torch import nn

def build():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))

def data():
    print("loading")
    return torch.randn(40, 3, generator=torch.Generator().manual_seed(0)).split(20)

def score(path):
    print("scoring")
    return 4.0 if path.endswith(".pt") else 2.0
"""
RECIPE = """
inputs: run/*.pt
evaluate: {command: 'mine.py:score', metric: acc, mode: MODE}
outputs:
- path: a-{last}.safetensors
  sweep: {last: [2, 3]}
  recalibrate: {path: 'b-{last}.safetensors', model: mine.py:build, data: mine.py:data}
  check: {worse_than: last, by: 0.5}
report: report.json
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkdir("run")
    Path("mine.py").write_text(CODE)
    Path("r.yaml").write_text(RECIPE.replace("MODE", "min"))
    generator = torch.Generator().manual_seed(0)
    for step in (1, 2, 3):
        state = {
            "0.weight": torch.randn(4, 3, generator=generator),
            "0.bias": torch.zeros(4),
            "1.weight": torch.ones(4),
            "1.bias": torch.zeros(4),
            "1.running_mean": torch.zeros(4),
            "1.running_var": torch.ones(4),
            "1.num_batches_tracked": torch.tensor(step),
        }
        torch.save({"model": state, "step": step}, f"run/ckpt-{step}.pt")
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(app, ["run", *map(str, arguments)])


def average(*arguments):
    return CliRunner().invoke(app, ["average", *map(str, arguments)])


def test_run():
    result = run("r.yaml")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == "recipe: 'r.yaml'; paths are those of its folder"
    assert "recalibrates 'b-2.safetensors': mode batch, model 'mine.py:build', data 'mine.py:data'" in lines
    assert "evaluates 'b-3.safetensors': 'mine.py:score', the min is best" in lines
    assert "checks that 'a-{last}.safetensors' is not worse than 'last' by more than 0.5" in lines
    assert "evaluated 'b-2.safetensors': acc 2" in lines
    checked = "checked 'b-2.safetensors': 2 is not worse than the 4 of 'run/ckpt-3.pt' by more than 0.5"
    assert checked in lines
    assert [line.split() for line in lines[-5:-1]] == [
        ["output", "value"],
        ["b-2.safetensors", "2", "kept"],
        ["b-3.safetensors", "2", "removed"],
        ["run/ckpt-3.pt", "4", "checkpoint"],
    ]
    assert lines[-1].endswith("report in 'report.json'")
    assert "warning:" in result.stderr


def test_a_check_that_fails_is_exit_code_6_and_everything_is_written():
    Path("r.yaml").write_text(RECIPE.replace("MODE", "max"))
    result = run("r.yaml")
    assert result.exit_code == 6
    assert (
        "checked 'b-2.safetensors': 2 is WORSE than the 4 of 'run/ckpt-3.pt' by more than 0.5"
        in result.stdout
    )
    assert result.stderr.splitlines()[-1] == (
        "error: 'b-2.safetensors' is 2, and must not be worse than the 4 of 'run/ckpt-3.pt' by more than 0.5"
    )
    assert json.loads(Path("report.json").read_text())["passed"] is False
    assert os.path.exists("b-2.safetensors")


def test_a_dry_run_shows_everything_and_writes_nothing():
    before = sorted(os.listdir())
    result = run("r.yaml", "--dry-run", "--set", "outputs.0.check.by=0.25")
    assert result.exit_code == 0, result.stderr
    assert "set: outputs.0.check.by=0.25" in result.stdout
    assert "by more than 0.25" in result.stdout
    assert "estimate:" in result.stdout
    assert "wrote" not in result.stdout
    assert "scoring" not in result.stdout
    assert sorted(os.listdir()) == before


def test_json_is_one_object_whatever_the_users_code_prints():
    result = run("r.yaml", "--json")
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert (report["schema"], report["command"], report["passed"]) == (1, "run", True)
    assert "scoring" in result.stderr
    assert json.loads(Path("report.json").read_text())["outputs"][0]["average"]["tensors"]["averaged"] == 6


def test_json_tells_errors_too():
    result = run("gone.yaml", "--json")
    assert (result.exit_code, result.stdout) == (2, "")
    assert json.loads(result.stderr)["exit_code"] == 2


def test_quiet_is_quiet():
    Path("mine.py").write_text(CODE.replace('print("scoring")', "").replace('print("loading")', ""))
    result = run("r.yaml", "-q")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")


def test_the_schema_needs_no_recipe():
    result = run("--schema")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["required"] == ["inputs", "outputs"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name a recipe"),
        (["gone.yaml"], "cannot read the recipe 'gone.yaml': No such file"),
        (["run"], "the recipe 'run' is a folder"),
        (["r.yaml", "--set", "outpts.0.path=x"], "did you mean outputs?"),
        (["r.yaml", "--set", "outputs.1.path=x"], "no index"),
        (["r.yaml", "--set", "select.last=two"], "select.last must be a whole number, not 'two'"),
    ],
)
def test_what_is_refused_is_one_sentence_and_exit_code_2(arguments, said):
    before = sorted(os.listdir())
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["run/*.pt", "-o", "out.safetensors"],
        ["run", "-o", "out.pt", "--method", "ema", "--decay", "0.25", "--last", "2", "--dtype", "bfloat16"],
        ["run", "-o", "out/", "--weights", "1,2,3", "--exclude", "1.*", "--max-shard-size", "100"],
        ["run", "-o", "out-{last}.safetensors", "--sweep", "last=2,3"],
        ["run", "-o", "out.safetensors", "--weights", "1,1,1", "--no-normalize"],
        ["run", "-o", "out-{decay}.safetensors", "--method", "ema", "--sweep", "decay=0.50,1e-3"],
    ],
    ids=" ".join,
)
def test_a_saved_recipe_makes_the_same_bytes(arguments):
    first = average(*arguments, "--save-recipe", "saved.yaml")
    assert first.exit_code == 0, first.stderr
    assert "wrote the recipe 'saved.yaml'" in first.stdout
    made = {path: path.read_bytes() for path in written()}
    assert made
    for path in made:
        path.unlink()
    if Path("out").is_dir():
        Path("out").rmdir()
    second = run("saved.yaml")
    assert second.exit_code == 0, second.stderr
    assert {path: path.read_bytes() for path in written()} == made


def written():
    return [path for path in sorted(Path().rglob("*")) if str(path).startswith("out") and path.is_file()]


def test_a_recipe_is_saved_in_a_dry_run_too_and_never_replaces_another():
    result = average("run", "--dry-run", "--save-recipe", "saved.yaml")
    assert result.exit_code == 0
    assert Path("saved.yaml").read_text().startswith("# Written by `swatool average --save-recipe`")
    assert not os.path.exists("averaged.safetensors")
    again = average("run", "--save-recipe", "saved.yaml")
    assert (again.exit_code, again.stdout) == (2, "")
    assert "'saved.yaml' exists" in again.stderr
    assert not os.path.exists("averaged.safetensors")


def test_no_recipe_is_saved_of_what_fails():
    result = average("run", "--last", "1", "--save-recipe", "saved.yaml")
    assert result.exit_code == 2
    assert not os.path.exists("saved.yaml")


def test_where_the_users_code_failed_is_shown_if_asked_for():
    Path("mine.py").write_text(
        "def build():\n    return 1 / 0\n\n\ndef data():\n    return []\n\n\nscore = len\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "swatool", "run", "r.yaml", "-v"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    assert "return 1 / 0" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")
