"""The same of the commands beside `average`: checkpoints, data and outputs that change while they are read.

A command that only reads says what one state of the files gives, or names the file that has changed.
"""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from hostile.arrays import npy

from faults import inputs
from faults.changing import AT_A_READ, BESIDE, change_in_rounds, wrong_refusal
from faults.finding import Finding
from faults.trials import Warm, bytes_of, clear, remove

WIDTH, FEATURES = 512, 2048
CODE = f"""
from torch import nn


def build():
    return nn.Sequential(nn.Linear({FEATURES}, {WIDTH}), nn.BatchNorm1d({WIDTH}))


def score(path):
    return float(len(path))  # the shorter, the better; what lies there is of no matter
"""
CHECKPOINTS = ("c-1.safetensors", "c-2.safetensors", "c-3.safetensors")
DATA, AVERAGE, OUT, BN = "rows.npy", "average.safetensors", "out.safetensors", "bn.safetensors"
MODEL = ("--model", "mine.py:build", "--data", DATA)
RECIPE = {
    "inputs": list(CHECKPOINTS),
    "outputs": {"path": OUT, "recalibrate": {"path": BN, "model": "mine.py:build", "data": DATA}},
}
# Of a report, what differs from run to run.
MEASURED = ("seconds", "peak_rss_bytes", "bytes_read", "bytes_per_second", "threads")


@dataclass(frozen=True)
class Command:
    """A command line.

    Attributes:
        arguments: all of it.
        reads: the files that are changed, one in each round.
        outputs: what it writes.
        stays: what of that stays when something later is refused.
        keeps: what it may keep beside that to go on with.
    """

    arguments: tuple[str, ...]
    reads: tuple[str, ...]
    outputs: tuple[str, ...] = ()
    stays: tuple[str, ...] = ()
    keeps: tuple[str, ...] = ()


SOUP = ("soup", *CHECKPOINTS, "--eval", "mine.py:score", "--mode", "min", "-o", OUT, "-q")
COMMANDS = {
    "recalibrate-bn": Command(
        ("recalibrate-bn", CHECKPOINTS[0], *MODEL, "-o", BN, "-q"), (CHECKPOINTS[0], DATA), (BN,)
    ),
    "run": Command(("run", "recipe.yaml", "-q"), (*CHECKPOINTS, DATA), (OUT, BN), (OUT,)),
    "soup": Command(SOUP, CHECKPOINTS, (OUT,), keeps=(f"{OUT}.soup.incomplete",)),
    "diff": Command(("diff", *CHECKPOINTS[:2], "--json"), CHECKPOINTS[:2]),
    "inspect --stats": Command(("inspect", "--stats", *CHECKPOINTS[:2], "--json"), CHECKPOINTS[:2]),
    "verify": Command(("verify", AVERAGE, "--json"), (AVERAGE,)),
    "verify --sources": Command(
        ("verify", AVERAGE, "--json", "--sources", *CHECKPOINTS), (AVERAGE, *CHECKPOINTS)
    ),
}


class Scene:
    """A folder in which one command is run, with the files that it reads, renewed for each round."""

    def __init__(self, warm: Warm, folder: Path, kind: str) -> None:
        self.warm, self.folder, self.kind = warm, folder, kind
        self._command = COMMANDS[kind]
        (folder / BESIDE).mkdir(parents=True)
        self._make(folder / BESIDE)
        self._kept = [BESIDE, *(one.name for one in (folder / BESIDE).iterdir()), "__pycache__"]
        for name in self._kept[1:-1]:
            shutil.copyfile(folder / BESIDE / name, folder / name)
        ended, self.lasts = warm.seconds(self.command(), folder)
        assert ended.code == 0, ended.stderr
        self.whole = self._found(ended)
        self.clear()
        self.reads = int(warm.run(self.command(), folder, AT_A_READ.format(0)).stdout.split()[-1])
        self.clear()

    def _make(self, folder):
        (folder / "mine.py").write_text(CODE)
        (folder / "recipe.yaml").write_text(json.dumps(RECIPE))
        generator = torch.Generator().manual_seed(0)
        shapes = {"0.weight": (WIDTH, FEATURES), "0.bias": (WIDTH,)}
        shapes |= {f"1.{name}": (WIDTH,) for name in ("weight", "bias", "running_mean", "running_var")}
        for name in CHECKPOINTS:
            state = {one: torch.rand(shape, generator=generator) for one, shape in shapes.items()}
            inputs.save_safetensors(folder / name, state)
        rows = torch.rand((1024, FEATURES), generator=generator)
        (folder / DATA).write_bytes(npy(tuple(rows.shape), rows.numpy().tobytes(), "<f4"))
        ended = self.warm.run(["average", *CHECKPOINTS, "-o", AVERAGE, "--checksum", "-q"], folder)
        assert ended.code == 0, ended.stderr

    def command(self):
        return self._command.arguments

    def files(self):
        return [self.folder / name for name in self._command.reads]

    def renew(self):
        for name in self._command.reads:
            remove(self.folder / name)
            shutil.copyfile(self.folder / BESIDE / name, self.folder / name)
        self.clear()

    def clear(self):
        return clear(self.folder, self._kept)

    def _found(self, ended):
        """Return what a run has made: its outputs, or what it says of what it reads."""
        if self._command.outputs:
            return tuple(bytes_of(self.folder / name) for name in self._command.outputs)
        return ended.code, _plain(ended.stdout)

    def now(self):
        """Return what a run makes of the files as they are now."""
        ended = self.warm.run(self.command(), self.folder)
        found = self._found(ended)
        self.clear()
        return found

    def judge(self, path, ended):
        """Return what is wrong with a run during which a file was changed."""
        ended = _in_words(ended)
        found = self._found(ended)
        left = set(self.clear()) - set(self._command.outputs)
        wrong = [*ended.wrong_words(), *(f"left {name}" for name in sorted(left - set(self._command.keeps)))]
        if ended.code == 0 or (ended.code == 6 and not self._command.outputs):
            if found != self.whole and found != self.now():
                wrong.append(f"exit code {ended.code} and what no version of the files gives")
            return wrong
        wrong += wrong_refusal(ended, path, self.folder)
        if self._command.outputs:
            wrong += self._wrong_outputs(found)
        return wrong

    def _wrong_outputs(self, found):
        """Return what is wrong with the outputs of a run that was refused."""
        wrong = []
        for place, name in enumerate(self._command.outputs):
            if found[place] is None:
                continue
            if name not in self._command.stays:
                wrong.append(f"{name} was written")
            elif found[place] not in (self.whole[place], self.now()[place]):
                wrong.append(f"{name} stays, and no version of the files gives it")
        return wrong


def _in_words(ended):
    """Return how a run ended with its error as a sentence, also where it was told as JSON."""
    if not ended.stderr.startswith("{"):
        return ended
    lines = [f"error: {json.loads(line)['error']}" for line in ended.stderr.splitlines()]
    return replace(ended, stderr="\n".join(lines))


def _plain(stdout):
    """Return a report without what differs from run to run."""

    def without(value):
        if isinstance(value, dict):
            return {name: without(one) for name, one in value.items() if name not in MEASURED}
        return [without(one) for one in value] if isinstance(value, list) else value

    return without(json.loads(stdout)) if stdout else None


def measure_other_changes(full: bool, folder: Path) -> Finding:
    """Change what each command reads while it is read."""
    rounds = 35 if full else 2
    wrong, codes = [], []
    with Warm() as warm:
        for seed, kind in enumerate(COMMANDS):
            scene = Scene(warm, folder / kind.replace(" ", ""), kind)
            for found, into in zip(change_in_rounds(scene, rounds, seed), (wrong, codes), strict=True):
                into += found
            shutil.rmtree(scene.folder)
    measured = (
        f"{', '.join(COMMANDS)}: {codes.count(3)} refused, {codes.count(6)} told a difference, "
        f"{codes.count(0)} had read all of it or nothing of it yet"
    )
    return Finding("of inputs of the other commands, the same", len(codes), tuple(wrong), measured)
