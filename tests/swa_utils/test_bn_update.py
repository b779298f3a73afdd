"""`update_bn` against torch's, bit for bit; what it leaves behind; and batches that torch does not take."""

import copy
from collections import UserDict, namedtuple

import pytest
import torch
from torch import nn
from torch.optim import swa_utils as theirs

from swatool import swa_utils as ours
from swatool.errors import DataError


def build():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, momentum=0.3), nn.Dropout(0.5), nn.Flatten(), nn.Linear(48, 4)
    )
    model.append(nn.BatchNorm1d(4, track_running_stats=False))
    model.append(nn.BatchNorm1d(4, momentum=None))
    model(batches()[0])  # so that there are statistics of before
    return model


def batches(sizes=(8, 8, 3)):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, 2, 6, 6, generator=generator) for size in sizes]


def facts(model):
    momenta = [m.momentum for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    return [m.training for m in model.modules()], momenta


def states_equal(one, other):
    return all(torch.equal(a, other[name]) for name, a in one.items()) and one.keys() == other.keys()


Pair = namedtuple("Pair", "image label")


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("kind", ["tensor", "tuple", "list", "named"])
@pytest.mark.parametrize("device", [None, "cpu", torch.device("cpu")])
@pytest.mark.parametrize("sizes", [(8, 8, 3), (5,)])
def test_statistics_and_random_numbers_are_torchs(mode, kind, device, sizes):
    wrap = {
        "tensor": lambda x: x,
        "tuple": lambda x: (x, "label"),
        "list": lambda x: [x, 3],
        "named": lambda x: Pair(x, None),
    }[kind]
    results = []
    for module in (ours, theirs):
        model = build().train(mode)
        before = facts(model)
        assert module.update_bn(map(wrap, batches(sizes)), model, device) is None
        assert facts(model) == before
        assert model[0].weight.grad is None
        results.append((model.state_dict(), torch.get_rng_state()))
    assert states_equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert model[1].num_batches_tracked == len(sizes)


def test_layers_frozen_by_their_mode_are_updated_as_by_torch_and_stay_frozen():
    results = []
    for module in (ours, theirs):
        model = build()
        model[1].eval()
        module.update_bn(batches(), model)
        results.append(model)
    assert states_equal(*(model.state_dict() for model in results))
    assert not results[0][1].training
    assert results[0].training
    assert results[1][1].training  # torch forgets


def test_gradients_are_off():
    seen = []
    model = nn.Sequential(nn.BatchNorm1d(2))
    model.register_forward_hook(lambda *_: seen.append(torch.is_grad_enabled()))
    ours.update_bn([torch.randn(3, 2)], model)
    assert seen == [False]
    assert torch.is_grad_enabled()


def spoiled(model, at):
    """Make the model raise at a call."""
    calls = []

    def hook(*_):
        calls.append(1)
        if len(calls) == at:
            raise KeyboardInterrupt("stop")

    model.register_forward_hook(hook)
    return model


@pytest.mark.parametrize("at", [1, 2])
def test_after_an_exception_everything_is_as_before(at):
    model = build().eval()
    model[2].train()
    ours.update_bn(batches(), model)
    with torch.no_grad():
        model[1].running_mean += 1
    kept, before = copy.deepcopy(model.state_dict()), facts(model)
    with pytest.raises(KeyboardInterrupt, match="stop"):
        ours.update_bn(batches(), spoiled(model, at))
    assert states_equal(kept, model.state_dict())
    assert facts(model) == before


@pytest.mark.parametrize("loader", [[], iter(())])
def test_an_empty_loader_is_an_error_and_changes_nothing(loader):
    model = build()
    ours.update_bn(batches(), model)
    kept, before = copy.deepcopy(model.state_dict()), facts(model)
    with pytest.raises(DataError, match="gives no batch"):
        ours.update_bn(loader, model)
    assert states_equal(kept, model.state_dict())
    assert facts(model) == before


def test_without_batchnorm_nothing_is_looked_at():
    def loader():
        raise AssertionError
        yield

    ours.update_bn(loader(), nn.Sequential(nn.Linear(2, 2), nn.InstanceNorm1d(2, track_running_stats=True)))


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(2)

    def forward(self, a, b, factor=1):
        return self.norm((a + b) * factor)


@pytest.mark.parametrize("kind", [dict, UserDict])
@pytest.mark.parametrize("device", [None, "cpu"])
def test_mappings_are_keyword_arguments(kind, device):
    model = TwoInputs()
    a, b = torch.randn(5, 2), torch.randn(5, 2)
    ours.update_bn([kind(a=a, b=b, factor=2)], model, device)
    torch.testing.assert_close(model.norm.running_mean, 2 * (a + b).mean(0))


@pytest.mark.parametrize("device", [None, "cpu"])
def test_forward_is_called_with_model_and_batch(device):
    model = TwoInputs()
    a, b = torch.randn(5, 2), torch.randn(5, 2)
    ours.update_bn([(a, [b])], model, device, forward=lambda m, batch: m(batch[0], batch[1][0]))
    torch.testing.assert_close(model.norm.running_mean, (a + b).mean(0))


class Graph:
    """An input of another kind, that can go to a device by itself."""

    def __init__(self, values, device=None):
        self.values, self.device = values, device

    def to(self, device):
        return Graph(self.values, device)


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: (x, 3)])
def test_inputs_of_other_kinds_go_to_the_device_by_themselves(wrap):
    class OfGraphs(nn.Sequential):
        def forward(self, graph):
            assert graph.device == torch.device("cpu")
            return super().forward(graph.values)

    ours.update_bn([wrap(Graph(torch.randn(3, 2)))], OfGraphs(nn.BatchNorm1d(2)), "cpu")


class OfLists(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(2)

    def forward(self, inputs):
        return self.norm(sum(inputs))


@pytest.mark.parametrize("device", [None, "cpu"])
@pytest.mark.parametrize("kind", [list, tuple])
def test_an_input_that_is_a_list_is_given_as_a_whole(device, kind):
    model, inputs = OfLists(), [torch.randn(5, 2) for _ in range(3)]
    ours.update_bn([(kind(inputs), 0)], model, device)
    torch.testing.assert_close(model.norm.running_mean, sum(inputs).mean(0) * 1.0)


def packed():
    generator = torch.Generator().manual_seed(0)
    return nn.utils.rnn.pack_sequence([torch.randn(size, 2, generator=generator) for size in (5, 3)])


class OfPacked(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(2)

    def forward(self, given):
        assert isinstance(given, nn.utils.rnn.PackedSequence)
        return self.norm(given.data)


@pytest.mark.parametrize("device", [None, "cpu"])
def test_packed_sequences_are_given_as_by_torch(device):
    results = []
    for module in (ours, theirs):
        model, alone = OfPacked(), nn.Sequential(nn.BatchNorm1d(2))
        module.update_bn([(packed(), 0)], model, device)
        # By itself it is a tuple, and its first part is the input.
        module.update_bn([packed()], alone, device)
        results.append(model.state_dict() | alone.state_dict())
    assert states_equal(*results)


@pytest.mark.parametrize("given_by", [None, lambda model, batch: model(**batch)])
def test_a_mapping_that_can_go_to_the_device_by_itself_does(given_by):
    went = []

    class Encoding(UserDict):
        def to(self, device):
            went.append(device)
            return self

    model = TwoInputs()
    batch = Encoding(a=torch.randn(5, 2), b=torch.randn(5, 2))
    ours.update_bn([batch], model, "cpu", forward=given_by)
    assert went == [torch.device("cpu")]


def test_a_model_of_a_mapping_is_given_one_by_forward():
    class OfMapping(TwoInputs):
        def forward(self, batch):
            return super().forward(**batch)

    model, batch = OfMapping(), {"a": torch.randn(5, 2), "b": torch.randn(5, 2)}
    ours.update_bn([batch], model, forward=lambda m, b: m(b))
    torch.testing.assert_close(model.norm.running_mean, (batch["a"] + batch["b"]).mean(0))


def test_only_what_the_model_is_given_is_moved():
    seen = []
    model = nn.Sequential(nn.BatchNorm1d(2))
    model.register_forward_pre_hook(lambda _, args: seen.append(args[0].device.type))
    label = torch.zeros(3, device="meta")  # would fail if it were moved
    ours.update_bn([(torch.randn(3, 2), label)], model, "cpu")
    assert seen == ["cpu"]
    with pytest.raises((NotImplementedError, RuntimeError)):
        ours.update_bn([(torch.randn(3, 2), label)], model, "cpu", forward=lambda m, b: m(b[0]))


def test_custom_training_modes_are_called():
    class Model(nn.Sequential):
        def train(self, mode=True):
            super().train(mode)
            self[1].eval()  # keeps its own layer frozen
            return self

    results = []
    for module in (ours, theirs):
        torch.manual_seed(0)
        model = Model(nn.BatchNorm1d(2), nn.BatchNorm1d(2))
        module.update_bn([torch.randn(4, 2)], model)
        results.append(model.state_dict())
    assert states_equal(*results)
