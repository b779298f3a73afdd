"""Two runs that write the same output at the same time: one wins, and what is there is whole."""

import json
import random
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch

from faults import inputs
from faults.commands import MODEL_AND_DATA
from faults.finding import Finding
from faults.trials import Warm, bytes_of, clear

NBYTES = 2 << 20
CODE = f"""{MODEL_AND_DATA}

def score(path):
    return 1.0
"""
# Both runs wait here, so that they publish as close to one another as can be.
TOGETHER = """
import os, time
from swatool.output import checksummed

def waiting(publish):
    def publish_together(self):
        open(f"ready-{}", "w").close()
        while not (os.path.exists("ready-0") and os.path.exists("ready-1")):
            pass
        return publish(self)
    return publish_together

for kind in (checksummed.ChecksummedFile, checksummed.ChecksummedFolder):
    kind.publish = waiting(kind.publish)
"""


@dataclass(frozen=True)
class Contest:
    """Two command lines that write the same.

    Attributes:
        commands: the two, whose outputs differ in their bytes.
        outputs: what each writes.
        overwrite: what is added where what is there is replaced.
        may_lose: the exit codes that one of them may have even then.
        waits: whether one waits for the other; not where one that is at work keeps the other out.
    """

    commands: tuple[tuple[str, ...], tuple[str, ...]]
    outputs: tuple[str, ...]
    overwrite: tuple[str, ...] = ("--overwrite",)
    may_lose: tuple[int, ...] = ()
    waits: bool = True


def by_method(output, *options):
    """Return the contest of two averages, which a method tells apart."""
    begin = ("average", *inputs.names("file.safetensors"), "-o", output, "-q", *options)
    return Contest(((*begin, "--method", "swa"), (*begin, "--method", "wma")), (output,))


MODELS = ("m-1.safetensors", "m-2.safetensors")
BN = ("recalibrate-bn", MODELS[0], "--model", "mine.py:build", "--data", "mine.py:data", "-o")
SOUP = ("soup", *MODELS, "--eval", "mine.py:score", "--mode", "max", "-o", "soup.safetensors", "-q")
CONTESTS = {
    "out.safetensors": by_method("out.safetensors"),
    "out.pt": by_method("out.pt"),
    "shards/": by_method("shards/", "--max-shard-size", "512kB"),
    "distributed/": by_method("distributed/", "--format", "dcp"),
}
OTHERS = {
    "recalibrate-bn": Contest(
        tuple((*BN, "bn.safetensors", "-q", "--mode", mode) for mode in ("batch", "exact")),
        ("bn.safetensors",),
    ),
    # Whose average is replaced while it is read for the recalibration, is told so.
    "run": Contest(
        tuple(("run", f"{method}.yaml", "-q") for method in ("swa", "wma")),
        ("a.safetensors", "b.safetensors"),
        ("--set", "run.overwrite=true"),
        may_lose=(3,),
    ),
    "soup": Contest((SOUP, (*SOUP, "--dtype", "float16")), ("soup.safetensors",), may_lose=(2,), waits=False),
}


class Scene:
    """A folder of checkpoints, a model and recipes, and what each command makes of them."""

    def __init__(self, warm: Warm, folder: Path, contests) -> None:
        self.warm = warm
        self.folder = folder
        self.contests = contests
        inputs.make(folder, "file.safetensors", NBYTES)
        self._make_models()
        self._kept = [*(one.name for one in folder.iterdir()), "__pycache__"]
        self.whole, self.lasts = {}, {}
        for name, contest in contests.items():
            for command in contest.commands:
                ended, self.lasts[name] = warm.seconds(command, folder)
                assert ended.code == 0, ended.stderr
                self.whole[name, command] = self._there(contest)
                clear(folder, self._kept)

    def _make_models(self):
        (self.folder / "mine.py").write_text(CODE)
        generator = torch.Generator().manual_seed(0)
        shapes = {"0.weight": (8, 8), "0.bias": (8,)}
        shapes |= {f"1.{name}": (8,) for name in ("weight", "bias", "running_mean", "running_var")}
        for name in MODELS:
            state = {one: torch.rand(shape, generator=generator) for one, shape in shapes.items()}
            inputs.save_safetensors(self.folder / name, state)
        again = {"path": "b.safetensors", "model": "mine.py:build", "data": "mine.py:data"}
        for method in ("swa", "wma"):
            output = {"path": "a.safetensors", "method": method, "recalibrate": again}
            recipe = {"inputs": list(MODELS), "outputs": output}
            (self.folder / f"{method}.yaml").write_text(json.dumps(recipe))

    def _there(self, contest):
        return tuple(bytes_of(self.folder / output) for output in contest.outputs)

    def race(self, name, overwrite, delay, together):
        """Let two runs write the same, and return how they ended, and what is there."""
        contest, runs = self.contests[name], []
        more = contest.overwrite if overwrite else ()
        for number, command in enumerate(contest.commands):
            prelude = TOGETHER.replace("{}", str(number)) if together and contest.waits else ""
            runs.append(self.warm.start((*command, *more), self.folder, prelude))
            time.sleep(delay)
        return [run.wait() for run in runs], self._there(contest)

    def prepare(self, name):
        """Let an older output stand there."""
        assert self.warm.run(self.contests[name].commands[0], self.folder).code == 0

    def judge(self, name, overwrite, ended, there):
        """Return what is wrong after a race, and remove what it made."""
        contest = self.contests[name]
        wrong = [word for one in ended for word in one.wrong_words()]
        known = {output.rstrip("/") for output in contest.outputs}
        left = [one for one in clear(self.folder, self._kept) if not one.startswith("ready-")]
        wrong += [f"left {one}" for one in left if one not in known]
        codes = [one.code for one in ended]
        wholes = [self.whole[name, command] for command in contest.commands]
        for place, output in enumerate(contest.outputs):
            winners = [codes[one] for one in (0, 1) if wholes[one][place] == there[place]]
            if not winners:
                wrong.append(f"{output} is none of the two")
            elif 0 not in winners and not (overwrite and contest.may_lose):
                wrong.append(f"{output} is of the run that failed")
        if not overwrite and sorted(codes) != [0, 2]:
            wrong.append(f"exit codes {codes}, and one should win: {[one.stderr for one in ended]}")
        lost = [code for code in codes if code != 0]
        if overwrite and (len(lost) > 1 or not set(lost) <= set(contest.may_lose)):
            wrong.append(f"exit codes {codes}, and both should win: {[one.stderr for one in ended]}")
        return wrong


def races(folder: Path, contests, rounds: int, seed: int) -> tuple[list[str], Counter]:
    """Race for each of some outputs, with and without replacing, and with an old one or none."""
    chance = random.Random(seed)
    wrong, seen = [], Counter()
    with Warm() as warm:
        scene = Scene(warm, folder, contests)
        for name in contests:
            for overwrite in (False, True):
                for turn in range(rounds):
                    if overwrite and turn % 4 < 2:
                        scene.prepare(name)
                    together = turn % 2 == 0
                    delay = 0.0 if together else chance.uniform(0, scene.lasts[name])
                    ended, there = scene.race(name, overwrite, delay, together)
                    seen[overwrite, tuple(one.code for one in ended)] += 1
                    found = scene.judge(name, overwrite, ended, there)
                    how = f"race {turn} for {name}{' replacing' if overwrite else ''}"
                    wrong += [f"{how}: {one}" for one in found]
    return wrong, seen


def measure_races(full: bool, folder: Path) -> tuple[Finding, Finding]:
    """Race two averages for outputs of each kind, and two runs of other commands."""
    found = []
    goals = (
        ("of two runs on one output one wins", CONTESTS, 25),
        (f"of two runs of {', '.join(OTHERS)} the same", OTHERS, 10),
    )
    for seed, (goal, contests, rounds) in enumerate(goals, 1):
        place = folder / str(seed)
        place.mkdir()
        wrong, seen = races(place, contests, rounds if full else 2, seed)
        first, second = seen[False, (0, 2)], seen[False, (2, 0)]
        measured = f"without --overwrite {first} times the first won and {second} times the second"
        found.append(Finding(goal, seen.total(), tuple(wrong), measured))
    return tuple(found)
