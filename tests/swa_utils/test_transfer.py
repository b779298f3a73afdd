"""Pieces: every element passes once, in bounded memory, whatever the shapes and the order in memory."""

from functools import partial

import pytest
import torch

from swatool.averaging.kernels import copy_together, lerp_together
from swatool.swa_utils import transfer
from swatool.swa_utils.transfer import Route, Transfer

CPU = torch.device("cpu")
SHAPES = [(3, 5), (), (0,), (41,), (7,), (10, 10), (2, 4, 5, 3), (1,), (6, 6), (0, 4), (13,)]


def values(dtype, seed, shapes=SHAPES):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def run(averages, models, apply, *, device=None):
    """Send tensors along their route, or as if they came from another device."""
    route = Route.of(averages[0], models[0])
    if device is not None:
        route = route._replace(source_device=torch.device(device))
    Transfer(route, averages, models).run(averages, models, apply)


@pytest.mark.parametrize("size", [1, 8, 16, 40, 100, 10_000])
@pytest.mark.parametrize("dtypes", [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)])
@pytest.mark.parametrize("device", [None, "meta"])
def test_pieces_of_any_size_give_the_same(size, dtypes, device, monkeypatch):
    monkeypatch.setattr(transfer, "CACHED", size)
    monkeypatch.setattr(transfer, "CARRIED", size)
    averages, models = values(dtypes[0], 0), values(dtypes[1], 1)
    expected = [a.clone().lerp_(b.to(a.dtype), 0.3) for a, b in zip(averages, models, strict=True)]
    before = [model.clone() for model in models]
    run(averages, models, partial(lerp_together, weight=0.3), device=device)
    assert all(map(torch.equal, averages, expected))
    assert all(map(torch.equal, models, before))


@pytest.mark.parametrize("order", [torch.channels_last, torch.channels_last_3d, torch.contiguous_format])
@pytest.mark.parametrize("same", [True, False])
def test_tensors_in_any_order_of_memory(order, same, monkeypatch):
    monkeypatch.setattr(transfer, "CACHED", 16)
    shape = (2, 4, 5, 3, 2) if order is torch.channels_last_3d else (2, 4, 5, 3)
    averages = [values(torch.float32, 0, [shape])[0].to(memory_format=order)]
    models = [values(torch.float16, 1, [shape])[0]]
    if same:
        models = [models[0].to(memory_format=order)]
    sizes = []
    run(averages, models, lambda a, b: sizes.append(b[0].numel()) or copy_together(a, b))
    assert torch.equal(averages[0], models[0].float())
    assert sum(sizes) == averages[0].numel()
    # In pieces if both lie in one order; in two orders as a whole.
    assert (max(sizes) == 16) is (same or order is torch.contiguous_format)


def test_tensors_with_gaps_stay_whole(monkeypatch):
    monkeypatch.setattr(transfer, "CACHED", 16)
    memory = torch.zeros(8, 20)
    averages, models = [memory[:, ::2]], values(torch.float16, 1, [(8, 10)])
    run(averages, models, copy_together)
    assert torch.equal(averages[0], models[0].float())
    assert memory[:, 1::2].count_nonzero() == 0


def test_views_into_larger_memory_are_found_at_their_place(monkeypatch):
    monkeypatch.setattr(transfer, "CACHED", 16)
    memory, other = torch.zeros(100), torch.arange(100).half()
    averages, models = [memory[10:90]], [other[5:85]]
    run(averages, models, copy_together)
    assert torch.equal(memory[10:90], other[5:85].float())
    assert memory[:10].count_nonzero() == memory[90:].count_nonzero() == 0


def test_gradients_do_not_matter():
    averages, models = (
        [one.requires_grad_() for one in values(dtype, 0)] for dtype in (torch.float32, torch.float16)
    )
    seen = []
    run(averages, models, lambda a, b: seen.extend([*a, *b]) or copy_together(a, b))
    assert not any(one.requires_grad for one in seen)
    assert all(average.grad_fn is None and average.is_leaf for average in averages)


def test_the_memory_is_that_of_a_piece():
    averages, models = (
        values(torch.float32, 0, [(2_000_000,), (5,)]),
        values(torch.float16, 1, [(2_000_000,), (5,)]),
    )
    seen = []
    run(averages, models, lambda _, arrived: seen.append([one.numel() for one in arrived]))
    assert seen[:-1] == [[transfer.CACHED]] * (len(seen) - 2) + [[2_000_000 % transfer.CACHED]]
    assert seen[-1] == [5]
    assert max(map(sum, seen)) <= transfer.CACHED < transfer.CARRIED


def test_small_tensors_share_a_piece(monkeypatch):
    monkeypatch.setattr(transfer, "CACHED", 10)
    shapes = [(4,), (6,), (1,), (10,), (11,), (3,)]
    averages, models = values(torch.float32, 0, shapes), values(torch.float16, 1, shapes)
    seen = []
    run(averages, models, lambda targets, _: seen.append([one.numel() for one in targets]))
    assert seen == [[4, 6], [1], [10], [10], [1], [3]]


@pytest.mark.parametrize("side", [0, 1])
def test_what_was_cut_must_lie_as_it_did(side, monkeypatch):
    monkeypatch.setattr(transfer, "CACHED", 16)
    lists = values(torch.float32, 0, [(3, 2), (6, 6)]), values(torch.float16, 1, [(3, 2), (6, 6)])
    made = Transfer(Route.of(lists[0][0], lists[1][0]), *lists)
    assert made.fits(*lists)
    lists[side][0].t_()  # small, so it is sent as a whole, in whatever order
    assert made.fits(*lists)
    lists[side][1].t_()
    assert not made.fits(*lists)


def test_routes_know_what_they_are():
    a, b = torch.ones(1), torch.ones(1, dtype=torch.float64)
    assert Route.of(a, a).is_direct
    assert not Route.of(a, b).is_direct
    assert Route.of(a, b) == Route(CPU, torch.float64, CPU, torch.float32)
    assert not Route.of(a, torch.ones(1, device="meta")).is_direct
    cuda = torch.device("cuda:0")
    assert Route(cuda, torch.float32, CPU, torch.float32).downloads
    assert not Route(CPU, torch.float32, cuda, torch.float32).downloads
    assert not Route(cuda, torch.float32, cuda, torch.float32).downloads
    assert not Route(CPU, torch.float32, CPU, torch.float64).downloads


class Event:
    """A CUDA event that says what was asked of it."""

    def __init__(self, log):
        self._log = log

    def record(self, stream):
        self._log.append(f"record {stream}")

    def synchronize(self):
        self._log.append("wait")


def test_downloads_wait_for_each_piece_while_the_next_is_under_way(monkeypatch):
    """With everything of CUDA replaced; the true thing is in test_cuda.py."""
    log = []
    monkeypatch.setattr(transfer, "CARRIED", 4)
    monkeypatch.setattr(torch.cuda, "Event", lambda: Event(log))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"of {device}")
    empty = torch.empty
    pinned = []

    def allocate(*size, pin_memory=False, **options):
        pinned.append(pin_memory)
        return empty(*size, **options)

    monkeypatch.setattr(torch, "empty", allocate)
    original = transfer.copy_together

    def copy(targets, sources, *, non_blocking=False):
        log.append("send" if non_blocking else "widen")
        original(targets, sources)

    monkeypatch.setattr(transfer, "copy_together", copy)
    averages, models = values(torch.float32, 0, [(12,)]), values(torch.float16, 1, [(12,)])
    route = Route(torch.device("cuda:1"), torch.float16, CPU, torch.float32)
    Transfer(route, averages, models).run(averages, models, lambda a, b: log.append("add") or original(a, b))
    one = ["send", "record of cuda:1"]
    done = ["wait", "widen", "add"]
    assert log == [*one, *one, *done, *one, *done, *done]
    assert pinned == [True, False, True, False]
    assert torch.equal(averages[0], models[0].float())
