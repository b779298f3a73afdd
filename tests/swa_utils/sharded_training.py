"""Run by torchrun from test_sharded.py: averages of FSDP2 models on every rank, against plain ones."""

import sys
import warnings

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from swatool.swa_utils import (
    AveragedModel,
    PairingError,
    PowerEma,
    get_ema_avg_fn,
    get_ema_multi_avg_fn,
    get_swa_avg_fn,
    get_swa_multi_avg_fn,
)

RULES = {
    "default": {},
    "scheme": {"scheme": PowerEma(2.0)},
    "multi ema": {"multi_avg_fn": get_ema_multi_avg_fn(0.9)},
    "multi swa": {"multi_avg_fn": get_swa_multi_avg_fn()},
    "ema": {"avg_fn": get_ema_avg_fn(0.9)},
    "swa": {"avg_fn": get_swa_avg_fn()},
    "foreign": {"avg_fn": lambda a, b, n: (a + b) / 2 + n},
}


def build(dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    # An uneven dimension, so that the ranks' parts differ, and a BatchNorm, whose buffers are not sharded.
    return nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)).to(dtype)


def shard(model, mesh):
    fully_shard(model[0], mesh=mesh)
    fully_shard(model[1], mesh=mesh)  # the other layers stay plain: a model of both kinds of tensors
    return model


def shard_all(model, mesh):
    """Shard as in most recipes: some layers, and then the root with the rest."""
    fully_shard(model[0], mesh=mesh)
    return fully_shard(model, mesh=mesh)


def whole(module):
    return {
        name: (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()
        for name, tensor in module.state_dict().items()
    }


def train(model, step):
    """Take a step that is the same on a sharded model and on a plain one, on all ranks."""
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        change = torch.randn(parameter.shape, generator=generator)
        with torch.no_grad():
            if isinstance(parameter, DTensor):
                local = parameter.to_local()
                rows = change.chunk(parameter.device_mesh.size())
                rank = dist.get_rank()
                local += rows[rank][: len(local)] if rank < len(rows) else change[:0]
            else:
                parameter += change


def check_rules(mesh):
    for name, options in RULES.items():
        for dtype in (None, torch.float64):
            plain, model = build(), shard(build(), mesh)
            reference = AveragedModel(plain, dtype=dtype, **options)
            averaged = AveragedModel(shard(build(), mesh), deepcopy=False, dtype=dtype, **options)
            for step in range(4):
                train(plain, step)
                train(model, step)
                reference.update_parameters(plain)
                averaged.update_parameters(model)
            assert isinstance(averaged.module[0].weight, DTensor)
            assert not isinstance(averaged.module[3].weight, DTensor)
            expected, found = whole(reference.module), whole(averaged.module)
            for key, tensor in expected.items():
                assert torch.equal(tensor, found[key]), (name, dtype, key)


def check_swap_and_state(mesh):
    model = shard(build(), mesh)
    averaged = AveragedModel(shard(build(), mesh), deepcopy=False)
    for step in range(3):
        train(model, step)
        averaged.update_parameters(model)
    kept, average = whole(model), whole(averaged.module)
    with averaged.swapped_into(model):
        assert all(torch.equal(tensor, average[name]) for name, tensor in whole(model).items())
        model(torch.ones(4, 5))
    after = whole(model)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in after.items())
    state = averaged.averaged_state_dict()
    assert isinstance(state["0.weight"], DTensor)


def check_training(mesh):
    """A real step, forward and backward, between updates."""
    model = shard(build(), mesh)
    averaged = AveragedModel(shard(build(), mesh), deepcopy=False)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    seen = []
    for _ in range(3):
        model(
            torch.randn(4, 5, generator=torch.Generator().manual_seed(dist.get_rank()))
        ).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        averaged.update_parameters(model)
        seen.append(whole(model)["0.weight"].clone())
    torch.testing.assert_close(whole(averaged.module)["0.weight"], torch.stack(seen).mean(0))


def look(*models):
    """Evaluate: the root's parameters stay whole after it."""
    for model in models:
        with torch.no_grad():
            model(torch.ones(4, 5))


def check_evaluation_between_updates(mesh):
    for looked_at in ((), (0,), (1,), (0, 1)):
        model = shard_all(build(), mesh)
        averaged = AveragedModel(
            shard_all(build(seed=1), mesh), deepcopy=False, multi_avg_fn=get_ema_multi_avg_fn(0.5)
        )
        reference = AveragedModel(build(), multi_avg_fn=get_ema_multi_avg_fn(0.5))
        plain = build()
        for step in range(3):
            train(model, step)
            train(plain, step)
            for module in (model, averaged, plain, reference):
                module.eval()
            look(*((model, averaged)[index] for index in looked_at))
            averaged.update_parameters(model)
            reference.update_parameters(plain)
            assert all(isinstance(one, DTensor) for one in model.parameters())
        averaged.module.reshard()
        expected, found = whole(reference.module), whole(averaged.module)
        for key, tensor in expected.items():
            assert torch.equal(tensor, found[key]), (looked_at, key)


def check_swap_of_the_root(mesh):
    model = shard_all(build(), mesh).eval()
    averaged = AveragedModel(shard_all(build(seed=1), mesh), deepcopy=False).eval()
    inputs = torch.ones(4, 5)
    with torch.no_grad():
        own, average = model(inputs), averaged(inputs)
        for _ in range(2):
            with averaged.swapped_into(model):
                assert torch.equal(model(inputs), average)
            assert torch.equal(model(inputs), own)
            assert torch.equal(averaged(inputs), average)
        with averaged.swapped_into(model):
            model.double()
            model.float()
        assert torch.equal(model(inputs), own)
        with averaged.swapped_into(model):
            model.double()
        assert {one.dtype for one in model.parameters()} == {torch.float64}
        model.float()
        assert torch.equal(model(inputs), own)


def check_refusal(mesh):
    averaged = AveragedModel(build())
    with pytest.raises(PairingError, match="distributed as None in the average"):
        averaged.update_parameters(shard(build(), mesh))
    assert int(averaged.n_averaged) == 0


def main():
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    assert dist.get_world_size() == int(sys.argv[1])
    check_rules(mesh)
    check_swap_and_state(mesh)
    check_training(mesh)
    check_evaluation_between_updates(mesh)
    check_swap_of_the_root(mesh)
    check_refusal(mesh)
    dist.barrier()
    if dist.get_rank() == 0:
        print("all is well")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
