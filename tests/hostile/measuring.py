"""The goals about files of strangers, each with how often it was tried and missed; and the figures beside."""

import json
import os
import subprocess
import sys
from pathlib import Path

from faults.finding import Finding

from hostile import fuzz
from hostile.corpus import CASES
from hostile.fuzz_formats import FORMATS
from hostile.judging import faults

TESTS = Path(__file__).parents[1]
MUTANTS, FEW_MUTANTS = 20_000, 1_000


def told_of(names, folder, *, widely=False):
    """What every command said of these cases, and what it did, from one process that is watched.

    Widely is each through every command; else some commands are only tried with a sample.
    """
    run = subprocess.run(
        [sys.executable, "-m", "hostile.running"],
        input=json.dumps({"names": list(names), "widely": widely}),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(TESTS), "TMPDIR": str(folder)},
        timeout=600,
        check=False,
    )
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    assert run.returncode == 0, f"ended with {run.returncode} after {lines[-1:]}: {run.stderr[-3000:]}"
    return lines


def measure_inputs(full: bool, folder: Path) -> tuple[Finding, Finding]:
    """Hand every crafted input, or every tenth, to every command that reads it; pickles with code apart."""
    lines = told_of(list(CASES)[:: 1 if full else 10], folder, widely=full)
    told = [line for line in lines if "code" in line]
    attacks = [line for line in told if line["case"].startswith("attack: ")]
    return (
        _finding("a crafted input is refused in one sentence, and nothing else happens", told),
        _finding("a pickle that would call code calls none, and nothing is opened or sent", attacks),
    )


def _finding(goal, told):
    judged = [(line, faults(CASES[line["case"]], line["command"], line)) for line in told]
    wrong = [f"{line['command']} of {line['case']}: {one}" for line, found in judged for one in found]
    slowest = max(line["seconds"] for line in told)
    largest = max(line["growth"] for line in told)
    cases = len({line["case"] for line in told})
    measured = f"{cases} inputs; the slowest took {slowest:.1f} s, the largest {largest / (1 << 20):.0f} MiB"
    return Finding(goal, len(told), tuple(wrong), measured)


def measure_mutants(full: bool, _folder: Path) -> tuple[Finding, ...]:
    """Damage files of every format at random."""
    found = []
    for name in FORMATS:
        outcome = fuzz.fuzz(name, MUTANTS if full else FEW_MUTANTS)
        wrong = tuple(what for what, _ in outcome.failures)
        measured = f"{outcome.agreed:,} read with the bytes that the reference library reads"
        goal = f"{name}: a damaged file is refused, or read as others read it"
        found.append(Finding(goal, outcome.mutants, wrong, measured))
    return tuple(found)
