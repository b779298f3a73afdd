"""The one loop: worker threads take blocks, read their bytes from every checkpoint, add, finish, write.

Reading and torch's operators both release the interpreter lock, so plain threads scale. Formats, devices and
schemes are data to this loop, not copies of it.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from swatool.averaging.blocks import LARGEST_GAP, Block, Window, reads, window
from swatool.averaging.memory import HostBuffer, Rows, bytes_of
from swatool.averaging.plan import Action, Input, Plan, Treatment
from swatool.averaging.reducers import CopyReducer, Group, LinearReducer, Signal, groups, typed_values
from swatool.errors import CheckpointError, MismatchError, SwatoolError, UsageError, printable

__all__ = ["StreamResult", "Write", "choose_device", "stream"]

Write = Callable[[int, memoryview], None]

TICK = 0.1  # seconds between two reports of progress


@dataclass
class StreamResult:
    """What happened to the blocks.

    Attributes:
        bytes_read: from all checkpoints, gaps included.
        bytes_written: to the output, its header not included.
        differing: copied tensors that differ between checkpoints, and the first checkpoint that does.
        nonfinite: names of tensors with NaN or Inf in them; only where those are allowed.
        signal: squared norms for the merge signal, over the sampled blocks.
    """

    bytes_read: int = 0
    bytes_written: int = 0
    differing: dict[str, int] = field(default_factory=dict)
    nonfinite: list[str] = field(default_factory=list)
    signal: Signal = field(default_factory=Signal)

    def merge(self, other: StreamResult) -> None:
        """Add what another worker did."""
        self.bytes_read += other.bytes_read
        self.bytes_written += other.bytes_written
        self.differing |= other.differing
        self.nonfinite += other.nonfinite
        self.signal.rounding += other.signal.rounding
        self.signal.change += other.signal.change


def choose_device(name: str) -> torch.device:
    """Turn `cpu`, `cuda`, `cuda:1` or `auto` into a device; UsageError if it is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdecimal()) or (kind == "cpu" and index):
        raise UsageError(f"--device must be cpu, cuda, cuda:N or auto, not {printable(name)}")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(index or 0) >= count:
            raise UsageError(f"--device {name} is not there: torch sees {count} CUDA devices")
    return torch.device(name)


def stream(
    plan: Plan,
    blocks: Iterator[Block],
    write: Write,
    *,
    ties: dict[str, tuple[int, ...]],
    device: torch.device,
    threads: int,
    samples_every: int,
    allow_nonfinite: bool = False,
    progress: Callable[[int], None] | None = None,
) -> StreamResult:
    """Carry out a plan.

    Args:
        plan: what is computed.
        blocks: its blocks, in any order.
        write: puts bytes at a position of the output; called from all threads.
        ties: for a computed tensor, the places of its other names.
        device: where the arithmetic is done.
        threads: number of workers.
        samples_every: the merge signal is measured on every so many blocks.
        allow_nonfinite: note NaN and Inf instead of refusing them.
        progress: is told, ten times a second, how many bytes have been read.

    Raises:
        CheckpointError: an input failed, or the result holds NaN or Inf.
        MismatchError: tensors that must be equal are not.
    """
    torch_threads = torch.get_num_threads()
    source = _Shared(enumerate(blocks))
    workers = [
        _Worker(plan, source, write, ties, device, samples_every, allow_nonfinite) for _ in range(threads)
    ]
    try:
        with ThreadPoolExecutor(threads, thread_name_prefix="swatool") as pool:
            _run(pool, workers, source, progress)
    finally:
        torch.set_num_threads(torch_threads)
    result = StreamResult()
    for worker in workers:
        result.merge(worker.result)
    return result


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
    """One thread's share of the work, with memory of its own that it reuses from block to block."""

    def __init__(
        self,
        plan: Plan,
        source: _Shared,
        write: Write,
        ties: dict[str, tuple[int, ...]],
        device: torch.device,
        samples_every: int,
        allow_nonfinite: bool,
    ) -> None:
        self.result = StreamResult()
        self._plan, self._source, self._write, self._ties = plan, source, write, ties
        self._device, self._samples_every, self._allow_nonfinite = device, samples_every, allow_nonfinite
        self._gap = memoryview(bytearray(LARGEST_GAP))
        self._output = HostBuffer(device)
        self._known_groups: dict[tuple[Treatment, bool], tuple[Group, ...]] = {}

    def run(self) -> None:
        """Work until there are no more blocks."""
        # This many cores are used by as many workers; each computes alone.
        torch.set_num_threads(1)
        self._averages = LinearReducer(self._device)
        self._copies = CopyReducer()
        # While the device copies and adds one set of rows, the next is read.
        self._rows = [Rows(self._device) for _ in range(1 if self._device.type == "cpu" else 2)]
        with torch.inference_mode(), self._stream():
            while (item := self._source.next()) is not None:
                number, block = item
                try:
                    self._process(block, measured=number % self._samples_every == 0)
                except SwatoolError:
                    self._source.stop()
                    raise
        self.result.differing = self._copies.differing

    def _stream(self) -> AbstractContextManager[object]:
        """Give each worker its own queue on a CUDA device, so that their copies and sums overlap."""
        if self._device.type == "cuda":
            return torch.cuda.stream(torch.cuda.Stream(self._device))  # type: ignore[no-untyped-call]
        return nullcontext()

    def _process(self, block: Block, measured: bool) -> None:
        averages = block.treatment.averages
        reducer = self._averages if averages else self._copies
        reducer.start(block)
        for turn, group in enumerate(self._groups(block)):
            rows = self._rows[turn % len(self._rows)] if averages else self._host_rows
            found = self._fill(rows, block, group.inputs)
            reducer.add(group, rows.on_device(), found)
        result = reducer.finish()
        if averages:
            if not self._averages.fits():
                self._refuse_or_note_nonfinite(block)
            if measured and block.treatment.dtype.itemsize < 4:
                self._averages.measure(result, self.result.signal)
        elif block.treatment.action is Action.MUST_EQUAL and self._copies.differing:
            self._refuse_differing()
        self._put(block, self._on_host(result))

    def _groups(self, block: Block) -> tuple[Group, ...]:
        key = (block.treatment, block.strided)
        if key not in self._known_groups:
            self._known_groups[key] = groups(block.treatment, self._device, strided=block.strided)
        return self._known_groups[key]

    @functools.cached_property
    def _host_rows(self) -> Rows:
        """Rows for copies, which no device needs to see."""
        return Rows(torch.device("cpu"))

    def _fill(self, rows: Rows, block: Block, inputs: Sequence[Input]) -> Window | None:
        """Read a block's bytes from some checkpoints, a row for each."""
        found = None
        if block.strided:
            (one,) = inputs
            (segment,) = block.segments
            found = window(block, self._plan.checkpoints[one.checkpoint].tensors[segment.tensor.name])
        if found is not None:
            (view,) = rows.take(1, found.extent.nbytes)
            found.extent.source.read_into([view], found.extent.offset)
            self.result.bytes_read += found.extent.nbytes
            return found
        views = rows.take(len(inputs), block.count * inputs[0].dtype.itemsize)
        for one, view in zip(inputs, views, strict=True):
            self._read_row(block, one, view)
        return None

    def _read_row(self, block: Block, one: Input, row: memoryview) -> None:
        position = 0
        for source, offset, pieces in reads(block.segments, self._plan.checkpoints[one.checkpoint]):
            buffers = []
            for nbytes, kept in pieces:
                buffers.append(row[position : position + nbytes] if kept else self._gap[:nbytes])
                position += nbytes if kept else 0
            source.read_into(buffers, offset)
        self.result.bytes_read += len(row)

    def _on_host(self, result: Tensor) -> memoryview:
        if result.device.type == "cpu":
            return bytes_of(result)
        host, view = self._output.take(len(result))
        host.copy_(result)
        return view

    def _put(self, block: Block, data: memoryview) -> None:
        self._write(block.offset, data)
        self.result.bytes_written += len(data)
        if not self._ties:
            return
        position = 0
        itemsize = block.treatment.dtype.itemsize
        for tensor, start, count in block.segments:
            for place in self._ties.get(tensor.name, ()):
                self._write(place + start * itemsize, data[position : position + count * itemsize])
                self.result.bytes_written += count * itemsize
            position += count * itemsize

    def _refuse_differing(self) -> None:
        names = sorted(self._copies.differing)
        raise MismatchError(
            "integer and bool tensors differ, and --integers equal was asked for:",
            [
                f"{printable(name)} in {printable(self._plan.checkpoints[self._copies.differing[name]].path)}"
                for name in names
            ],
        )

    def _refuse_or_note_nonfinite(self, block: Block) -> None:
        """Find which tensor of a block is not finite, and in which checkpoint that began."""
        for one in block.treatment.inputs:
            rows = Rows(torch.device("cpu"))
            found = self._fill(rows, block, (one,))
            values = typed_values(rows.on_device()[0], one, found)
            position = 0
            for tensor, _, count in block.segments:
                part = values[position : position + count]
                position += count
                part = part if part.is_complex() else part.to(torch.float64)
                if not bool(part.isfinite().all()):
                    self._nonfinite(tensor.name, f"there is NaN or Inf in it in {self._path(one)}")
        if not self.result.nonfinite:
            name = block.segments[0].tensor.name
            self._nonfinite(name, f"the average is too large for {block.treatment.dtype.name}")

    def _nonfinite(self, name: str, why: str) -> None:
        if not self._allow_nonfinite:
            raise CheckpointError(
                f"the average of tensor {printable(name)} is not finite: {why}; leave that checkpoint out, "
                "or pass --allow-nonfinite"
            )
        if name not in self.result.nonfinite:
            self.result.nonfinite.append(name)

    def _path(self, one: Input) -> str:
        return printable(self._plan.checkpoints[one.checkpoint].path)
