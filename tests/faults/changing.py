"""Inputs that are changed while they are read: an error that names the file, or what stood there before.

The run is halted at one of its reads or at a random moment, a file is changed, and the run goes on; or it is
not halted.
"""

import os
import random
import shutil
import signal
import time
from pathlib import Path

from faults import inputs
from faults.finding import Finding
from faults.trials import Warm, bytes_of, clear, remove

NBYTES = 24 << 20
OUTPUT = "out.safetensors"
BESIDE = "originals"


def truncate(path, chance):
    os.truncate(path, chance.randrange(path.stat().st_size))


def replace(path, chance):
    """Rename another file over it, of the same length."""
    other = path.with_name("new")
    shutil.copyfile(path, other)
    scribble(other, chance, other.stat().st_size)
    os.rename(other, path)


def scribble(path, chance, nbytes):
    """Write other numbers over a part of a file of floats, in place; its headers stay as they are."""
    size = path.stat().st_size
    begin = size // 8 // 4 * 4 if nbytes == size else chance.randrange(size // 8, size - 4096) // 4 * 4
    nbytes = min(nbytes, size * 3 // 4) // 4 * 4
    with open(path, "r+b") as file:
        file.seek(begin)
        file.write(chance.randbytes(4)[:2] * (nbytes // 2))


def rewrite(path, chance):
    scribble(path, chance, path.stat().st_size)


def rewrite_a_little(path, chance):
    scribble(path, chance, 4096)


def rewrite_and_put_the_time_back(path, chance):
    status = os.stat(path)
    rewrite(path, chance)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def append(path, _):
    with open(path, "ab") as file:
        file.write(b"more")


def unlink(path, _):
    path.unlink()


WAYS = ("at a read", "at a read", "halted", "at a read", "not halted")
CHANGES = (
    *(rewrite, rewrite_and_put_the_time_back, truncate, replace),
    *(rewrite_a_little, append, unlink),
)


# Halts the run when so many reads have ended.
AT_A_READ = """
import os, signal, threading
wanted = {}
lock, count = threading.Lock(), 0

def preadv(*arguments, preadv=os.preadv):
    global count
    got = preadv(*arguments)
    with lock:
        count += 1
        if count == wanted:
            os.kill(os.getpid(), signal.SIGSTOP)
    return got

os.preadv = preadv
ending = os._exit

def end(code):
    if wanted == 0:
        print(count, flush=True)
    ending(code)

os._exit = end
"""


class Scene:
    """A folder of two checkpoints of a kind, which are renewed for each round."""

    def __init__(self, warm: Warm, folder: Path, kind: str) -> None:
        self.warm = warm
        self.folder = folder
        self.kind = kind
        (folder / BESIDE).mkdir(parents=True)
        self.inputs = inputs.make(folder / BESIDE, kind, NBYTES)
        self.renew()
        ended, self.lasts = warm.seconds(self.command(), folder)
        assert ended.code == 0, ended.stderr
        self.whole = bytes_of(folder / OUTPUT)
        self.clear()
        self.reads = int(warm.run(self.command(), folder, AT_A_READ.format(0)).stdout)

    def command(self):
        return ["average", *self.inputs, "-o", OUTPUT, "-q"]

    def renew(self):
        for name in self.inputs:
            remove(self.folder / name)
            source = self.folder / BESIDE / name
            copy = shutil.copytree if source.is_dir() else shutil.copyfile
            copy(source, self.folder / name)
        self.clear()

    def clear(self):
        return clear(self.folder, [*self.inputs, BESIDE])

    def files(self):
        """Return the files that hold tensors."""
        for name in self.inputs:
            path = self.folder / name
            if not path.is_dir():
                yield path
            else:
                yield from (
                    one for one in sorted(path.iterdir()) if one.suffix in (".distcp", ".safetensors")
                )

    def now(self):
        """Return what a run makes of the files as they are now."""
        ended = self.warm.run(self.command(), self.folder)
        found = bytes_of(self.folder / OUTPUT)
        self.clear()
        return found if ended.code == 0 else None

    def judge(self, path, ended):
        """Return what is wrong with a run during which a file was changed."""
        there = bytes_of(self.folder / OUTPUT)
        others = sorted(set(self.clear()) - {OUTPUT})
        wrong = [*ended.wrong_words(), *(f"left {name}" for name in others)]
        if ended.code == 0:
            # The change may have come before the file was opened, or after the last look at it.
            if there is None or (there != self.whole and there != self.now()):
                wrong.append("exit code 0 and an output that no version of the files gives")
        else:
            wrong += wrong_refusal(ended, path, self.folder)
        if ended.code and there is not None:
            wrong.append("an output was written")
        return wrong


def wrong_refusal(ended, path, folder):
    """Return what is wrong with a run that was refused for a file: it is a bad input, and is named."""
    if ended.code != 3:
        return [f"exit code {ended.code}: {ended.stderr[-300:]!r}"]
    named = (path.name, path.parent.name) if path.parent != folder else (path.name,)
    if not any(name in ended.stderr for name in named):
        return [f"does not name {path.name}: {ended.stderr!r}"]
    return []


def change_in_rounds(scene, rounds: int, seed: int) -> tuple[list[str], list[int]]:
    """Change a file in each of some runs; return what went wrong, and the exit codes."""
    chance = random.Random(seed)
    wrong, codes = [], []
    for turn in range(rounds):
        change, way = CHANGES[turn % len(CHANGES)], WAYS[turn % len(WAYS)]
        scene.renew()
        path = chance.choice(list(scene.files()))
        read, delay = chance.randint(1, scene.reads), chance.uniform(0, scene.lasts)
        prelude = AT_A_READ.format(read) if way == "at a read" else ""
        run = scene.warm.start(scene.command(), scene.folder, prelude)
        if way == "at a read":
            halt_of(run)
        else:
            time.sleep(delay)
        if way == "halted":
            run.send(signal.SIGSTOP)
            time.sleep(0.002)  # until all of its threads stand
        change(path, chance)
        run.send(signal.SIGCONT)
        ended = run.wait()
        codes.append(ended.code)
        when = f"at read {read} of {scene.reads}" if prelude else f"{way} after {delay:.3f} s"
        what = f"{change.__name__} of {scene.kind}, {when}"
        wrong += [f"{what}: {one}" for one in scene.judge(path, ended)]
    return wrong, codes


def halt_of(run):
    """Wait until a run is halted, or has ended and is known as one that was not waited for."""
    while Path(f"/proc/{run.pid}/stat").read_text().rpartition(")")[2].split()[0] not in "TZ":
        time.sleep(0.001)


def measure_changes(full: bool, folder: Path) -> Finding:
    """Change inputs of every kind while they are read."""
    rounds = 35 if full else 4
    wrong, codes = [], []
    with Warm() as warm:
        for seed, kind in enumerate(inputs.KINDS):
            scene = Scene(warm, folder / kind, kind)
            for found, into in zip(change_in_rounds(scene, rounds, seed), (wrong, codes), strict=True):
                into += found
            shutil.rmtree(folder / kind)
    measured = f"{codes.count(3)} refused, {codes.count(0)} had read all of it or nothing of it yet"
    return Finding("no average of inputs that change meanwhile", len(codes), tuple(wrong), measured)
