import io
import os
import pty
import subprocess
import sys
import threading

import pytest
import torch

from swatool.cli import render
from swatool.cli.render import Telling, size


def test_plain_lines_off_a_terminal(capsys):
    with Telling(quiet=False, verbose=False) as telling:
        telling.table(("name", "size"), [("a", "1"), ("long", "200")])
        telling.begin("working", 10, in_bytes=False)
        telling.progress(5)
        telling.lines(["done"])
        telling.warnings(["take care"])
    assert capsys.readouterr() == ("name  size\na        1\nlong   200\ndone\n", "warning: take care\n")


def test_quiet(capsys):
    with Telling(quiet=True, verbose=False) as telling:
        telling.table(("name", "size"), [("a", "1")])
        telling.lines(["done"])
        telling.warnings(["take care"])
        assert capsys.readouterr() == ("", "")
        telling.warnings(["take care"], even_if_quiet=True)
        assert capsys.readouterr() == ("", "warning: take care\n")


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


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_large_table_is_plain_lines_also_on_a_terminal(monkeypatch):
    out = Terminal()
    monkeypatch.setattr(render.sys, "stdout", out)
    Telling(quiet=False, verbose=False).table(("a", "b"), [("x", "1")] * 300)
    assert out.getvalue() == "a  b\n" + "x  1\n" * 300


@pytest.mark.parametrize(("number", "text"), [(0, "0 names"), (1, "1 name"), (1234, "1,234 names")])
def test_counted(number, text):
    assert render.counted(number, "name") == text
