"""The one loop: worker threads take blocks, read their bytes from every checkpoint, add, finish, write.

Reading and torch's operators both release the interpreter lock, so plain threads scale. Formats, devices and
schemes are data to this loop, not copies of it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from swatool.averaging import kernels
from swatool.averaging.blocks import LARGEST_GAP, Block, Window, block_elements, cut, reads, window
from swatool.averaging.memory import Memory, Rows, bytes_of
from swatool.averaging.plan import Action, Input, Plan, Treatment
from swatool.averaging.reducers import CopyReducer, LinearReducer, Reducer, Signal
from swatool.errors import CheckpointError, MismatchError, SwatoolError, UsageError, printable
from swatool.output.layout import Layout

__all__ = ["StreamResult", "Write", "choose_device", "stream"]

Write = Callable[[int, memoryview], None]

TICK = 0.1  # seconds between two reports of progress
SIGNAL_SAMPLES = 32  # blocks on which the merge signal is measured
MOST_REDUCERS = 64  # that a worker keeps


@dataclass
class StreamResult:
    """What happened to the blocks.

    Attributes:
        bytes_read: from all checkpoints.
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
        self.bytes_read += other.bytes_read
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
    write: Write
    ties: Mapping[str, tuple[int, ...]]
    device: torch.device
    elements: int
    samples_every: int
    allow_nonfinite: bool


def stream(
    plan: Plan,
    layout: Layout,
    write: Write,
    *,
    device: torch.device,
    threads: int,
    allow_nonfinite: bool = False,
    progress: Callable[[int], None] | None = None,
) -> StreamResult:
    """Carry out a plan.

    Args:
        plan: what is computed.
        layout: where in the output it goes.
        write: puts bytes at a position of the output; called from all threads.
        device: where the arithmetic is done.
        threads: number of workers.
        allow_nonfinite: note NaN and Inf instead of refusing them.
        progress: is told, ten times a second, how many bytes have been read.

    Raises:
        CheckpointError: an input failed, or the result holds NaN or Inf.
        MismatchError: tensors that must be equal are not.
    """
    elements = block_elements(plan, threads)
    places: dict[str, tuple[int, ...]] = {}
    for name, first in plan.ties.items():
        if name in layout.offsets:
            places[first] = (*places.get(first, ()), layout.offsets[name])
    total = sum(tensor.numel for tensor in plan.tensors)
    samples_every = max(1, total // (elements * SIGNAL_SAMPLES))
    job = _Job(plan, write, places, device, elements, samples_every, allow_nonfinite)
    source = _Shared(enumerate(cut(plan, layout.offsets, elements)))
    workers = [_Worker(job, source) for _ in range(threads)]
    torch_threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, thread_name_prefix="swatool") as pool:
            _run(pool, workers, source, progress)
    finally:
        torch.set_num_threads(torch_threads)
    result = StreamResult()
    for worker in workers:
        result.merge(worker.result)
    _refuse_unequal(plan, result.differing)
    return result


def _refuse_unequal(plan: Plan, differing: Mapping[str, int]) -> None:
    must = {tensor.name for tensor in plan.tensors if tensor.treatment.action is Action.MUST_EQUAL}
    unequal = [
        f"{printable(name)} in {printable(plan.checkpoints[differing[name]].path)}"
        for name in sorted(must & differing.keys())
    ]
    if unequal:
        raise MismatchError("integer and bool tensors differ, and --integers equal was asked for:", unequal)


def _run(
    pool: ThreadPoolExecutor,
    workers: Sequence[_Worker],
    source: _Shared,
    progress: Callable[[int], None] | None,
) -> None:
    try:
        pending = {pool.submit(worker.run) for worker in workers}
        while pending:
            done, pending = wait(pending, timeout=TICK, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
            if progress is not None:
                progress(sum(worker.result.bytes_read for worker in workers))
    finally:
        # Whatever ended the loop, Ctrl-C included, no worker begins another block.
        source.stop()


class _Shared:
    """An iterator that several threads draw from until it is stopped."""

    def __init__(self, items: Iterator[tuple[int, Block]]) -> None:
        self._items = items
        self._lock = threading.Lock()
        self._stopped = False

    def next(self) -> tuple[int, Block] | None:
        with self._lock:
            return None if self._stopped else next(self._items, None)

    def stop(self) -> None:
        self._stopped = True


class _Worker:
    """One thread's share of the work, with memory of its own that it uses again from block to block."""

    def __init__(self, job: _Job, source: _Shared) -> None:
        self.result = StreamResult()
        self._job, self._source = job, source
        self._gap = memoryview(bytearray(LARGEST_GAP))
        self._memory = Memory(job.device)
        self._host_memory = Memory(torch.device("cpu"))
        self._averages: dict[tuple[Treatment, int], LinearReducer] = {}
        self._copies: dict[tuple[Treatment, int], CopyReducer] = {}

    def run(self) -> None:
        """Work until there are no more blocks."""
        # There are as many workers as cores to be used; each computes alone.
        torch.set_num_threads(1)
        with torch.inference_mode(), self._queue():
            while (item := self._source.next()) is not None:
                number, block = item
                try:
                    if block.treatment.averages:
                        self._average(block, measured=number % self._job.samples_every == 0)
                    else:
                        self._copy(block)
                except SwatoolError:
                    self._source.stop()
                    raise

    def _queue(self) -> AbstractContextManager[object]:
        """Give each worker its own queue on a CUDA device, so that their copies and sums overlap."""
        if self._job.device.type == "cuda":
            return torch.cuda.stream(torch.cuda.Stream(self._job.device))  # type: ignore[no-untyped-call]
        return nullcontext()

    def _average(self, block: Block, measured: bool) -> None:
        key = (block.treatment, block.count)
        reducer = self._averages.get(key)
        if reducer is None:
            _forget_if_many(self._averages)
            alone = block.count > self._job.elements
            reducer = LinearReducer(block.treatment, block.count, self._memory, alone=alone)
            self._averages[key] = reducer
        self._reduce(block, reducer)
        result = reducer.finish()
        if not reducer.fits():
            self._refuse_or_note_nonfinite(block, reducer)
        if measured and block.treatment.dtype.itemsize < 4:
            reducer.measure(self.result.signal)
        self._put(block, self._on_host(result))

    def _copy(self, block: Block) -> None:
        key = (block.treatment, block.count)
        reducer = self._copies.get(key)
        if reducer is None:
            _forget_if_many(self._copies)
            differing = self.result.differing
            reducer = CopyReducer(block.treatment, block.count, self._host_memory, differing)
            self._copies[key] = reducer
        self._reduce(block, reducer)
        self._put(block, bytes_of(reducer.finish()))

    def _reduce(self, block: Block, reducer: Reducer) -> None:
        reducer.start(block)
        for turn, group in enumerate(reducer.groups):
            group.rows.wait()
            for row, one in enumerate(group.inputs):
                self._fill(block, one, group.rows, row)
            group.rows.upload()
            reducer.add(turn)

    def _fill(self, block: Block, one: Input, rows: Rows, row: int) -> None:
        """Read a block's bytes from one checkpoint into a row, in C order."""
        checkpoint = self._job.plan.checkpoints[one.checkpoint]
        buffer = rows.buffers[row]
        self.result.bytes_read += len(buffer)
        if len(block.segments) == 1:
            (segment,) = block.segments
            stored = checkpoint.tensors[segment.tensor.name]
            if stored.strides is not None:
                self._gather(window(block, stored), one, rows.host[row])
                return
            if len(stored.extents) == 1:
                source, offset, _ = stored.extents[0]
                source.read_into((buffer,), offset + segment.start * stored.dtype.itemsize)
                return
        position = 0
        for source, offset, pieces in reads(block.segments, checkpoint):
            buffers = []
            for nbytes, kept in pieces:
                buffers.append(buffer[position : position + nbytes] if kept else self._gap[:nbytes])
                position += nbytes if kept else 0
            source.read_into(buffers, offset)

    def _gather(self, found: Window, one: Input, row: Tensor) -> None:
        """Read the span in which elements lie out of order, and put them in order."""
        source, offset, nbytes = found.extent
        span = self._memory.take_on_host("span", nbytes)
        source.read_into((bytes_of(span),), offset)
        dtype = kernels.torch_dtype(one.dtype)
        row.view(dtype).view(found.shape).copy_(span.view(dtype).as_strided(found.shape, found.strides))

    def _on_host(self, result: Tensor) -> memoryview:
        if result.device.type == "cpu":
            return bytes_of(result)
        host = self._memory.take_on_host("output", len(result))
        host.copy_(result)
        return bytes_of(host)

    def _put(self, block: Block, data: memoryview) -> None:
        write, ties = self._job.write, self._job.ties
        write(block.offset, data)
        self.result.bytes_written += len(data)
        if not ties:
            return
        itemsize = block.treatment.dtype.itemsize
        for segment, part in block.split(data):
            for place in ties.get(segment.tensor.name, ()):
                write(place + segment.start * itemsize, part)
                self.result.bytes_written += len(part)

    def _refuse_or_note_nonfinite(self, block: Block, reducer: LinearReducer) -> None:
        """Find which tensors of a block are not finite, and in which checkpoints that began."""
        culprits = dict.fromkeys(reducer.unfit(block), "")
        for group in reducer.groups:
            for row, one in enumerate(group.inputs):
                group.rows.wait()
                self._fill(block, one, group.rows, row)
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
        self.result.nonfinite.update(culprits)


def _forget_if_many(
    reducers: dict[tuple[Treatment, int], LinearReducer] | dict[tuple[Treatment, int], CopyReducer],
) -> None:
    """Bound the number of prepared reducers; nearly all blocks have one of a few shapes."""
    if len(reducers) >= MOST_REDUCERS:
        reducers.clear()


def _nonfinite(block: Block, values: Tensor) -> Iterator[str]:
    """Yield the names of a block's tensors that have NaN or Inf in these values."""
    for segment, part in block.split(values):
        # Not every narrow type has isfinite.
        if not bool(part.to(torch.complex128).isfinite().all()):
            yield segment.tensor.name
