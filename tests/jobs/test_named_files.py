"""No average takes the place of the program that judges it."""

from pathlib import Path

import pytest
import torch

from swatool.errors import UsageError
from swatool.jobs.average_settings import AverageSettings
from swatool.jobs.scoring import Scoring
from swatool.jobs.soup import soup
from swatool.jobs.sweep_average import average_sweep

OVERWRITING = AverageSettings(overwrite=True, format="pt")


def average(scoring):
    average_sweep(["1.pt", "2.pt"], "fast-2.py", settings=OVERWRITING, scoring=scoring)


def average_several(scoring):
    average_sweep("[12].pt", "fast-{last}.py", ["last=1,2"], settings=OVERWRITING, scoring=scoring)


def make_soup(scoring):
    soup(["1.pt", "2.pt"], "fast-2.py", scoring=scoring, overwrite=True, format="pt")


@pytest.mark.parametrize("evaluate", ["python3 fast-2.py {path}", "fast-2.py:score"])
@pytest.mark.parametrize("command", [average, average_several, make_soup])
def test_an_output_is_not_the_evaluation(tmp_path, monkeypatch, evaluate, command):
    monkeypatch.chdir(tmp_path)
    for step in (1, 2):
        torch.save({"w": torch.ones(2) * step}, f"{step}.pt")
    program = "def score(path):\n    return 1.0\n\n\nprint(1.0)\n"
    Path("fast-2.py").write_text(program)
    with pytest.raises(UsageError, match=r"'fast-2\.py' is named by --eval: choose another -o"):
        command(Scoring(evaluate=evaluate, mode="max"))
    assert Path("fast-2.py").read_text() == program
