import dataclasses
import io
import os
import pty
import re
import subprocess
import sys
import threading

import pytest
import torch

from swatool.cli import render
from swatool.cli.render import Telling, size
from swatool.report import CheckpointReport, OutputReport, Report, Seconds, TensorsReport

REPORT = Report(
    version="1.2.3",
    command="average",
    dry_run=False,
    method="ema",
    parameters={"decay": 0.5, "debias": False},
    checkpoints=(CheckpointReport("run/a.pt", None, 10, 0.25), CheckpointReport("b.pt", 700, 123456, 0.75)),
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
    "tensors: 2 averaged, 1 copied, 0 dropped, 1 tied",
    "reads 6 MB, writes 2 MB to 'out.safetensors' on cpu with 2 threads",
]
NAMES = ["averaged: 'w'", "averaged: 'b'", "copied: 'n'", "tied: 't'"]
SUMMARY = [
    "wrote 'out.safetensors': 2 averaged, 1 copied, 0 dropped, 1 tied, 1.2 MB",
    "2.00 s reading, adding and writing (4 MB/s), 3.00 s fsync, 7.00 s in all; peak memory 250 MB",
    "merge signal kept: 87.6% (bfloat16)",
]
WARNINGS = ["warning: take care", "warning: mind the step"]


def told(capsys, report=REPORT, **options):
    options = {"quiet": False, "verbose": False, **options}
    with Telling(**options) as telling:
        telling.plan(report)
        telling.progress(3)
        telling.summary(report)
        telling.warnings(report)
    found = capsys.readouterr()
    return found.out.splitlines(), found.err.splitlines()


def test_plain_lines_off_a_terminal(capsys):
    assert told(capsys) == (PLAN + SUMMARY, WARNINGS)


def test_names_if_asked_for(capsys):
    assert told(capsys, verbose=True) == (PLAN + NAMES + SUMMARY, WARNINGS)


def test_quiet(capsys):
    assert told(capsys, quiet=True, verbose=True) == ([], [])
    Telling(quiet=True, verbose=False).warnings(REPORT, even_if_quiet=True)
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
    assert len(lines) == 1 + 1 + 3 + 4 + 3
    assert not set("\x1b\x07\r\u202e") & set("".join(lines))
    assert lines[1].startswith("\\x1b]0;owned")


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (999.4, "999 B"),
        (1000, "1 kB"),
        (123_456, "123 kB"),
        (999_499, "999 kB"),
        (999_600, "1 MB"),
        (1_234_567, "1.23 MB"),
        (4e9, "4 GB"),
        (1.5e12, "1.5 TB"),
        (2.5e15, "2.5e+03 TB"),
    ],
)
def test_size(nbytes, text):
    assert size(nbytes) == text


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
        telling.plan(report)
        telling.progress(3_000_000)
        telling.summary(report)
    assert "┃" in out.getvalue()
    # What looks like rich's markup is a name, and is shown as it is.
    assert "[red]\\x1b[31m.pt" in re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())
    assert "0.25" in out.getvalue()
    assert err.getvalue().endswith(("\x1b[?25h", "\x1b[2K"))


def on_a_terminal(command):
    """Run a command with all streams on a pseudo-terminal, and return the exit code and what it wrote."""
    leader, follower = pty.openpty()
    found = []

    def listen():
        while True:
            try:
                data = os.read(leader, 4096)
            except OSError:  # how Linux says that nobody writes any more
                return
            if not data:
                return
            found.append(data)

    environment = os.environ | {"TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen(command, stdin=follower, stdout=follower, stderr=follower, env=environment)
    os.close(follower)
    thread = threading.Thread(target=listen)
    thread.start()
    code = process.wait()
    thread.join()
    os.close(leader)
    return code, b"".join(found).decode()


def test_whole_run_on_a_pseudo_terminal(tmp_path):
    files = [tmp_path / f"ckpt-{i}.pt" for i in range(2)]
    for path in files:
        torch.save({"\x1b[5mblink": torch.ones(3)}, path)
    command = [sys.executable, "-m", "swatool", "average", *files, "-o", tmp_path / "out", "-v"]
    code, text = on_a_terminal(command)
    assert code == 0
    assert "┃" in text
    assert "wrote" in text
    assert "\x1b[5m" not in text
    assert "averaged: '\\x1b[5mblink'" in text
