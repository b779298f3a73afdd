"""`make bench-reliability`: what holds of the promises about hostile files, faults, signals and races.

Each row of the table is a goal, how often it was tried, and how often it was missed; it fails if any was.
The folder `tests` must be on the path.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from faults import (
    changing,
    changing_others,
    commands,
    failing,
    filling,
    killing,
    limiting,
    misreading,
    ordering,
    permissions,
    racing,
    signalling,
    sizes,
    soaking,
)
from faults.finding import Finding
from hostile import measuring

import swatool

MEASURES = (
    *(measuring.measure_inputs, measuring.measure_mutants),
    *(killing.measure_kills, killing.measure_random_kills, failing.measure_failures),
    *(filling.measure_full_disks, ordering.measure_ordering, signalling.measure_signals),
    commands.measure_commands,
    *(changing.measure_changes, changing_others.measure_other_changes),
    *(misreading.measure_misreading, racing.measure_races),
    *(limiting.measure_limits, soaking.measure_soak, permissions.measure_permissions, sizes.measure_sizes),
)


def findings(full: bool) -> Iterator[tuple[Finding, float]]:
    """Yield each goal's finding, and the seconds that it took."""
    for measure in MEASURES:
        begun = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="reliability-") as folder:
            found = measure(full, Path(folder))
        several = found if isinstance(found, tuple) else (found,)
        for one in several:
            yield one, (time.monotonic() - begun) / len(several)


def main() -> int:
    """Print the table; return 1 if a goal was missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="try each a few times")
    given = parser.parse_args()
    versions = f"swatool {swatool.__version__}, torch {torch.__version__}, Python {platform.python_version()}"
    print(f"{time.strftime('%Y-%m-%d')}: {versions}, {platform.system()} {platform.release()}\n")
    print("| goal | tried | missed | beside that |\n|---|---:|---:|---|", flush=True)
    wrong: list[str] = []
    for found, seconds in findings(not given.short):
        print(f"| {found.goal} | {found.tried:,} | {len(found.wrong):,} | {found.measured} |", flush=True)
        print(f"{seconds:7.1f} s", file=sys.stderr)
        wrong += [f"{found.goal}: {one}" for one in found.wrong]
    for one in wrong[:50]:
        print(f"\n{one}")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
