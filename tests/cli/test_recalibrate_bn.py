"""The command: options to settings, what is printed, exit codes."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from swatool.cli import app

SOURCE = """
import os, signal, time
import torch
from torch import nn


def build(width=3, bias=True):
    return nn.Sequential(nn.Linear(3, width, bias=bias), nn.BatchNorm1d(width))


def broken():
    raise RuntimeError("no weights here")


def loader():
    return torch.randn(40, 3, generator=torch.Generator().manual_seed(0)).split(10)


def interrupted():
    yield loader()[0]
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(10)


def score(model):
    return {"accuracy": 0.5, "loss": float(model[1].running_mean.abs().sum())}
"""


@pytest.fixture(autouse=True)
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(SOURCE)
    torch.manual_seed(0)
    torch.save(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).state_dict(), "swa.pt")
    return tmp_path


def run(*arguments, **options):
    options = {"model": "mine.py:build", "data": "mine.py:loader", **options}
    named = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    return CliRunner().invoke(app, ["recalibrate-bn", "swa.pt", *named, *map(str, arguments)])


def test_tells_what_will_be_and_was_done():
    result = run()
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("checkpoint: 'swa.pt', ")
    assert lines[1:5] == [
        "model: 'mine.py:build', 1 layers to recalibrate",
        "data: 'mine.py:loader'",
        "mode: batch on cpu",
        "passes over the data: 1",
    ]
    assert lines[5].split() == [
        "layer",
        "channels",
        "values",
        "mean",
        "shift",
        "channel",
        "variance",
        "ratio",
        "channel",
    ]
    assert lines[6].split()[:3] == ["1", "3", "40"]
    assert lines[7].startswith("wrote 'swa-bn.pt': 1 layers recalibrated on 40 samples, ")
    assert os.path.exists("swa-bn.pt")


def test_json():
    result = run("--json", "--eval", "mine.py:score")
    report = json.loads(result.stdout)
    assert report["schema"] == 1
    assert report["command"] == "recalibrate-bn"
    (layer,) = report["batchnorm"]["layers"]
    assert (layer["name"], layer["channels"], layer["values"]) == ("1", 3, 40)
    assert report["before"]["accuracy"] == report["after"]["accuracy"] == 0.5
    assert report["before"]["loss"] != report["after"]["loss"]


def test_quiet():
    assert run("-q").output == ""


def test_dry_run():
    result = run("--dry-run", "-v")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1] == "layer: '1'"
    assert not os.path.exists("swa-bn.pt")


def test_numbers_before_and_after_and_the_warning():
    result = run("--eval", "mine.py:score", "--higher-is-better")
    assert "'accuracy': 0.5 before, 0.5 after" in result.stdout
    assert "worse" not in result.stderr


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("width=5", "has shape [3, 3] in the checkpoint, [5, 3] in the model"),
        ("bias=false", "'0.bias' of the checkpoint is missing in the model"),
    ],
)
def test_model_arguments_are_yaml(argument, said):
    result = run("--model-arg", argument)
    assert result.exit_code == 4
    assert said in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--model-arg", "width"], 2, "--model-arg must be name=value"),
        (["--model-arg", "width={a: 1}"], 2, "--model-arg must be name=value"),
        (["--model-arg", "width=[1"], 2, "--model-arg must be name=value"),
        (["--model-arg", "width=1", "--model-arg", "width=2"], 2, "twice"),
        (["--size", "wide"], 2, "--size must be"),
        (["--size", "1x2x3"], 2, "--size must be"),
        (["--mean", "a,b"], 2, "--mean must be numbers"),
        (["--batch-size", "0"], 2, "--batch-size"),
        (["--mode", "both"], 2, "--mode must be one of batch, exact, torch"),
        (["-o", "mine.py"], 2, "one of the inputs"),
    ],
    ids=str,
)
def test_requests_that_are_refused(arguments, code, said):
    result = run(*arguments)
    assert result.exit_code == code
    assert said in result.stderr
    assert result.stderr.startswith("error: ")
    assert sorted(set(os.listdir()) - {"__pycache__"}) == ["mine.py", "swa.pt"]


def test_where_the_users_code_failed_is_shown_if_asked_for():
    brief, long = run(model="mine.py:broken"), run("-v", model="mine.py:broken")
    assert brief.exit_code == long.exit_code == 2
    assert brief.stderr.count("\n") == 1
    assert "RuntimeError: no weights here" in brief.stderr
    assert "Traceback" in long.stderr
    assert 'raise RuntimeError("no weights here")' in long.stderr
    assert brief.stderr in long.stderr


def test_help_says_whose_code_is_run():
    text = " ".join(run("--help").stdout.split())
    assert "are code and are run" in text
    assert "only read" in text


def test_ctrl_c_leaves_nothing():
    command = [sys.executable, "-m", "swatool", "recalibrate-bn", "swa.pt"]
    command += ["--model", "mine.py:build", "--data", "mine.py:interrupted"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 128 + signal.SIGINT
    assert done.stderr.splitlines() == ["error: stopped by SIGINT; no output was written"]
    assert sorted(set(os.listdir()) - {"__pycache__"}) == ["mine.py", "swa.pt"]


def test_what_the_users_code_prints_does_not_disturb_json(work):
    (work / "chatty.py").write_text(SOURCE.replace("def build(", "print('hello')\n\n\ndef build("))
    done = run("--json", model="chatty.py:build")
    assert json.loads(done.stdout)["command"] == "recalibrate-bn"
    assert "hello" in done.stderr


def test_numbers_that_yaml_takes_for_texts(work):
    (work / "typed.py").write_text(
        SOURCE.replace("width=3", "width=3, rate=1.0").replace(
            "    return nn.Seq", "    assert type(rate) is float\n    return nn.Seq", 1
        )
    )
    assert run("--model-arg", "rate=1e-3", model="typed.py:build").exit_code == 0


def test_ctrl_c_with_workers_of_a_data_loader(work):
    (work / "workers.py").write_text(
        SOURCE
        + """

class Slow(torch.utils.data.Dataset):
    def __len__(self):
        return 10_000

    def __getitem__(self, index):
        if index == 200:
            os.killpg(0, signal.SIGINT)
        time.sleep(0.001)
        return torch.randn(3)


def slow():
    return torch.utils.data.DataLoader(Slow(), batch_size=50, num_workers=2)
"""
    )
    command = [sys.executable, "-m", "swatool", "recalibrate-bn", "swa.pt"]
    command += ["--model", "mine.py:build", "--data", "workers.py:slow"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=60, start_new_session=True
    )
    assert done.returncode == 128 + signal.SIGINT
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == "error: stopped by SIGINT; no output was written"
