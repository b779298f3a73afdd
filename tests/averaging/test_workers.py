"""Threads that share blocks: all of them, fewer than asked for, or none; and what becomes of their errors."""

import errno
import mmap
import threading
from types import SimpleNamespace

import pytest
import torch

from swatool.averaging import workers
from swatool.averaging.workers import run_blocks
from swatool.errors import CheckpointError, OutputError

BLOCKS = range(100)


class Worker:
    bytes_read = 0

    def __init__(self, error=None):
        self.error = error
        self.done = []

    def work(self, _, block):
        if self.error is not None:
            raise self.error
        self.done.append(block)


def run(*workers):
    run_blocks(iter(BLOCKS), workers, torch.device("cpu"))
    return sorted(block for worker in workers for block in worker.done)


@pytest.fixture(params=[0, 1, 2])
def threads(request, monkeypatch):
    """Let the system have so many threads, and no more."""
    start, begun = threading.Thread.start, []

    def start_or_fail(self):
        if len(begun) == request.param:
            raise RuntimeError("can't start new thread")
        begun.append(self)
        start(self)

    monkeypatch.setattr(threading.Thread, "start", start_or_fail)
    return request.param


def test_workers_share_all_blocks():
    assert run(Worker(), Worker(), Worker()) == [*BLOCKS]


def test_fewer_threads_do_all_the_work(threads):
    if threads:
        assert run(Worker(), Worker(), Worker()) == [*BLOCKS]
    else:
        with pytest.raises(OutputError, match="cannot start a thread: can't start new thread"):
            run(Worker(), Worker(), Worker())


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RuntimeError("std::bad_alloc"), MemoryError),
        (RuntimeError("shapes"), RuntimeError),
        (CheckpointError("bad"), CheckpointError),
    ],
)
def test_the_error_of_a_worker_is_raised(error, kind):
    with pytest.raises(kind) as caught:
        run(Worker(error), Worker(error))
    assert caught.type is kind


@pytest.mark.parametrize("room", [0, 1, 2])
def test_no_thread_is_begun_that_has_no_room_for_its_first_words(room, monkeypatch):
    tried = []

    def has_room():
        tried.append(True)
        return len(tried) <= room

    monkeypatch.setattr(workers, "_has_room_for_a_thread", has_room)
    if room:
        assert run(Worker(), Worker(), Worker()) == [*BLOCKS]
    else:
        with pytest.raises(MemoryError):
            run(Worker(), Worker(), Worker())


def test_room_for_a_thread_is_addresses(monkeypatch):
    asked = []

    def mapped(_, length):
        asked.append(length)
        if len(asked) > 1:
            raise OSError(errno.ENOMEM, "none")
        return mmap.mmap(-1, 1)

    monkeypatch.setattr(workers, "mmap", SimpleNamespace(mmap=mapped))
    monkeypatch.setattr(workers.resource, "getrlimit", lambda _: (8 << 20, -1))
    assert [workers._has_room_for_a_thread() for _ in range(2)] == [True, False]
    assert min(asked) > 8 << 20
