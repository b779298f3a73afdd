import pytest
import torch
from torch import nn

from swatool.batchnorm.layers import find_layers
from swatool.errors import UsageError


class ActivatedNorm(nn.BatchNorm2d):
    pass


class FrozenBatchNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(2))
        self.register_buffer("running_var", torch.ones(2))


@pytest.mark.parametrize(
    "module",
    [
        nn.BatchNorm1d(2),
        nn.BatchNorm2d(2, affine=False),
        nn.BatchNorm3d(2, momentum=None),
        nn.SyncBatchNorm(2),
        ActivatedNorm(2),
        nn.InstanceNorm1d(2, track_running_stats=True),
        nn.InstanceNorm2d(2, track_running_stats=True),
    ],
)
def test_what_has_running_statistics_counts(module):
    layers = find_layers(nn.Sequential(nn.Identity(), module))
    (layer,) = layers.found
    assert (layer.name, layer.index, layer.module) == ("1", 0, module)
    assert layer.kind == type(module).__name__
    assert layer.per_instance == isinstance(module, nn.modules.instancenorm._InstanceNorm)
    assert layer.running[1] is module.running_var
    assert not layers.untouched


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.BatchNorm1d(2, track_running_stats=False), "keeps no running statistics"),
        (nn.InstanceNorm2d(2), "keeps no running statistics"),
        (nn.GroupNorm(1, 2), "has no running statistics"),
        (nn.LayerNorm(2), "has no running statistics"),
        (FrozenBatchNorm(), "frozen"),
    ],
)
def test_what_has_none_is_listed_with_the_reason(module, reason):
    layers = find_layers(nn.Sequential(nn.Linear(2, 2), module, nn.BatchNorm1d(2)))
    assert [layer.name for layer in layers.found] == ["2"]
    assert list(layers.untouched) == ["1"]
    assert reason in layers.untouched["1"]
    assert type(module).__name__ in layers.untouched["1"]


def test_a_shared_module_is_one_layer_with_all_its_names():
    shared = nn.BatchNorm1d(2)
    layers = find_layers(nn.ModuleDict({"a": shared, "b": nn.ModuleDict({"c": shared})}))
    assert [layer.names for layer in layers.found] == [("a", "b.c")]


def test_the_model_itself_may_be_the_layer():
    assert [layer.name for layer in find_layers(nn.BatchNorm1d(2)).found] == [""]


def blocks():
    return nn.ModuleDict({name: nn.ModuleList([nn.BatchNorm1d(2), nn.BatchNorm1d(2)]) for name in ("a", "b")})


@pytest.mark.parametrize(
    ("skip", "left"),
    [
        ([], ["a.0", "a.1", "b.0", "b.1"]),
        (["a.*"], ["b.0", "b.1"]),
        (["*.0", "b.[01]"], ["a.1"]),
        (["*"], []),
    ],
)
def test_patterns_choose_what_is_skipped(skip, left):
    layers = find_layers(blocks(), skip)
    assert [layer.name for layer in layers.found] == left
    assert [layer.index for layer in layers.found] == list(range(len(left)))
    assert len(layers.found) + len(layers.skipped) == 4
    assert all(layers.untouched[layer.name] == "skipped, as asked" for layer in layers.skipped)


def test_any_name_of_a_shared_module_can_be_matched():
    shared = nn.BatchNorm1d(2)
    model = nn.ModuleDict({"a": shared, "b": shared})
    assert not find_layers(model, ["b"]).found


@pytest.mark.parametrize("pattern", ["A.*", "a", "layer*"])
def test_a_pattern_without_a_match_is_refused(pattern):
    with pytest.raises(UsageError, match=r"matches no layer.*'a\.0', 'a\.1', 'b\.0', 'b\.1'"):
        find_layers(blocks(), ["a.*", pattern])


def test_only_the_first_layers_are_listed():
    with pytest.raises(UsageError, match=r"'19', and 5 more$"):
        find_layers(nn.Sequential(*(nn.BatchNorm1d(1) for _ in range(25))), ["x"])
    with pytest.raises(UsageError, match="the model has none"):
        find_layers(nn.Linear(1, 1), ["x"])


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_lazy_modules_need_their_state_first():
    model = nn.Sequential(nn.LazyBatchNorm1d())
    with pytest.raises(UsageError, match=r"module '0' .*load the model's state first"):
        find_layers(model)
    model(torch.randn(3, 2))
    assert [layer.kind for layer in find_layers(model).found] == ["BatchNorm1d"]
    with pytest.raises(UsageError, match="LazyLinear"):
        find_layers(nn.Sequential(nn.LazyLinear(2), nn.BatchNorm1d(2)))
