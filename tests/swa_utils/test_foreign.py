"""Functions of others: whatever they do when they fail, the average is as before."""

import pytest
import torch
from torch import nn

from swatool.swa_utils import ArgumentTypeError, AveragedModel


def prepared(**options):
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2, dtype=torch.float64))
    averaged = AveragedModel(model, **options)
    averaged.update_parameters(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1
    model[1].running_mean += 1
    return model, averaged


def check_unchanged(averaged, model, error, match):
    kept = {name: tensor.clone() for name, tensor in averaged.state_dict().items()}
    with pytest.raises(error, match=match):
        averaged.update_parameters(model)
    assert all(torch.equal(kept[name], tensor) for name, tensor in averaged.state_dict().items())
    assert int(averaged.n_averaged) == 1


def failing_at(last, function):
    calls = []

    def wrapped(*args):
        calls.append(1)
        result = function(*args)
        if len(calls) == last:
            raise KeyboardInterrupt("stop")
        return result

    return wrapped


@pytest.mark.parametrize("last", [1, 4, 6])
@pytest.mark.parametrize("function", [lambda a, b, _: a + b, lambda a, b, _: a.mul_(0).add_(b)])
def test_a_function_of_tensors_that_raises(last, function):
    model, averaged = prepared(avg_fn=failing_at(last, function))
    check_unchanged(averaged, model, KeyboardInterrupt, "stop")


@pytest.mark.parametrize("last", [1, 2])
def test_a_function_of_lists_that_raises(last):
    def function(averages, models, _):
        torch._foreach_add_(averages, models)

    model, averaged = prepared(multi_avg_fn=failing_at(last, function))
    check_unchanged(averaged, model, KeyboardInterrupt, "stop")


@pytest.mark.parametrize(
    ("result", "found"),
    [(None, "NoneType"), (1.0, "float"), (torch.ones(()), r"shape \(\)"), (torch.ones(2), "shape")],
)
def test_a_function_that_returns_something_else(result, found):
    model, averaged = prepared(avg_fn=lambda a, *_: a if a.dim() == 1 else result)
    check_unchanged(averaged, model, ArgumentTypeError, f"avg_fn returned {found}")
    check_unchanged(averaged, model, TypeError, found)


def test_functions_that_work_in_place_work():
    model, averaged = prepared(avg_fn=lambda a, b, _: a.mul_(0.5).add_(b, alpha=0.5))
    averaged.update_parameters(model)
    expected = model[0].weight - 0.5
    torch.testing.assert_close(averaged.module[0].weight, expected)
    assert torch.equal(averaged.module[1].running_mean, model[1].running_mean)


def test_results_are_cast_and_cut_off_from_their_graph():
    model, averaged = prepared(avg_fn=lambda a, b, n: (a.double() + b.double() + n).requires_grad_())
    before = averaged.module[0].bias.clone()
    averaged.update_parameters(model)
    assert averaged.module[0].bias.dtype is torch.float32
    assert averaged.module[0].bias.is_leaf
    torch.testing.assert_close(averaged.module[0].bias, before + model[0].bias + 1)


@pytest.mark.parametrize("kind", ["avg_fn", "multi_avg_fn"])
def test_functions_get_the_model_in_the_type_of_the_average(kind):
    seen = []

    def single(a, b, _):
        seen.append((a.dtype, b.dtype))
        return b

    def multi(averages, models, _):
        seen.extend((a.dtype, b.dtype) for a, b in zip(averages, models, strict=True))

    model = nn.Linear(2, 2).bfloat16()
    averaged = AveragedModel(model, dtype=torch.float32, **{kind: single if kind == "avg_fn" else multi})
    averaged.update_parameters(model)
    averaged.update_parameters(model)
    assert seen == [(torch.float32, torch.float32)] * 2


@pytest.mark.parametrize("use_buffers", [True, False])
def test_functions_of_tensors_are_called_in_torchs_order(use_buffers):
    dtypes = [torch.float32, torch.float64, torch.float32, torch.bfloat16, torch.float64]
    model = nn.Module()
    for size, dtype in enumerate(dtypes, 1):
        model.register_parameter(f"p{size}", nn.Parameter(torch.zeros(size, dtype=dtype)))
        model.register_buffer(f"b{size}", torch.zeros(size + 10, dtype=dtype))
    orders = []
    for cls in (AveragedModel, torch.optim.swa_utils.AveragedModel):
        seen = []
        averaged = cls(
            model, use_buffers=use_buffers, avg_fn=lambda a, *_, seen=seen: seen.append(len(a)) or a
        )
        averaged.update_parameters(model)
        averaged.update_parameters(model)
        orders.append(seen)
    assert orders[0] == orders[1]
    assert len(orders[0]) == 10 if use_buffers else 5
