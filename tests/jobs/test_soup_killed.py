"""A soup that is killed, whenever that is, is gone on with by the same command, and comes out the same."""

import os
import pathlib
import subprocess
import sys

import pytest
import torch


@pytest.mark.parametrize(
    ("output", "every_nth", "fewest"), [("soup.safetensors", 1, 25), ("soup/", 4, 10)], ids=["file", "folder"]
)
def test_killed_at_every_state(tmp_path, output, every_nth, fewest):
    os.mkdir(tmp_path / "run")
    generator = torch.Generator().manual_seed(4)
    for step in range(4):
        # The second is pulled far to one side, so that it is rejected.
        state = {"w": torch.randn(50, generator=generator) + 9 * (step == 1), "n": torch.tensor(step)}
        if output == "soup/":
            os.mkdir(tmp_path / f"run/checkpoint-{step}")
            torch.save(state, tmp_path / f"run/checkpoint-{step}/pytorch_model.bin")
        else:
            torch.save(state, tmp_path / f"run/m-{step}.pt")
    script = pathlib.Path(__file__).parent / "soup_killed.py"
    done = subprocess.run(
        [sys.executable, script, output, str(every_nth)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    states, evaluations = map(int, done.stdout.split())
    assert evaluations == 7
    assert states >= fewest
