import copy
import math
import pickle

import pytest
import torch
from torch.optim import swa_utils as theirs

from swatool import swa_utils as ours
from swatool.errors import SwatoolError

FLOATING = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64]
EMA = ["get_ema_avg_fn", "get_ema_multi_avg_fn"]
FUNCTIONS = [*EMA, "get_swa_avg_fn", "get_swa_multi_avg_fn"]


def values(dtype, seed, shapes=((7, 5), (33,), ())):
    generator = torch.Generator().manual_seed(seed)
    wide = torch.complex64 if dtype.is_complex else torch.float64
    return [torch.randn(shape, generator=generator, dtype=wide).to(dtype) for shape in shapes]


@pytest.mark.parametrize("name", ["get_ema_avg_fn", "get_swa_avg_fn"])
@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("n", [0, 1, 6, torch.tensor(6), 1000])
def test_single_functions_are_torchs_bit_for_bit(name, dtype, n):
    for average, model in zip(values(dtype, 0), values(dtype, 1), strict=True):
        before = average.clone()
        expected = getattr(theirs, name)()(average, model, n)
        found = getattr(ours, name)()(average, model, n)
        assert torch.equal(found, expected)
        assert found.dtype is expected.dtype
        assert torch.equal(average, before)


@pytest.mark.parametrize("decay", [0, 0.0, 0.25, 0.75, 0.999, 1.0, 1])
@pytest.mark.parametrize("dtype", FLOATING)
def test_ema_over_lists_is_torchs_bit_for_bit(decay, dtype):
    mine, reference, models = values(dtype, 0), values(dtype, 0), values(dtype, 1)
    assert ours.get_ema_multi_avg_fn(decay)(mine, models, 3) is None
    theirs.get_ema_multi_avg_fn(decay)(reference, models, 3)
    assert all(map(torch.equal, mine, reference))


@pytest.mark.parametrize("n", [0, 1, 2, 6, 50, torch.tensor(6)])
@pytest.mark.parametrize("dtype", FLOATING)
def test_swa_over_lists_is_torchs_bit_for_bit(n, dtype):
    mine, reference, models = values(dtype, 0), values(dtype, 0), values(dtype, 1)
    assert ours.get_swa_multi_avg_fn()(mine, models, n) is None
    # torch divides in float32 if the count is a tensor, whatever the weights are; else in double precision.
    theirs.get_swa_multi_avg_fn()(reference, models, int(n))
    assert all(map(torch.equal, mine, reference))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_default_decay_and_state_of_gradients(name):
    function = getattr(ours, name)()
    average, model = torch.zeros(3), torch.ones(3, requires_grad=True)
    if "multi" in name:
        function([average], [model], 3)
        result = average
    else:
        result = function(average, model, 3)
    assert not result.requires_grad
    expected = 0.001 if "ema" in name else 0.25
    assert result.tolist() == pytest.approx([expected] * 3, rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.int8, torch.bool])
def test_ema_of_whole_numbers_is_torchs(dtype):
    for decay in (0.0, 0.9, 1.0):
        mine = [torch.tensor([1, 100, 0], dtype=dtype)]
        reference = copy.deepcopy(mine)
        models = [torch.tensor([0, 50, 1], dtype=dtype)]
        ours.get_ema_multi_avg_fn(decay)(mine, models, 1)
        theirs.get_ema_multi_avg_fn(decay)(reference, models, 1)
        assert torch.equal(mine[0], reference[0])


def test_mixed_lists_are_possible():
    mine = [torch.zeros(2), torch.tensor([10])]
    ours.get_ema_multi_avg_fn(0.5)(mine, [torch.ones(2), torch.tensor([20])], 1)
    assert [one.tolist() for one in mine] == [[0.5, 0.5], [15]]


def test_swa_of_whole_numbers_is_refused_before_anything_is_changed():
    mine = [torch.zeros(2), torch.tensor([10])]
    with pytest.raises(ours.ArgumentTypeError, match="int64"):
        ours.get_swa_multi_avg_fn()(mine, [torch.ones(2), torch.tensor([20])], 1)
    assert mine[0].tolist() == [0, 0]


@pytest.mark.parametrize("name", ["get_ema_multi_avg_fn", "get_swa_multi_avg_fn"])
def test_lists_may_be_empty_but_not_of_two_lengths(name):
    getattr(ours, name)()([], [], 1)
    with pytest.raises(ValueError, match="zip"):
        getattr(ours, name)()([torch.zeros(1)], [], 1)


@pytest.mark.parametrize("name", EMA)
@pytest.mark.parametrize("decay", [-0.1, 1.0001, math.nan, math.inf, torch.tensor(2.0)])
def test_decay_outside_its_range_is_a_value_error(name, decay):
    with pytest.raises(ValueError, match="Invalid decay value") as caught:
        getattr(ours, name)(decay)
    assert isinstance(caught.value, SwatoolError)


@pytest.mark.parametrize("name", EMA)
def test_decay_of_a_wrong_type_is_a_type_error(name):
    with pytest.raises(TypeError):
        getattr(ours, name)("0.9")


@pytest.mark.parametrize("decay", [torch.tensor(0.9), torch.tensor(0.9, dtype=torch.float64), 1])
def test_the_weight_is_a_number_whatever_the_decay_is(decay):
    weight = ours.get_ema_multi_avg_fn(decay).weight(3)
    assert type(weight) is float
    assert weight == pytest.approx(1 - float(decay), abs=1e-7)


def test_decay_may_be_a_tensor():
    decay = torch.tensor(0.9)
    mine, reference, models = values(torch.float32, 0), values(torch.float32, 0), values(torch.float32, 1)
    ours.get_ema_multi_avg_fn(decay)(mine, models, 1)
    theirs.get_ema_multi_avg_fn(decay)(reference, models, 1)
    assert all(map(torch.equal, mine, reference))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_values_that_can_be_pickled(name):
    function = getattr(ours, name)()
    assert pickle.loads(pickle.dumps(function)) == function == copy.deepcopy(function)
    assert len(pickle.dumps(function)) < 200
    if "ema" in name:
        assert getattr(ours, name)(0.5) != function
        assert "0.5" in repr(getattr(ours, name)(0.5))
