import torch
from torch import nn

from swatool.checkpoints.frozen_statistics import frozen_layers
from swatool.checkpoints.opening import open_checkpoint


def opened(tmp_path, *states):
    paths = [tmp_path / f"{index}.pt" for index in range(len(states))]
    for path, state in zip(paths, states, strict=True):
        torch.save(state, path)
    return [open_checkpoint(path) for path in paths]


def state():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3), nn.BatchNorm1d(3))
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_layers_that_never_moved(tmp_path):
    first, second = state(), state()
    second["2.running_var"] += 1
    assert frozen_layers(opened(tmp_path, first, first, second)) == ("0",)
    assert frozen_layers(opened(tmp_path, first, first)) == ("0", "2")


def test_nothing_is_known_of_one_checkpoint_or_of_a_part_of_a_layer(tmp_path):
    one = state()
    assert frozen_layers(opened(tmp_path, one)) == ()
    del one["0.running_var"]
    assert frozen_layers(opened(tmp_path, one, one)) == ("2",)
