"""`swatool soup` from the command line: what it says, its exit codes, and how it is stopped."""

import dataclasses
import inspect
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
import torch
from processes import is_gone
from safetensors.torch import save_file
from typer.testing import CliRunner

from swatool.cli import app
from swatool.cli.average import average
from swatool.cli.soup import soup as command
from swatool.jobs.soup import SoupSettings
from swatool.jobs.soup_work import work_folder

# Reads the first number of the only tensor, without torch, and may end its parent at a certain call.
SCRIPT = """
import json, os, struct, sys

open("calls", "a").write(sys.argv[1] + "\\n")
if os.path.exists("fatal"):
    number, kind = open("fatal").read().split()
    if len(open("calls").readlines()) == int(number):
        os.unlink("fatal")
        os.kill(os.getppid(), int(kind))
        if int(kind) != 9:
            import time
            time.sleep(60)
data = open(sys.argv[1], "rb").read()
begin = 8 + struct.unpack("<Q", data[:8])[0]
print("first", struct.unpack("<f", data[begin : begin + 4])[0])
"""
EVAL = f"{sys.executable} evaluate.py {{path}}"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evaluate.py").write_text(SCRIPT)
    os.mkdir("run")
    for step, first in enumerate((4.0, 1.0, 5.0, 5.0)):
        save_file({"w": torch.tensor([first, 0.0])}, f"run/m-{step}.safetensors")
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(app, ["soup", "run", "--eval", EVAL, "--mode", "max", *arguments])


def fresh(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "swatool", "soup", "run", "--eval", EVAL, "--mode", "max", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


def test_what_is_said():
    result = run("-o", "soup.safetensors")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == "4 members in order by their own evaluations; at most 7 evaluations"
    assert lines[2] == "1/7 evaluated 'run/m-0.safetensors': value 4"
    assert lines[6] == "5/7 accepted, the average with 'run/m-2.safetensors': value 5"
    assert [line.split() for line in lines[9:14]] == [
        ["member,", "in", "the", "order", "tried", "own", "value", "with", "it"],
        ["run/m-3.safetensors", "5", "5", "accepted"],
        ["run/m-2.safetensors", "5", "5", "accepted"],
        ["run/m-0.safetensors", "4", "4.66667", "rejected"],
        ["run/m-1.safetensors", "1", "3.66667", "rejected"],
    ]
    assert lines[14] == "soup of 2 of 4 members: value 5; its first member alone: 5"
    assert lines[15].startswith("wrote 'soup.safetensors': ")


def test_the_json_report():
    result = run("-o", "soup.safetensors", "--json", "--max-members", "1")
    data = json.loads(result.stdout)
    assert (data["schema"], data["command"], data["value"], data["evaluations"]) == (1, "soup", 5, 4)
    assert data["members"][0] == {
        "path": "run/m-3.safetensors", "own": 5, "value": 5, "metrics": {"value": 5}, "accepted": True,
    }  # fmt: skip
    assert data["members"][1]["accepted"] is None
    assert data["average"]["output"]["path"] == "soup.safetensors"
    again = run("-o", "soup.safetensors", "--json")
    assert again.exit_code == 2
    assert json.loads(again.stderr)["exit_code"] == 2


def test_a_dry_run():
    result = run("--dry-run")
    assert result.exit_code == 0
    assert "at most 7 evaluations" in result.stdout
    assert not os.path.exists("calls")


def test_quiet_says_nothing():
    result = run("-q")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")


def test_the_settings_are_options_with_their_defaults():
    parameters = inspect.signature(command).parameters
    for field in dataclasses.fields(SoupSettings):
        expected = None if field.default == () else field.default
        assert parameters[field.name].default == expected, field.name
        if field.name in inspect.signature(average).parameters and field.name != "metrics":
            assert (
                parameters[field.name].annotation
                == inspect.signature(average).parameters[field.name].annotation
            )


def test_options_reach_the_settings(monkeypatch):
    given = {}
    monkeypatch.setattr("swatool.cli.soup.run", lambda *_, **options: given.update(options) or 1 / 0)
    run("--exclude", "a.*", "--strip-prefix", "m.", "--dtype", "bfloat16", "--last", "3", "--order-by", "acc",
        "--metrics", "t.csv", "--min-gain", "0.5", "--restart", "-j", "2")  # fmt: skip
    assert given["settings"] == SoupSettings(
        exclude=("a.*",), strip_prefix=("m.",), dtype="bfloat16", last=3, order_by="acc", metrics="t.csv",
        min_gain=0.5, threads=2,
    )  # fmt: skip
    assert given["restart"] is True
    assert (given["scoring"].evaluate, given["scoring"].mode) == (EVAL, "max")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--mode", "best"], 2),
        (["--eval", "false {path}"], 6),
        (["--eval", "nothing"], 2),
        (["--order-by", "acc"], 4),
        (["-o", "missing/soup.safetensors"], 5),
    ],
)
def test_exit_codes(arguments, code):
    result = run("-o", "soup.safetensors", *arguments)
    assert result.exit_code == code, result.output
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1 or code == 4
    assert {name for name in os.listdir() if "soup" in name} == set()


def test_the_evaluation_and_the_mode_must_be_given():
    for arguments in (["--eval", EVAL], ["--mode", "max"]):
        result = CliRunner().invoke(app, ["soup", "run", *arguments])
        assert result.exit_code == 2
        assert "Missing option" in result.stderr


SLOW = "sh -c 'sleep 77 & echo $! > inner.new; mv inner.new inner; wait; echo 1 {path}'"


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_what_an_evaluation_started_is_stopped_with_it(kind):
    command = [sys.executable, "-m", "swatool", "soup", "run", "--eval", SLOW, "--mode", "max", "-q"]
    process = subprocess.Popen(
        command, stderr=subprocess.DEVNULL, preexec_fn=lambda: signal.signal(kind, signal.SIG_DFL)
    )
    inner = pathlib.Path("inner")
    for _ in range(3000):
        if inner.exists():
            break
        time.sleep(0.01)
    process.send_signal(kind)
    assert process.wait(30) == 128 + kind
    assert is_gone(int(inner.read_text()))


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGINT])
def test_a_process_that_is_stopped_goes_on(folder, kind):
    (folder / "fatal").write_text(f"6 {int(kind)}")
    done = fresh("-o", "soup.safetensors", "-q")
    assert done.returncode == (-9 if kind is signal.SIGKILL else 130), done.stderr
    if kind is signal.SIGINT:
        assert done.stderr == (
            "error: stopped by SIGINT; what was found is kept in 'soup.safetensors.soup.incomplete', and the "
            "same command goes on from there; no output was written\n"
        )
    assert not os.path.exists("soup.safetensors")
    assert len((folder / "calls").read_text().splitlines()) == 6
    result = run("-o", "soup.safetensors")
    assert result.exit_code == 0, result.output
    assert "going on where an earlier run was stopped" in result.stdout
    assert len((folder / "calls").read_text().splitlines()) == 8  # the sixth came again
    assert not os.path.exists(work_folder("soup.safetensors"))
