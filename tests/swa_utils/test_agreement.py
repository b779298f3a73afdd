"""Averaging in training and averaging the files that it saved give the same, for every scheme."""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import swatool
from swatool.swa_utils import (
    ONLINE_SCHEMES,
    AveragedModel,
    CrowsonEma,
    Ema,
    Polynomial,
    PowerEma,
    RestartedMean,
    Swa,
    WarmupEma,
    Wma,
    get_ema_multi_avg_fn,
)

UPDATES = 12
INSTANCES = [
    *(Swa(), Ema(0.8), Ema(0.9, debias=True), Ema(0.999), WarmupEma(0.9), CrowsonEma(0.95)),
    # In training each update is one unit of time, whatever step the files say.
    *(PowerEma(2.5, spacing="index"), Polynomial(3.0), Wma(), RestartedMean(5)),
]


def test_every_scheme_is_there():
    assert {scheme.name for scheme in INSTANCES} == set(ONLINE_SCHEMES)


def offline(scheme, path, output):
    """Average the saved files by the scheme, by its name or by its coefficients."""
    settings = {field.name for field in dataclasses.fields(swatool.AverageSettings)}
    if scheme.name != "restarted-mean" and set(dataclasses.asdict(scheme)) <= settings:
        options = {"method": scheme.name, **dataclasses.asdict(scheme)}
    else:
        options = {"weights": scheme.coefficients([None] * UPDATES), "normalize": False}
    swatool.average(str(path / "step-*.pt"), output, overwrite=True, **options)
    return load_file(output)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Train a model that saves a checkpoint at every update, and average it by all schemes meanwhile."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 8), nn.Linear(8, 3)
    )
    averages = [AveragedModel(model, scheme=scheme, use_buffers=True) for scheme in INSTANCES]
    averages.append(AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.8), use_buffers=True))
    averages.append(AveragedModel(model, use_buffers=True))
    optimizer = torch.optim.SGD(model.parameters(), 0.3, momentum=0.9)
    for step in range(UPDATES):
        optimizer.zero_grad()
        inputs = torch.randn(16, 1, 6, 6)
        nn.functional.cross_entropy(model(inputs), torch.randint(3, (16,))).backward()
        optimizer.step()
        torch.save({"model": model.state_dict(), "step": step}, folder / f"step-{step}.pt")
        for averaged in averages:
            averaged.update_parameters(model)
    return folder, averages


def check(averaged, scheme, folder, tmp_path):
    expected = offline(scheme, folder, tmp_path / "averaged.safetensors")
    found = averaged.averaged_state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        # The sums of a dozen float32 numbers of about 1, in another order.
        torch.testing.assert_close(tensor, expected[name], rtol=2e-6, atol=1e-6, msg=name)


@pytest.mark.parametrize("index", range(len(INSTANCES)), ids=lambda index: INSTANCES[index].name)
def test_training_and_files_agree(trained, index, tmp_path):
    folder, averages = trained
    check(averages[index], INSTANCES[index], folder, tmp_path)


def test_functions_and_the_default_agree_with_files_too(trained, tmp_path):
    folder, averages = trained
    check(averages[-2], Ema(0.8), folder, tmp_path)
    check(averages[-1], Swa(), folder, tmp_path)


def test_averages_saved_in_training_are_checkpoints(tmp_path):
    """Saving `averaged_state_dict` gives files that swatool takes."""
    model = nn.DataParallel(nn.Linear(2, 2))
    averaged = AveragedModel(model)
    saved = []
    for step in range(2):
        nn.init.constant_(model.module.weight, step)
        averaged.update_parameters(model)
        torch.save({"model": averaged.averaged_state_dict(), "step": step}, tmp_path / f"average-{step}.pt")
        saved.append(averaged.module.module.weight.detach().clone())
    swatool.average(tmp_path, tmp_path / "out.safetensors")
    found = load_file(tmp_path / "out.safetensors")
    assert set(found) == {"weight", "bias"}
    torch.testing.assert_close(found["weight"], sum(saved) / 2)
