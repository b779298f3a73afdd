"""Hundreds of averages in one process, which must not grow; as a script, the process that makes them."""

import gc
import json
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

from faults import inputs
from faults.finding import Finding
from faults.trials import HERE

NBYTES = 1 << 16
WARM_UP = 50
ROUNDS = {False: 75, True: 500}
WINDOW = 15  # runs over which memory is compared, which now and then grows by a step, and then no more
LEAK = 5 << 10  # bytes that a run may seem to leave: pages come and go


def state():
    """Return how much memory, how many descriptors and how many threads this process has."""
    gc.collect()
    text = Path("/proc/self/status").read_text()
    field = {name: int(re.search(rf"^{name}:\s+(\d+)", text, re.M)[1]) for name in ("VmRSS", "Threads")}
    return field["VmRSS"] << 10, len(os.listdir("/proc/self/fd")), field["Threads"]


def by_the_library(turn, names):
    import swatool

    output = ("out.safetensors", "out.pt", "folder/")[turn % 3]
    swatool.average(names[turn % len(names)], output, method="ema", decay=0.5, overwrite=True)


def exit_code(app, arguments):
    try:
        app(arguments)
    except SystemExit as ended:
        return ended.code
    return 0


def by_the_command(turn, names):
    from swatool.cli import app

    output = ("out.pt", "folder/", "out.safetensors")[turn % 3]
    # One in four is refused, of which nothing may stay, either.
    missing = ["missing.pt"] if turn % 4 == 3 else []
    arguments = ["average", *names[turn % len(names)], *missing, "-o", output, "-q", "--overwrite"]
    assert exit_code(app, arguments) == (3 if missing else 0)


def soak(way, rounds):
    """Average again and again in the current folder, and print what the process had after each run."""
    made = [inputs.make(".", kind, NBYTES) for kind in inputs.KINDS]
    os.fsync = lambda _: None  # which takes longer than all else, and can leave nothing
    # What is complained of is told of the first run that is refused, and not of all.
    with open(os.devnull, "w") as sys.stderr:
        average_often(way, rounds, made)


def average_often(way, rounds, made):
    for turn in range(WARM_UP + rounds):
        {"library": by_the_library, "command": by_the_command}[way](turn, made)
        if turn == WARM_UP - WINDOW:
            gc.freeze()  # what is imported by now stays, and would be looked through each time
        if turn >= WARM_UP - 1:
            print(json.dumps(state()), flush=True)


def growth(found):
    """Return by how many bytes a run, how many descriptors and how many threads a process has grown.

    A thread that was waited for may still be seen for a moment.
    """
    first, last = (
        [list(column) for column in zip(*part, strict=True)] for part in (found[:WINDOW], found[-WINDOW:])
    )
    sizes = [one[0] for one in found]
    steps = [after - before for before, after in zip(sizes, sizes[WINDOW:], strict=False)]
    return statistics.median(steps) / WINDOW, min(last[1]) - min(first[1]), min(last[2]) - min(first[2])


def measure_soak(full: bool, folder: Path) -> Finding:
    """Soak a process of each kind."""
    wrong, told = [], []
    rounds = ROUNDS[full]
    for way in ("library", "command"):
        place = folder / way
        place.mkdir()
        done = subprocess.run(
            [sys.executable, "-m", "faults.soaking", way, str(rounds)],
            cwd=place,
            env={**os.environ, "PYTHONPATH": HERE},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        memory, descriptors, threads = growth([json.loads(line) for line in done.stdout.splitlines()])
        told.append(f"{way} {memory:+,.0f} bytes a run")
        if memory > LEAK:
            wrong.append(f"by the {way}, {memory:,.0f} bytes stay of each run")
        if descriptors > 0 or threads > 0:
            wrong.append(f"by the {way}, {descriptors} descriptors and {threads} threads stay")
    return Finding("averages in one process leave nothing", 2 * rounds, tuple(wrong), ", ".join(told))


if __name__ == "__main__":
    soak(sys.argv[1], int(sys.argv[2]))
