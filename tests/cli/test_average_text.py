import dataclasses
import io
import re

from swatool.averaging.schemes import SCHEMES
from swatool.cli import render
from swatool.cli.average_text import tell_plan, tell_ranking, tell_score, tell_summary
from swatool.cli.render import Telling
from swatool.report import (
    CheckpointReport,
    FiguresReport,
    OutputReport,
    Report,
    Seconds,
    SweepReport,
    SweptReport,
    TensorsReport,
)

REPORT = Report(
    version="1.2.3",
    command="average",
    dry_run=False,
    method="ema",
    parameters={"decay": 0.5, "debias": False},
    checkpoints=(CheckpointReport("run/a.pt", None, 10, 0.25), CheckpointReport("b.pt", 700, 123456, 0.75)),
    figures=FiguresReport(1.6, 175.0, "steps", 1.0),
    output=OutputReport("out.safetensors", 1_200_000),
    tensors=TensorsReport(("w", "b"), ("n",), (), ("t",), ("n",)),
    dtype={"bfloat16": 8},
    device="cpu",
    threads=2,
    seconds=Seconds(1.0, 2.0, 3.0, 7.0),
    bytes_read=6_000_000,
    bytes_written=2_000_000,
    peak_rss_bytes=250_000_000,
    merge_signal_kept=0.876,
    warnings=("take care", "mind the step"),
)
PLAN = [
    "checkpoint  step    size  coefficient",
    "run/a.pt       -    10 B         0.25",
    "b.pt         700  123 kB         0.75",
    "method: ema, decay 0.5, debias False",
    "amounts to 1.6 checkpoints, 175 steps behind the last",
    "tensors: 2 averaged, 1 copied, 0 dropped, 1 tied",
    "reads 6 MB, writes 2 MB to 'out.safetensors' (safetensors) on cpu with 2 threads",
]
NAMES = ["averaged: 'w'", "averaged: 'b'", "copied: 'n'", "tied: 't'"]
SUMMARY = [
    "wrote 'out.safetensors': 2 averaged, 1 copied, 0 dropped, 1 tied, 1.2 MB",
    "2.00 s reading, adding and writing (4 MB/s), 3.00 s fsync, 7.00 s in all; peak memory 250 MB",
    "merge signal kept: 87.6% (bfloat16)",
]
WARNINGS = ["warning: take care", "warning: mind the step"]


def alone(report):
    return SweepReport("1.2.3", "average", False, (SweptReport({}, report),), None, None)


def told(capsys, report=REPORT, **options):
    options = {"quiet": False, "verbose": False, **options}
    with Telling(**options) as telling:
        tell_plan(telling, alone(report))
        telling.progress(3)
        tell_summary(telling, alone(report))
        tell_ranking(telling, alone(report))
        telling.warnings(report.warnings)
    found = capsys.readouterr()
    return found.out.splitlines(), found.err.splitlines()


def test_plain_lines_off_a_terminal(capsys):
    assert told(capsys) == (PLAN + SUMMARY, WARNINGS)


def test_names_if_asked_for(capsys):
    lines, warnings = told(capsys, verbose=True)
    assert (lines[:4], lines[6:]) == (PLAN[:4], [*PLAN[4:], *NAMES, *SUMMARY])
    assert [line.partition(":")[0] for line in lines[3:6]] == ["method", "formula", "source"]
    assert lines[4].removeprefix("formula: ") == SCHEMES["ema"].formula
    assert warnings == WARNINGS


def test_quiet(capsys):
    assert told(capsys, quiet=True, verbose=True) == ([], [])
    Telling(quiet=True, verbose=False).warnings(REPORT.warnings, even_if_quiet=True)
    assert capsys.readouterr().err.splitlines() == WARNINGS


def test_no_signal_no_line(capsys):
    lines, _ = told(capsys, dataclasses.replace(REPORT, merge_signal_kept=None))
    assert lines == PLAN + SUMMARY[:-1]


def test_names_from_files_cannot_drive_a_terminal(capsys):
    hostile = "\x1b]0;owned\x07\r\n\u202e"
    report = dataclasses.replace(
        REPORT,
        checkpoints=(CheckpointReport(hostile, 1, 10, 1.0),),
        output=OutputReport(hostile, 1),
        tensors=TensorsReport((hostile,), (hostile,), (hostile,), (hostile,)),
    )
    lines, _ = told(capsys, report, verbose=True)
    assert len(lines) == 1 + 1 + 6 + 4 + 3
    assert not set("\x1b\x07\r\u202e") & set("".join(lines))
    assert lines[1].startswith("\\x1b]0;owned")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_table_and_progress_bar_on_a_terminal(monkeypatch):
    out, err = Terminal(), Terminal()
    monkeypatch.setattr(render.sys, "stdout", out)
    monkeypatch.setattr(render.sys, "stderr", err)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    report = dataclasses.replace(
        REPORT, checkpoints=(CheckpointReport("[red]\x1b[31m.pt", 1, 10, 1.0), *REPORT.checkpoints)
    )
    with Telling(quiet=False, verbose=False) as telling:
        tell_plan(telling, alone(report))
        telling.progress(3_000_000)
        tell_summary(telling, alone(report))
    assert "┃" in out.getvalue()
    # What looks like rich's markup is a name, and is shown as it is.
    assert "[red]\\x1b[31m.pt" in re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())
    assert "0.25" in out.getvalue()
    assert err.getvalue().endswith(("\x1b[?25h", "\x1b[2K"))


def test_a_sweep(capsys):
    other = dataclasses.replace(
        REPORT, output=OutputReport("b.pt", 1), figures=FiguresReport(0.5, 2.0, "checkpoints", 3.0)
    )
    found = SweepReport(
        version="1.2.3",
        command="average",
        dry_run=False,
        outputs=(
            SweptReport({"decay": "0.5", "last": "2"}, REPORT, 0.75, {"acc": 0.75, "loss": 2.0}),
            SweptReport({"decay": "0.9", "last": "2"}, other, 0.5, {"acc": 0.5}, kept=False),
        ),
        metric="acc",
        mode="max",
    )
    with Telling(quiet=False, verbose=False) as telling:
        tell_plan(telling, found)
        tell_score(telling, found.outputs[0])
        tell_summary(telling, found)
        tell_ranking(telling, found)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        "average                       with  checkpoints  effective            lag",
        "out.safetensors  decay 0.5, last 2            2        1.6      175 steps",
        "b.pt             decay 0.9, last 2            2        0.5  2 checkpoints",
    ]
    assert "amounts to 0.5 checkpoints, 2 checkpoints behind the last; rounding amplified 3 times" in lines
    assert "evaluated 'out.safetensors': acc 0.75, loss 2" in lines
    assert lines[-3:] == [
        "average, best first   acc         ",
        "out.safetensors      0.75     kept",
        "b.pt                  0.5  removed",
    ]
