"""Reads of an input that the system fails: an error that names the file and where in it."""

import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

from faults import inputs
from faults.finding import Finding
from faults.trials import HERE, Ended, Warm, clear

NBYTES = 4 << 20
OUTPUT = "out.safetensors"

# Lets the so-many-th read of a file fail, by whatever thread, and writes down where that was.
FAILING = """
import os, threading
wanted, target = {}, os.stat({!r})
lock, count = threading.Lock(), 0

def failing(read, place):
    def wrapped(descriptor, *arguments):
        global count
        if os.path.samestat(os.fstat(descriptor), target):
            with lock:
                count += 1
                if count >= wanted > 0:
                    print(arguments[place], file=open("failed-at", "a"))
                    raise OSError(5, "Input/output error")
        return read(descriptor, *arguments)
    return wrapped

os.pread = failing(os.pread, 1)
os.preadv = failing(os.preadv, 1)
ending = os._exit

def end(code):
    open("reads", "w").write(str(count))
    ending(code)

os._exit = end
"""


def judge(folder: Path, name: str, ended: Ended, offsets: list[int] | None = None) -> list[str]:
    """Return what is wrong with a run that could not read a file; `offsets` are where."""
    wrong = ended.wrong_words()
    if ended.code != 3:
        wrong.append(f"exit code {ended.code}")
    said = re.search(r"reading '(.*)' at byte (\d+) failed: Input/output error", ended.stderr)
    if not said or Path(said[1]).name != Path(name).name:
        wrong.append(f"does not say where reading {name} failed: {ended.stderr[-300:]!r}")
    elif offsets is not None and int(said[2]) not in offsets:
        wrong.append(f"says byte {said[2]}, and it was {offsets}")
    if (folder / OUTPUT).exists():
        wrong.append("an output was written")
    return wrong


def by_patching(warm: Warm, folder: Path, kind: str, rounds: int) -> tuple[int, list[str]]:
    """Let reads fail inside the program: all, or some, of one input of a kind."""
    folder.mkdir()
    names = inputs.make(folder, kind, NBYTES)
    command = ["average", *names, "-o", OUTPUT, "-q"]
    files = sorted((folder / names[1]).glob("*")) or [folder / names[1]]
    chance = random.Random(1)
    tried, wrong = 0, []
    for path in files:
        assert warm.run(command, folder, FAILING.format(0, str(path))).code == 0
        reads = int((folder / "reads").read_text())
        clear(folder, names)
        for number in sorted(chance.sample(range(1, reads + 1), min(rounds, reads))):
            ended = warm.run(command, folder, FAILING.format(number, str(path)))
            tried += 1
            failed = (folder / "failed-at").read_text().split()
            found = judge(folder, path.name, ended, [*map(int, failed)])
            left = set(clear(folder, names)) - {"failed-at", "reads", OUTPUT}
            found += [f"left {name}" for name in sorted(left)]
            wrong += [f"read {number} of {kind}'s {path.name}: {one}" for one in found]
    return tried, wrong


def by_the_system(folder: Path, kind: str) -> tuple[int, list[str]]:
    """Let the system's calls fail, where strace is installed and may trace."""
    folder.mkdir()
    names = inputs.make(folder, kind, NBYTES)
    path = next(iter(sorted((folder / names[1]).glob("*.*[sp]"))), folder / names[1])
    inject = ["-e", "trace=preadv", "-e", "inject=preadv:error=EIO:when=2+"]
    program = [sys.executable, "-m", "swatool", "average", *names, "-o", OUTPUT, "-q"]
    done = subprocess.run(
        ["strace", "-f", "-o", folder / "trace", "-P", path, *inject, *program],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": HERE},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if "INJECTED" not in (folder / "trace").read_text():
        return 0, []
    ended = Ended(done.returncode, False, done.stdout, done.stderr, 0.0, 0)
    return 1, [f"injected into {kind}: {one}" for one in judge(folder, path.name, ended)]


def measure_misreading(full: bool, folder: Path) -> Finding:
    """Let reads of inputs of every kind fail."""
    tried, wrong = 0, []
    with Warm() as warm:
        for kind in inputs.KINDS:
            count, found = by_patching(warm, folder / kind, kind, 12 if full else 2)
            tried, wrong = tried + count, wrong + found
    for kind in inputs.KINDS if full and shutil.which("strace") else ():
        count, found = by_the_system(folder / f"traced-{kind}", kind)
        tried, wrong = tried + count, wrong + found
    return Finding("a failed read names the file and the place", tried, tuple(wrong))
