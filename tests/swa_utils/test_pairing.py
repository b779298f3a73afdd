"""Which tensors belong together, and that nothing is changed when some do not."""

import copy
import warnings

import pytest
import torch
from torch import nn

from swatool.errors import SwatoolError
from swatool.swa_utils import AveragedModel, PairingError
from swatool.swa_utils.pairing import clean_names, local, pair_tensors


def pairs(average, model):
    return {pair.name: (pair.average, pair.model) for pair in pair_tensors(average, model)}


def differences(average, model):
    with pytest.raises(PairingError) as caught:
        pair_tensors(average, model)
    return sorted(caught.value.differences)


def test_names_are_cleaned_where_all_of_them_say_so():
    assert clean_names(["module.a", "module.b.c"]) == {"module.a": "a", "module.b.c": "b.c"}
    assert clean_names(["module.module.a"]) == {"module.module.a": "a"}
    assert clean_names(["module.a", "b"]) == {"module.a": "module.a", "b": "b"}
    assert clean_names(["_orig_mod.a", "x._orig_mod.b"]) == {"_orig_mod.a": "a", "x._orig_mod.b": "x.b"}
    assert clean_names(["_orig_mod.module.a", "module._orig_mod.b"]) == {
        "_orig_mod.module.a": "a",
        "module._orig_mod.b": "b",
    }
    assert clean_names(["my_orig_mod.a", "modules.a"]) == {
        "my_orig_mod.a": "my_orig_mod.a",
        "modules.a": "modules.a",
    }
    assert clean_names([]) == {}


def test_names_that_become_the_same_are_refused():
    with pytest.raises(PairingError, match=r"several tensors have the same name: 'x\.a'$"):
        clean_names(["x.a", "x._orig_mod.a", "y"])


def test_tensors_are_paired_by_name_not_by_place():
    first = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    second = nn.ModuleDict({"b": nn.Linear(2, 2), "a": nn.Linear(2, 2)})
    found = pairs(first, second)
    assert found["a.weight"] == (first["a"].weight, second["a"].weight)
    assert found["b.bias"] == (first["b"].bias, second["b"].bias)
    averaged = AveragedModel(first)
    averaged.update_parameters(second)
    assert torch.equal(averaged.module["a"].weight, second["a"].weight)


def test_names_are_cleaned_only_if_they_differ():
    model = nn.ModuleDict({"module": nn.Linear(2, 2)})
    assert set(pairs(model, copy.deepcopy(model))) == {"module.weight", "module.bias"}
    assert set(pairs(model["module"], model := copy.deepcopy(model))) == {"weight", "bias"}


def test_every_difference_is_told():
    average = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2), nn.BatchNorm1d(2))
    model = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 2, bias=False), nn.BatchNorm1d(2), nn.Linear(1, 1))
    assert differences(average, model) == [
        "'0.bias' has the shape (3,) in the average, and (4,) in the model",
        "'0.weight' has the shape (3, 2) in the average, and (4, 2) in the model",
        "'1.bias' is in the average, but not in the model",
        "'1.weight' has the shape (2, 3) in the average, and (2, 4) in the model",
        "'3.bias' is in the model, but not in the average",
        "'3.weight' is in the model, but not in the average",
    ]


def test_shapes_that_would_be_broadcast_are_refused():
    assert len(differences(nn.Linear(4, 3), nn.Linear(1, 3))) == 1
    assert len(differences(nn.Linear(4, 3), nn.Linear(4, 1))) == 2


def test_a_transposed_shape_is_another():
    assert len(differences(nn.Linear(4, 3, bias=False), nn.Linear(3, 4, bias=False))) == 1


def test_kinds_and_roles_must_agree():
    average, model = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    average.register_buffer("x", torch.ones(2))
    model.x = nn.Parameter(torch.ones(2))
    assert differences(average, model) == ["'x' is a buffer in one and a parameter in the other"]
    del model.x
    model.register_buffer("x", torch.ones(2, dtype=torch.int64))
    assert differences(average, model) == [
        "'x' is torch.float32 in the average, and torch.int64 in the model"
    ]
    model.x = torch.ones(2, dtype=torch.complex64)
    assert differences(average, model) == [
        "'x' is torch.float32 in the average, and torch.complex64 in the model"
    ]
    model.x = torch.ones(2, dtype=torch.bfloat16)
    assert "x" in pairs(average, model)
    average.x, model.x = torch.ones(2, dtype=torch.complex64), torch.ones(2, dtype=torch.int64)
    assert differences(average, model) == [
        "'x' is torch.complex64 in the average, and torch.int64 in the model"
    ]
    average.x, model.x = torch.tensor([1]), torch.tensor([True])
    assert "x" in pairs(average, model)


def test_tensors_without_values_are_refused():
    assert differences(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False, device="meta")) == [
        "'weight' in the model is on the meta device, and has no values"
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lazy = nn.LazyLinear(2)
    assert differences(nn.Linear(2, 2, bias=False), lazy)[-1] == (
        "'weight' in the model has no shape yet: run the model once first"
    )
    assert "'weight' in the average has no shape yet: run the model once first" in differences(
        lazy, nn.Linear(2, 2)
    )


def test_sparse_tensors_and_expanded_averages_are_refused():
    average, model = nn.Module(), nn.Module()
    average.register_buffer("x", torch.eye(2).to_sparse())
    model.register_buffer("x", torch.eye(2))
    assert len(differences(model, average)) == 1
    average.x = torch.ones(1).expand(3)
    model.x = torch.ones(3)
    assert differences(average, model) == [
        "'x' in the average is expanded, and cannot be written: make it contiguous"
    ]
    assert "x" in pairs(model, average)
    average.x, model.x = torch.ones(1).expand(2), torch.ones(2)
    assert len(differences(average, model)) == 1
    average.x = torch.empty_strided((1, 3), (0, 1))  # of one row, so no two elements share a place
    model.x = torch.ones(1, 3)
    assert "x" in pairs(average, model)


class Two(nn.Module):
    def __init__(self, *, tied):
        super().__init__()
        self.one = nn.Linear(2, 2, bias=False)
        self.two = nn.Linear(2, 2, bias=False)
        if tied:
            self.two.weight = self.one.weight


def test_tied_tensors_are_paired_once():
    assert set(pairs(Two(tied=True), Two(tied=True))) == {"one.weight"}
    assert set(pairs(Two(tied=False), Two(tied=True))) == {"one.weight", "two.weight"}
    average, model = Two(tied=True), Two(tied=True)
    for module, buffers in ((average, (torch.ones(1), torch.ones(1))), (model, (torch.zeros(1),) * 2)):
        module.one.register_buffer("x", buffers[0])
        module.two.register_buffer("x", buffers[1])
    assert set(pairs(average, model)) == {"one.weight", "one.x", "two.x"}
    assert set(pairs(copy.deepcopy(model), model)) == {"one.weight", "one.x"}
    assert differences(Two(tied=True), Two(tied=False)) == [
        "'one.weight' and 'two.weight' are one tensor in the average, two in the model"
    ]


def test_buffers_that_do_not_fit_are_found_before_parameters_are_averaged():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    for spoil in (
        lambda other: setattr(other[1], "running_mean", torch.zeros(3)),
        lambda other: delattr(other[1], "num_batches_tracked"),
        lambda other: other.register_buffer("extra", torch.zeros(1)),
        lambda other: other.append(nn.Linear(1, 1)),
        lambda other: delattr(other[0], "bias"),
    ):
        averaged = AveragedModel(model)
        averaged.update_parameters(model)
        kept = {name: tensor.clone() for name, tensor in averaged.state_dict().items()}
        other = copy.deepcopy(model)
        nn.init.zeros_(other[0].weight)
        spoil(other)
        for error in (ValueError, RuntimeError, SwatoolError):
            with pytest.raises(error):
                averaged.update_parameters(other)
        assert all(torch.equal(kept[name], tensor) for name, tensor in averaged.state_dict().items())


def test_local_gives_others_as_they_are():
    tensor = torch.ones(2)
    assert local(tensor) is tensor


class Distributed(torch.Tensor):
    """What is needed of a distributed tensor, in one process."""

    placements = ("shard",)
    device_mesh = "mesh"

    def to_local(self):
        assert not torch.is_grad_enabled()
        return self.as_subclass(torch.Tensor)


def test_distributed_tensors_must_be_divided_alike():
    average, model = nn.Module(), nn.Module()
    average.register_buffer("x", torch.ones(2).as_subclass(Distributed))
    model.register_buffer("x", torch.ones(2).as_subclass(Distributed))
    assert "x" in pairs(average, model)
    assert type(local(average.x)) is torch.Tensor
    model.x.placements = ("replicate",)
    assert "is distributed as ('mesh', ('shard',)) in the average" in differences(average, model)[0]
    model.x = torch.ones(2)
    assert "as None in the model" in differences(average, model)[0]
