"""Random damage to files of every format: swatool reads what the reference libraries read, or says why not.

As a script: `python -m hostile.fuzz --count 200000 --seconds 600`, with the folder `tests` on the path.
"""

import argparse
import collections
import contextlib
import os
import random
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path

from hostile.fuzz_formats import FORMATS
from swatool.errors import SwatoolError

SEED = 20260101
COUNT = 20_000


@dataclass
class Outcome:
    """What became of the mutants of one format.

    Attributes:
        mutants: how many there were.
        refused: how many swatool refused.
        agreed: how many both read, with the same bytes.
        alone: how many swatool alone read, by the reason.
        failures: what should not be, with the mutant that showed it.
    """

    mutants: int = 0
    refused: int = 0
    agreed: int = 0
    alone: collections.Counter = field(default_factory=collections.Counter)
    failures: list = field(default_factory=list)

    def line(self):
        alone = ", ".join(f"{reason} {count:,}" for reason, count in self.alone.most_common())
        return (
            f"{self.mutants:>9,} mutants, {self.refused:>9,} refused, {self.agreed:>8,} read alike, "
            f"{sum(self.alone.values()):>7,} read by swatool alone ({alone}), {len(self.failures)} failures"
        )


def fuzz(name, count, seed=SEED, until=float("inf")):
    """Read this many mutants of a format, or as many as there is time for."""
    outcome, dice = Outcome(), random.Random(f"{seed} {name}")
    kind = FORMATS[name]
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder, contextlib.chdir(folder):
        kind.prepare(Path())
        while outcome.mutants < count and time.monotonic() < until:
            mutant = kind.mutant(dice)
            outcome.mutants += 1
            attempt(kind, mutant, outcome)
    return outcome


def attempt(kind, mutant, outcome):
    """Read one mutant with both, and note what became of it."""
    path = kind.write(mutant)
    try:
        ours = kind.ours(path)
    except SwatoolError as error:
        outcome.refused += 1
        lines = str(error).split("\n") if kind.is_listed else [str(error)]
        if not all(map(_is_a_sentence, lines)):
            outcome.failures.append((f"not one sentence: {error}", mutant))
        return
    except Exception:  # noqa: BLE001 - that is what is looked for
        outcome.failures.append((traceback.format_exc(), mutant))
        return
    try:
        theirs = kind.theirs(mutant)
    except Exception as error:  # noqa: BLE001 - the libraries raise a dozen kinds
        reason = kind.reason(mutant, ours, error)
        outcome.alone[reason or "unexplained"] += 1
        if reason is None:
            outcome.failures.append((f"only swatool reads it: {type(error).__name__}: {error}", mutant))
        return
    different = kind.difference(ours, theirs)
    if different:
        outcome.failures.append((f"read differently: {different}", mutant))
    outcome.agreed += 1


def _is_a_sentence(text):
    return text.isprintable() and len(text) < 4000


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=int(os.environ.get("FUZZ_COUNT", COUNT)))
    parser.add_argument("--seconds", type=float, default=float("inf"), help="at most, for each format")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--format", choices=list(FORMATS), action="append")
    parser.add_argument("--keep", type=Path, help="write the mutants that fail into this folder")
    given = parser.parse_args()
    failed = 0
    for name in given.format or FORMATS:
        begun = time.process_time()
        outcome = fuzz(name, given.count, given.seed, time.monotonic() + given.seconds)
        print(f"{name:<12} {outcome.line()}, {time.process_time() - begun:.0f} s", flush=True)
        for number, (what, mutant) in enumerate(outcome.failures[:20]):
            print(f"  {what}")
            if given.keep:
                given.keep.mkdir(exist_ok=True)
                (given.keep / f"{name}-{number}").write_bytes(mutant)
        failed += len(outcome.failures)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
