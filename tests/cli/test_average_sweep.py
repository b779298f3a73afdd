"""Sweeps, and choosing by metric, from the command line."""

import json
import os
import re
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from swatool.cli import app


@pytest.fixture(autouse=True)
def run_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkdir("run")
    for step in range(6):
        value = torch.full((3,), float(step))
        save_file({"w": value}, f"run/step-{step}-acc={step % 3}.safetensors")
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(app, ["average", *map(str, arguments)])


def first(path):
    return float(load_file(path)["w"][0])


def test_a_sweep_is_told_and_written():
    done = run("run", "--sweep", "last=2,4", "-o", "avg-{last}.safetensors")
    assert done.exit_code == 0, done.stderr
    assert (first("avg-2.safetensors"), first("avg-4.safetensors")) == (4.5, 3.5)
    lines = done.stdout.splitlines()
    assert lines[1].split() == ["avg-2.safetensors", "last", "2", "2", "2", "0.5", "steps"]
    assert sum(line.startswith("wrote 'avg-") for line in lines) == 2


def test_json_of_a_sweep_with_an_evaluation():
    command = f'{sys.executable} -c "import sys; print(len(sys.argv[1]))" {{path}}'
    done = run(
        *("run", "--sweep", "last=2,3", "--sweep", "method=swa,wma", "-o", "{method}-{last}.pt", "--json"),
        *("--eval", command, "--mode", "max", "--metric", "length", "--keep", "all"),
    )
    assert done.exit_code == 0, done.stderr
    data = json.loads(done.stdout)
    assert set(data) == {"schema", "version", "command", "dry_run", "metric", "mode", "outputs", "failures"}
    assert (data["metric"], data["mode"], len(data["outputs"])) == ("length", "max", 4)
    assert data["outputs"][0]["values"] == {"last": "2", "method": "swa"}
    assert data["outputs"][0]["metrics"] == {"length": 8.0}
    assert data["outputs"][0]["report"]["output"]["path"] == "swa-2.pt"


def test_the_worse_are_removed():
    command = f'{sys.executable} -c "import sys; print(sys.argv[1][4])" {{path}}'
    done = run("run", "--sweep", "last=2,5,3", "-o", "avg-{last}.pt", "--eval", command, "--mode", "min")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.splitlines()[-3:] == [
        "avg-2.pt                 2     kept",
        "avg-3.pt                 3  removed",
        "avg-5.pt                 5  removed",
    ]
    assert sorted(os.listdir()) == ["avg-2.pt", "run"]


def test_one_average_can_be_evaluated():
    done = run("run", "--eval", f'{sys.executable} -c "print(7)" {{path}}', "--mode", "max")
    assert done.exit_code == 0, done.stderr
    assert "evaluated 'averaged.safetensors': value 7" in done.stdout.splitlines()
    assert os.path.exists("averaged.safetensors")


def test_an_evaluation_that_fails():
    command = f'{sys.executable} -c "raise SystemExit(3)" {{path}}'
    done = run("run", "--sweep", "last=2,3", "-o", "{last}.pt", "--eval", command, "--mode", "max")
    assert done.exit_code == 6
    assert done.stderr.startswith("error: --eval ")
    assert "ended with 3 on '2.pt'; all 2 averages are kept" in done.stderr
    assert {"2.pt", "3.pt"} <= set(os.listdir())


def test_the_best_by_a_metric_in_the_names():
    assert run("run", "--best", "2", "--metric", "acc", "--mode", "max").exit_code == 0
    assert first("averaged.safetensors") == (2 + 5) / 2


def test_the_best_by_a_table(run_folder):
    (run_folder / "m.csv").write_text("step,loss\n" + "".join(f"{s},{abs(s - 1.4)}\n" for s in range(6)))
    arguments = ("run", "--best", "3", "--metric", "loss", "--mode", "min", "--metrics", "m.csv")
    assert run(*arguments).exit_code == 0
    assert first("averaged.safetensors") == 1.0


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--sweep", "last=2,3"], 2, "needs {last}"),
        (["--sweep", "last=2,3", "-o", "{last}.pt", "--sweep", "last=4"], 2, "given twice"),
        (["--sweep", "last=1,2", "-o", "{last}.pt"], 2, "at least two checkpoints"),
        (
            ["--sweep", "decay=0.5,2", "-o", "{decay}.pt", "--method", "ema"],
            2,
            r"--decay must lie in \[0, 1\]",
        ),
        (["--sweep", "decay=0.5", "-o", "{decay}.pt"], 2, "--decay does not belong to --method swa"),
        (["--eval", "python eval.py {path}"], 2, "--eval needs --mode"),
        (["--eval", "eval.py", "--mode", "max"], 2, "neither a command with {path}"),
        (["--keep", "all"], 2, "--keep says what is left after --eval"),
        (["--eval", "true {path}", "--mode", "max", "--keep", "none"], 2, "--keep must be one of"),
        (["--eval", "/no/such {path}", "--mode", "max"], 2, "there is no such program"),
        (["--best", "2"], 2, "--best needs --metric"),
        (["--best", "2", "--metric", "acc"], 2, "--best needs --mode"),
        (
            ["--best", "0", "--metric", "acc", "--mode", "max"],
            2,
            "--best must be a whole number of at least 1",
        ),
        (["--best", "7", "--metric", "acc", "--mode", "max"], 2, "more than the 6 checkpoints"),
        (["--best", "2", "--metric", "f1", "--mode", "max"], 4, "'f1' is not known of every checkpoint"),
        (["--metric", "acc", "--mode", "max"], 2, "have no use without --best N or --eval"),
        (["--sweep", "lst=2,4"], 2, "lst cannot be swept; did you mean last?"),
        (["--best", "2", "--metric", "acc", "--mode", "high"], 2, "--mode must be one of"),
        (["--metrics", "m.csv"], 2, "--metrics has no use"),
    ],
)
def test_what_is_refused(arguments, code, said):

    done = run("run", *arguments)
    assert done.exit_code == code
    assert re.search(said, done.stderr), done.stderr
    assert os.listdir() == ["run"]


def test_json_has_what_a_failing_evaluation_had_found():
    code = "import sys; '3' in sys.argv[1] and sys.exit(1); print(7)"
    done = run(
        *("run", "--sweep", "last=2,3,4", "-o", "avg-{last}.pt", "--json"),
        *("--eval", f'{sys.executable} -c "{code}" {{path}}', "--mode", "max"),
    )
    assert done.exit_code == 6
    error = json.loads(done.stderr)
    assert "ended with 1 on 'avg-3.pt'; all 3 averages are kept" in error["error"]
    data = json.loads(done.stdout)
    assert [(one["values"]["last"], one["value"]) for one in data["outputs"]] == [
        *(("2", 7.0), ("3", None), ("4", None))
    ]
    assert data["failures"] == [error["error"]]
    assert sorted(os.listdir()) == ["avg-2.pt", "avg-3.pt", "avg-4.pt", "run"]


def test_different_numbers_are_not_ranked():
    with open("flip.py", "w") as file:
        file.write("import sys\nprint('{\"%s\": 1}' % ('acc' if '2' in sys.argv[1] else 'loss'))\n")
    done = run(
        *("run", "--sweep", "last=2,3", "-o", "avg-{last}.pt"),
        *("--eval", f"{sys.executable} flip.py {{path}}", "--mode", "max"),
    )
    assert done.exit_code == 6
    assert "gives 'acc' of 'avg-2.pt' and 'loss' of 'avg-3.pt', which cannot be compared" in done.stderr
    assert {"avg-2.pt", "avg-3.pt"} <= set(os.listdir())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("-o", "avg-{last}.pt"), "'avg-{last}.pt' has {last}, and nothing is swept: give --sweep"),
        (
            ("--sweep", "decay=0.5,0.9", "--decay", "0.7", "--method", "ema", "-o", "{decay}.pt"),
            "--decay and --sweep decay contradict each other",
        ),
        (("--sweep", "last=2,3", "--last", "4", "-o", "{last}.pt"), "--last and --sweep last contradict"),
    ],
)
def test_what_contradicts_a_sweep(arguments, said):
    done = run("run", *arguments)
    assert (done.exit_code, said in done.stderr) == (2, True), done.stderr
    assert os.listdir() == ["run"]


def test_braces_that_name_nothing_swept_are_part_of_a_name():
    assert run("run", "-o", "avg-{x}.pt").exit_code == 0
    assert sorted(os.listdir()) == ["avg-{x}.pt", "run"]


def test_more_than_there_are_is_told():
    done = run("run", "--last", "99")
    assert done.exit_code == 0
    assert "--last 99 is more than the 6 checkpoints that there are" in done.stderr


def test_each_average_of_a_sweep_shows_its_coefficients_if_asked_for():
    done = run("run", "--sweep", "last=2,3", "-o", "avg-{last}.pt", "--dry-run", "-v")
    lines = done.stdout.splitlines()
    for count in (2, 3):
        begin = lines.index(f"coefficients of 'avg-{count}.pt':")
        rows = [line.split() for line in lines[begin + 2 : begin + 2 + count]]
        assert [float(row[-1]) for row in rows] == pytest.approx([1 / count] * count, rel=1e-5)


def test_a_sweep_larger_than_the_disk_is_told_in_a_dry_run(monkeypatch):
    monkeypatch.setattr("swatool.output.unfinished.os.statvfs", lambda _: SMALL)
    given = ("run", "--sweep", "last=2,3", "-o", "avg-{last}.pt")
    done = run(*given, "--dry-run")
    assert (done.exit_code, "all together: cannot write" in done.stderr) == (0, True), done.stderr
    done = run(*given)
    assert (done.exit_code, "make room" in done.stderr, os.listdir()) == (5, True, ["run"]), done.stderr


class SMALL:
    f_bavail, f_frsize, f_blocks = 3, 1000, 10
