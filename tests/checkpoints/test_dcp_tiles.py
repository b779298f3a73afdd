"""Parts that tile a tensor, and parts that do not: against counting the elements."""

import itertools
import math

import pytest
from hanging import no_hang
from hypothesis import given, settings
from hypothesis import strategies as st

from swatool.checkpoints.dcp_parts import Chunk
from swatool.checkpoints.dcp_tiles import Tile, fault_of, joined
from swatool.errors import CheckpointError
from swatool.tensors import DTYPES, Box, Extent, StoredTensor

FLOAT = DTYPES["float32"]


def elements(box):
    return itertools.product(*(range(o, o + n) for o, n in zip(*box, strict=True)))


def tile_exactly(chunks, shape):
    """The definition: every element is in exactly one part, and no part has others."""
    found = sorted(point for chunk in chunks for point in elements(chunk))
    return found == sorted(elements(Chunk((0,) * len(shape), shape)))


@st.composite
def cut_up(draw):
    """A tensor, cut in two again and again, as guillotine cuts make them; then perhaps something is moved."""
    shape = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)))
    chunks = [Chunk((0,) * len(shape), shape)]
    for _ in range(draw(st.integers(0, 6))):
        offsets, lengths = chunks.pop(draw(st.integers(0, len(chunks) - 1)))
        dim = draw(st.integers(0, len(shape) - 1))
        at = draw(st.integers(0, lengths[dim]))
        for begin, end in ((0, at), (at, lengths[dim])):
            if begin < end:
                moved = (*offsets[:dim], offsets[dim] + begin, *offsets[dim + 1 :])
                chunks.append(Chunk(moved, (*lengths[:dim], end - begin, *lengths[dim + 1 :])))
    if draw(st.booleans()):
        index = draw(st.integers(0, len(chunks) - 1))
        change = st.tuples(*(st.integers(0, n) for n in shape))
        chunks[index] = Chunk(draw(change), tuple(max(1, n) for n in draw(change)))
    return shape, draw(st.permutations(chunks))


@settings(max_examples=300, deadline=None)
@given(cut_up())
def test_only_parts_that_tile_have_no_fault(case):
    shape, chunks = case
    assert (fault_of(chunks, shape) == "") is tile_exactly(chunks, shape)


@pytest.mark.parametrize(
    ("chunks", "fault"),
    [
        ([((0, 0), (2, 2))], "lacks parts: they hold 4 elements of 6"),
        ([], "lacks parts: they hold 0 elements of 6"),
        ([((0, 0), (2, 3)), ((0, 0), (1, 1))], "has parts that overlap: they hold 7 elements of 6"),
        ([((0, 0), (2, 2)), ((0, 1), (2, 1))], "has parts that overlap and leave holes"),
        ([((0, 1), (2, 3))], "has a part that reaches beyond its shape"),
        ([((0, 0), (2, 2)), ((0, 2), (2, 1))], ""),
    ],
)
def test_says_what_is_wrong(chunks, fault):
    assert fault_of([Chunk(*chunk) for chunk in chunks], (2, 3)) == fault


def test_nothing_tiles_what_has_no_elements():
    assert fault_of([], (3, 0)) == ""
    assert fault_of([Chunk((), ())], ()) == ""


def test_pinwheel():
    """Five parts that no cut through all of them separates."""
    boxes = [((0, 0), (1, 2)), ((0, 2), (2, 1)), ((2, 1), (1, 2)), ((1, 0), (2, 1)), ((1, 1), (1, 1))]
    chunks = [Chunk(*box) for box in boxes]
    assert fault_of(chunks, (3, 3)) == ""
    chunks[4] = Chunk((0, 0), (1, 1))
    assert fault_of(chunks, (3, 3))


def test_is_quick_with_many_parts():
    chunks = [Chunk((row, column), (1, 1)) for row in range(200) for column in range(200)]
    with no_hang():
        assert fault_of(chunks, (200, 200)) == ""


def test_refuses_cuts_along_too_many_dimensions():
    chunks = [Chunk(offsets, (1,) * 9) for offsets in itertools.product((0, 1), repeat=9)]
    assert "sharded along 9 dimensions" in fault_of(chunks, (2,) * 9)
    chunks = [Chunk((*offsets, 0), (1,) * 8 + (2,)) for offsets in itertools.product((0, 1), repeat=8)]
    assert fault_of(chunks, (2,) * 9) == ""


def tile(offsets, lengths, strides=None, dtype=FLOAT):
    extent = Extent(str(offsets), 0, math.prod(lengths) * dtype.itemsize)
    return Tile(Chunk(offsets, lengths), StoredTensor(dtype, lengths, (extent,), strides))


def test_parts_along_the_first_dimension_are_runs():
    parts = [tile((2, 0), (1, 3)), tile((0, 0), (2, 3))]
    found = joined(FLOAT, (3, 3), parts, "x")
    assert [extent.source for extent in found.extents] == ["(0, 0)", "(2, 0)"]
    assert not found.is_gathered
    found = joined(FLOAT, (1, 5), [tile((0, 0), (1, 3)), tile((0, 3), (1, 2))], "x")
    assert not found.is_gathered


def test_parts_along_others_are_boxes():
    parts = [tile((0, 2), (3, 1)), tile((0, 0), (3, 2))]
    found = joined(FLOAT, (3, 3), parts, "x")
    assert found.boxes == (Box((0, 0), (3, 2)), Box((0, 2), (3, 1)))
    assert [extent.source for extent in found.extents] == ["(0, 0)", "(0, 2)"]
    transposed = [tile((0, 0), (2, 3), (1, 2)), tile((2, 0), (1, 3))]
    assert joined(FLOAT, (3, 3), transposed, "x").boxes == (Box((0, 0), (2, 3), (1, 2)), Box((2, 0), (1, 3)))


def test_a_single_part_is_the_tensor():
    found = joined(FLOAT, (2, 3), [tile((0, 0), (2, 3), (1, 2))], "x")
    assert (found.strides, found.boxes) == ((1, 2), None)


def test_refuses_another_type_or_shape():
    wrong = tile((0, 0), (2, 3), dtype=DTYPES["int32"])
    with pytest.raises(
        CheckpointError, match=r"is int32 \[2, 3\] in the file and should be float32 \[2, 3\]"
    ):
        joined(FLOAT, (2, 3), [wrong], "x")
    wrong = Tile(Chunk((0, 0), (2, 3)), tile((0, 0), (3, 2)).stored)
    with pytest.raises(CheckpointError, match=r"is float32 \[3, 2\] in the file"):
        joined(FLOAT, (2, 3), [wrong], "x")
