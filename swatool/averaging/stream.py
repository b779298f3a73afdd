"""The one loop: worker threads take blocks, read their bytes from every checkpoint, add, finish, write.

Formats, devices and schemes are data to this loop, not copies of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from swatool.averaging import kernels
from swatool.averaging.blocks import Block, block_elements, cut
from swatool.averaging.memory import Memory, bytes_of
from swatool.averaging.plan import Action, Plan, Treatment
from swatool.averaging.reading import BlockReader
from swatool.averaging.reducers import CopyReducer, LinearReducer, Reducer, Signal
from swatool.averaging.workers import run_blocks
from swatool.errors import CheckpointError, MismatchError, UsageError, printable
from swatool.output.layout import Layout

__all__ = ["StreamResult", "Target", "Write", "choose_device", "stream"]

Write = Callable[[int, memoryview], None]


class Target(NamedTuple):
    """Where one output goes.

    Attributes:
        layout: where in it each tensor goes.
        write: puts bytes at a position of it; called from all threads.
    """

    layout: Layout
    write: Write


SIGNAL_SAMPLES = 32  # blocks on which the merge signal is measured
MOST_REDUCERS = 64  # that a worker keeps
# By the end of a tensor's name: of BatchNorm, as Keras names it too, of Adam and Adafactor, and of RMSprop.
NEVER_NEGATIVE = (
    *(
        "running_var",
        "moving_var",
        "moving_variance",
        "exp_avg_sq",
        "max_exp_avg_sq",
        "exp_avg_sq_row",
        "exp_avg_sq_col",
    ),
    *("square_avg", "acc_delta"),
)


@dataclass
class StreamResult:
    """What happened to the blocks of one output.

    Attributes:
        bytes_read: from all checkpoints, for all outputs together.
        bytes_written: to the output, its header not included.
        differing: copied tensors that differ between checkpoints, and the first checkpoint that does.
        nonfinite: names of tensors with NaN or Inf in them; only where those are allowed.
        signal: squared norms for the merge signal, over the sampled blocks.
    """

    bytes_read: int = 0
    bytes_written: int = 0
    differing: dict[str, int] = field(default_factory=dict)
    nonfinite: set[str] = field(default_factory=set)
    signal: Signal = field(default_factory=Signal)

    def merge(self, other: StreamResult) -> None:
        """Add what another worker did."""
        self.bytes_written += other.bytes_written
        self.differing |= other.differing
        self.nonfinite |= other.nonfinite
        self.signal.rounding += other.signal.rounding
        self.signal.change += other.signal.change


def choose_device(name: str) -> torch.device:
    """Turn `cpu`, `cuda`, `cuda:N` or `auto` into a device; UsageError if it is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = name.partition(":")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(index or 0) >= count:
            raise UsageError(f"--device {name} is not there: torch sees {count} CUDA devices")
    return torch.device(name)


@dataclass(frozen=True)
class _Job:
    """What all workers share; see `stream`."""

    plan: Plan
    targets: tuple[Target, ...]
    shifts: tuple[int | None, ...]
    ties: Mapping[str, tuple[str, ...]]
    device: torch.device
    elements: int
    samples_every: int
    allow_nonfinite: bool


def stream(
    plan: Plan,
    targets: Sequence[Target],
    *,
    device: torch.device,
    threads: int,
    allow_nonfinite: bool = False,
    progress: Callable[[int], None] | None = None,
) -> tuple[StreamResult, ...]:
    """Carry out a plan: read everything once, and write each of its outputs.

    Args:
        plan: what is computed.
        targets: where it goes, one for each output of the plan. They hold the same tensors.
        device: where the arithmetic is done.
        threads: number of workers.
        allow_nonfinite: note NaN and Inf instead of refusing them.
        progress: is told, ten times a second, how many bytes have been read.

    Returns:
        What happened to each output.

    Raises:
        CheckpointError: an input failed, or the result holds NaN or Inf.
        MismatchError: tensors that must be equal are not.
    """
    elements = block_elements(plan, threads)
    offsets = targets[0].layout.offsets
    ties: dict[str, tuple[str, ...]] = {}
    for name, first in plan.ties.items():
        if name in offsets:
            ties[first] = (*ties.get(first, ()), name)
    shifts = tuple(_shift(offsets, target.layout.offsets) for target in targets)
    total = sum(tensor.numel for tensor in plan.tensors)
    samples_every = max(1, total // (elements * SIGNAL_SAMPLES))
    job = _Job(plan, tuple(targets), shifts, ties, device, elements, samples_every, allow_nonfinite)
    workers = [_Worker(job) for _ in range(threads)]
    run_blocks(cut(plan, offsets, elements, as_stored=True), workers, device, progress)
    results = tuple(StreamResult() for _ in targets)
    for index, result in enumerate(results):
        for worker in workers:
            result.merge(worker.results[index])
            result.bytes_read += worker.bytes_read
        _refuse_unequal(plan, result.differing)
    return results


def _shift(offsets: Mapping[str, int], others: Mapping[str, int]) -> int | None:
    """Return by how much all tensors of another layout are shifted; None if not all by the same."""
    shifts = {others[name] - offset for name, offset in offsets.items()}
    return shifts.pop() if len(shifts) == 1 else None if shifts else 0


def _refuse_unequal(plan: Plan, differing: Mapping[str, int]) -> None:
    must = {tensor.name for tensor in plan.tensors if tensor.treatment.action is Action.MUST_EQUAL}
    unequal = [
        f"{printable(name)} in {printable(plan.checkpoints[differing[name]].path)}"
        for name in sorted(must & differing.keys())
    ]
    if unequal:
        raise MismatchError("integer and bool tensors differ, and --integers equal was asked for:", unequal)


class _Worker:
    """One thread's share of the work, with memory of its own that it uses again from block to block."""

    def __init__(self, job: _Job) -> None:
        self.results = tuple(StreamResult() for _ in job.targets)
        self._job = job
        self._memory = Memory(job.device)
        self._host_memory = Memory(torch.device("cpu"))
        self._reader = BlockReader(job.plan.checkpoints, self._memory)
        self._averages: dict[tuple[Treatment, int], LinearReducer] = {}
        self._copies: dict[tuple[Treatment, int], CopyReducer] = {}

    @property
    def bytes_read(self) -> int:
        """From all checkpoints, so far."""
        return self._reader.bytes_read

    def work(self, number: int, block: Block) -> None:
        """Average or copy a block."""
        if block.treatment.averages:
            self._average(block, measured=number % self._job.samples_every == 0)
        else:
            self._copy(block)

    def _average(self, block: Block, measured: bool) -> None:
        key = (block.treatment, block.count)
        reducer = self._averages.get(key)
        if reducer is None:
            _make_room(self._averages, block.count)
            alone = block.count > self._job.elements
            reducer = LinearReducer(block.treatment, block.count, self._memory, alone=alone)
            self._averages[key] = reducer
        self._reduce(block, reducer)
        # Before a search for what is not finite reads over the last rows.
        if measured and block.treatment.dtype.itemsize < 4:
            for output, result in enumerate(self.results):
                if reducer.fits(output):
                    reducer.measure(result.signal, output)
        for output in range(len(self.results)):
            if not reducer.fits(output):
                self._refuse_or_note_nonfinite(block, reducer, output)
            if _may_go_below_zero(block.treatment, output):
                _refuse_negative(block, reducer, output)
            self._put(output, block, self._on_host(reducer.finish(output)))

    def _copy(self, block: Block) -> None:
        key = (block.treatment, block.count)
        reducer = self._copies.get(key)
        if reducer is None:
            _make_room(self._copies, block.count)
            differing = [result.differing for result in self.results]
            reducer = CopyReducer(block.treatment, block.count, self._host_memory, differing)
            self._copies[key] = reducer
        self._reduce(block, reducer)
        for output in range(len(self.results)):
            self._put(output, block, reducer.finish(output))

    def _reduce(self, block: Block, reducer: Reducer) -> None:
        reducer.start(block)
        for turn, group in enumerate(reducer.groups):
            group.rows.wait()
            for row, one in enumerate(group.inputs):
                self._reader.fill(block, one, group.rows, row)
            group.rows.upload()
            reducer.add(turn)

    def _on_host(self, result: Tensor) -> Tensor:
        if result.device.type == "cpu":
            return result
        return self._memory.take_on_host("output", len(result)).copy_(result)

    def _put(self, output: int, block: Block, on_host: Tensor) -> None:
        """Write a block's bytes to their places in one output, under every name that shares them."""
        data = bytes_of(self._reader.in_c_order(block, on_host))
        write, result = self._job.targets[output].write, self.results[output]
        itemsize = block.treatment.dtype.itemsize
        position = 0
        for length, offset in self._places(output, block):
            write(offset, data[position : position + length * itemsize])
            position += length * itemsize
        result.bytes_written += len(data)
        if not self._job.ties:
            return
        offsets = self._job.targets[output].layout.offsets
        for segment, part in block.split(data):
            for name in self._job.ties.get(segment.tensor.name, ()):
                write(offsets[name] + segment.start * itemsize, part)
                result.bytes_written += len(part)

    def _places(self, output: int, block: Block) -> Iterator[tuple[int, int]]:
        """Yield lengths and positions in one output; blocks are cut for the first."""
        shift = self._job.shifts[output]
        if shift is not None:
            yield from ((length, offset + shift) for length, offset in block.places)
            return
        offsets, itemsize = self._job.targets[output].layout.offsets, block.treatment.dtype.itemsize
        for tensor, start, length in block.segments:
            yield length, offsets[tensor.name] + start * itemsize

    def _refuse_or_note_nonfinite(self, block: Block, reducer: LinearReducer, output: int) -> None:
        """Find which tensors of a block are not finite, and in which checkpoints that began."""
        culprits = dict.fromkeys(reducer.unfit(block, output), "")
        for group in reducer.groups:
            for row, one in enumerate(group.inputs):
                if one.coefficients[output] is None:
                    continue
                group.rows.wait()
                self._reader.fill(block, one, group.rows, row)
                values = group.rows.host[row].view(kernels.torch_dtype(one.dtype))
                for name in culprits.keys() & _nonfinite(block, values):
                    where = self._job.plan.checkpoints[one.checkpoint].path
                    culprits[name] = culprits[name] or f"there is NaN or Inf in it in {printable(where)}"
        if not self._job.allow_nonfinite:
            name, why = next(iter(culprits.items()))
            why = why or f"it is too large for {block.treatment.dtype.name}"
            raise CheckpointError(
                f"the average of tensor {printable(name)} is not finite: {why}; leave that checkpoint out, "
                "or pass --allow-nonfinite"
            )
        self.results[output].nonfinite.update(culprits)


def _may_go_below_zero(treatment: Treatment, output: int) -> bool:
    return any((one.coefficients[output] or 0.0) < 0 for one in treatment.inputs)


def _refuse_negative(block: Block, reducer: LinearReducer, output: int) -> None:
    """Refuse variances and second moments that negative coefficients have made negative."""
    names = [name for name in reducer.negative(block, output) if name.endswith(NEVER_NEGATIVE)]
    if names:
        raise MismatchError(
            "negative coefficients make variances negative, which no model can use; keep those of the last "
            "checkpoint with --exclude, or choose a method without negative coefficients:",
            [f"{printable(name)} has values below 0" for name in names],
        )


def _make_room(
    reducers: dict[tuple[Treatment, int], LinearReducer] | dict[tuple[Treatment, int], CopyReducer],
    count: int,
) -> None:
    """Bound the prepared reducers and what they hold before one for this many elements joins them.

    Nearly all blocks have one of a few shapes. The largest takes new memory, so that those of smaller ones
    would keep what was taken before.
    """
    if len(reducers) >= MOST_REDUCERS or count > max((known for _, known in reducers), default=0):
        reducers.clear()


def _nonfinite(block: Block, values: Tensor) -> Iterator[str]:
    """Yield the names of a block's tensors that have NaN or Inf in these values."""
    for segment, part in block.split(values):
        # Not every narrow type has isfinite.
        if not bool(part.to(torch.complex128).isfinite().all()):
            yield segment.tensor.name
