"""How long an average would take, and with how much memory, for a run that is only planned.

The inputs are sampled, because their storage decides: what is in memory is read a hundred times as fast as
what lies on a remote disk.
"""

from __future__ import annotations

import heapq
import sys
import time

from swatool.averaging.blocks import MEMORY_BUDGET
from swatool.averaging.plan import Plan
from swatool.jobs.average_report import AverageJob
from swatool.report import Estimate, peak_rss_bytes
from swatool.tensors import rows_interleave

__all__ = ["estimated"]

SAMPLES = 64
SAMPLE_BYTES = 1 << 20
SAMPLE_SECONDS = 0.5
TORCH_SECONDS = 1.5  # to import it
TORCH_BYTES = 210 << 20  # that it takes once it is imported, on a CPU
WHOLE = 3  # times its size is what a tensor takes that cannot be cut into blocks
# Bytes per second where nothing waits for a disk: what one thread averages, and what is written.
AVERAGED = 4e9
WRITTEN = 1e9


def estimated(job: AverageJob, planning: float) -> Estimate:
    """Return what carrying out a plan would take, from its sizes and a sample of its inputs.

    Args:
        job: the plan.
        planning: seconds that it has taken so far.
    """
    sampled = _bytes_per_second(job.plan)
    reading = job.bytes_read / min(sampled, AVERAGED * job.threads)
    start = 0.0 if "torch" in sys.modules else TORCH_SECONDS
    return Estimate(
        seconds=planning + start + reading + job.layout.size / WRITTEN,
        memory_bytes=_memory(job),
        bytes_per_second=sampled,
    )


def _memory(job: AverageJob) -> int:
    tensors = job.plan.checkpoints
    whole = [
        tensor.numel * one.dtype.itemsize
        for tensor in job.plan.tensors
        for one in tensor.treatment.inputs
        if rows_interleave(tensors[one.checkpoint].tensors[tensor.name])
    ]
    torch = 0 if "torch" in sys.modules else TORCH_BYTES
    at_once = sum(heapq.nlargest(job.threads, whole))
    return peak_rss_bytes() + torch + min(MEMORY_BUDGET, job.bytes_read) + WHOLE * at_once


def _bytes_per_second(plan: Plan) -> float:
    """Read a few pieces of the largest tensors, spread over the checkpoints, and time it."""
    largest = heapq.nlargest(SAMPLES, plan.tensors, key=lambda tensor: tensor.numel)
    buffer = memoryview(bytearray(SAMPLE_BYTES))
    started = time.perf_counter()
    seconds, nbytes = 0.0, 0
    for turn, tensor in enumerate(largest):
        one = tensor.treatment.inputs[turn % len(tensor.treatment.inputs)]
        for source, offset, length in plan.checkpoints[one.checkpoint].tensors[tensor.name].extents[:1]:
            piece = min(length, SAMPLE_BYTES)
            source.read_into([buffer[:piece]], offset + (length - piece) // 2)
            nbytes += piece
        seconds = time.perf_counter() - started
        if seconds > SAMPLE_SECONDS:
            break
    return max(nbytes, 1) / max(seconds, 1e-9)
