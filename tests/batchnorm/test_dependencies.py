import ctypes
import subprocess
import sys

import pytest
import torch
from torch import nn

from swatool.batchnorm.dependencies import Trace, make_plan, trace
from swatool.batchnorm.layers import find_layers


class Net(nn.Module):
    """Layers a, b, c, ... of four channels, used as a function says."""

    def __init__(self, count, path):
        super().__init__()
        self.norms = nn.ModuleDict({name: nn.BatchNorm1d(4) for name in "abcdef"[:count]})
        self.path = path
        self.table = nn.Parameter(torch.randn(8, 4))

    def forward(self, x):
        return self.path(self, x, *self.norms.values())


def traced(count, path, x=None):
    model = Net(count, path).eval()
    x = torch.randn(2, 4) if x is None else x
    with torch.no_grad():
        seen = trace(find_layers(model).found, x, lambda: model(x))
    assert not any(module._forward_pre_hooks for module in model.modules())
    return seen


def plan_of(count, path):
    plan = make_plan(traced(count, path))
    return {"abcdef"[layer]: level for layer, level in plan.levels.items()}, plan


def chain(_, x, a, b, c):
    return c(b(a(x).relu()) * 2)


def residual(_, x, a, b, c, d):
    x = a(x)
    return d(x + c(b(x)))


def parallel(_, x, a, b, c):
    return c(a(x) + b(x * 2))


def inception(_, x, a, b, c, d, e):
    x = a(x)
    return e(torch.cat([b(x), d(c(x))]))


def squeeze_excite(_, x, a, b, c):
    x = a(x)
    return c(x * torch.sigmoid(b(x.mean(1, keepdim=True).expand(2, 4))))


def detached(_, x, a, b):
    return b(a(x).detach().clone())


def argmax(net, x, a, b):
    return b(net.table[a(x).argmax(1)])


def embedding(net, x, a, b):
    return b(nn.functional.embedding(a(x).argmax(1), net.table))


def copied(_, x, a, b):
    buffer = torch.zeros(2, 4)
    buffer[:, 1:].copy_(a(x)[:, 1:])
    return b(buffer)


def out_argument(_, x, a, b):
    buffer = torch.empty(2, 4)
    torch.mul(a(x), 2, out=buffer)
    return b(buffer)


def viewed(_, x, a, b):
    base = x * 1
    view = base.view(8)
    base += a(x)
    return b(view.view(2, 4))


def several(_, x, a, b):
    buffers = [torch.zeros(2, 4), torch.zeros(1)]
    torch._foreach_add_(buffers, [a(x), torch.ones(1)])
    return b(buffers[0] + x)


def item(_, x, a, b):
    return b(x * a(x).sum().item())


def condition(_, x, a, b):
    return b(x * 2 if a(x).sum() > 1e9 else x)


def as_list(_, x, a, b):
    return b(torch.tensor(a(x).tolist()))


def masked(_, x, a, b):
    y = a(x)
    return b(x[y.sum(1) > -1e9])


def shape(_, x, a, b):
    return b(x * len(a(x).nonzero()))


def functional(_, x, a, b):
    return b(nn.functional.batch_norm(x, a.running_mean, a.running_var)) + a(x)


def comparison(_, x, a, b):
    return b(torch.where(a(x) > 0, x, -x))


@pytest.mark.parametrize(
    ("count", "path", "levels"),
    [
        (3, chain, {"a": 1, "b": 2, "c": 3}),
        (4, residual, {"a": 1, "b": 2, "c": 3, "d": 4}),
        (3, parallel, {"a": 1, "b": 1, "c": 2}),
        (5, inception, {"a": 1, "b": 2, "c": 2, "d": 3, "e": 4}),
        (3, squeeze_excite, {"a": 1, "b": 2, "c": 3}),
        *(
            (2, path, {"a": 1, "b": 2})
            for path in (
                detached, argmax, embedding, copied, out_argument, viewed,
                several, item, condition, as_list, masked,
                shape, functional, comparison,
            )
        ),
    ],
)  # fmt: skip
def test_levels(count, path, levels):
    found, plan = plan_of(count, path)
    assert found == levels
    assert plan.passes == max(levels.values())
    assert not plan.circular
    assert plan.dynamic == (path in (item, condition, as_list, masked, shape))


def test_what_is_only_shown_or_of_constants_decides_nothing():
    def path(net, x, a, b):
        if float(net.table.sum()) > 1e9 or x.shape[0] > 5 or a.running_mean is None:
            return None
        return b(x) + a(x[:, torch.tensor([1, 0, 3, 2])])

    found, plan = plan_of(2, path)
    assert found == {"b": 1, "a": 1}
    assert not plan.dynamic


def test_the_order_of_execution_is_that_of_first_use():
    found, _ = plan_of(3, lambda _, x, a, b, c: a(c(b(x))))
    assert list(found.items()) == [("b", 1), ("c", 2), ("a", 3)]


def test_a_layer_that_is_not_reached_has_no_level():
    assert plan_of(3, lambda _, x, *n: n[2](n[0](x)))[0] == {"a": 1, "c": 2}
    assert make_plan(Trace()).passes == 0


def test_a_layer_used_side_by_side_does_not_depend_on_itself():
    found, plan = plan_of(2, lambda _, x, a, b: b(a(x) + a(-x)))
    assert found == {"a": 1, "b": 2}
    assert not plan.circular


def test_a_layer_used_on_its_own_output_is_circular():
    found, plan = plan_of(2, lambda _, x, a, b: b(a(a(x))))
    assert found == {"a": 1, "b": 2}
    assert list(plan.circular) == [0]


def test_a_circle_through_another_layer_goes_by_first_use():
    found, plan = plan_of(3, lambda _, x, a, b, c: c(a(b(a(x)))))
    assert found == {"a": 1, "b": 2, "c": 3}
    assert list(plan.circular) == [0, 1]


def test_a_layer_used_early_and_late_waits_for_its_late_use():
    found, plan = plan_of(3, lambda _, x, a, b, c: c(a(x) + a(b(x))))
    assert found == {"a": 2, "b": 1, "c": 3}
    assert not plan.circular


def hide(source, target):
    """Copy values as a kernel of somebody's own would, which no mode sees."""
    ctypes.memmove(target.data_ptr(), source.data_ptr(), source.nbytes)


def test_what_is_read_from_memory_that_nothing_filled_may_depend_on_all_before():
    def path(_, x, a, b, c):
        hidden = torch.empty(2, 4)
        hide(a(x) + c(x), hidden)
        return b(hidden + x)

    assert plan_of(3, path)[0] == {"a": 1, "b": 2, "c": 1}


def test_what_came_from_nowhere_may_depend_on_all_before():
    def path(_, x, a, b):
        hidden = torch.zeros(2, 4)
        hide(a(x), hidden)
        return b(hidden)

    assert plan_of(2, path)[0] == {"a": 1, "b": 2}


def test_memory_of_activations_is_not_held():
    freed = []

    def path(_, x, a, b):
        for _ in range(50):
            y = torch.ones(1000) + 1
            freed.append(y.data_ptr())
        return b(a(x))

    plan_of(2, path)
    assert len(set(freed)) < 250  # the same addresses are used again


def test_addresses_that_are_used_again_carry_no_old_tags():
    def path(_, x, a, b):
        for _ in range(20):
            a(x)
        return b(x * 2)

    assert plan_of(2, path)[0] == {"a": 1, "b": 1}


def test_what_several_traces_saw_is_put_together():
    seen = traced(3, lambda _, x, *n: n[0](x))
    seen.add(traced(3, lambda _, x, a, b, c: c(b(x)) + a(x)))
    seen.add(traced(3, lambda _, x, *n: n[1](x * n[0](x).sum().item())))
    plan = make_plan(seen)
    assert plan.levels == {0: 1, 1: 2, 2: 3}
    assert plan.dynamic


def test_keywords_and_other_dtypes_are_seen():
    def path(_, x, a, b):
        return b(input=a(input=x.double().float()).half().float())

    assert plan_of(2, path)[0] == {"a": 1, "b": 2}


def test_convolutional_and_recurrent_models():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 3)
            self.first = nn.BatchNorm2d(4)
            self.lstm = nn.LSTM(4, 4, batch_first=True)
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
            self.second = nn.InstanceNorm1d(4, track_running_stats=True)

        def forward(self, x):
            x = self.first(self.conv(x)).flatten(2).transpose(1, 2)
            x, _ = self.lstm(x)
            x, _ = self.attention(x, x, x)
            return self.second(x.transpose(1, 2))

    model = Model().eval()
    x = torch.randn(2, 1, 6, 6)
    with torch.no_grad():
        plan = make_plan(trace(find_layers(model).found, x, lambda: model(x)))
    assert plan.levels == {0: 1, 1: 2}
    assert not plan.dynamic


def test_tracing_does_not_import_the_compiler():
    code = (
        "import sys, torch, swatool\n"
        "from torch import nn\n"
        "model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3), nn.BatchNorm1d(3))\n"
        "swatool.recalibrate_bn(model, [torch.rand(8, 3)], mode='exact')\n"
        "assert 'torch._dynamo' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=60)
