"""How fast and how lean averaging is from and to every format, and whether its results are right.

The same weights, 8 checkpoints shaped like GPT-2 small in float32, are stored in each format by the format's
own library. Work (planning, reading, adding, writing) is measured inside one process, in turn with the same
work from and to safetensors files, as the median over rounds of the ratio round by round. Whole processes and
their peak memory are measured by starting them, unless it is to be short. What this version cannot read or
write is told and left out.
"""

from __future__ import annotations

import argparse
import glob
import os
import shutil
import statistics
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed.checkpoint as dcp
from cases import gpt2
from run import SWATOOL, Bench, Process, median_process, megabytes_above
from safetensors.torch import load_file, save_file

import swatool
from swatool.errors import SwatoolError

COUNT = 8
SHARDS = 5
RANKS = 4
SHORT_SCALE = 8
GOAL_RATIO = 1.15
GOAL_MEGABYTES = 64
GOAL_GROWTH = (0.9, 1.15)

State = dict[str, torch.Tensor]


def first_state(scale: int) -> State:
    """Return the weights that every checkpoint is made of."""
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator).mul_(0.02) for name, shape in gpt2(scale).items()}


def states(scale: int) -> Iterator[State]:
    """Yield the weights of one checkpoint after the other."""
    start = first_state(scale)
    for step in range(COUNT):
        yield {name: tensor * (1 + 0.01 * step) for name, tensor in start.items()}


def check(found: Mapping[str, torch.Tensor], scale: int) -> None:
    """Compare an average with what it must be."""
    start = first_state(scale)
    assert found.keys() == start.keys()
    for name, tensor in start.items():
        expected = tensor.double() * (1 + 0.01 * (COUNT - 1) / 2)
        torch.testing.assert_close(found[name].double(), expected, rtol=1e-6, atol=1e-12)


# Inputs: each writes one checkpoint, or all of them, with the format's own library.


def save_hf(state: State, path: str) -> None:
    """Write a Hugging Face folder of several shards."""
    from huggingface_hub import save_torch_state_dict

    total = sum(tensor.nbytes for tensor in state.values())
    os.makedirs(path)
    save_torch_state_dict(state, path, max_shard_size=total // SHARDS)
    assert len(glob.glob(os.path.join(path, "*.safetensors"))) == SHARDS


def save_dcp(state: State, path: str) -> None:
    """Write a distributed checkpoint as one process does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"model": state}, checkpoint_id=path, no_dist=True)


def save_ranks(paths: Sequence[str], scale: int) -> None:
    """Write distributed checkpoints as 2 x 2 ranks do that share every matrix."""
    with tempfile.TemporaryDirectory() as meeting:
        arguments = (os.path.join(meeting, "ranks"), tuple(paths), scale)
        torch.multiprocessing.spawn(save_rank, arguments, nprocs=RANKS)  # type: ignore[attr-defined]


def save_rank(rank: int, meeting: str, paths: Sequence[str], scale: int) -> None:
    """Write one rank's part of them."""
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=RANKS)
    mesh = init_device_mesh("cpu", (2, 2))
    for path, state in zip(paths, states(scale), strict=True):
        parts = {
            # Every rank has the whole already, so that nothing has to be sent.
            name: distribute_tensor(
                tensor, mesh, [Shard(0), Shard(1) if tensor.dim() > 1 else Replicate()], src_data_rank=None
            )
            for name, tensor in state.items()
        }
        dcp.save({"model": parts}, checkpoint_id=path)
    distributed.destroy_process_group()


@dataclass(frozen=True)
class Input:
    """A format that checkpoints are stored in: how one is written, or how all are."""

    name: str
    suffix: str
    save: Callable[[State, str], None] | None = None
    save_all: Callable[[Sequence[str], int], None] | None = None

    def write(self, folder: str, scale: int) -> list[str]:
        """Write the checkpoints and return their paths."""
        os.makedirs(folder)
        paths = [os.path.join(folder, f"ckpt-{step}{self.suffix}") for step in range(COUNT)]
        if self.save_all is not None:
            self.save_all(paths, scale)
        if self.save is not None:
            for path, state in zip(paths, states(scale), strict=True):
                self.save(state, path)
        return paths


SINGLE = Input("safetensors", ".safetensors", save_file)
INPUTS = (
    SINGLE,
    Input("zip .pt", ".pt", lambda state, path: torch.save({"model": state}, path)),
    Input(
        "legacy .pt",
        ".pt",
        lambda state, path: torch.save({"model": state}, path, _use_new_zipfile_serialization=False),
    ),
    Input(f"hf folder, {SHARDS} shards", "", save_hf),
    Input("dcp folder", "", save_dcp),
    Input(f"dcp folder, 2-D, {RANKS} ranks", "", save_all=save_ranks),
)


# Outputs: each is loaded by the format's own library.


def load_hf(path: str) -> State:
    """Load a Hugging Face folder."""
    found: State = {}
    for shard in glob.glob(os.path.join(path, "*.safetensors")):
        found |= load_file(shard)
    return found


def load_dcp(path: str, scale: int) -> State:
    """Load a distributed checkpoint."""
    found = {name: torch.zeros(shape) for name, shape in gpt2(scale).items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.load(found, checkpoint_id=path, no_dist=True)
    return found


@dataclass(frozen=True)
class Output:
    """A format that the average is written in: what asks for it, and how it is loaded."""

    name: str
    file: str
    load: Callable[[str, int], State]
    options: Mapping[str, object] = field(default_factory=dict)

    def arguments(self) -> list[str]:
        """Return what asks for it on the command line."""
        return [
            text
            for name, value in self.options.items()
            for text in (f"--{name.replace('_', '-')}", str(value))
        ]


SAFETENSORS = Output("safetensors", "out.safetensors", lambda path, _: load_file(path))


def outputs(scale: int) -> tuple[Output, ...]:
    """Return the formats that the average is written in."""
    total = sum(tensor.nbytes for tensor in first_state(scale).values())
    shards = {"format": "hf", "max_shard_size": total // SHARDS}
    return (
        SAFETENSORS,
        Output(f"hf folder, {SHARDS} shards", "out-hf", lambda path, _: load_hf(path), shards),
        Output(".pt", "out.pt", lambda path, _: torch.load(path, weights_only=True)),
        Output("dcp folder", "out-dcp", load_dcp, {"format": "dcp"}),
    )


BASELINE = Output("safetensors", "baseline.safetensors", SAFETENSORS.load)


@dataclass(frozen=True)
class Measured:
    """What averaging from one format to another took."""

    work: float
    ratio: float
    whole: Process | None


def run_once(bench: Bench, paths: Sequence[str], output: Output) -> float:
    """Average, and return the seconds of planning and streaming."""
    path = bench.path(output.file)
    report = swatool.average(paths, path, overwrite=True, threads=bench.threads, **output.options)
    return report.seconds.plan + report.seconds.stream


def refusal(bench: Bench, paths: Sequence[str], output: Output) -> str:
    """Return why this version does not do it; empty if it does."""
    try:
        swatool.average(paths, bench.path(output.file), overwrite=True, dry_run=True, **output.options)
    except (SwatoolError, TypeError) as error:
        return str(error).splitlines()[0]
    return ""


def measure(
    bench: Bench, paths: Sequence[str], output: Output, baseline: Sequence[str], scale: int
) -> Measured:
    """Average from these files to this format, in turn with the same from and to safetensors files."""
    works, ratios = [], []
    for turn in range(bench.rounds + 1):
        work, plain = run_once(bench, paths, output), run_once(bench, baseline, BASELINE)
        if turn:  # the first one warms up
            works.append(work)
            ratios.append(work / plain)
    path = bench.path(output.file)
    whole = None
    if scale < SHORT_SCALE:
        command = [*SWATOOL, "average", *paths, "-o", path, "--overwrite", *output.arguments()]
        whole = median_process(command, max(1, bench.rounds // 2))
    check(output.load(path, scale), scale)
    remove(path)
    remove(bench.path(BASELINE.file))
    return Measured(statistics.median(works), statistics.median(ratios), whole)


def remove(path: str) -> None:
    """Remove a file or a folder, if it is there."""
    if os.path.isdir(path):
        shutil.rmtree(path)
    elif os.path.exists(path):
        os.remove(path)


def shown(idle: Process | None, whole: Process | None) -> str:
    """Return what a row says of whole processes."""
    if idle is None or whole is None:
        return ""
    return f"{whole.seconds:7.2f} {megabytes_above(idle, whole):+7.0f}"


def bench_pairs(bench: Bench, idle: Process | None, scale: int) -> dict[str, Measured]:
    """Measure every input to safetensors, and safetensors to every output; print a row for each."""
    print(
        f"{'from -> to':48} {'/single':>7} {'work s':>7} {'whole s':>7} {'mem MB':>7}   "
        f"goals: {GOAL_RATIO}, +{GOAL_MEGABYTES} MB",
        flush=True,
    )
    baseline = SINGLE.write(bench.path("single"), scale)
    found: dict[str, Measured] = {}
    for given in INPUTS:
        folder = bench.path("given")
        try:
            paths = baseline if given is SINGLE else given.write(folder, scale)
        except ImportError as error:
            print(f"{given.name:48} skipped: {error}", flush=True)
            continue
        for output in outputs(scale) if given is SINGLE else (SAFETENSORS,):
            name = f"{given.name} -> {output.name}"
            reason = refusal(bench, paths, output)
            if reason:
                print(f"{name:48} skipped: {reason}", flush=True)
                continue
            one = found[name] = measure(bench, paths, output, baseline, scale)
            print(f"{name:48} {one.ratio:7.2f} {one.work:7.3f} {shown(idle, one.whole)}", flush=True)
        remove(folder)
    remove(bench.path("single"))
    return found


def tell_growth(small: Mapping[str, Measured], large: Mapping[str, Measured]) -> None:
    """Say what four times the bytes take."""
    low, high = GOAL_GROWTH
    print(f"4 times the bytes: time / 4 (goal {low} to {high}), memory")
    for name in small.keys() & large.keys():
        time = large[name].work / small[name].work / 4
        one, four = small[name].whole, large[name].whole
        assert one is not None
        assert four is not None
        print(f"{name:48} {time:7.2f} {megabytes_above(one, four):+7.0f} MB", flush=True)


def main() -> None:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="a small model and few rounds: is it right")
    parser.add_argument(
        "--folder", help="where the data goes; default: memory if there is room, else the disk"
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    given = parser.parse_args()
    torch.set_num_threads(1)  # of the comparisons, whose threads would wait for each other
    parent = given.folder or ("/dev/shm" if shutil.disk_usage("/dev/shm").free > 16e9 else None)
    with tempfile.TemporaryDirectory(prefix="swatool-bench-", dir=parent) as folder:
        bench = Bench(folder, 1 if given.short else given.rounds, 1, given.threads)
        print(f"torch {torch.__version__}, {bench.threads} threads, data in {os.path.dirname(folder)}")
        if given.short:
            bench_pairs(bench, None, SHORT_SCALE)
            return
        idle = median_process([sys.executable, "-W", "ignore", "-c", "import torch"], bench.rounds)
        print(f"import torch: {idle.seconds:.2f} s, {idle.peak_bytes / 1e6:.0f} MB")
        # Half the widths are a quarter of the bytes.
        tell_growth(bench_pairs(bench, idle, 2), bench_pairs(bench, idle, 1))


if __name__ == "__main__":
    main()
