"""The runs that are killed and made to fail: what they write, where, and what stands there before."""

import os
from dataclasses import dataclass
from pathlib import Path

from faults import inputs
from faults.tracing import points
from faults.trials import PLAIN, Warm, bytes_of, clear

NBYTES = 1 << 16
INPUTS = "in"
OUT = "out"
NOBODY = 999_999_999  # no process has that number
MODEL = """
import torch
from torch import nn


def build():
    return nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))


def loader():
    return torch.randn(40, 8, generator=torch.Generator().manual_seed(0)).split(10)
"""


@dataclass(frozen=True)
class Scenario:
    """One command line.

    Attributes:
        arguments: of the command, without what is said below.
        outputs: their names in the folder `out`.
        old: whether older ones stand there, which are replaced.
        plain: without files that have no name, and without names that are exchanged.
        aside: the older output is where a killed run has moved it.
    """

    arguments: tuple[str, ...]
    outputs: tuple[str, ...]
    old: bool = False
    plain: bool = False
    aside: bool = False

    @property
    def name(self):
        said = (*self.arguments[self.arguments.index("-o") + 1 :], *(["--overwrite"] if self.old else []))
        kinds = [kind for kind in ("plain", "aside") if getattr(self, kind)]
        return " ".join(said) + (f" ({', '.join(kinds)})" if kinds else "")

    @property
    def prelude(self):
        return PLAIN if self.plain else ""

    def command(self, threads=1, overwrite=False):
        """Return the whole command line."""
        replacing = ("--overwrite",) if self.old or overwrite else ()
        return (*self.arguments, *replacing, "--threads", str(threads))


def average(output, *options, outputs=(), **attributes):
    arguments = ("average", *(f"{INPUTS}/{name}" for name in inputs.names("file.pt", 3)))
    return Scenario((*arguments, "-o", f"{OUT}/{output}", *options), outputs or (output,), **attributes)


SHARDS = ("shards", "--max-shard-size", "40000")
SWEEP = ("a-{last}.safetensors", "--sweep", "last=2,3")
SUFFIX = ".sha256"
CHECKED = ("a.safetensors", f"a.safetensors{SUFFIX}")
SWEPT = ("a-2.safetensors", "a-3.safetensors")
RECALIBRATE = ("recalibrate-bn", f"{INPUTS}/model.pt", "--model", f"{INPUTS}/mine.py:build")
RECALIBRATE += ("--data", f"{INPUTS}/mine.py:loader", "-o", f"{OUT}/bn.safetensors")

SCENARIOS = (
    average("a.safetensors"),
    average("a.safetensors", old=True),
    average("a.pt", old=True),
    average(*SHARDS),
    average(*SHARDS, old=True),
    average("distributed", "--format", "dcp"),
    average(*SWEEP, outputs=SWEPT),
    average(*SWEEP, outputs=SWEPT, old=True),
    average("a.safetensors", "--checksum", outputs=CHECKED),
    average("a.safetensors", "--checksum", outputs=CHECKED, old=True),
    average(*SHARDS, "--checksum", old=True),
    Scenario(RECALIBRATE, ("bn.safetensors",)),
    average("a.safetensors", plain=True),
    average("a.pt", old=True, plain=True),
    average(*SHARDS, plain=True),
    average(*SHARDS, old=True, plain=True),
    average(*SHARDS, old=True, plain=True, aside=True),
)


class Scene:
    """A folder with the inputs of all scenarios, and one in which one scenario's outputs appear.

    Attributes:
        folder: where commands are run.
        out: where the outputs are.
        scenario: the present one.
        before: what stands in `out` before each trial, by name.
        new: what a run makes that nothing happens to, of each output.
    """

    def __init__(self, warm: Warm, folder: Path):
        import torch

        self._warm = warm
        self.folder = folder.resolve()
        self.out = self.folder / OUT
        self.out.mkdir()
        (self.folder / INPUTS).mkdir()
        inputs.make(self.folder / INPUTS, "file.pt", NBYTES, 3)
        (self.folder / INPUTS / "mine.py").write_text(MODEL)
        names = {"0.weight": (8, 8), "0.bias": (8,), "1.weight": (8,), "1.bias": (8,)}
        state = {name: torch.ones(shape) for name, shape in names.items()}
        state |= {"1.running_mean": torch.zeros(8), "1.running_var": torch.ones(8)}
        torch.save({**state, "1.num_batches_tracked": torch.tensor(0)}, self.folder / INPUTS / "model.pt")

    def choose(self, scenario: Scenario):
        """Make what the scenario begins and ends with."""
        self.scenario = scenario
        self.new = self._made()
        self.before = (
            {output: older(output, content) for output, content in self.new.items()} if scenario.old else {}
        )
        if scenario.aside:
            host = os.uname().nodename[:64]
            hidden = [f".{scenario.outputs[0]}.swatool-{host}-{NOBODY}-{digit * 16}" for digit in "01"]
            (old,) = self.before.values()
            self.before = {f"{hidden[0]}.old": old, f"{hidden[1]}.tmp": {"x": b""}}
        self.begin()

    def _made(self):
        clear(self.out, [])
        ended = self._warm.run(self.scenario.command(), self.folder)
        made = self.found()
        if ended.code or set(made) != set(self.scenario.outputs):
            raise ValueError(f"{self.scenario.name} does not even work alone: {ended.stderr}")
        return made

    def begin(self):
        """Put back what stands there before a trial."""
        clear(self.out, [])
        for name, content in self.before.items():
            if isinstance(content, bytes):
                (self.out / name).write_bytes(content)
                continue
            (self.out / name).mkdir()
            for inner, data in content.items():
                (self.out / name / inner).write_bytes(data)

    def found(self):
        """Return all that stands there now."""
        return {name: bytes_of(self.out / name) for name in os.listdir(self.out)}

    def strangers(self, found):
        """Return what stands there that is no output and that this trial did not begin with."""
        return sorted(set(found) - set(self.scenario.outputs) - set(self.before))

    def is_old(self, output, found, killed=False):
        """Whether an output is as before; what a killed run had moved aside may be back.

        A checksum goes before its file is replaced, so that there is never a wrong one: a kill may lose it.
        """
        if killed and output.endswith(SUFFIX) and output not in found:
            return True
        if self.scenario.aside:
            old = next(content for name, content in self.before.items() if name.endswith(".old"))
            return found[output] == old if output in found else old in found.values()
        return found.get(output) == self.before.get(output)

    def wrong_checksums(self, found):
        """Return the checksums that stand beside a file that they are not of."""
        return [
            f"{output} is not that of the file"
            for output in self.scenario.outputs
            if output.endswith(SUFFIX) and output in found
            if (found[output] == self.new[output])
            != (found.get(output.removesuffix(SUFFIX)) == self.new[output.removesuffix(SUFFIX)])
        ]

    def wrong_again(self):
        """Return what is wrong with a run that follows, which must succeed and clean up."""
        overwrite = any((self.out / output).exists() for output in self.scenario.outputs)
        ended = self._warm.run(self.scenario.command(overwrite=overwrite), self.folder, self.scenario.prelude)
        if ended.code:
            return [f"the next run ended with {ended.code}: {ended.stderr}"]
        found = self.found()
        if found != self.new:
            return [
                f"the next run left {sorted(found)}"
                + ("" if set(found) != set(self.new) else ", other bytes")
            ]
        return []


def older(name, content):
    """Return what an older output may have been, of the same format."""
    if isinstance(content, dict):
        return {
            one: older(one, data) if one.endswith("safetensors") else data for one, data in content.items()
        }
    if name.endswith(SUFFIX):
        return (b"1" if content[:1] == b"0" else b"0") + content[1:]
    return content[:-1] + bytes([content[-1] ^ 1])


def changing_calls(scene, tracer):
    """Choose one scenario after the other for the scene, and yield each call of it that changes something."""
    for scenario in SCENARIOS:
        scene.choose(scenario)
        _, calls = tracer.run(scenario.command(), scene.folder, prelude=scenario.prelude)
        yield from points(calls, str(scene.out))
