"""A few hostile inputs of each format through the program itself, as a user runs it."""

import os
import resource
import subprocess
import sys

import pytest

from hostile.commands import prepare
from hostile.corpus import CASES
from hostile.judging import faults_of_words

SAMPLE = (
    *("attack: os.system 0 in a zip", "zip: a bomb", "legacy: no storages listed", "pickle: a deep key"),
    *("safetensors: header of 2^63 bytes", "safetensors: 60,000 empty tensors and a lie"),
    *("index: a way out 0, model.safetensors.index.json", "attack: root in .metadata", "no file: a FIFO"),
    "something else: an LFS pointer",
)
SECONDS = 5  # of the processor, the start of the program included


@pytest.mark.parametrize("name", SAMPLE)
@pytest.mark.parametrize("command", ["inspect", "average"])
def test_the_program_refuses(tmp_path, monkeypatch, name, command):
    case = CASES[name]
    if command == "average" and name not in SAMPLE[:2]:
        pytest.skip("the process of the other tests has done that")
    monkeypatch.chdir(tmp_path)
    prepare(case)
    before = sorted(os.listdir("."))
    begun = resource.getrusage(resource.RUSAGE_CHILDREN)
    arguments = ["inspect", case.target] if command == "inspect" else ["average", "good.pt", case.target]
    run = subprocess.run(
        [sys.executable, "-m", "swatool", *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert run.returncode == 3
    assert not faults_of_words(case, 3, run.stdout + run.stderr, run.stderr)
    assert ended.ru_utime - begun.ru_utime < SECONDS
    assert sorted(os.listdir(".")) == before
