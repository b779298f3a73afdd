"""Averages in a model for a while: in whole while it lasts, and after it all is the model's own again."""

import copy
import signal

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from swatool import swa_utils as ours
from swatool.swa_utils import swapping
from swatool.swa_utils.swapping import in_a_swap


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(6, 4)
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("count", torch.tensor([3, 4]))
        self.register_buffer("flags", torch.tensor([True, False]))
        self.register_buffer("nothing", None)


BUILT = {
    "convolution": lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1)),
    "tied": Tied,
    "orthogonal": lambda: parametrizations.orthogonal(nn.Linear(3, 3)),
    "channels_last": lambda: nn.Conv2d(4, 8, 3).to(memory_format=torch.channels_last),
}


def tensors(module):
    return dict(module.named_parameters()) | dict(module.named_buffers())


def snapshot(module):
    return {name: tensor.detach().clone() for name, tensor in tensors(module).items()}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype is expected[name].dtype, name
        assert torch.equal(tensor, expected[name]), name


def train(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in tensors(model).values():
            if tensor.is_floating_point():
                tensor += torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
            elif tensor.dtype is torch.bool:
                tensor.logical_not_()
            else:
                tensor += 7


def run(averages, model, updates):
    for seed in range(updates):
        train(model, seed)
        for averaged in averages:
            averaged.update_parameters(model)


@pytest.mark.parametrize("name", BUILT)
def test_swapping_puts_the_average_in_and_the_model_back(name):
    model = BUILT[name]()
    averaged = ours.AveragedModel(model, use_buffers=True)
    run([averaged], model, 3)
    kept, average = snapshot(model), snapshot(averaged.module)
    pointers = [one.data_ptr() for one in model.parameters()]
    with averaged.swapped_into(model) as nothing:
        assert nothing is None
        assert_same(tensors(model), average)
        train(model, 5)
    assert_same(tensors(model), kept)
    assert_same(tensors(averaged.module), average)
    assert [one.data_ptr() for one in model.parameters()] == pointers


def test_swapping_is_undone_bit_by_bit_after_an_exception():
    model = nn.Linear(2, 2)
    averaged = ours.AveragedModel(model)
    with torch.no_grad():
        model.weight.view(torch.int32).copy_(
            torch.tensor([[0x7FC12345, -1], [-(2**31), 1]])
        )  # NaNs, -0, denormal
    bits = model.weight.detach().view(torch.int32).clone()
    with pytest.raises(KeyboardInterrupt), averaged.swapped_into(model):
        raise KeyboardInterrupt
    assert torch.equal(model.weight.detach().view(torch.int32), bits)
    with averaged.swapped_into(model):
        pass


def test_swapping_that_fails_halfway_is_undone(monkeypatch):
    model = nn.Linear(2, 2)
    averaged = ours.AveragedModel(model)
    train(model, 0)
    kept = snapshot(model)
    original = swapping.copy_together
    calls = []

    def fail_once(targets, sources):
        original(targets, sources)
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(swapping, "copy_together", fail_once)
    with pytest.raises(KeyboardInterrupt), averaged.swapped_into(model):
        pytest.fail("is not reached")
    assert_same(tensors(model), kept)
    with averaged.swapped_into(model):
        pass


def test_inside_a_swap_nothing_is_averaged_and_nothing_swapped():
    model = nn.Linear(2, 2)
    averaged = ours.AveragedModel(model)
    with averaged.swapped_into(model):
        with pytest.raises(ours.ArgumentError, match="average the average"):
            averaged.update_parameters(model)
        with pytest.raises(ours.ArgumentError, match="already"), averaged.swapped_into(nn.Linear(2, 2)):
            pass
    averaged.update_parameters(model)
    with pytest.raises(ours.PairingError), averaged.swapped_into(nn.Linear(2, 3)):
        pass
    averaged.update_parameters(model)


def test_a_copy_made_inside_a_swap_is_in_no_model():
    model = nn.Linear(2, 2)
    averaged = ours.AveragedModel(model)
    with averaged.swapped_into(model):
        other = copy.deepcopy(averaged)
    run([other], model, 2)
    assert int(other.n_averaged) == 2


def test_swapping_into_a_narrower_model_rounds():
    model = nn.Linear(2, 2).bfloat16()
    averaged = ours.AveragedModel(model, dtype=torch.float32)
    run([averaged], model, 3)
    with averaged.swapped_into(model):
        assert torch.equal(model.weight, averaged.module.weight.bfloat16())


class Rebinding(nn.Module):
    """Gives its buffer a new tensor at each call."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        self.register_buffer("seen", torch.zeros(2))

    def forward(self, x):
        self.seen = self.seen * 0.5 + x.mean(0).detach()
        return self.body(x)


def overwriting(model):
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        model.double()
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)


def swapping_tensors(model):
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        model.double()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


CHANGES = {
    "there and back": lambda m: m.double().float(),
    "another type": lambda m: m.bfloat16(),
    "another type by other parameters": overwriting,
    "another type by swapping": swapping_tensors,
    "another device": lambda m: m.to("meta"),
    "assigned state": lambda m: m.load_state_dict(copy.deepcopy(m.state_dict()), assign=True),
    "a buffer by forward": lambda m: m(torch.full((3, 2), 7.0)),
    "another parameter": lambda m: setattr(m.body[0], "weight", nn.Parameter(torch.ones(2, 2))),
    "another shape": lambda m: setattr(m.body[0].weight, "data", torch.ones(3)),
    "another order": lambda m: setattr(m.body[0].weight, "data", m.body[0].weight.data.t()),
    "no parameter": lambda m: setattr(m.body[0], "bias", None),
    "no place": lambda m: delattr(m.body[0], "bias"),
    "another module": lambda m: setattr(m, "body", nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))),
    "no batchnorm": lambda m: m.body.__setitem__(1, nn.Identity()),
}


@pytest.mark.parametrize("name", CHANGES)
def test_whatever_is_put_in_its_place_the_model_gets_its_own_back(name):
    model = Rebinding()
    averaged = ours.AveragedModel(model, use_buffers=True)
    run([averaged], model, 2)
    train(model, 5)
    kept, own = snapshot(model), tensors(model)
    places = [(one.data_ptr(), one.stride()) for one in own.values()]
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with averaged.swapped_into(model):
        CHANGES[name](model)
    assert_same(tensors(model), kept)
    assert all(one is own[name] for name, one in tensors(model).items())
    assert [(one.data_ptr(), one.stride()) for one in own.values()] == places
    model(torch.randn(3, 2)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(model.body[0].weight, kept["body.0.weight"])
    averaged.update_parameters(model)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripted_models_can_be_swapped_into():
    plain = BUILT["convolution"]()
    model = torch.jit.script(plain)
    averaged = ours.AveragedModel(copy.deepcopy(plain), deepcopy=False)
    run([averaged], model, 2)
    train(model, 5)
    kept = snapshot(model)
    with averaged.swapped_into(model):
        assert_same(tensors(model), tensors(averaged.module))
    assert_same(tensors(model), kept)


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (lambda m: setattr(m[0].bias, "data", torch.ones(1).expand(2)), "is expanded"),
        (lambda m: setattr(m[1], "running_mean", torch.ones(1).expand(2)), "is expanded"),
    ],
)
def test_models_that_cannot_be_written_are_refused_and_everything_goes_on(spoil, what):
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    averaged = ours.AveragedModel(model)
    spoil(model)
    kept = snapshot(model)
    with pytest.raises(ours.PairingError, match=what), averaged.swapped_into(model):
        pytest.fail("is not reached")
    assert_same(tensors(model), kept)
    averaged.update_parameters(model)
    with averaged.swapped_into(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))):
        pass


def test_models_made_in_inference_mode_can_be_swapped_into():
    with torch.inference_mode():
        model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    averaged = ours.AveragedModel(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), deepcopy=False)
    kept = snapshot(model)
    for _ in range(2):  # the first one must leave it as it was in this, too
        with averaged.swapped_into(model):
            assert_same(tensors(model), tensors(averaged.module))
        assert_same(tensors(model), kept)


def test_nobody_else_averages_the_average():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    averaged, other = ours.AveragedModel(model), ours.AveragedModel(model)
    part, wrapped = ours.AveragedModel(model[0]), nn.DataParallel(model)
    kept = snapshot(other)
    with averaged.swapped_into(model), pytest.raises(ours.ArgumentError, match="average the average"):
        other.update_parameters(wrapped)
    with averaged.swapped_into(wrapped):
        for one, source in (
            (other, model),
            (other, wrapped),
            (part, model[0]),
            (averaged, copy.deepcopy(model)),
        ):
            with pytest.raises(ours.ArgumentError, match="average the average"):
                one.update_parameters(source)
        other.update_parameters(copy.deepcopy(model))
    assert int(other.n_averaged) == 1
    assert not in_a_swap(model)
    other.n_averaged.zero_()
    assert_same(snapshot(other), kept)
    for one, source in ((other, model), (other, wrapped), (part, model[0]), (averaged, model)):
        one.update_parameters(source)


def test_two_averages_may_be_swapped_in_one_after_the_other_or_one_in_the_other():
    model = nn.Linear(2, 2)
    first, second = ours.AveragedModel(model), ours.AveragedModel(model, scheme=ours.Ema(0.9))
    run([first, second], model, 3)
    kept = snapshot(model)
    with first.swapped_into(model):
        with second.swapped_into(model):
            assert_same(tensors(model), tensors(second.module))
        assert_same(tensors(model), tensors(first.module))
        assert in_a_swap(model)
        assert not in_a_swap(second.module)
    assert_same(tensors(model), kept)
    assert not swapping._TAKING_PART


@pytest.mark.usefixtures("interrupts")
def test_an_interrupt_on_the_way_out_comes_after_it(monkeypatch):
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    averaged = ours.AveragedModel(model)
    train(model, 0)
    kept = snapshot(model)
    original = swapping.copy_together

    def interrupt(targets, sources):
        signal.raise_signal(signal.SIGINT)
        original(targets, sources)

    with pytest.raises(KeyboardInterrupt), averaged.swapped_into(model):
        monkeypatch.setattr(swapping, "copy_together", interrupt)
    assert_same(tensors(model), kept)
    assert not in_a_swap(model)
