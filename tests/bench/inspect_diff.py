"""How fast `inspect` reads descriptions, and how fast and lean `diff` and `inspect --stats` read values.

Whole processes are started and their medians told. `diff` is also measured inside one process, in turn with
the floor: the same threads read both files and do nothing with the bytes.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence

import torch
from cases import Case, gpt2
from loop import load
from run import SWATOOL, median_process, megabytes_above
from safetensors.torch import save_file

import swatool
from swatool.averaging.measures import plan_measuring
from swatool.averaging.measuring import measure_differences
from swatool.checkpoints.opening import open_checkpoint

TENSORS = 10_000
READ = 512 * 1024


def read_seconds(paths: Sequence[str], threads: int) -> float:
    """Return the seconds that reading the files takes, by so many threads."""
    files = [(os.open(path, os.O_RDONLY), os.path.getsize(path)) for path in paths]
    places = iter([(file, place) for file, size in files for place in range(0, size, READ)])
    lock = threading.Lock()

    def work() -> None:
        buffer = bytearray(READ)
        while True:
            with lock:
                item = next(places, None)
            if item is None:
                return
            os.preadv(item[0], [buffer], item[1])

    workers = [threading.Thread(target=work) for _ in range(threads)]
    started = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    seconds = time.perf_counter() - started
    for descriptor, _ in files:
        os.close(descriptor)
    return seconds


def diff_seconds(paths: Sequence[str], threads: int) -> float:
    """Return the seconds that comparing two files takes, without starting Python and importing torch."""
    opened = [open_checkpoint(path) for path in paths]
    started = time.perf_counter()
    measure_differences(plan_measuring(opened, list(opened[0].tensors)), threads=threads)
    seconds = time.perf_counter() - started
    for checkpoint in opened:
        checkpoint.close()
    return seconds


def bench_inspect(folder: str, rounds: int, count: int) -> None:
    """Print how long the descriptions of many tensors take, as a whole process."""
    state = {f"model.layers.{i // 8}.part.{i % 8}.weight": torch.zeros(16) for i in range(count)}
    paths = [os.path.join(folder, "many.safetensors"), os.path.join(folder, "many.pt")]
    save_file(state, paths[0])
    torch.save({"model": state, "step": 5}, paths[1])
    nothing = median_process([*SWATOOL, "inspect", "--help"], rounds)
    print(f"inspect --help: {nothing.seconds:.3f} s, {nothing.peak_bytes / 1e6:.0f} MB")
    for path in paths:
        found = [(tensor.name, tensor.shape, tensor.dtype) for tensor in swatool.inspect(path).tensors]
        assert sorted(found) == sorted((name, (16,), "float32") for name in state)
        for options in ([], ["--tree"], ["--json"]):
            took = median_process([*SWATOOL, "inspect", path, *options], rounds)
            print(
                f"inspect {os.path.basename(path)} {' '.join(options):6} {count:,} tensors: "
                f"{took.seconds:.3f} s (goal 0.3), {took.peak_bytes / 1e6:.0f} MB",
                flush=True,
            )


def check_diff(paths: Sequence[str], threads: int) -> None:
    """Compare the largest differences with those of the loaded tensors."""
    one, other = map(load, paths)
    found = {
        tensor.name: tensor.difference.max_abs for tensor in swatool.diff(*paths, threads=threads).tensors
    }
    assert found.keys() == one.keys()
    for name, largest in found.items():
        assert largest == float((one[name].double() - other[name].double()).abs().max()), name


def bench_diff(folder: str, rounds: int, scale: int, threads: int) -> None:
    """Print how long comparing takes beside reading, and how much memory, also for four times the bytes."""
    idle = median_process([sys.executable, "-W", "ignore", "-c", "import torch"], max(3, rounds))
    for name, dtype, suffix, divisor in (
        ("gpt2 float32 safetensors", torch.float32, ".safetensors", scale),
        ("gpt2 float32 pt", torch.float32, ".pt", scale),
        ("gpt2 bfloat16 safetensors", torch.bfloat16, ".safetensors", scale),
        ("a quarter of the bytes", torch.float32, ".safetensors", 2 * scale),
    ):
        place = os.path.join(folder, "diff")
        paths = Case(name, gpt2, dtype, suffix, 2).write(place, divisor)
        check_diff(paths, threads)
        pairs = [(diff_seconds(paths, threads), read_seconds(paths, threads)) for _ in range(rounds)]
        work, floor = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratio = statistics.median(one / other for one, other in pairs)
        whole = median_process([*SWATOOL, "diff", *paths], rounds)
        stats = median_process([*SWATOOL, "inspect", "--stats", *paths], rounds)
        print(
            f"diff {name:26} {work:.3f} s, floor {floor:.3f} s ({ratio:.1f}x), whole {whole.seconds:.2f} s, "
            f"memory {megabytes_above(idle, whole):+.0f} MB; inspect --stats of both: whole "
            f"{stats.seconds:.2f} s, memory {megabytes_above(idle, stats):+.0f} MB (goal 64)",
            flush=True,
        )
        shutil.rmtree(place)


def main() -> None:
    """Run the benchmark and print its rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="small models: does it run at all")
    parser.add_argument(
        "--folder", help="where the data goes; default: memory if there is room, else the disk"
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    given = parser.parse_args()
    rounds = 1 if given.short else given.rounds
    parent = given.folder or ("/dev/shm" if shutil.disk_usage("/dev/shm").free > 4e9 else None)
    with tempfile.TemporaryDirectory(prefix="swatool-bench-", dir=parent) as folder:
        bench_inspect(folder, rounds, TENSORS // 10 if given.short else TENSORS)
        bench_diff(folder, rounds, 8 if given.short else 1, given.threads)


if __name__ == "__main__":
    main()
