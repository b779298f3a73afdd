import copy
import random

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from swatool.batchnorm import exact
from swatool.batchnorm.recalibrate import recalibrate_bn
from swatool.errors import DataError, UsageError


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(6)
        self.around = nn.Conv2d(6, 6, 1)
        self.bn_around = nn.BatchNorm2d(6)
        self.instance = nn.InstanceNorm2d(6, track_running_stats=True)
        self.linear = nn.Linear(6, 5)
        self.bn3 = nn.BatchNorm1d(5)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        x = self.bn1(self.conv1(x)).relu()
        x = (self.bn2(self.conv2(x)) + self.bn_around(self.around(x))).relu()
        x = self.instance(x)
        return self.bn3(self.linear(self.drop(x.mean((2, 3)))))


def residual(dtype=torch.float32):
    torch.manual_seed(0)
    return Residual().to(dtype)


def images(count=500, dtype=torch.float32):
    """Ten classes of different brightness, sorted."""
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(count, 1, 6, 6, generator=generator)
    return (values + torch.arange(count).view(-1, 1, 1, 1) * 5 / count).to(dtype)


def statistics(model):
    return {name: t.double() for name, t in model.state_dict().items() if name.endswith(("_mean", "_var"))}


def relative(one, other):
    """The largest difference, of means in units of sigma, of variances as a part of them."""
    found = 0.0
    for name, values in one.items():
        variance = other[name.replace("running_mean", "running_var")]
        unit = variance.sqrt() if name.endswith("_mean") else variance
        found = max(found, float(((values - other[name]).abs() / unit).max()))
    return found


def one_by_one(model, data, order):
    """The reference: a whole pass for every layer, its inputs kept, two-pass statistics in float64."""
    model = copy.deepcopy(model).eval()
    for name in order:
        module, seen = model.get_submodule(name), []
        handle = module.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0].double()))
        with torch.no_grad():
            model(data)
        handle.remove()
        values = torch.cat(seen)
        if isinstance(module, nn.InstanceNorm2d):
            flat = values.flatten(2)
            mean, variance = flat.mean(2).mean(0), flat.var(2).mean(0)
        else:
            flat = values.movedim(1, 0).flatten(1)
            mean, variance = flat.mean(1), flat.var(1)
        module.running_mean.copy_(mean)
        module.running_var.copy_(variance)
    return statistics(model)


ORDER = ["bn1", "bn2", "bn_around", "instance", "bn3"]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_the_statistics_are_those_of_inference(dtype, tolerance):
    model, data = residual(dtype), images(dtype=dtype)
    expected = one_by_one(model, data, ORDER)
    passes = []
    report = recalibrate_bn(model, data.split(64), mode="exact", on_passes=passes.append)
    assert relative(statistics(model), expected) < tolerance
    assert passes == [4]  # bn2 and bn_around share one
    assert (report.passes, report.samples, report.batches) == (4, 500, 8)
    assert [layer.name for layer in report.layers] == ORDER
    assert {
        int(module.num_batches_tracked) for module in model.modules() if hasattr(module, "running_var")
    } == {8}


def test_neither_batches_nor_order_matter_and_a_second_run_stays():
    data = images()
    results = []
    for size in (1, 7, 64, 500):
        for order in (torch.arange(500), torch.randperm(500, generator=torch.Generator().manual_seed(size))):
            model = residual()
            recalibrate_bn(model, data[order].split(size), mode="exact")
            results.append(statistics(model))
            if size == 64:
                recalibrate_bn(model, data[order].split(7), mode="exact")
                results.append(statistics(model))
    assert max(relative(result, results[0]) for result in results[1:]) < 1e-6


def test_a_forward_stops_at_the_last_layer_of_its_pass():
    model = residual()
    reached = []
    for name in ("conv2", "linear", "drop"):
        model.get_submodule(name).register_forward_pre_hook(lambda *_, name=name: reached.append(name))
    recalibrate_bn(model, images(30).split(10), mode="exact")
    # The trace, one whole forward to count the uses, and then: one pass for each level.
    whole = 2
    assert reached.count("conv2") == whole + 3 * 3
    assert reached.count("linear") == whole + 3
    assert reached.count("drop") == whole + 3


def test_forwards_of_another_shape_are_counted_before_they_are_stopped():
    """A model that cuts its batch into pieces: a traced slice has one, the whole batch several."""

    class Pieces(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = nn.BatchNorm1d(2)
            self.last = nn.BatchNorm1d(2)

        def forward(self, x):
            return self.last(torch.cat([self.bn(piece) for piece in x.split(4)]))

    model = Pieces()
    data = torch.randn(47, 2)
    report = recalibrate_bn(model, [data[:20], data[20:40], data[40:]], mode="exact")
    assert [layer.values for layer in report.layers] == [47, 47]
    assert [layer.uses for layer in report.layers] == [12, 3]
    torch.testing.assert_close(model.bn.running_mean, data.mean(0))


class Switching(nn.Module):
    """Which way a batch takes depends on its values; either way the last layer depends on another."""

    def __init__(self):
        super().__init__()
        self.dark, self.bright, self.last = nn.BatchNorm1d(2), nn.BatchNorm1d(2), nn.BatchNorm1d(2)

    def forward(self, x):
        x = self.bright(x * 3) if x.mean() > 0 else self.dark(x)
        return self.last(x + 1)


def test_another_way_through_the_model_is_found():
    model = Switching()
    data = [torch.randn(20, 2) - 5, torch.randn(30, 2) + 5, torch.randn(30, 2) + 4]
    passes = []
    report = recalibrate_bn(model, data, mode="exact", on_passes=passes.append)
    assert {layer.name: layer.values for layer in report.layers} == {"dark": 20, "bright": 60, "last": 80}
    torch.testing.assert_close(model.bright.running_mean, torch.cat(data[1:]).mean(0) * 3)
    assert passes == [2, 2]
    expected = copy.deepcopy(model).eval()
    seen = []
    expected.last.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        for batch in data:
            expected(batch)
    torch.testing.assert_close(model.last.running_var, torch.cat(seen).var(0))


def test_a_way_that_not_even_its_own_batch_takes_again_ends():
    class Fickle(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
            self.calls = 0

        def forward(self, x):
            self.calls += 1
            x = self.a(x)
            return self.b(x) if x.sum() < 1e9 and self.calls % 5 == 0 else x

    report = recalibrate_bn(Fickle(), list(torch.randn(60, 2).split(10)), mode="exact")
    assert report.passes == 2
    assert report.layers[0].values == 60


def test_an_iterator_does_for_one_pass_only():
    one, two = nn.Sequential(nn.BatchNorm1d(2)), nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2))
    data = torch.randn(25, 2)
    report = recalibrate_bn(one, iter(data.split(8)), mode="exact")
    assert report.samples == 25
    torch.testing.assert_close(one[0].running_mean, data.mean(0))
    state = copy.deepcopy(two.state_dict())
    with pytest.raises(UsageError, match="needs 2 passes"):
        recalibrate_bn(two, iter(data.split(8)), mode="exact")
    switching = Switching()
    switching.last = nn.Identity()
    with pytest.raises(UsageError, match=r"layer 'bright' .*iterated over again"):
        recalibrate_bn(switching, iter([torch.randn(20, 2) - 5, torch.randn(30, 2) + 5]), mode="exact")
    assert all(torch.equal(t, two.state_dict()[name]) for name, t in state.items())


def test_passes_must_give_the_same_amount():
    class Shrinking:
        left = 3

        def __iter__(self):
            Shrinking.left -= 1
            return iter([torch.randn(9, 2)] * (Shrinking.left + 1))

    with pytest.raises(DataError, match="27 samples in the first pass and 18 in pass 2"):
        recalibrate_bn(nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2)), Shrinking(), mode="exact")


def test_all_passes_draw_the_same_random_numbers():
    """Data that are drawn, and a model that is noisy in inference: each pass sees what the others saw."""

    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.BatchNorm1d(2), nn.BatchNorm1d(2), nn.BatchNorm1d(2)
            self.seen = []

        def forward(self, x):
            self.seen.append(torch.cat([x.flatten(), torch.rand(1)]))
            return self.c(self.b(self.a(x) + torch.rand(1)))

    class Augmented(DataLoader):
        def __iter__(self):
            for (batch,) in super().__iter__():
                yield batch + torch.rand(1)

    model = Noisy()
    loader = Augmented(TensorDataset(torch.randn(40, 2)), batch_size=10, shuffle=True)
    state = torch.get_rng_state()
    recalibrate_bn(model, loader, mode="exact")
    assert torch.equal(state, torch.get_rng_state())
    first, *seen = model.seen
    assert len(seen) == 12
    assert torch.equal(first[:4], seen[0][:4])
    assert torch.equal(first[-1], seen[0][-1])
    assert all(torch.equal(seen[k], seen[k % 4]) for k in range(12))
    assert not torch.equal(seen[0], seen[1])
    expected = {name: t.clone() for name, t in model.state_dict().items()}
    torch.set_rng_state(state)
    recalibrate_bn(model, loader, mode="exact")
    torch.testing.assert_close(dict(model.state_dict()), expected)


def test_circular_layers_are_pooled_and_told():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.BatchNorm1d(2), nn.BatchNorm1d(2)

        def forward(self, x):
            return self.b(self.a(self.a(x) + 3))

    model = Twice()
    report = recalibrate_bn(model, [torch.randn(50, 2)], mode="exact")
    assert report.layers[0].values == 100
    assert report.passes == 2
    assert "no exact statistics: 'a'" in report.warnings[0]


def test_a_model_that_does_not_take_two_samples_is_traced_whole():
    class Picky(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = nn.BatchNorm1d(2)

        def forward(self, x):
            return self.bn(x.view(5, 2, 2).flatten(0, 1))

    report = recalibrate_bn(Picky(), [torch.randn(10, 2)] * 3, mode="exact")
    assert report.layers[0].values == 30


def test_only_two_samples_are_traced():
    sizes = []
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(2))
    model[0].register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    recalibrate_bn(model, [torch.randn(10, 2)], mode="exact")
    assert sizes == [exact.TRACED_SAMPLES, 10]


def test_old_statistics_do_not_matter():
    data = images(60).split(20)
    model, other = residual(), residual()
    for tensor in statistics_in_place(other):
        tensor.uniform_(0.5, 3, generator=torch.Generator().manual_seed(random.randint(0, 99)))
    for one in (model, other):
        recalibrate_bn(one, data, mode="exact")
    assert all(torch.equal(t, other.state_dict()[name]) for name, t in model.state_dict().items())


def statistics_in_place(model):
    return [t for name, t in model.named_buffers() if name.endswith(("_mean", "_var"))]
