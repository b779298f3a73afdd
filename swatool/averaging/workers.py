"""Threads that draw blocks from one iterator and work on them, each with memory of its own.

Reading and torch's operators both release the interpreter lock, so plain threads scale.
"""

from __future__ import annotations

import mmap
import resource
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch

from swatool.averaging.blocks import Block
from swatool.averaging.memory import is_shortage
from swatool.errors import OutputError, SwatoolError

__all__ = ["Worker", "run_blocks"]

MOST_STACK = 64 << 20  # a limit beyond that is no reason to do without threads
FIRST_WORDS = 2 << 20
TICK = 0.1  # seconds between two reports of progress


class Worker(Protocol):
    """One thread's share of the work."""

    @property
    def bytes_read(self) -> int:
        """From all checkpoints, so far."""

    def work(self, number: int, block: Block) -> None:
        """Do what is to be done with a block, which is the so-many-th."""


def run_blocks(
    blocks: Iterator[Block],
    workers: Sequence[Worker],
    device: torch.device,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Let the workers, each in a thread, work on all blocks.

    Args:
        blocks: what is to be worked on; drawn as it is needed.
        workers: one for each thread.
        device: where they compute.
        progress: is told, ten times a second, how many bytes have been read.

    Raises:
        SwatoolError: what the first worker that failed raised; the others begin no further block.
        OutputError: the system has no thread left for any of them.
        MemoryError: there is not memory enough.
    """
    source = _Shared(enumerate(blocks))
    torch_threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(len(workers), thread_name_prefix="swatool") as pool:
            _run(pool, workers, source, device, progress)
    finally:
        torch.set_num_threads(torch_threads)


def _run(
    pool: ThreadPoolExecutor,
    workers: Sequence[Worker],
    source: _Shared,
    device: torch.device,
    progress: Callable[[int], None] | None,
) -> None:
    try:
        pending = set(_started(pool, workers, source, device))
        while pending:
            done, pending = wait(pending, timeout=TICK, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
            if progress is not None:
                progress(sum(worker.bytes_read for worker in workers))
    finally:
        # Whatever ended the loop, Ctrl-C included, no worker begins another block.
        source.stop()


def _started(
    pool: ThreadPoolExecutor, workers: Sequence[Worker], source: _Shared, device: torch.device
) -> Iterator[Future[None]]:
    """Start a thread for each worker; if the system has not so many, the others do all the work."""
    for number, worker in enumerate(workers):
        if not _has_room_for_a_thread():
            if number == 0:
                raise MemoryError
            return
        try:
            yield pool.submit(_work, worker, source, device)
        except RuntimeError as error:
            if number == 0:
                raise OutputError(f"cannot start a thread: {error}") from error
            return


def _has_room_for_a_thread() -> bool:
    """Tell whether there is memory for a thread's stack and a little more.

    Python waits for ever for a thread that had its stack, and no memory for its first words.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_STACK)
    stack = MOST_STACK if limit == resource.RLIM_INFINITY else min(limit, MOST_STACK)
    try:
        mmap.mmap(-1, stack + FIRST_WORDS).close()  # takes addresses only, and no memory
    except (OSError, ValueError):
        return False
    return True


def _work(worker: Worker, source: _Shared, device: torch.device) -> None:
    """Work until there are no more blocks."""
    # There are as many workers as cores to be used; each computes alone.
    torch.set_num_threads(1)
    with torch.inference_mode(), _queue(device):
        while (item := source.next()) is not None:
            try:
                worker.work(*item)
            except SwatoolError:
                source.stop()
                raise
            except RuntimeError as error:
                if is_shortage(error):
                    raise MemoryError from error
                raise


def _queue(device: torch.device) -> AbstractContextManager[object]:
    """Give each worker its own queue on a CUDA device, so that their copies and sums overlap."""
    if device.type == "cuda":
        return torch.cuda.stream(torch.cuda.Stream(device))  # type: ignore[no-untyped-call]
    return nullcontext()


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
