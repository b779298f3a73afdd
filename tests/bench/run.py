"""`make bench`: how fast and how lean averaging is, as ratios in one run; and whether its results are right.

Work is measured inside one process, in turn with the floor (see `floor.py`), as the median over rounds of the
ratio round by round. Whole processes and their peak memory are measured by starting them.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

warnings.filterwarnings("ignore", message="Failed to initialize NumPy")

import torch
from cases import Case, few_large_tensors, gpt2, resnet50, small_tensors
from floor import BLOCKS, floor_seconds
from loop import load
from safetensors.torch import load_file

import swatool

HERE = os.path.dirname(os.path.abspath(__file__))
SWATOOL = [sys.executable, "-m", "swatool"]
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16


@dataclass(frozen=True)
class Bench:
    """How the benchmark is run."""

    folder: str
    rounds: int
    scale: int
    threads: int

    def path(self, name: str) -> str:
        """Return the path of an output."""
        return os.path.join(self.folder, name)


@dataclass(frozen=True)
class Process:
    """What a finished process took."""

    seconds: float
    peak_bytes: int


# As where swatool is installed: its modules are compiled once, and not again by every process.
COMPILED = {"PYTHONDONTWRITEBYTECODE": ""}
# A process's peak memory starts from that of its parent, so a small process stands in between.
LAUNCHER = """
import json, resource, subprocess, sys, time
started = time.perf_counter()
code = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL)
seconds = time.perf_counter() - started
json.dump([code, seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024], sys.stdout)
"""


def run_process(command: Sequence[str]) -> Process:
    """Run a command to its end; what it prints is thrown away, its failure is ours."""
    launcher = [sys.executable, "-S", "-c", LAUNCHER, *command]
    done = subprocess.run(launcher, stdout=subprocess.PIPE, check=True, env=os.environ | COMPILED)
    code, seconds, peak = json.loads(done.stdout)
    if code:
        raise SystemExit(f"{' '.join(command[:5])} ... failed with {code}")
    return Process(seconds, peak)


def median_process(command: Sequence[str], rounds: int) -> Process:
    """Run a command several times and return the medians."""
    runs = [run_process(command) for _ in range(rounds)]
    return Process(
        statistics.median(run.seconds for run in runs), int(statistics.median(run.peak_bytes for run in runs))
    )


def megabytes_above(idle: Process, process: Process) -> float:
    """Return how much more memory a process took than importing torch does."""
    return (process.peak_bytes - idle.peak_bytes) / 1e6


def check(paths: Sequence[str], output: str, coefficients: Sequence[float]) -> None:
    """Compare an output with float64 arithmetic on tensors loaded by the formats' own libraries."""
    found = load_file(output)
    states = [load(path) for path in paths]
    for name, tensor in found.items():
        if not tensor.is_floating_point():
            assert torch.equal(tensor, states[-1][name]), name
            continue
        expected = sum(c * state[name].double() for c, state in zip(coefficients, states, strict=True))
        assert isinstance(expected, torch.Tensor)
        # One rounding to the type of the output, and a few of the float32 sums.
        limits = torch.finfo(tensor.dtype)
        allowed = (0.5 * limits.eps + 1e-6) * expected.abs() + limits.tiny * limits.eps + 1e-9
        assert bool(((tensor.double() - expected).abs() <= allowed).all()), name


def work_ratio(bench: Bench, paths: Sequence[str], **options: object) -> tuple[float, float, float]:
    """Return the median ratio of averaging work to the floor, and the medians of both in seconds."""
    output = bench.path("work.safetensors")
    ratios, works, floors = [], [], []
    for turn in range(bench.rounds + 1):
        report = swatool.average(paths, output, overwrite=True, threads=bench.threads, **options)
        floor = min(floor_seconds(paths, report.bytes_written, bench.threads, block) for block in BLOCKS)
        if turn:  # the first one warms up
            ratios.append(report.seconds.stream / floor)
            works.append(report.seconds.stream)
            floors.append(floor)
    os.remove(output)
    return statistics.median(ratios), statistics.median(works), statistics.median(floors)


def bench_case(bench: Bench, case: Case, goal: float, idle: Process) -> float:
    """Measure one data set and print its row; return the seconds of work."""
    folder = bench.path(case.name.replace(" ", "-"))
    paths = case.write(folder, bench.scale)
    ratio, work, floor = work_ratio(bench, paths)
    output = bench.path("whole.safetensors")
    whole = median_process(
        [*SWATOOL, "average", *paths, "-o", output, "--overwrite"], max(3, bench.rounds // 2)
    )
    check(paths, output, [1 / case.count] * case.count)
    peer = median_process(
        [sys.executable, os.path.join(HERE, "loop.py"), output, *paths], 1 + bench.rounds // 4
    )
    os.remove(output)
    shutil.rmtree(folder)
    print(
        f"{case.name:28} {ratio:6.2f} {goal:5.1f} {work:7.3f} {floor:7.3f} "
        f"{whole.seconds:7.2f} {whole.seconds - idle.seconds - work:+7.2f} {peer.seconds:7.2f} "
        f"{megabytes_above(idle, whole):+8.0f} {megabytes_above(idle, peer):+8.0f}",
        flush=True,
    )
    return work


def bench_cases(bench: Bench, idle: Process) -> None:
    """Print the main table."""
    print(
        f"{'checkpoints':28} {'/floor':>6} {'goal':>5} {'work s':>7} {'floor s':>7} "
        f"{'whole s':>7} {'extra s':>7} {'loop s':>7} {'mem MB':>8} {'loop MB':>8}"
    )
    for case, goal in (
        (Case("8 x gpt2 float32 safetensors", gpt2, F32, ".safetensors", 8), 1.3),
        (Case("8 x gpt2 float32 pt", gpt2, F32, ".pt", 8), 1.3),
        (Case("8 x gpt2 bfloat16 safetensors", gpt2, BF16, ".safetensors", 8), 2.0),
        (Case("8 x gpt2 bfloat16 pt", gpt2, BF16, ".pt", 8), 2.0),
        (Case("8 x gpt2 float16 safetensors", gpt2, F16, ".safetensors", 8), 2.0),
        (Case("12 x resnet50 float32 pt", resnet50, F32, ".pt", 12), 1.3),
        (Case("32 x gpt2 bfloat16 safetensors", gpt2, BF16, ".safetensors", 32), 2.0),
    ):
        bench_case(bench, case, goal, idle)


def bench_schemes(bench: Bench) -> None:
    """Coefficients change nothing: compare schemes round by round on the same files."""
    paths = Case("schemes", gpt2, F32, ".safetensors", 8).write(bench.path("schemes"), bench.scale)
    weights = tuple(float(i + 1) for i in range(8))
    options: dict[str, dict[str, object]] = {
        "swa": {},
        "ema": {"method": "ema", "decay": 0.8},
        "weights": {"weights": weights},
    }
    seconds: dict[str, list[float]] = {name: [] for name in options}
    for _ in range(2 * bench.rounds):
        for name, some in options.items():
            output = bench.path("scheme.safetensors")
            report = swatool.average(paths, output, overwrite=True, threads=bench.threads, **some)
            seconds[name].append(report.seconds.stream)
    check(paths, output, [weight / math.fsum(weights) for weight in weights])
    for name in ("ema", "weights"):
        ratio = statistics.median(a / b for a, b in zip(seconds[name], seconds["swa"], strict=True))
        print(f"{name} / swa: {ratio:.2f} (goal 0.95 to 1.05)", flush=True)
    shutil.rmtree(bench.path("schemes"))


def bench_small(bench: Bench, idle: Process) -> None:
    """20,000 small tensors against the same bytes in few large ones."""
    seconds = {}
    for name, shapes, suffix in (
        ("few large safetensors", few_large_tensors, ".safetensors"),
        ("20,000 small safetensors", small_tensors, ".safetensors"),
        ("20,000 small pt", small_tensors, ".pt"),
    ):
        case = Case(f"4 x {name}", shapes, F32, suffix, 4)
        paths = case.write(bench.path("small"), bench.scale)
        output = bench.path("small.safetensors")
        command = [*SWATOOL, "average", *paths, "-o", output, "--overwrite"]
        whole = median_process(command, bench.rounds)
        check(paths, output, [0.25] * 4)
        reports = [
            swatool.average(paths, output, overwrite=True, threads=bench.threads) for _ in range(bench.rounds)
        ]
        work = statistics.median(r.seconds.plan + r.seconds.stream for r in reports)
        stream = statistics.median(r.seconds.stream for r in reports)
        seconds[name] = whole.seconds
        tensors = len(shapes(bench.scale)) * 4
        print(
            f"{case.name:28} whole {whole.seconds:.2f} s "
            f"({whole.seconds / seconds['few large safetensors']:.2f}x), "
            f"plan + stream {work:.3f} s, stream {stream:.3f} s, {work / tensors * 1e6:.1f} us per tensor, "
            f"memory {megabytes_above(idle, whole):+.0f} MB",
            flush=True,
        )
        shutil.rmtree(bench.path("small"))


def bench_growth(bench: Bench, idle: Process) -> None:
    """Peak memory when the number of checkpoints and the model grow fourfold."""
    for name, count, scale in (
        # Below a few hundred million bytes, blocks are smaller, so that every worker gets some.
        ("4 checkpoints", 4, 2),
        ("16 checkpoints", 16, 2),
        ("4 times the model", 4, 1),
    ):
        case = Case("growth", gpt2, F32, ".safetensors", count)
        paths = case.write(bench.path("growth"), scale * bench.scale)
        output = bench.path("growth.safetensors")
        whole = median_process([*SWATOOL, "average", *paths, "-o", output, "--overwrite"], 3)
        print(f"memory with {name}: {megabytes_above(idle, whole):+.0f} MB", flush=True)
        shutil.rmtree(bench.path("growth"))


def main() -> None:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--short", action="store_true", help="small models and few rounds: does it run at all"
    )
    parser.add_argument(
        "--folder", help="where the data goes; default: memory if there is room, else the disk"
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    given = parser.parse_args()
    parent = given.folder or ("/dev/shm" if shutil.disk_usage("/dev/shm").free > 12e9 else None)
    with tempfile.TemporaryDirectory(prefix="swatool-bench-", dir=parent) as folder:
        bench = Bench(folder, given.rounds, 1, given.threads)
        if given.short:
            bench = replace(bench, rounds=1, scale=8)
        idle = median_process([sys.executable, "-W", "ignore", "-c", "import torch"], max(3, bench.rounds))
        print(f"torch {torch.__version__}, {bench.threads} threads, data in {os.path.dirname(folder)}")
        print(f"import torch: {idle.seconds:.2f} s, {idle.peak_bytes / 1e6:.0f} MB")
        for argument in ("--help", "--version"):
            took = median_process([*SWATOOL, argument], max(3, bench.rounds))
            print(f"swatool {argument}: {took.seconds:.3f} s (goal 0.2)", flush=True)
        bench_cases(bench, idle)
        bench_schemes(bench)
        bench_small(bench, idle)
        bench_growth(bench, idle)


if __name__ == "__main__":
    main()
