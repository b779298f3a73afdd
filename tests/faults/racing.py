"""Two runs that write the same output at the same time: one wins, and what is there is whole."""

import random
import time
from collections import Counter
from pathlib import Path

from faults import inputs
from faults.finding import Finding
from faults.trials import Warm, bytes_of, clear

NBYTES = 2 << 20
METHODS = (("--method", "swa"), ("--method", "wma"))  # what tells the two outputs apart
OUTPUTS = {
    "out.safetensors": (),
    "out.pt": (),
    "shards/": ("--max-shard-size", "512kB"),
    "distributed/": ("--format", "dcp"),
}
# Both runs wait here, so that they publish as close to one another as can be.
TOGETHER = """
import os, time
from swatool.jobs import average

def publish_all(pending, publish_all=average.publish_all):
    open(f"ready-{}", "w").close()
    while not (os.path.exists("ready-0") and os.path.exists("ready-1")):
        pass
    return publish_all(pending)

average.publish_all = publish_all
"""


class Scene:
    """A folder of checkpoints, and what two ways of averaging make of them."""

    def __init__(self, warm: Warm, folder: Path) -> None:
        self.warm = warm
        self.folder = folder
        self.inputs = inputs.make(folder, "file.safetensors", NBYTES)
        self.whole, self.lasts = {}, 0.0
        for output in OUTPUTS:
            for method in METHODS:
                ended, self.lasts = warm.seconds(self.command(output, method), folder)
                assert ended.code == 0, ended.stderr
                self.whole[output, method] = bytes_of(folder / output)
                clear(folder, self.inputs)

    def command(self, output, method, *more):
        return ["average", *self.inputs, "-o", output, "-q", *method, *OUTPUTS[output], *more]

    def race(self, output, more, delay, together):
        """Let two runs write one output, and return how they ended, and what is there."""
        runs = []
        for number, method in enumerate(METHODS):
            prelude = TOGETHER.replace("{}", str(number)) if together else ""
            runs.append(self.warm.start(self.command(output, method, *more), self.folder, prelude))
            time.sleep(delay)
        return [run.wait() for run in runs], bytes_of(self.folder / output)

    def judge(self, output, overwrite, ended, there):
        """Return what is wrong after a race, and remove what it made."""
        wrong = [word for one in ended for word in one.wrong_words()]
        left = [name for name in clear(self.folder, self.inputs) if not name.startswith("ready-")]
        wrong += [f"left {name}" for name in left if name != output.rstrip("/")]
        codes = [one.code for one in ended]
        wholes = [self.whole[output, method] for method in METHODS]
        if there not in wholes:
            wrong.append("the output is none of the two")
        elif codes[wholes.index(there)] != 0:
            wrong.append("the output is of the run that failed")
        if not overwrite and sorted(codes) != [0, 2]:
            wrong.append(f"exit codes {codes}, and one should win")
        if overwrite and set(codes) != {0}:
            wrong.append(f"exit codes {codes}, and both should win: {[one.stderr for one in ended]}")
        return wrong


def measure_races(full: bool, folder: Path) -> Finding:
    """Race for outputs of each kind, with and without `--overwrite`, and with an old one or none."""
    rounds = 25 if full else 2
    chance = random.Random(1)
    wrong, seen, tried = [], Counter(), 0
    with Warm() as warm:
        scene = Scene(warm, folder)
        for output in OUTPUTS:
            for overwrite in (False, True):
                more = ("--overwrite",) if overwrite else ()
                for turn in range(rounds):
                    if overwrite and turn % 4 < 2:
                        assert warm.run(scene.command(output, METHODS[0]), folder).code == 0
                    together = turn % 2 == 0
                    delay = 0.0 if together else chance.uniform(0, scene.lasts)
                    ended, there = scene.race(output, more, delay, together)
                    tried += 1
                    seen[overwrite, tuple(one.code for one in ended)] += 1
                    found = scene.judge(output, overwrite, ended, there)
                    how = f"race {turn} for {output} {' '.join(more)}"
                    wrong += [f"{how}: {one}" for one in found]
    first, second = seen[False, (0, 2)], seen[False, (2, 0)]
    measured = f"without --overwrite {first} times the first won and {second} times the second"
    return Finding("of two runs on one output one wins", tried, tuple(wrong), measured)
