"""FSDP2 on two ranks, with gloo, on the CPU: averages stay sharded, and are those of the plain model."""

import pathlib
import subprocess
import sys

import pytest
import torch.distributed

SCRIPT = pathlib.Path(__file__).with_name("sharded_training.py")


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed")
def test_sharded_averages_are_those_of_the_plain_model():
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        SCRIPT,
        "2",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all is well" in done.stdout
