"""Signals to the commands beside `average`: what they write is whole or absent, and a soup goes on."""

import json
import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from faults import inputs
from faults.finding import Finding
from faults.signalling import AT_A_LINE, ENOUGH_FOR_LINES, SECONDS, SIGNALS, Tally, judge
from faults.trials import Warm, bytes_of, clear

MODEL_AND_DATA = """
import torch
from torch import nn


def build():
    return nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))


def data():
    return torch.randn(40, 8, generator=torch.Generator().manual_seed(0)).split(10)
"""
CODE = f"""{MODEL_AND_DATA}

def score(path):
    from safetensors.torch import load_file

    return float(load_file(path)["0.weight"].square().mean())
"""
RECIPE = """
inputs: c-*.safetensors
evaluate: {command: 'mine.py:score', metric: value, mode: min}
outputs:
- path: a-{last}.safetensors
  sweep: {last: [2, 3]}
  keep: all
  recalibrate: {path: 'b-{last}.safetensors', model: mine.py:build, data: mine.py:data}
report: report.json
"""
REPORT = "report.json"  # tells how long all took


@dataclass(frozen=True)
class Command:
    """A command line.

    Attributes:
        arguments: all of it.
        outputs: what it writes.
        goes_on: whether it takes up, when it is run again, what it had done before it was stopped.
    """

    arguments: tuple[str, ...]
    outputs: tuple[str, ...] = ()
    goes_on: bool = False


BN = "bn.safetensors"
CHECKPOINTS = tuple(f"c-{number}.safetensors" for number in (1, 2, 3))
COMMANDS = {
    "recalibrate-bn": Command(
        (
            "recalibrate-bn",
            CHECKPOINTS[0],
            "--model",
            "mine.py:build",
            "--data",
            "mine.py:data",
            "-o",
            BN,
            "-q",
        ),
        (BN,),
    ),
    "soup": Command(
        ("soup", *CHECKPOINTS, "--eval", "mine.py:score", "--mode", "min", "-o", "soup.safetensors", "-q"),
        ("soup.safetensors",),
        goes_on=True,
    ),
    "run": Command(
        ("run", "recipe.yaml", "-q"),
        (*(f"{kind}-{last}.safetensors" for kind in "ab" for last in (2, 3)), REPORT),
    ),
    "verify": Command(("verify", "average.safetensors", "--sources", *CHECKPOINTS)),
    "diff": Command(("diff", *CHECKPOINTS[:2])),
}


class Scene:
    """A folder of checkpoints, a model, a recipe and an average, in which commands are stopped.

    Attributes:
        folder: where commands are run.
        whole: what a run makes that nothing happens to, by the name of the output.
        lasts: seconds of such a run, by command.
        lines: when each line of it is executed, by command, as `AT_A_LINE` tells.
    """

    def __init__(self, warm: Warm, folder: Path) -> None:
        self._warm = warm
        self.folder = folder
        for seed, name in enumerate(CHECKPOINTS):
            generator = torch.Generator().manual_seed(seed)
            shapes = {"0.weight": (8, 8), "0.bias": (8,), "1.weight": (8,), "1.bias": (8,)}
            shapes |= {"1.running_mean": (8,), "1.running_var": (8,)}
            state = {one: torch.rand(shape, generator=generator) for one, shape in shapes.items()}
            inputs.save_safetensors(folder / name, state)
        (folder / "mine.py").write_text(CODE)
        (folder / "recipe.yaml").write_text(RECIPE)
        self.run(("average", *CHECKPOINTS, "-o", "average.safetensors"))
        self.whole, self.lasts, self.lines = {}, {}, {}
        self._kept = {one.name for one in folder.iterdir()} | {"__pycache__"}
        for name, command in COMMANDS.items():
            begun = time.monotonic()
            self.run(command.arguments)
            self.lasts[name] = time.monotonic() - begun
            self.whole |= {output: bytes_of(folder / output) for output in command.outputs}
            assert None not in self.whole.values()
            clear(folder, self._kept)
            told = self.run(command.arguments, AT_A_LINE.format(-1, int(signal.SIGINT)))
            self.lines[name] = json.loads(told.stdout.splitlines()[-1])
            clear(folder, self._kept)

    def run(self, arguments, prelude=""):
        """Run a command that must succeed."""
        ended = self._warm.run(arguments, self.folder, prelude)
        assert ended.code == 0, (arguments, ended)
        return ended

    def at_a_line(self, name, chance):
        """Stop a command at a line of the code; return where, by what, since when, and how it ended."""
        line, number = chance.choice(chance.choice(self.lines[name])[1:]), chance.choice(SIGNALS)
        since = time.monotonic()
        ended = self._warm.run(COMMANDS[name].arguments, self.folder, AT_A_LINE.format(line, int(number)))
        return f"line {line}", number, ended.at if ended.code == 0 else since, ended

    def at_a_time(self, name, chance):
        """Stop a command at a moment that nobody has chosen; return the same."""
        delay, number = chance.uniform(0, 1.1 * self.lasts[name]), chance.choice(SIGNALS)
        run = self._warm.start(COMMANDS[name].arguments, self.folder)
        time.sleep(delay)
        since = time.monotonic()
        run.send(number)
        return f"{delay:.3f} s", number, since, run.wait()

    def wrong_outputs(self, name, ended):
        """Return what is wrong with what a command has left, and remove it."""
        command = COMMANDS[name]
        there = {output: bytes_of(self.folder / output) for output in command.outputs}
        wrong = [f"left {output} that is not whole" for output in there if not self._is_whole(output, there)]
        if ended.code == 0 and None in there.values():
            wrong.append("exit code 0 without all outputs")
        if "no output was written" in ended.stderr and set(there.values()) - {None}:
            wrong.append("an output was written, and is said not to be")
        left = {one.name for one in self.folder.iterdir()} - self._kept - set(command.outputs)
        if command.goes_on and None not in there.values() and left:
            wrong.append(f"left {sorted(left)} beside what is done")
        if command.goes_on and ended.code:
            self.run((*command.arguments, "--overwrite"))  # it takes up what is left, and cleans up
            left = {one.name for one in self.folder.iterdir()} - self._kept - set(command.outputs)
            there = {output: bytes_of(self.folder / output) for output in command.outputs}
            wrong += [
                f"went on to another {output}" for output in there if there[output] != self.whole[output]
            ]
        wrong += [f"left {one}" for one in sorted(left)]
        clear(self.folder, self._kept)
        return wrong

    def _is_whole(self, output, there):
        if output == REPORT and there[output] is not None:
            return json.loads(there[output]).keys() == json.loads(self.whole[output]).keys()
        return there[output] in (None, self.whole[output])


def measure_commands(full: bool, folder: Path) -> Finding:
    """Send signals to every command but `average`, at lines of the code and at random times."""
    lines, times = (60, 40) if full else (3, 2)
    seconds = SECONDS if full else 5 * SECONDS
    chance, tally, wrong = random.Random(4), Tally(), []
    with Warm() as warm:
        scene = Scene(warm, folder)
        for name in COMMANDS:
            for turn in range(lines + times):
                stop = scene.at_a_line if turn < lines else scene.at_a_time
                when, number, since, ended = stop(name, chance)
                found = judge(
                    ended, number, since, seconds + (ENOUGH_FOR_LINES if turn < lines else 0), tally
                )
                found += scene.wrong_outputs(name, ended)
                wrong += [f"{signal.Signals(number).name} to {name} at {when}: {one}" for one in found]
    measured = f"{', '.join(COMMANDS)}: {tally.stopped} stopped, {tally.finished} had finished"
    return Finding("signals to the other commands, the same", tally.tried, tuple(wrong), measured)
