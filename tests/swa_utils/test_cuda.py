"""What holds on CUDA; none of it runs without a device."""

import copy

import pytest
import torch
from torch import nn
from torch.optim import swa_utils as theirs

from swatool import swa_utils as ours

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
FUNCTIONS = ["default", "get_swa_avg_fn", "get_swa_multi_avg_fn", "get_ema_avg_fn", "get_ema_multi_avg_fn"]


def keywords(module, name):
    if name == "default":
        return {}
    return {"multi_avg_fn" if "multi" in name else "avg_fn": getattr(module, name)()}


def build(dtype=torch.float32):
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.Flatten(), nn.Linear(64, 5000))
    return model.to("cuda", dtype)


def train(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter)
    model[1].num_batches_tracked += 1


@pytest.mark.parametrize("device", [None, "cuda"])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_averages_are_torchs(device, function):
    model = build()
    mine, reference = (m.AveragedModel(model, device, **keywords(m, function)) for m in (ours, theirs))
    for _ in range(20):
        train(model)
        mine.update_parameters(model)
        reference.update_parameters(model)
    for one, other in zip(mine.parameters(), reference.parameters(), strict=True):
        # get_swa_avg_fn is divided by a number here and by a tensor there, which CUDA rounds differently.
        tolerance = 1e-5 if function == "get_swa_avg_fn" else 0
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


@pytest.mark.parametrize("device", [None, "cuda"])
@pytest.mark.parametrize("options", [{}, {"scheme": ours.PowerEma(3)}, {"use_buffers": True}])
@pytest.mark.parametrize("wide", [None, torch.float32])
def test_updates_do_not_wait_for_the_device(device, options, wide):
    model = build(torch.bfloat16)
    averaged = ours.AveragedModel(model, device, dtype=wide, **options)
    averaged.update_parameters(model)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            averaged.update_parameters(model)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert int(averaged.n_averaged) == 4


def test_batchnorm_buffers_are_averaged_where_torchs_default_fails():
    model = build()
    averaged = ours.AveragedModel(model, use_buffers=True)
    for _ in range(3):
        train(model)
        averaged.update_parameters(model)
    assert torch.equal(averaged.module[1].num_batches_tracked, model[1].num_batches_tracked)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wide", [None, torch.float32])
def test_averages_on_the_cpu_of_a_model_on_cuda(dtype, wide):
    model = build(dtype)
    model.append(nn.Linear(4000, 5000, device="cuda", dtype=dtype))  # of several pieces
    averaged = ours.AveragedModel(model, device="cpu", dtype=wide, scheme=ours.Ema(0.9))
    host = copy.deepcopy(model).cpu()
    reference = ours.AveragedModel(host, dtype=wide, scheme=ours.Ema(0.9))
    for _ in range(4):
        train(model)
        host.load_state_dict(model.state_dict())
        averaged.update_parameters(model)
        reference.update_parameters(host)
    for one, other in zip(averaged.parameters(), reference.parameters(), strict=True):
        assert one.device.type == "cpu"
        assert torch.equal(one, other)
    with averaged.swapped_into(model):
        assert torch.equal(model[0].weight.cpu(), averaged.module[0].weight.to(dtype))


def test_averages_on_cuda_of_a_model_on_the_cpu():
    model = build().cpu()
    averaged = ours.AveragedModel(model, device="cuda")
    seen = []
    for _ in range(3):
        train(model)
        averaged.update_parameters(model)
        seen.append(model[0].weight.detach().clone())
    torch.testing.assert_close(averaged.module[0].weight.cpu(), torch.stack(seen).mean(0))


def test_a_model_on_two_devices():
    model = nn.Sequential(nn.Linear(3, 4).cuda(), nn.Linear(4, 2))
    averaged = ours.AveragedModel(model)
    for _ in range(3):
        averaged.update_parameters(model)
    assert [one.device.type for one in averaged.module.parameters()] == ["cuda", "cuda", "cpu", "cpu"]
