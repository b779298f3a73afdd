"""Everything that may change about a model between two updates is seen; and what does not matter is not."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from swatool.swa_utils import AveragedModel
from swatool.swa_utils import averaged_model as home
from swatool.swa_utils.watch import Watch


def build():
    return nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))


def tensors(module):
    return [*module.parameters(), *module.buffers()]


def watch(module):
    return Watch(module, tensors(module))


def rename(model):
    layer = model[0]
    weight, bias = layer.weight, layer.bias
    del layer.weight, layer.bias
    layer.kernel, layer.bias = weight, bias


CHANGES = {
    "another parameter": lambda m: setattr(m[0], "weight", nn.Parameter(torch.ones(2, 2))),
    "another buffer": lambda m: setattr(m[1][1], "running_mean", torch.ones(2)),
    "another module": lambda m: m.__setitem__(0, nn.Linear(2, 2)),
    "another inner module": lambda m: m[1].__setitem__(0, nn.Linear(2, 2)),
    "one more module": lambda m: m.append(nn.Linear(1, 1)),
    "one more parameter": lambda m: m[1].register_parameter("extra", nn.Parameter(torch.ones(1))),
    "one more buffer": lambda m: m.register_buffer("extra", torch.ones(1)),
    "one parameter less": lambda m: delattr(m[1][0], "bias"),
    "no parameter": lambda m: setattr(m[1][0], "bias", None),
    "another name": rename,
    "another type": lambda m: m.double(),
    "another type of one": lambda m: setattr(m[0].bias, "data", torch.ones(2).half()),
    "another shape": lambda m: setattr(m[0].bias, "data", torch.ones(3)),
    "another store": lambda m: m[0].__dict__.__setitem__("_parameters", {"weight": m[0].weight}),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_seen(name):
    module = build()
    watched = watch(module)
    assert watched.unchanged(module)
    CHANGES[name](module)
    assert not watched.unchanged(module)


def test_another_module_is_another_module():
    module = build()
    assert not watch(module).unchanged(copy.deepcopy(module))


def test_new_values_are_no_change():
    module = build()
    watched = watch(module)
    module(torch.randn(3, 2)).sum().backward()
    torch.optim.SGD(module.parameters(), 0.1).step()
    module.eval()
    for parameter in module.parameters():
        parameter.data = parameter.data.clone()
    assert watched.unchanged(module)


def test_attributes_are_looked_at_by_device_and_type():
    one = torch.ones(2, device="meta")
    watched = Watch(nn.ReLU(), [one])
    assert watched.unchanged(nn.ReLU())
    one.data = torch.ones(2, device="meta", dtype=torch.float16)
    assert not watched.unchanged(nn.ReLU())


@pytest.mark.parametrize("look", ["dtype", "device", "shape"])
def test_each_attribute_is_looked_at(look):
    one = SimpleNamespace(
        dtype=torch.float32, device=torch.device("cpu"), shape=torch.Size([2]), layout=torch.strided
    )
    one.is_inference = bool
    watched = Watch(nn.ReLU(), [one])
    assert watched.unchanged(nn.ReLU())
    setattr(one, look, None)
    assert not watched.unchanged(nn.ReLU())


class Naming(nn.Linear):
    def named_parameters(self, *args, **kwargs):
        return super().named_parameters(*args, **kwargs)


class Store(dict):
    pass


def test_unusual_modules_are_never_taken_as_unchanged():
    naming = Naming(2, 2)
    assert not watch(naming).unchanged(naming)
    storing = build()
    storing[1][0].__dict__["_parameters"] = Store(storing[1][0]._parameters)
    assert not watch(storing).unchanged(storing)
    local = nn.Linear(2, 2)
    local.weight.to_local = None
    assert not watch(local).unchanged(local)
    sparse = build()
    sparse.register_buffer("graph", torch.eye(2).to_sparse())
    assert not watch(sparse).unchanged(sparse)
    with torch.inference_mode():
        inference = build()
    assert not watch(inference).unchanged(inference)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripted_modules_are_averaged():
    model = torch.jit.script(build())
    averaged = AveragedModel(build(), deepcopy=False)
    averaged.update_parameters(model)
    averaged.update_parameters(model)
    for mine, theirs in zip(averaged.module.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("side", ["model", "average"])
@pytest.mark.parametrize(
    "name",
    ["another parameter", "another buffer", "another module", "another inner module", "another type"],
)
def test_an_update_after_a_change_uses_what_is_there_now(side, name):
    model = build()
    averaged = AveragedModel(model)
    averaged.update_parameters(model)
    averaged.update_parameters(model)
    CHANGES[name](model if side == "model" else averaged.module)
    with torch.no_grad():
        for parameter in averaged.module.parameters():
            parameter.zero_()
        for parameter in model.parameters():
            parameter.fill_(3)
    averaged.update_parameters(model)
    for parameter in averaged.module.parameters():
        assert parameter.unique().tolist() == pytest.approx([1])
    assert torch.equal(averaged.module[1][1].running_mean.float(), model[1][1].running_mean.float())


def test_data_assigned_anew_is_averaged_and_written():
    model = build()
    averaged = AveragedModel(model)
    averaged.update_parameters(model)
    for module, value in ((model, 4.0), (averaged.module, 2.0)):
        for parameter in module.parameters():
            parameter.data = torch.full_like(parameter, value)
    averaged.update_parameters(model)
    assert all(parameter.unique().tolist() == [3.0] for parameter in averaged.module.parameters())


def test_the_plan_is_made_once(monkeypatch):
    made = []

    class Counting(home.Plan):
        def __init__(self, *args, **kwargs):
            made.append(1)
            super().__init__(*args, **kwargs)

    monkeypatch.setattr(home, "Plan", Counting)
    model = build()
    averaged = AveragedModel(model)
    for _ in range(5):
        model(torch.randn(3, 2))
        averaged.update_parameters(model)
    assert len(made) == 1
    model.double()
    averaged.update_parameters(model)
    assert len(made) == 2
    with averaged.swapped_into(model):
        pass
    averaged.update_parameters(model)
    assert len(made) == 2
