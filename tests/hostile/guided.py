"""Damage that follows the code: a mutant that reaches new lines of swatool becomes a seed of further ones.

As a script, where atheris is installed: `python -m hostile.guided --seconds 60`, with `tests` on the path.
"""

import argparse
import contextlib
import io
import os
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import atheris

# It names every module that it instruments on stderr.
with contextlib.redirect_stderr(io.StringIO()), atheris.instrument_imports(include=["swatool"]):
    from hostile import fuzz
    from hostile.fuzz_formats import FORMATS

SEEDS = 300
LONGEST = 1 << 16  # bytes of a mutant
PROGRESS = re.compile(r"#(\d+)\s+\w+\s+cov: (\d+)")


def follow(name, seconds):
    """Damage one format for so long, in the current folder; the process ends with its verdict."""
    kind, dice, outcome = FORMATS[name], random.Random(f"{fuzz.SEED} {name}"), fuzz.Outcome()
    kind.prepare(Path())
    seeds = Path("seeds")
    seeds.mkdir()
    for number in range(SEEDS):
        (seeds / str(number)).write_bytes(kind.mutant(dice))

    def attempt(data):
        fuzz.attempt(kind, data, outcome)
        if outcome.failures:
            raise AssertionError(outcome.failures[0][0])

    atheris.Setup([name, str(seeds), f"-max_total_time={seconds}", f"-max_len={LONGEST}"], attempt)
    atheris.Fuzz()


def followed(name, seconds):
    """Do it in a process of its own; return whether all went well, and a line that tells how far it came."""
    with tempfile.TemporaryDirectory(prefix="guided-") as folder:
        command = [sys.executable, "-m", "hostile.guided", "--seconds", str(seconds), "--inside", name]
        path = os.pathsep.join(filter(None, sys.path))
        run = subprocess.run(
            command, cwd=folder, env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.PIPE, check=False
        )
    text = run.stderr.decode(errors="replace")
    mutants, reached = max(((int(a), int(b)) for a, b in PROGRESS.findall(text)), default=(0, 0))
    line = f"{name:<12} {mutants:>9,} mutants, which reach {reached:,} branches"
    return run.returncode == 0, line if run.returncode == 0 else f"{line}\n{text[-3000:]}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=60, help="for each format")
    parser.add_argument("--format", choices=list(FORMATS), action="append")
    parser.add_argument("--inside", choices=list(FORMATS), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.inside:
        follow(given.inside, given.seconds)
        return
    failed = False
    for name in given.format or FORMATS:
        well, line = followed(name, given.seconds)
        print(line, flush=True)
        failed = failed or not well
    sys.exit(failed)


if __name__ == "__main__":
    main()
