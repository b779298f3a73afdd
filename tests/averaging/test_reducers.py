import math

import pytest
import torch

from swatool.averaging import kernels, reducers
from swatool.averaging.blocks import Block, Segment
from swatool.averaging.memory import Memory
from swatool.averaging.plan import Action, Input, PlannedTensor, Treatment
from swatool.averaging.reducers import CopyReducer, LinearReducer, Signal
from swatool.tensors import DTYPES

CPU = torch.device("cpu")


def inputs(dtype, *coefficients):
    return [Input(index, DTYPES[dtype], (c,)) for index, c in enumerate(coefficients)]


def treat(action, some, *, dtype=None, accumulator="float32"):
    return Treatment(action, tuple(some), DTYPES[dtype] if dtype else some[0].dtype, accumulator)


def block(treatment, *lengths):
    tensors = [PlannedTensor(f"t{i}", (length,), treatment) for i, length in enumerate(lengths)]
    segments = tuple(Segment(tensor, 0, tensor.numel) for tensor in tensors)
    return Block(treatment, segments, sum(lengths), 0)


def reduce(reducer, one, values):
    """Run a block, given each checkpoint's values, as the loop does; return the result's values."""
    reducer.start(one)
    rest = list(values)
    for turn, group in enumerate(reducer.groups):
        group.rows.wait()
        for buffer, part in zip(group.rows.buffers, group.inputs, strict=True):
            dtype = kernels.torch_dtype(part.dtype)
            buffer[:] = bytes(torch.tensor(rest.pop(0)).to(dtype).view(torch.uint8).tolist())
        group.rows.upload()
        reducer.add(turn)
    assert not rest
    return reducer.finish().view(kernels.torch_dtype(one.treatment.dtype)).tolist()


def average(some, values, *, memory=None, alone=False, **options):
    treatment = treat(Action.AVERAGE, some, **options)
    reducer = LinearReducer(treatment, len(values[0]), memory or Memory(CPU), alone=alone)
    return reducer, reduce(reducer, block(treatment, len(values[0])), values)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16", "float8_e5m2"])
@pytest.mark.parametrize("accumulator", ["float32", "float64"])
@pytest.mark.parametrize("alone", [True, False])
def test_weighted_sum(dtype, accumulator, alone):
    rows = [[4.0, 8.0, -16.0], [4.0, 0.0, 16.0], [2.0, -4.0, 1.0]]
    some = inputs(dtype, 0.25, 0.25, 0.5)
    reducer, found = average(some, rows, accumulator=accumulator, alone=alone)
    assert found == [3.0, 0.0, 0.5]
    assert reducer.fits()
    assert all(len(group.inputs) == 1 for group in reducer.groups) or not alone


@pytest.mark.parametrize("accumulator", ["float32", "float64"])
@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
@pytest.mark.parametrize("alone", [True, False])
def test_complex_numbers(dtype, accumulator, alone):
    rows = [[1 + 2j, 4j], [3 - 2j, 2 + 0j]]
    reducer, found = average(inputs(dtype, 0.5, 0.5), rows, accumulator=accumulator, alone=alone)
    assert found == [2, 1 + 2j]
    assert reducer.fits()


def test_types_of_the_inputs_may_differ():
    some = [Input(0, DTYPES["float32"], (0.5,)), Input(1, DTYPES["bfloat16"], (0.5,))]
    assert average(some, [[1.0, 2.0], [3.0, 4.0]], dtype="float16")[1] == [2, 3]


def test_nothing_of_a_block_is_left_in_the_next():
    memory = Memory(CPU)
    some = inputs("float16", 0.5, 0.5)
    for values in ([1.0, 2.0, math.nan], [3.0], [4.0, 5.0, 6.0, 7.0]):
        _, found = average(some, [values, values], memory=memory)
        assert found == pytest.approx(values, nan_ok=True)


def test_one_reducer_takes_one_block_after_the_other():
    treatment = treat(Action.AVERAGE, inputs("float32", 0.5, 0.5))
    reducer = LinearReducer(treatment, 2, Memory(CPU))
    assert reduce(reducer, block(treatment, 2), [[math.nan, 1.0]] * 2) == pytest.approx(
        [math.nan, 1], nan_ok=True
    )
    assert reduce(reducer, block(treatment, 2), [[1.0, 2.0], [3.0, 4.0]]) == [2, 3]
    assert reducer.fits()


@pytest.mark.parametrize(
    ("value", "dtype", "expected"),
    [
        (1e5, "float16", False),
        (6e4, "float16", True),
        (math.nan, "float32", False),
        (-math.inf, "float32", False),
    ],
)
def test_fits_looks_at_the_result(value, dtype, expected):
    reducer, _ = average(inputs("float32", 1.0), [[value, 0.0]], dtype=dtype)
    assert bool(reducer.fits()) is expected


def test_fits_looks_at_both_parts_of_complex_numbers():
    for value in (complex(0, math.inf), complex(math.nan, 0)):
        assert not average(inputs("complex64", 1.0), [[value, 0j]])[0].fits()
    assert not average(
        inputs("complex128", 1.0), [[complex(0, 1e39)]], accumulator="float64", dtype="complex64"
    )[0].fits()


@pytest.mark.parametrize("alone", [True, False])
def test_the_signal_is_what_rounding_and_averaging_change(alone):
    signal = Signal()
    for _ in range(2):
        rows = [[1.0, 2.0], [1.0078125, 4.0]]
        average(inputs("bfloat16", 0.5, 0.5), rows, alone=alone)[0].measure(signal)
    # 1.00390625 lies between two neighbours in bfloat16; 3 is exact.
    assert signal.rounding == pytest.approx(2 * 0.00390625**2)
    assert signal.change == pytest.approx(2 * (0.00390625**2 + 1))


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, [1]), (2, [2]), (4, [4]), (5, [3, 2]), (6, [3, 3]), (8, [4, 4]), (9, [3, 3, 3]), (10, [4, 4, 2])],
)
def test_groups_of_equal_length(monkeypatch, count, expected):
    monkeypatch.setattr(kernels, "most_together", lambda *_: 4)
    some = inputs("float32", *range(1, count + 1))
    reducer = LinearReducer(treat(Action.AVERAGE, some), 1, Memory(CPU))
    assert [len(group.inputs) for group in reducer.groups] == expected
    assert [one for group in reducer.groups for one in group.inputs] == some


def test_types_part_groups(monkeypatch):
    monkeypatch.setattr(kernels, "most_together", lambda *_: 4)
    types = ["float32", "float32", "bfloat16", "float32"]
    some = [Input(index, DTYPES[dtype], (0.25,)) for index, dtype in enumerate(types)]
    reducer = LinearReducer(treat(Action.AVERAGE, some), 1, Memory(CPU))
    assert [len(group.inputs) for group in reducer.groups] == [2, 1, 1]


def copy(action, values, *lengths, dtype="int16"):
    treatment = treat(action, inputs(dtype, *(1.0 for _ in values)), accumulator="")
    differing = {}
    reducer = CopyReducer(treatment, sum(lengths), Memory(CPU), [differing])
    return reduce(reducer, block(treatment, *lengths), values), differing


ACTIONS = [Action.COPY_LAST, Action.COPY_FIRST, Action.MUST_EQUAL]


@pytest.mark.parametrize("action", ACTIONS)
def test_what_differs_is_noted_with_the_first_checkpoint_that_does(action):
    assert copy(action, [[1, 2, 3]] * 3, 2, 1) == ([1, 2, 3], {})
    assert copy(action, [[1, 2, 3], [1, 2, 4], [1, 2, 3]], 2, 1) == ([1, 2, 3], {"t1": 1})
    _, differing = copy(action, [[1, 2, 3], [1, 2, 3], [0, 2, 0]], 2, 1)
    assert differing == {"t0": 2, "t1": 2}


@pytest.mark.parametrize(("action", "expected"), [(Action.COPY_LAST, [5, 6]), (Action.COPY_FIRST, [1, 2])])
@pytest.mark.parametrize("dtype", ["uint8", "int64", "uint16"])
def test_which_checkpoint_is_copied(action, expected, dtype):
    found, differing = copy(action, [[1, 2], [3, 4], [5, 6]], 2, dtype=dtype)
    assert found == expected
    assert differing == {"t0": 1}


def test_excluded_tensors_come_from_one_checkpoint():
    assert copy(Action.EXCLUDED, [[1.5, -2.0]], 1, 1, dtype="bfloat16") == ([1.5, -2.0], {})


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_sums_of_several_outputs_are_those_of_each_alone(dtype, monkeypatch):
    monkeypatch.setattr(reducers, "SHARED_TILE", 6)
    generator = torch.Generator().manual_seed(5)
    values = torch.randn(5, 20, generator=generator, dtype=kernels.torch_dtype(DTYPES[dtype])).tolist()
    columns = [(0.1, 0.3), (0.2, None), (0.4, 0.3), (0.2, 0.2), (0.1, 0.2)]
    both = treat(Action.AVERAGE, [Input(i, DTYPES[dtype], pair) for i, pair in enumerate(columns)])
    reducer = LinearReducer(both, 20, Memory(CPU))
    reduce(reducer, block(both, 20), values)
    for output in range(2):
        kept = [i for i, pair in enumerate(columns) if pair[output] is not None]
        some = [Input(i, DTYPES[dtype], (columns[i][output],)) for i in kept]
        _, alone = average(some, [values[i] for i in kept])
        assert reducer.finish(output).view(kernels.torch_dtype(DTYPES[dtype])).tolist() == alone
