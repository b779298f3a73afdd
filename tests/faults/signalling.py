"""Signals at random moments of a run: the right exit code, within a second, and nothing is left.

A moment is a time, in a run that nobody watches; or the so-many-th line of swatool's code that is executed,
which finds windows that are too narrow for a clock.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from faults import inputs
from faults.finding import Finding
from faults.trials import HERE, PLAIN, Ended, Warm, bytes_of, clear

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SECONDS = 1.0  # after which a run should have ended
NBYTES = 16 << 20
SMALL = 1 << 16
MANY = 50  # rounds, in which all kinds of outputs are tried in all ways

# Kinds of outputs, by what else is said on the command line.
OUTPUTS = {
    "out.safetensors": (),
    "out.pt": ("--overwrite",),
    "shards/": ("--max-shard-size", "4MB"),
    "replaced/": ("--max-shard-size", "4MB", "--overwrite"),
    "distributed/": ("--format", "dcp", "--overwrite"),
}

# Sends a signal to itself when so many lines of swatool have been executed in the main thread; or says in the
# end when each line was executed for the first and for the last time. Lines count only while signals are
# taken care of.
AT_A_LINE = """
import contextlib, json, os, signal, sys
wanted, number = {}, {}
count = 0
first, last = {{}}, {{}}

def of_a_line(frame, event, _):
    global count
    if event == "line" and callable(signal.getsignal(number)):
        count += 1
        place = frame.f_code.co_filename, frame.f_lineno
        first.setdefault(place, count)
        last[place] = count
        if count == wanted:
            sys.settrace(None)
            os.kill(os.getpid(), number)
    return of_a_line

def of_a_call(frame, event, _):
    name = frame.f_code.co_filename
    if count != wanted and (name == contextlib.__file__ or "/swatool/" in name and "/tests/" not in name):
        return of_a_line

sys.settrace(of_a_call)
ending = os._exit

def end(code):
    if wanted < 0:
        print(json.dumps([[place[0], first[place], last[place]] for place in first]), flush=True)
    ending(code)

os._exit = end
"""


@dataclass
class Tally:
    """What has been seen."""

    tried: int = 0
    stopped: int = 0
    at_once: int = 0
    finished: int = 0
    slowest: float = 0.0

    def __str__(self):
        return (
            f"{self.stopped} stopped, {self.at_once} ended by the signal itself, {self.finished} had "
            f"finished; the slowest took {self.slowest:.2f} s"
        )


def judge(ended: Ended, number: int, since: float, seconds: float, tally: Tally) -> list[str]:
    """Return what is wrong with how a run took a signal; its output is another matter."""
    tally.tried += 1
    took = ended.at - since
    if ended.code == -number and not ended.stderr:
        tally.at_once += 1
    else:
        tally.stopped += ended.code == 128 + number
        tally.finished += ended.code == 0
        wrong = ended.wrong_words()
        if wrong or ended.code not in (0, 128 + number):
            return wrong or [f"exit code {ended.code}: {ended.stderr[-500:]}"]
        said = f"stopped by {signal.Signals(number).name}"
        if ended.code and not ended.stderr.startswith(f"error: {said}"):
            return [f"did not say {said!r}: {ended.stderr[-500:]}"]
    tally.slowest = max(tally.slowest, took)
    return [f"took {took:.2f} s to end"] if took > seconds else []


class Scene:
    """A folder of checkpoints, and one output of each kind that is averaged from them."""

    def __init__(self, warm: Warm, folder: Path, nbytes: int) -> None:
        self.warm = warm
        self.folder = folder
        folder.mkdir(parents=True)
        self.inputs = inputs.make(folder, "file.safetensors", nbytes)
        self.whole = {}
        self.lasts = {}
        for output in OUTPUTS:
            ended, self.lasts[output] = warm.seconds(self.command(output), folder)
            assert ended.code == 0, ended.stderr
            self.whole[output] = bytes_of(folder / output)
        self.clear()

    def command(self, output):
        return ["average", *self.inputs, "-o", output, "-q", *OUTPUTS[output]]

    def clear(self):
        return clear(self.folder, self.inputs)

    def prepare(self, output):
        """Let an older output stand where one is to be replaced."""
        if "--overwrite" in OUTPUTS[output]:
            assert self.warm.run([*self.command(output), "--method", "wma"], self.folder).code == 0
        return bytes_of(self.folder / output)

    def wrong_output(self, output, before, ended):
        """Return what is wrong with what is there after a run, and remove it."""
        there = bytes_of(self.folder / output)
        others = sorted(set(self.clear()) - {output.rstrip("/")})
        wrong = [f"left {name}" for name in others]
        if there not in (before, self.whole[output]):
            wrong.append(f"left {output} that is not whole")
        if ended.code == 0 and there != self.whole[output]:
            wrong.append(f"exit code 0 without {output}")
        if "no output was written" in ended.stderr and there != before:
            wrong.append(f"{output} was written, and is said not to be")
        if "the output was written" in ended.stderr and there == before:
            wrong.append(f"{output} is said to be written, and was not")
        return wrong


def at_random_times(scene: Scene, rounds: int, seconds: float, seed: int, tally: Tally) -> list[str]:
    """Send signals at times that nobody has chosen."""
    chance = random.Random(seed)
    wrong = []
    for turn in range(rounds):
        output, number = chance.choice(list(OUTPUTS)), SIGNALS[turn % len(SIGNALS)]
        before = scene.prepare(output)
        delay = chance.uniform(0, 1.1 * scene.lasts[output])
        run = scene.warm.start(scene.command(output), scene.folder)
        time.sleep(delay)
        since = time.monotonic()
        run.send(number)
        found = judge(run.wait(), number, since, seconds, tally)
        found += scene.wrong_output(output, before, run.ended)
        wrong += [f"{signal.Signals(number).name} after {delay:.3f} s, {output}: {one}" for one in found]
    return wrong


def at_random_lines(scene: Scene, rounds: int, seconds: float, seed: int, tally: Tally) -> list[str]:
    """Send signals at lines of the code, of which all are as likely, however short and seldom they run."""
    chance = random.Random(seed)
    wrong = []
    ways = [(output, way) for output in OUTPUTS for way in ("", PLAIN)]
    ways = ways[:: 1 if rounds > MANY else 3]  # of each, all lines must be counted first
    lines = {}
    for turn in range(rounds):
        output, way = ways[turn % len(ways)]
        before = scene.prepare(output)
        number = chance.choice(SIGNALS)
        if (output, way) not in lines:
            told = scene.warm.run(scene.command(output), scene.folder, way + AT_A_LINE.format(-1, number))
            assert told.code == 0, told.stderr
            lines[output, way] = json.loads(told.stdout)
            scene.clear()
            before = scene.prepare(output)
        # Half of them where an output is begun, published and removed.
        places = [place for place in lines[output, way] if turn % 4 < 2 or "/output/" in place[0]]
        line = chance.choice(chance.choice(places)[1:])
        since = time.monotonic()
        ended = scene.warm.run(scene.command(output), scene.folder, way + AT_A_LINE.format(line, number))
        if ended.code == 0:
            since = ended.at  # the main thread executes fewer lines where others are quicker
        found = judge(ended, number, since, ENOUGH_FOR_LINES + seconds, tally)
        found += scene.wrong_output(output, before, ended)
        what = f"{signal.Signals(number).name} at line {line}, {output}"
        wrong += [f"{what}{', the plain way' if way else ''}: {one}" for one in found]
    return wrong


ENOUGH_FOR_LINES = 10.0  # seconds to get to the line in


def of_the_program(folder: Path, rounds: int, seconds: float, seed: int, tally: Tally) -> list[str]:
    """Send signals to the program as a user starts it, from its first moment on."""
    chance = random.Random(seed)
    wrong = []
    names = inputs.make(folder, "file.safetensors", NBYTES)
    command = [sys.executable, "-m", "swatool", "average", *names, "-o", "out.safetensors", "-q"]
    environment = {**os.environ, "PYTHONPATH": HERE}
    begun = time.monotonic()
    subprocess.run(command, cwd=folder, env=environment, check=True)
    lasts = time.monotonic() - begun
    whole = bytes_of(folder / "out.safetensors")
    clear(folder, names)
    for turn in range(rounds):
        number, delay = SIGNALS[turn % len(SIGNALS)], chance.uniform(0.2, 1.1) * lasts
        process = subprocess.Popen(
            command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        time.sleep(delay)
        since = time.monotonic()
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=60)
        ended = Ended(process.returncode, False, stdout, stderr, time.monotonic(), 0)
        found = judge(ended, number, since, seconds, tally)
        there = bytes_of(folder / "out.safetensors")
        if there not in (None, whole) or (ended.code == 0 and there is None):
            found.append("the output is not whole")
        found += [f"left {name}" for name in clear(folder, names) if name != "out.safetensors"]
        wrong += [f"{signal.Signals(number).name} to the program after {delay:.2f} s: {one}" for one in found]
    return wrong


def at_once_by_the_second(scene: Scene) -> list[str]:
    """Press Ctrl-C twice, of which the first finds a run that cannot clean up: the second ends it at once."""
    stuck = "import os, time\nos.preadv = lambda *_: (open('ready', 'w').close(), time.sleep(60))\n"
    run = scene.warm.start(scene.command("out.safetensors"), scene.folder, stuck)
    while not os.path.exists(scene.folder / "ready"):
        time.sleep(0.001)
    run.send(signal.SIGINT)
    time.sleep(0.2)
    since = time.monotonic()
    run.send(signal.SIGINT)
    ended = run.wait()
    left = [name for name in scene.clear() if name != "ready"]
    if ended.code != -signal.SIGINT or ended.at - since > SECONDS or left:
        return [f"a second Ctrl-C: {ended}, after {ended.at - since:.2f} s, left {left}"]
    return []


def measure_signals(full: bool, folder: Path) -> Finding:
    """Send signals to many runs."""
    # A machine that others use may make a run wait, and few trials should not fail for that.
    seconds = SECONDS if full else 5 * SECONDS
    times, lines, programs = (100, 400, 30) if full else (9, 20, 1)
    timed, traced = Tally(), Tally()
    with Warm() as warm:
        scene = Scene(warm, folder / "times", NBYTES)
        wrong = at_random_times(scene, times, seconds, 1, timed)
        wrong += at_once_by_the_second(scene)
        wrong += at_random_lines(Scene(warm, folder / "lines", SMALL), lines, seconds, 2, traced)
    program = folder / "program"
    program.mkdir()
    wrong += of_the_program(program, programs, seconds, 3, timed)
    tried = timed.tried + traced.tried + 1
    measured = f"{timed}; at lines of the code {traced.stopped} stopped, {traced.finished} had finished"
    return Finding("signals end a run within a second", tried, tuple(wrong), measured)
