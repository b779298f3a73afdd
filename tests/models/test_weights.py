"""Tensors as the formats' own libraries load them, and models that they fit or do not."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from swatool.checkpoints.opening import Reading, open_checkpoint
from swatool.errors import CheckpointError, MismatchError
from swatool.models.weights import load_weights, read_tensor
from swatool.tensors import DTYPES as DTYPES_BY_NAME
from swatool.tensors import StoredTensor

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]


def saved(tmp_path, state, suffix=".pt"):
    path = tmp_path / f"ckpt{suffix}"
    if suffix == ".pt":
        torch.save({"model": state}, path)
    else:
        path.write_bytes(b"")
        save_file(state, path)
    return open_checkpoint(path)


def small_model():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2))


def changed(model):
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.add_(torch.rand(tensor.shape).mul(10).to(tensor.dtype))
    return model


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_reads_what_torch_saved(tmp_path, dtype):
    wide = torch.arange(24).view(2, 3, 4).mul(7).to(dtype)
    state = {
        "plain": wide,
        "transposed": wide.permute(2, 0, 1),
        "sliced": wide[:, 1:, ::2],
        "scalar": torch.ones((), dtype=dtype),
        "empty": torch.ones((0, 3), dtype=dtype),
    }
    checkpoint = saved(tmp_path, state)
    for name, expected in state.items():
        found = read_tensor(checkpoint.tensors[name])
        assert found.dtype is dtype
        assert found.shape == expected.shape
        assert torch.equal(found, expected)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_loads_like_load_state_dict(tmp_path, suffix):
    if suffix == ".safetensors":
        pytest.importorskip("numpy")
    state = changed(small_model()).state_dict()
    model = small_model()
    load_weights(model, saved(tmp_path, state, suffix))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_values_take_the_models_types(tmp_path):
    model = small_model()
    state = {name: t.bfloat16() if t.is_floating_point() else t for name, t in model.state_dict().items()}
    load_weights(model, saved(tmp_path, state))
    assert model[0].weight.dtype is torch.float32
    assert torch.equal(model[0].weight, state["0.weight"].float())


def test_lists_every_difference_and_changes_nothing(tmp_path):
    model = small_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = {name: tensor + 1 for name, tensor in before.items()}
    del state["0.bias"]
    state["4.weight"] = torch.ones(2, 5)
    state["4.bias"] = torch.ones(2, dtype=torch.int64)
    state["extra"] = torch.ones(1)
    with pytest.raises(MismatchError) as caught:
        load_weights(model, saved(tmp_path, state))
    assert caught.value.differences == (
        "'0.bias' of the model is missing in the checkpoint",
        "'extra' of the checkpoint is missing in the model",
        "'4.weight' has shape [2, 5] in the checkpoint, [2, 4] in the model",
        "'4.bias' is int64 in the checkpoint, float32 in the model",
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_checkpoint_that_does_not_count_batches_is_fine(tmp_path):
    model = small_model()
    model[1].num_batches_tracked.fill_(5)
    state = model.state_dict()
    del state["1.num_batches_tracked"]
    load_weights(model, saved(tmp_path, state))
    assert model[1].num_batches_tracked == 5


def test_tied_names_that_safetensors_left_out(tmp_path):
    pytest.importorskip("numpy")
    model = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 2, bias=False)})
    model["b"].weight = model["a"].weight
    path = tmp_path / "tied.safetensors"
    save_file({"a.weight": torch.full((2, 2), 3.0)}, path, metadata={"b.weight": "a.weight"})
    load_weights(model, open_checkpoint(path))
    assert torch.equal(model["b"].weight, torch.full((2, 2), 3.0))


def test_lazy_modules_are_given_their_shapes(tmp_path):
    state = {"0.weight": torch.rand(3, 4), "0.bias": torch.rand(3)}
    norm = nn.BatchNorm1d(3)
    state |= {f"1.{name}": tensor + 1 for name, tensor in norm.state_dict().items()}
    model = nn.Sequential(nn.LazyLinear(3), nn.LazyBatchNorm1d())
    load_weights(model, saved(tmp_path, state))
    assert torch.equal(model[0].weight, state["0.weight"])
    assert torch.equal(model[1].running_mean, state["1.running_mean"])
    assert model(torch.rand(5, 4)).shape == (5, 3)


def test_prefixes_are_off_the_names(tmp_path):
    model = small_model()
    state = {f"module.{name}": tensor for name, tensor in changed(small_model()).state_dict().items()}
    load_weights(model, saved(tmp_path, state))
    assert torch.equal(model[4].weight, state["module.4.weight"])
    with pytest.raises(MismatchError):
        load_weights(model, open_checkpoint(tmp_path / "ckpt.pt", Reading(keep_prefix=True)))


def test_an_empty_tensor_that_torch_cannot_have_is_refused():
    stored = StoredTensor(DTYPES_BY_NAME["float32"], (0, 2**32, 2**32), ())
    with pytest.raises(CheckpointError, match="is no tensor to torch"):
        read_tensor(stored)
