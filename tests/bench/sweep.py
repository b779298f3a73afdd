"""What several averages from one read cost, as multiples of one average of all checkpoints.

A sweep and the one average stream in turn inside one process; the median of the ratios round by round is
printed. Whole processes and their peak memory are measured by starting them. Every output is compared with
float64 arithmetic on the loaded tensors, and bit by bit with the same average made alone.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from cases import Case, gpt2
from run import SWATOOL, Bench, Process, check, median_process, megabytes_above
from safetensors.torch import load_file

import swatool
from swatool.jobs.sweep_average import average_sweep

COUNT = 8
PER_OUTPUT = 0.6  # of one output's time, for each further output
GOAL_MEGABYTES = 64


@dataclass(frozen=True)
class Sweep:
    """Several averages of the same checkpoints: windows, with or without an EMA over each."""

    name: str
    windows: tuple[int, ...]
    decays: tuple[float, ...] = ()

    @property
    def axes(self) -> list[str]:
        """What is swept, as `--sweep` takes it."""
        found = [f"last={','.join(map(str, self.windows))}"] if self.windows != (COUNT,) else []
        return found + ([f"decay={','.join(map(str, self.decays))}"] if self.decays else [])

    @property
    def method(self) -> str:
        """The scheme."""
        return "ema" if self.decays else "swa"

    @property
    def outputs(self) -> int:
        """How many averages are made."""
        return len(self.windows) * max(1, len(self.decays))

    def template(self, bench: Bench) -> str:
        """Return what the outputs are called."""
        names = [axis.partition("=")[0] for axis in self.axes]
        return bench.path("-".join(["sweep", *(f"{{{name}}}" for name in names)]) + ".safetensors")


SWEEPS = (
    Sweep("7 windows", (2, 3, 4, 5, 6, 7, 8)),
    Sweep("8 decays", (COUNT,), (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)),
    Sweep("4 windows x 2 decays", (2, 4, 6, 8), (0.5, 0.9)),
)


def run_sweep(bench: Bench, paths: Sequence[str], sweep: Sweep) -> swatool.SweepReport:
    """Make all averages of a sweep."""
    settings = swatool.AverageSettings(overwrite=True, threads=bench.threads, method=sweep.method)
    return average_sweep(paths, sweep.template(bench), sweep.axes, settings=settings)


def coefficients(window: int, decay: float | None) -> list[float]:
    """Return the factors of the last checkpoints, oldest first."""
    if decay is None:
        return [1 / window] * window
    return [decay ** (window - 1), *((1 - decay) * decay ** (window - 1 - k) for k in range(1, window))]


def check_sweep(bench: Bench, report: swatool.SweepReport, paths: Sequence[str], sweep: Sweep) -> None:
    """Compare every output with arithmetic of our own, and with the same average made alone."""
    alone = bench.path("alone.safetensors")
    for one in report.outputs:
        window = int(one.values.get("last", COUNT))
        decay = float(one.values["decay"]) if sweep.decays else None
        check(paths[-window:], one.report.output.path, coefficients(window, decay))
        swatool.average(paths[-window:], alone, overwrite=True, method=sweep.method, decay=decay)
        expected, found = load_file(alone), load_file(one.report.output.path)
        assert expected.keys() == found.keys()
        for name, tensor in expected.items():
            assert torch.equal(tensor.view(torch.uint8), found[name].view(torch.uint8)), name
        os.remove(one.report.output.path)
    assert len(report.outputs) == sweep.outputs
    os.remove(alone)


def measure(bench: Bench, paths: Sequence[str], sweep: Sweep) -> tuple[float, float]:
    """Return the seconds that a sweep streams, and how many times those of one average, as medians."""
    works, ratios = [], []
    for turn in range(bench.rounds + 1):
        work = run_sweep(bench, paths, sweep).outputs[0].report.seconds.stream
        one = swatool.average(paths, bench.path("one.safetensors"), overwrite=True, threads=bench.threads)
        if turn:  # the first one warms up
            works.append(work)
            ratios.append(work / one.seconds.stream)
    os.remove(bench.path("one.safetensors"))
    return statistics.median(works), statistics.median(ratios)


def bench_sweep(bench: Bench, paths: Sequence[str], sweep: Sweep, idle: Process | None) -> None:
    """Measure a sweep and print its row; whole processes only where there is one to compare them with."""
    work, ratio = measure(bench, paths, sweep)
    check_sweep(bench, run_sweep(bench, paths, sweep), paths, sweep)
    whole = ""
    if idle is not None:
        options = [option for axis in sweep.axes for option in ("--sweep", axis)]
        output = ["-o", sweep.template(bench), "--method", sweep.method]
        # Once, as the outputs are there then.
        took = median_process([*SWATOOL, "average", *paths, *output, *options], 1)
        memory = megabytes_above(idle, took)
        whole = f", whole {took.seconds:.2f} s, memory {memory:+.0f} MB (goal {GOAL_MEGABYTES})"
    goal = 1 + PER_OUTPUT * (sweep.outputs - 1)
    print(
        f"{sweep.name:22} {sweep.outputs} outputs: {work:.3f} s, {ratio:.2f} x one output (goal {goal:.1f})"
        f"{whole}",
        flush=True,
    )


def main() -> None:
    """Run the benchmark and print its rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="small models, no processes: is it right")
    parser.add_argument(
        "--folder", help="where the data goes; default: memory if there is room, else the disk"
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    given = parser.parse_args()
    torch.set_num_threads(1)  # of the comparisons, whose threads would wait for each other
    parent = given.folder or ("/dev/shm" if shutil.disk_usage("/dev/shm").free > 12e9 else None)
    with tempfile.TemporaryDirectory(prefix="swatool-bench-", dir=parent) as folder:
        bench = Bench(folder, 1 if given.short else given.rounds, 1, given.threads)
        paths = Case("sweep", gpt2, torch.float32, ".safetensors", COUNT).write(
            bench.path("checkpoints"), 8 if given.short else 1
        )
        idle = None
        if not given.short:
            idle = median_process([sys.executable, "-W", "ignore", "-c", "import torch"], 3)
        for sweep in SWEEPS:
            bench_sweep(bench, paths, sweep, idle)


if __name__ == "__main__":
    main()
