import dataclasses
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from swatool.averaging import blocks
from swatool.averaging.blocks import LARGEST_GAP, Block, block_elements, cut, reads
from swatool.averaging.gathering import windows
from swatool.averaging.plan import make_plan
from swatool.averaging.policies import Policies
from swatool.checkpoints.opening import Checkpoint, open_checkpoint
from swatool.output.layout import OutputTensor
from swatool.output.safetensors_file import lay_out
from swatool.tensors import DTYPES, Extent, StoredTensor

SHAPES = st.sampled_from([(), (0,), (1,), (3,), (7,), (2, 5), (4, 0, 2), (33,), (64,), (5, 13)])
KINDS = st.sampled_from([DTYPES[name] for name in ("float32", "bfloat16", "int64", "bool", "float8_e5m2")])
few = settings(max_examples=80, deadline=None)


class Memory:
    """A source without a file."""

    def __init__(self, data):
        self.path, self.data, self.size = "memory", data, len(data)

    def read(self, offset, nbytes):
        assert 0 <= offset <= offset + nbytes <= self.size
        return self.data[offset : offset + nbytes]


def checkpoint(tensors, path="memory"):
    return Checkpoint(path, None, "test", "", tensors, (), {}, (), {})


def stored(specs, order, gaps):
    """Lay tensors (dtype, shape) out in a file of counted bytes, in any order, with gaps before them."""
    offset, places = 0, {}
    for index, gap in zip(order, gaps, strict=True):
        dtype, shape = specs[index]
        places[index] = offset + gap
        offset += gap + math.prod(shape) * dtype.itemsize
    source = Memory(bytes(i * 7 % 251 for i in range(offset)))
    tensors = {}
    for index, (dtype, shape) in enumerate(specs):
        nbytes = math.prod(shape) * dtype.itemsize
        extents = (Extent(source, places[index], nbytes),) if nbytes else ()
        tensors[f"t{index}"] = StoredTensor(dtype, shape, extents)
    return checkpoint(tensors)


def planned(*checkpoints, policies=None):
    plan = make_plan(checkpoints, [[1 / len(checkpoints)] * len(checkpoints)], policies or Policies())
    layout = lay_out([OutputTensor(t.name, t.treatment.dtype, t.shape) for t in plan.tensors], {})
    return plan, layout


def row_of(block, one):
    """Read a block's bytes as the loop does."""
    row = b""
    for source, offset, pieces in reads(block.segments, one):
        data = source.read(offset, sum(nbytes for nbytes, _ in pieces))
        for nbytes, kept in pieces:
            row += data[:nbytes] if kept else b""
            data = data[nbytes:]
    return row


def raw(tensor):
    flat = tensor.clone(memory_format=torch.contiguous_format).view(-1)
    return bytes(flat.view(torch.uint8).tolist())


def check_cut(plan, layout, elements, *, whole=()):
    """Every byte of the output belongs to exactly one block, and blocks are as they should be."""
    found = list(cut(plan, layout.offsets, elements))
    seen = bytearray(layout.size)
    for block in found:
        itemsize = block.treatment.dtype.itemsize
        assert block.count == sum(segment.length for segment in block.segments) > 0
        assert block.count <= elements or block.segments[0].tensor.name in whole
        positions = [at + i * itemsize for length, at in block.places for i in range(length)]
        for tensor, start, length in block.segments:
            assert tensor.treatment is block.treatment
            assert 0 <= start < start + length <= tensor.numel
            begin = layout.offsets[tensor.name] + start * itemsize
            assert positions[:length] == [begin + i * itemsize for i in range(length)]
            del positions[:length]
        assert not positions
        for length, at in block.places:
            for byte in range(at, at + length * itemsize):
                seen[byte] += 1
    assert seen == bytes(layout.fixed_nbytes) + b"\1" * (layout.size - layout.fixed_nbytes)
    assert all(one.places[-1].offset < other.places[0].offset for one, other in itertools.pairwise(found))
    return found


@few
@given(data=st.data())
def test_blocks_cover_the_output_and_reads_bring_their_bytes(data):
    specs = data.draw(st.lists(st.tuples(KINDS, SHAPES), min_size=1, max_size=12))
    files = []
    for _ in range(2):
        order = data.draw(st.permutations(range(len(specs))))
        gaps = data.draw(st.lists(st.integers(0, 9), min_size=len(specs), max_size=len(specs)))
        files.append(stored(specs, order, gaps))
    excluded = data.draw(st.sampled_from([(), ("t0",)]))
    plan, layout = planned(*files, policies=Policies(exclude=excluded))
    for block in check_cut(plan, layout, data.draw(st.integers(1, 100))):
        for one in files:
            expected = b""
            for tensor, start, length in block.segments:
                itemsize = one.tensors[tensor.name].dtype.itemsize
                (source, offset, _) = one.tensors[tensor.name].extents[0]
                expected += source.read(offset + start * itemsize, length * itemsize)
            assert row_of(block, one) == expected


def test_neighbours_of_one_treatment_share_a_block():
    floats, integers = (DTYPES["float32"], (3,)), (DTYPES["int32"], (3,))
    one = stored([floats, floats, integers, floats], range(4), [0] * 4)
    found = check_cut(*planned(one, one), 1000)
    assert [[s.tensor.name for s in block.segments] for block in found] == [["t0", "t1", "t3"], ["t2"]]


def test_tensors_that_the_plan_does_not_compute_are_stepped_over():
    one = stored([(DTYPES["float32"], (3,))] * 3, range(3), [0] * 3)
    plan, layout = planned(one, one)
    offsets = {**layout.offsets, "t3": layout.size}
    assert [b.count for b in cut(plan, offsets, 100)] == [9]
    # What is written by others in between is stepped over, too, within one block.
    tensors = [t for t in plan.tensors if t.name != "t1"]
    without = dataclasses.replace(plan, tensors=tuple(tensors))
    (block,) = cut(without, layout.offsets, 100)
    assert block.places == ((3, layout.offsets["t0"]), (3, layout.offsets["t2"]))


def test_a_block_ends_where_the_next_tensor_is_far_away_in_the_output():
    one = stored([(DTYPES["float32"], (3,))] * 2, range(2), [0] * 2)
    plan, layout = planned(one, one)
    begin = layout.offsets["t0"]
    near, far = {"t0": begin, "t1": begin + 12 + 4096}, {"t0": begin, "t1": begin + 12 + 4097}
    assert [len(b.places) for b in cut(plan, near, 100)] == [2]
    assert [len(b.places) for b in cut(plan, far, 100)] == [1, 1]


@pytest.mark.parametrize(
    ("gap", "expected"),
    [
        (0, [(0, ((32, True),))]),
        (1, [(0, ((16, True), (1, False), (16, True)))]),
        (LARGEST_GAP, [(0, ((16, True), (LARGEST_GAP, False), (16, True)))]),
        (LARGEST_GAP + 1, [(0, ((16, True),)), (16 + LARGEST_GAP + 1, ((16, True),))]),
    ],
)
def test_neighbours_in_a_file_are_read_together(gap, expected):
    one = stored([(DTYPES["float32"], (4,))] * 2, range(2), [0, gap])
    plan, layout = planned(one, one)
    (block,) = cut(plan, layout.offsets, 100)
    assert [(read.offset, read.pieces) for read in reads(block.segments, one)] == expected


def test_tensors_that_lie_backwards_are_read_one_by_one():
    one = stored([(DTYPES["float32"], (4,))] * 2, [1, 0], [0, 0])
    plan, layout = planned(one, one)
    (block,) = cut(plan, layout.offsets, 100)
    assert [read.offset for read in reads(block.segments, one)] == [16, 0]


def test_extents_of_one_tensor_are_followed():
    sources = [Memory(bytes(range(40))), Memory(bytes(range(100, 140)))]
    extents = (Extent(sources[0], 4, 8), Extent(sources[1], 0, 12), Extent(sources[0], 20, 4))
    one = checkpoint({"t": StoredTensor(DTYPES["int16"], (12,), extents)})
    expected = bytes([*range(4, 12), *range(100, 112), *range(20, 24)])
    plan, layout = planned(one, one)
    for elements in range(1, 13):
        rows = [row_of(block, one) for block in cut(plan, layout.offsets, elements)]
        assert b"".join(rows) == expected


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(3)

    def some(*shape):
        return torch.randn(shape, generator=generator)

    return {
        "plain": some(5, 7),
        "scalar": some(),
        "empty": some(0, 4),
        "channels_last": some(4, 3, 5, 2).to(memory_format=torch.channels_last),
        "transposed": some(6, 9).t(),
        "sliced": some(6, 9)[1:5, 2:7],
        "every_other": some(20)[1::2],
        "column": some(6, 9)[:, 4],
        "permuted": some(2, 3, 4).permute(2, 0, 1),
        "expanded": some(1, 5).expand(4, 5),
        "one_row": some(3, 5).t()[None],
        "half": some(8, 3).to(torch.bfloat16).t(),
        "wide": some(4, 6).to(torch.float64)[::2],
        "integers": torch.arange(24).view(4, 6).t(),
    }


ROWS_APART = {"channels_last", "sliced", "every_other", "column", "wide"}


@pytest.mark.parametrize("elements", [1, 7, 20, 64, 10_000])
def test_blocks_of_a_torch_file_hold_its_tensors(tmp_path, tensors, elements):
    torch.save(tensors, tmp_path / "a.pt")
    one = open_checkpoint(tmp_path / "a.pt")
    plan, layout = planned(one, one)
    strided = {name for name, tensor in one.tensors.items() if tensor.strides is not None}
    assert strided == set(tensors) - {"plain", "scalar", "empty"}
    rows_longer = {name for name in ROWS_APART if max(map(abs, one.tensors[name].strides)) > elements}
    whole = (strided - ROWS_APART) | rows_longer
    found = dict.fromkeys(tensors, b"")
    for block in check_cut(plan, layout, elements, whole=whole):
        name, start, length = block.segments[0][0].name, *block.segments[0][1:]
        if name not in strided:
            row, position = row_of(block, one), 0
            for tensor, _, count in block.segments:
                nbytes = count * tensor.treatment.dtype.itemsize
                found[tensor.name] += row[position : position + nbytes]
                position += nbytes
            continue
        assert len(block.segments) == 1
        (place,) = windows(block, one.tensors[name])
        data = bytearray(place.extent.source.read(place.extent.offset, place.extent.nbytes))
        values = torch.frombuffer(data, dtype=tensors[name].dtype).as_strided(place.shape, place.strides)
        assert values.numel() == length
        assert start * tensors[name].element_size() == len(found[name])
        found[name] += raw(values)
    assert found == {name: raw(tensor) for name, tensor in tensors.items()}
    one.close()


def test_rows_that_lie_apart_are_cut(tmp_path):
    torch.save({"w": torch.randn(100, 3, 4, 4).to(memory_format=torch.channels_last)}, tmp_path / "a.pt")
    one = open_checkpoint(tmp_path / "a.pt")
    found = check_cut(*planned(one, one), 1000)
    assert [block.count for block in found] == [960] * 5
    one.close()


def test_a_tensor_strided_in_one_checkpoint_only(tmp_path):
    weight = torch.randn(6, 9)
    torch.save({"w": weight.t().contiguous().t()}, tmp_path / "a.pt")
    torch.save({"w": weight}, tmp_path / "b.pt")
    files = [open_checkpoint(tmp_path / name) for name in ("a.pt", "b.pt")]
    for some in (files, files[::-1]):
        plan, layout = planned(*some)
        (block,) = check_cut(plan, layout, 10, whole={"w"})
        (place,) = windows(block, files[0].tensors["w"])
        assert place.strides == (1, 6)
        assert row_of(block, files[1]) == raw(weight)
    for one in files:
        one.close()


@pytest.mark.parametrize("threads", [1, 2, 16, 128, 10_000])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64", "int8"])
def test_all_workers_together_stay_within_the_budget(threads, dtype):
    one = stored([(DTYPES[dtype], (5,))], [0], [0])
    plan, _ = planned(one, one)
    elements = block_elements(plan, threads)
    assert blocks.SMALLEST_BLOCK <= elements <= blocks.LARGEST_BLOCK
    if elements > blocks.SMALLEST_BLOCK:
        itemsize = DTYPES[dtype].itemsize
        # At least: four rows as read, and the sums.
        assert threads * elements * 5 * itemsize <= blocks.MEMORY_BUDGET
    assert block_elements(plan, 2 * threads) <= elements


def test_block_elements_of_nothing():
    plan, _ = planned(checkpoint({}), checkpoint({}))
    assert block_elements(plan, 1) > 0
    assert list(cut(plan, {}, 10)) == []
    assert Block.__slots__
