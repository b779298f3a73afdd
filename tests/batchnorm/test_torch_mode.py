import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from swatool.batchnorm.recalibrate import recalibrate_bn
from swatool.errors import DataError


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(4)
        self.inner = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(0.5))
        self.bn2 = nn.BatchNorm2d(4, momentum=None)

    def forward(self, x):
        x = self.bn1(self.conv(x)).relu()
        return self.bn2(nn.functional.dropout(x + self.inner(x), 0.3, self.training))


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm2d(2)
        self.conv = nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x):
        return self.bn(self.conv(self.bn(x)))


class Instance(nn.Module):
    def __init__(self):
        super().__init__()
        self.instance = nn.InstanceNorm2d(2, track_running_stats=True)
        self.bn = nn.BatchNorm2d(2, momentum=0.0)

    def forward(self, x):
        return self.bn(self.instance(x) + x)


def mlp():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(32, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 4), nn.BatchNorm1d(4)
    )


def plain():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 1), nn.BatchNorm2d(3)
    )


def momenta():
    return nn.Sequential(
        nn.BatchNorm2d(2, momentum=0.0),
        nn.Conv2d(2, 3, 1),
        nn.BatchNorm2d(3, momentum=None, affine=False),
        nn.BatchNorm2d(3, momentum=0.9, track_running_stats=False),
    )


def half():
    return plain().bfloat16()


def synchronised():
    return nn.SyncBatchNorm.convert_sync_batchnorm(plain())


MODELS = [plain, mlp, Residual, Shared, Instance, momenta, half, synchronised]
BATCHES = {
    "even": (8, 8, 8),
    "ragged": (8, 8, 3),
}


def images(sizes, dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    return [
        (torch.randn(size, 2, 4, 4, generator=generator) * (k + 1) - k).to(dtype)
        for k, size in enumerate(sizes)
    ]


class Drawing:
    """A loader that draws from the same random numbers as the model, one batch at a time."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        for batch in self.batches:
            yield batch + torch.rand(1).to(batch.dtype)


@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("sizes", BATCHES.values(), ids=BATCHES.keys())
@pytest.mark.parametrize("form", ["tensor", "tuple", "list", "drawing"])
def test_bit_for_bit_what_update_bn_gives(make, sizes, form):
    torch.manual_seed(0)
    model = make()
    model.train()
    expected = copy.deepcopy(model)
    batches = images(sizes, next(model.parameters()).dtype)
    if form == "drawing":
        batches = Drawing(batches)
    elif form != "tensor":
        batches = [(tuple if form == "tuple" else list)([batch, torch.zeros(1)]) for batch in batches]
    torch.manual_seed(7)
    update_bn(batches, expected)
    torch.manual_seed(7)
    report = recalibrate_bn(model, batches, mode="torch")
    found = model.state_dict()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(found[name], tensor), name
    assert report.samples == sum(sizes)
    assert (report.batches, report.passes) == (3, 1)
    assert len(report.layers) == sum(1 for name in found if name.endswith("running_mean"))


def test_values_and_uses_are_counted():
    report = recalibrate_bn(Shared(), images((8, 3)), mode="torch")
    assert report.layers[0].values == 2 * 11 * 16
    assert report.layers[0].uses == 4


def test_a_last_single_sample_is_an_error_as_for_torch():
    model = mlp()
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(DataError, match=r"layer '2' .*batch 3.*no single sample at the end"):
        recalibrate_bn(model, images((8, 8, 1)), mode="torch")
    assert all(torch.equal(t, model.state_dict()[name]) for name, t in state.items())
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        update_bn(images((8, 8, 1)), mlp())
    recalibrate_bn(plain(), images((8, 1)), mode="torch")  # an image has more than one value


def test_empty_data_change_nothing_unlike_for_torch():
    model, torchs = plain(), plain()
    for one in (model, torchs):
        one[1].running_mean.fill_(3)
    with pytest.raises(DataError, match="no samples"):
        recalibrate_bn(model, [], mode="torch")
    update_bn([], torchs)
    assert model[1].running_mean.tolist() == [3] * 4
    assert torchs[1].running_mean.tolist() == [0] * 4


def test_a_model_that_freezes_its_own_layers_keeps_their_statistics():
    class Frozen(nn.Sequential):
        def train(self, mode=True):
            super().train(mode)
            self[1].eval()
            return self

    model = Frozen(*plain()).train()
    model[1].running_mean.fill_(3)
    expected = copy.deepcopy(model)
    report = recalibrate_bn(model, images((8, 8)), mode="torch")
    update_bn(images((8, 8)), expected)
    assert report.unreached == ("1",)
    assert model[1].running_mean.tolist() == [3] * 4
    assert torch.equal(model[4].running_mean, expected[4].running_mean)


def test_the_random_state_is_that_before():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    model = Residual()
    torch.set_rng_state(state)
    recalibrate_bn(model, images((8, 8)), mode="torch")
    assert torch.equal(state, torch.get_rng_state())
