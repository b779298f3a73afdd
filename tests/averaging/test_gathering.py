"""Blocks of tensors in boxes: what their windows bring is what slicing the whole tensor gives."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from swatool.averaging.blocks import cut
from swatool.averaging.gathering import block_shape, windows
from swatool.averaging.memory import Memory, Rows, bytes_of
from swatool.averaging.plan import make_plan
from swatool.averaging.policies import Policies
from swatool.averaging.reading import BlockReader
from swatool.checkpoints.opening import Checkpoint
from swatool.models.weights import read_tensor
from swatool.tensors import DTYPES, Box, Extent, StoredTensor, rows_interleave

few = settings(max_examples=150, deadline=None)


class InMemory:
    """A source without a file, which counts what is read."""

    path = "memory"

    def __init__(self, data):
        self.data, self.size, self.taken = data, len(data), 0

    def read_into(self, buffers, offset):
        for buffer in buffers:
            assert 0 <= offset <= offset + len(buffer) <= self.size
            buffer[:] = self.data[offset : offset + len(buffer)]
            offset += len(buffer)
            self.taken += len(buffer)


def raw(tensor):
    flat = tensor.clone(memory_format=torch.contiguous_format).view(-1)
    return bytes(flat.view(torch.uint8).tolist())


def boxed(whole, cuts, dims=None):
    """Store a tensor in the boxes that cuts along each dimension make, each at an odd place in its file.

    With `dims`, each box is stored with its dimensions in this order.
    """
    ranges = [
        list(itertools.pairwise([0, *sorted(set(at)), n])) for at, n in zip(cuts, whole.shape, strict=True)
    ]
    boxes, extents = [], []
    for box in itertools.product(*ranges):
        part = whole[tuple(slice(*one) for one in box)]
        offsets, lengths = tuple(begin for begin, _ in box), tuple(part.shape)
        strides = None
        if dims is not None:
            strides = tuple(part.permute(dims).contiguous().permute(inverse(dims)).stride())
            part = part.permute(dims)
        boxes.append(Box(offsets, lengths, strides))
        data = raw(part)
        extents.append(Extent(InMemory(b"\xee" * 13 + data + b"\xee" * 5), 13, len(data)))
    dtype = DTYPES[str(whole.dtype).removeprefix("torch.")]
    return StoredTensor(dtype, tuple(whole.shape), tuple(extents), boxes=tuple(boxes))


def inverse(dims):
    return sorted(range(len(dims)), key=dims.__getitem__)


def plain(whole):
    data = raw(whole)
    dtype = DTYPES[str(whole.dtype).removeprefix("torch.")]
    return StoredTensor(dtype, tuple(whole.shape), (Extent(InMemory(data), 0, len(data)),))


def checkpoint(stored):
    return Checkpoint("memory", None, "test", "", {"w": stored}, (), {}, (), {})


def planned(*tensors):
    checkpoints = [checkpoint(stored) for stored in tensors]
    return make_plan(checkpoints, [[1 / len(tensors)] * len(tensors)], Policies())


def read_in_blocks(plan, elements):
    """Read every checkpoint's tensor block by block as the loop does, and yield the blocks' rows."""
    memory = Memory(torch.device("cpu"))
    reader = BlockReader(plan.checkpoints, memory)
    for block in cut(plan, {"w": 0}, elements):
        one = block.treatment.inputs[0]
        rows = Rows(memory, "rows", len(plan.checkpoints), block.count * one.dtype.itemsize)
        for index, one in enumerate(block.treatment.inputs):
            reader.fill(block, one, rows, index)
        yield block, [bytes(buffer) for buffer in rows.buffers]


def read_as_stored(plan, elements):
    """Read every checkpoint's tensor as the loop does, and yield it put in C order at the end."""
    memory = Memory(torch.device("cpu"))
    reader = BlockReader(plan.checkpoints, memory)
    for block in cut(plan, {"w": 0}, elements, as_stored=True):
        one = block.treatment.inputs[0]
        rows = Rows(memory, "rows", len(plan.checkpoints), block.count * one.dtype.itemsize)
        for index, one in enumerate(block.treatment.inputs):
            reader.fill(block, one, rows, index)
        yield block, [bytes(bytes_of(reader.in_c_order(block, row))) for row in rows.host]


shapes = st.lists(st.integers(1, 6), min_size=1, max_size=4)


@few
@given(data=st.data())
def test_blocks_of_boxes_hold_the_tensor(data):
    shape = data.draw(shapes)
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float64]))
    whole = torch.arange(math.prod(shape)).view(shape).to(dtype)
    cuts = [data.draw(st.lists(st.integers(1, n - 1), max_size=2)) if n > 1 else [] for n in shape]
    other = [data.draw(st.lists(st.integers(1, n - 1), max_size=2)) if n > 1 else [] for n in shape]
    dims = data.draw(st.none() | st.permutations(range(len(shape))))
    elements = data.draw(st.integers(1, 200))
    plan = planned(boxed(whole, cuts), plain(whole), boxed(whole, other, dims))
    found = [b"", b"", b""]
    for block, rows in read_in_blocks(plan, elements):
        assert block.segments[0].start * whole.element_size() == len(found[0])
        found = [one + row for one, row in zip(found, rows, strict=True)]
    assert found == [raw(whole)] * 3


@few
@given(data=st.data())
def test_a_model_is_given_the_tensor(data):
    shape = data.draw(shapes)
    whole = torch.arange(math.prod(shape)).view(shape)
    cuts = [data.draw(st.lists(st.integers(1, n - 1), max_size=2)) if n > 1 else [] for n in shape]
    dims = data.draw(st.none() | st.permutations(range(len(shape))))
    found = read_tensor(boxed(whole, cuts, dims))
    assert found.dtype is whole.dtype
    assert torch.equal(found, whole)


@few
@given(data=st.data())
def test_what_all_have_in_one_order_stays_in_it_until_the_end(data):
    shape = data.draw(shapes)
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.int64]))
    whole = torch.arange(math.prod(shape)).view(shape).to(dtype)
    cuts = [data.draw(st.lists(st.integers(1, n - 1), max_size=2)) if n > 1 else [] for n in shape]
    dims = data.draw(st.none() | st.permutations(range(len(shape))))
    stored = [boxed(whole, cuts, dims), boxed(whole + 1, cuts, dims)]
    found = [b"", b""]
    for block, rows in read_as_stored(planned(*stored), data.draw(st.integers(1, 200))):
        assert block.as_stored
        assert block.segments[0].start * whole.element_size() == len(found[0])
        found = [one + row for one, row in zip(found, rows, strict=True)]
    assert found == [raw(whole), raw(whole + 1)]
    assert all(extent.source.taken == extent.nbytes for one in stored for extent in one.extents)


def test_what_lies_differently_or_apart_is_put_in_order_as_it_is_read():
    whole = torch.arange(48).view(6, 8).float()
    halves, thirds = boxed(whole, [[], [4]]), boxed(whole, [[], [2, 5]])
    data = raw(torch.arange(96).view(6, 16).float())
    extent = Extent(InMemory(data), 0, len(data) - 32)
    apart = StoredTensor(DTYPES["float32"], (6, 8), (extent,), strides=(16, 1))
    for some in ((halves, thirds), (halves, plain(whole)), (apart, apart)):
        for block, _ in read_as_stored(planned(*some), 24):
            assert not block.as_stored
    assert all(block.as_stored for block, _ in read_as_stored(planned(thirds, thirds), 24))
    assert not any(block.as_stored for block, _ in read_in_blocks(planned(thirds, thirds), 24))


@pytest.mark.parametrize(
    ("shape", "elements", "counts"),
    [
        ((10, 8), 80, [80]),
        ((10, 8), 32, [32, 32, 16]),
        # Where a slice along the first dimension is too long for a block, the next one is cut.
        ((2, 10, 4), 16, [16, 16, 8, 16, 16, 8]),
        ((2, 10, 4), 40, [40, 40]),
        ((2, 3, 10), 7, [7, 3] * 6),
        ((1, 100), 30, [30, 30, 30, 10]),
    ],
)
def test_blocks_of_boxes_fit(shape, elements, counts):
    whole = torch.arange(math.prod(shape)).view(shape).float()
    stored = boxed(whole, [[n // 2] if n > 1 else [] for n in shape])
    found = list(cut(planned(stored, stored), {"w": 0}, elements))
    assert [block.count for block in found] == counts


def test_every_byte_of_boxes_in_order_is_read_once():
    whole = torch.rand(64, 6, 5)
    stored = boxed(whole, [[17], [2, 3], []])
    for _ in read_in_blocks(planned(stored, stored), 45):
        pass
    assert all(extent.source.taken == 2 * extent.nbytes for extent in stored.extents)


def test_boxes_that_are_transposed_are_taken_whole():
    whole = torch.rand(64, 48)
    stored = boxed(whole, [[], [20]], (1, 0))
    assert rows_interleave(stored)
    assert not rows_interleave(boxed(whole, [[], [20]]))
    ((block, rows),) = read_in_blocks(planned(stored), 100)
    assert block.count == whole.numel()
    assert rows == [raw(whole)]
    assert all(extent.source.taken == extent.nbytes for extent in stored.extents)


def test_the_plan_tells_of_large_ones():
    large = StoredTensor(
        DTYPES["float32"],
        (4096, 2048),
        (Extent("a", 0, 1 << 24), Extent("b", 0, 1 << 24)),
        boxes=(Box((0, 0), (4096, 1024), (1, 4096)), Box((0, 1024), (4096, 1024), (1, 4096))),
    )
    (warning,) = planned(large, large).warnings
    assert "taken whole: the largest, of 33,554,432 bytes" in warning
    in_order = StoredTensor(
        large.dtype,
        large.shape,
        large.extents,
        boxes=tuple(box._replace(strides=None) for box in large.boxes),
    )
    assert not planned(in_order, in_order).warnings


def test_a_window_tells_what_lies_in_order():
    whole = torch.arange(24).view(4, 6).float()
    stored = boxed(whole, [[], [2]])
    (block,) = cut(planned(stored), {"w": 0}, 24)
    assert block_shape(block, stored) == (4, 6)
    left, right = windows(block, stored)
    assert (left.begin, left.shape, right.begin, right.shape) == ((0, 0), (4, 2), (0, 2), (4, 4))
    assert left.in_order
    assert right.in_order
    (transposed,) = windows(block, boxed(whole, [[], []], (1, 0)))
    assert not transposed.in_order
