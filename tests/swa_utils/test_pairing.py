"""Which tensors belong together, and that nothing is changed when some do not."""

import copy
import warnings

import pytest
import torch
from torch import nn

from swatool.errors import SwatoolError
from swatool.swa_utils import AveragedModel, PairingError
from swatool.swa_utils.pairing import pair_tensors
from swatool.swa_utils.sharding import local


def pairs(average, model):
    return {pair.name: (pair.average, pair.model) for pair in pair_tensors(average, model)}


def differences(average, model):
    with pytest.raises(PairingError) as caught:
        pair_tensors(average, model)
    return sorted(caught.value.differences)


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


def graph(*columns):
    """Return a sparse tensor of ones in some columns."""
    dense = torch.zeros(2, 3)
    dense[:, list(columns)] = 1
    return dense.to_sparse()


def sparse(*columns):
    module = nn.Linear(2, 2)
    module.register_buffer("graph", graph(*columns))
    return module


@pytest.mark.parametrize("options", [{}, {"use_buffers": True}, {"dtype": torch.float64}])
def test_sparse_buffers_are_copied(options):
    model = sparse(0)
    averaged = AveragedModel(model, **options)
    for expected in (graph(1) * 2, graph(0, 1, 2) * 3, graph(2)):
        model.graph = expected
        averaged.update_parameters(model)
        assert torch.equal(averaged.module.graph.to_dense().float(), expected.to_dense())
        assert averaged.module.graph.is_sparse
    with averaged.swapped_into(model):
        assert torch.equal(model.graph.to_dense(), expected.to_dense())
        model.graph = graph(0)
    assert model.graph is expected
    assert torch.equal(model.graph.to_dense(), graph(2).to_dense())
    with averaged.swapped_into(model), torch.no_grad():
        model.graph.copy_(graph(0, 1))
    assert torch.equal(model.graph.to_dense(), graph(2).to_dense())


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
def test_sparse_and_dense_do_not_belong_together_and_sparse_parameters_are_refused():
    dense = nn.Linear(2, 2)
    dense.register_buffer("graph", torch.eye(2, 3))
    assert differences(dense, sparse(0)) == [
        "'graph' is torch.strided in the average, and torch.sparse_coo in the model"
    ]
    average, model = (module_of(torch.eye(2).to_sparse_csr()) for _ in range(2))
    assert differences(average, model) == [
        "'x' is of the layout torch.sparse_csr, of which there is no average: make it dense"
    ]
    average, model = nn.Module(), nn.Module()
    average.x, model.x = (nn.Parameter(torch.eye(2).to_sparse()) for _ in range(2))
    assert differences(average, model) == [
        "'x' is of the layout torch.sparse_coo, of which there is no average: make it dense"
    ]


@pytest.mark.parametrize("written", ["average", "model"])
def test_what_cannot_be_written_is_refused(written):
    def found(shape, bad):
        modules = {"average": nn.Module(), "model": nn.Module()}
        for module in modules.values():
            module.register_buffer("x", torch.ones(shape))
        modules[written].x = bad
        try:
            pair_tensors(modules["average"], modules["model"], written=written)
        except PairingError as error:
            return list(error.differences)
        other = "model" if written == "average" else "average"
        with pytest.raises(PairingError):
            pair_tensors(modules["average"], modules["model"], written=other)
        return []

    expanded = f"'x' in the {written} is expanded, and cannot be written: make it contiguous"
    assert found(3, torch.ones(1).expand(3)) == [expanded]
    assert found(2, torch.ones(1).expand(2)) == [expanded]


def module_of(buffer):
    module = nn.Module()
    module.register_buffer("x", buffer)
    return module


def test_what_is_only_read_may_be_expanded():
    average, model = module_of(torch.ones(3)), module_of(torch.ones(1).expand(3))
    assert "x" in pairs(average, model)
    average.x = torch.empty_strided((1, 3), (0, 1))  # of one row, so no two elements share a place
    model.x = torch.ones(1, 3)
    assert "x" in pairs(average, model)


class Older(nn.Linear):
    """Names its tensors in its own way, without the keyword of later."""

    def named_parameters(self, prefix="", recurse=True):
        yield from super().named_parameters(prefix, recurse)


def test_modules_that_name_their_tensors_themselves_are_averaged():
    model = Older(2, 2)
    averaged = AveragedModel(model)
    for value in (1.0, 3.0):
        nn.init.constant_(model.weight, value)
        averaged.update_parameters(model)
    assert averaged.module.weight.unique().tolist() == [2.0]


@pytest.mark.parametrize("cls", [AveragedModel, torch.optim.swa_utils.AveragedModel])
def test_what_a_module_does_not_name_is_left_alone(cls):
    class Hiding(Older):
        def named_parameters(self, prefix="", recurse=True):
            yield from (pair for pair in super().named_parameters(prefix, recurse) if pair[0] != "bias")

    model = Hiding(2, 2)
    averaged = cls(model)
    kept = model.bias.detach().clone()
    nn.init.zeros_(model.bias)
    nn.init.zeros_(model.weight)
    averaged.update_parameters(model)
    assert torch.equal(averaged.module.bias, kept)
    assert averaged.module.weight.count_nonzero() == 0


def test_modules_that_are_inside_themselves_are_averaged():
    model = nn.Linear(2, 2)
    model.child = nn.Linear(2, 2)
    model.child.parent = model
    averaged = AveragedModel(model)
    assert set(pairs(averaged.module, model)) == {"weight", "bias", "child.weight", "child.bias"}
    for value in (1.0, 3.0):
        nn.init.constant_(model.child.weight, value)
        averaged.update_parameters(model)
    assert averaged.module.child.weight.unique().tolist() == [2.0]


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
