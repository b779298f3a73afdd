"""Real processes over gloo on this machine."""

import json
import os
import socket
import subprocess
import sys
import textwrap

import pytest
import torch

from swatool.batchnorm.ranks import SINGLE, ElsewhereError, Ranks, ranks_from_environment
from swatool.errors import DataError, UsageError

# What every process has: a model that is not trivial, data that are sorted, and the public call.
COMMON = """
import json, sys, warnings
warnings.filterwarnings("ignore")
import torch
from torch import nn
from swatool.batchnorm.ranks import ranks_from_environment
from swatool.batchnorm.recalibrate import recalibrate_bn
from swatool.errors import SwatoolError

torch.set_num_threads(1)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn1 = nn.Conv2d(1, 4, 3), nn.SyncBatchNorm(4)
        self.instance = nn.InstanceNorm2d(4, track_running_stats=True)
        self.linear, self.bn2 = nn.Linear(4, 3), nn.BatchNorm1d(3)
        self.head = nn.BatchNorm1d(3)

    def forward(self, x):
        if WRONG and x.shape[0] == 5:
            raise WRONG
        x = self.instance(self.bn1(self.conv(x)))
        return self.bn2(self.linear(x.mean((2, 3))))

WRONG = None
torch.manual_seed(0)
model = Net().double()

def make(count):
    values = torch.randn(count, 1, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return values + torch.arange(count).view(-1, 1, 1, 1) / 10

class Sharing:
    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)

    def share(self, rank, size):
        return iter(self.batches[rank::size])

def statistics():
    state = model.state_dict().items()
    return {name: t.tolist() for name, t in state if "running" in name or "tracked" in name}
"""


def launch(code, size, *, expect=0):
    """Run the same code in several processes and return what each printed, as JSON."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    for rank in range(size):
        environment = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        environment |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(size),
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-c", COMMON + textwrap.dedent(code)]
        processes.append(
            subprocess.Popen(
                command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
    outputs = []
    try:
        for process in processes:
            output, errors = process.communicate(timeout=60)
            assert process.returncode == expect, errors
            outputs.append(json.loads(output) if output else None)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    return outputs


RUNS = """
runs = []
for mode in ("batch", "exact"):
    for count in (40, 41, 5, 9):  # 41: a last single sample; 5 and 9: a process has no batch
        for kind in (list, Sharing):
            data = kind(make(count).split(8))
            torch.manual_seed(0)
            model = Net().double()
            with_note = recalibrate_bn(model, data, mode=mode, ranks=ranks)
            layers = [[layer.values, layer.uses] for layer in with_note.layers]
            numbers = [with_note.samples, with_note.batches, with_note.passes, with_note.unreached, layers]
            runs.append([numbers, statistics()])
"""


@pytest.fixture(scope="module")
def several():
    code = (
        "with ranks_from_environment() as ranks:\n"
        + textwrap.indent(RUNS, "    ")
        + "\nprint(json.dumps(runs))"
    )
    single = launch(code, 1)[0]
    return single, launch(code, 3)


def test_several_processes_give_the_statistics_of_one(several):
    single, outputs = several
    assert [run[0][0] for run in single] == [40, 40, 41, 41, 5, 5, 9, 9] * 2
    for output in outputs:
        for (numbers, found), (expected_numbers, expected) in zip(output, single, strict=True):
            assert numbers == expected_numbers
            for name, values in expected.items():
                found_values, values = torch.tensor(found[name]).double(), torch.tensor(values).double()
                torch.testing.assert_close(found_values, values, rtol=1e-12, atol=1e-12, msg=name)


def test_all_processes_end_with_the_same_statistics(several):
    _, outputs = several
    assert outputs[0] == outputs[1] == outputs[2]


FAILURES = """
def attempt(mode, data, wrong=None):
    global WRONG
    WRONG = wrong
    try:
        recalibrate_bn(model, data, mode=mode, ranks=ranks)
    except SwatoolError as error:
        told.append([type(error).__name__, str(error)])

told = []
with ranks_from_environment() as ranks:
    for mode in ("batch", "exact"):
        for kind in (list, Sharing):
            # What fails is the last batch, which is the second process's.
            attempt(mode, kind(make(29).split(8)), ValueError("five"))
    data = make(32).split(8)
    attempt("batch", [])
    attempt("exact", [])
    attempt("exact", iter(data))
    data[1][0, 0, 0, 0] = float("nan") if ranks.rank else 0
    attempt("batch", data)
    data[1][0, 0, 0, 0] = 0
    plain = model.forward
    model.forward = lambda x: model.head(plain(x)) if float(x.mean()) > 2.5 else plain(x)
    attempt("exact", data)
print(json.dumps(told))
"""


def test_a_failure_in_one_process_is_told_by_all():
    first, second = launch(FAILURES, 2)
    assert [kind for kind, _ in first] == [kind for kind, _ in second]
    kinds = ["MismatchError"] * 4 + ["DataError"] * 2 + ["UsageError", "DataError", "UsageError"]
    assert [kind for kind, _ in first] == kinds
    for (_, one), (_, other) in zip(first[:4], second[:4], strict=True):
        assert other.startswith("the model does not take the data: batch 4 ")
        assert one == f"process 1 of 2: {other}"
    assert all("no samples" in told[turn][1] for told in (first, second) for turn in (4, 5))
    assert first[6][1].startswith("several processes cannot share an iterator")
    assert second[6][1] == f"process 0 of 2: {first[6][1]}"
    assert "batch 2 of the data" in second[7][1]
    assert all("layer 'head' and the first one does not" in told[8][1] for told in (first, second))
    assert "a single process" in second[8][1]


def test_a_process_that_dies_leaves_nobody_waiting():
    code = """
    import os
    with ranks_from_environment() as ranks:
        if ranks.rank:
            os._exit(7)
        try:
            recalibrate_bn(model, make(32).split(8), ranks=ranks)
        except SwatoolError as error:
            print(json.dumps([type(error).__name__, str(error)]), flush=True)
        os._exit(7)
    """
    first, _ = launch(code, 2, expect=7)
    assert first == ["OutputError", "process 0 of 2 lost the others: one of them ended, or is out of reach"]


def test_without_torchrun_there_is_a_single_process(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with ranks_from_environment() as ranks:
        assert ranks is SINGLE
    assert SINGLE.agree((3, 4)) == [[3, 4]]
    with pytest.raises(DataError):
        SINGLE.agree(error=DataError("own"))
    values = torch.ones(2)
    assert SINGLE.gather(values) == [values]


def test_a_failure_from_elsewhere_is_not_told_again():
    error = DataError("process 1 of 2: x")
    error.__cause__ = ElsewhereError("x")
    with pytest.raises(DataError) as caught:
        Ranks(0, 2).agree(error=error)
    assert caught.value is error


def test_long_messages_are_cut(monkeypatch):
    letters = []
    monkeypatch.setattr(Ranks, "gather", lambda _, letter: letters.append(letter) or [letter, letter])
    with pytest.raises(DataError, match="éé"):
        Ranks(0, 2).agree(error=DataError("é" * 5000))
    with pytest.raises(ValueError, match="x"):
        Ranks(0, 2).agree(error=ValueError("x"))
    assert letters[0].shape == letters[1].shape


def test_an_environment_that_makes_no_sense(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "many")
    with pytest.raises(UsageError, match="WORLD_SIZE"), ranks_from_environment():
        pass
