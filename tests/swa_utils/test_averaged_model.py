"""`AveragedModel` against torch's over models, types, functions, numbers of updates; and what torch lacks.

Tensors are equal bit for bit where the arithmetic is the same. It is not in two cases:
- the default on a CPU, where torch computes W + (w - W)/(n+1) with several roundings, and we, as torch on
  CUDA, W += (w - W) * 1/(n+1) with fewer;
- `get_swa_multi_avg_fn` on float64, where torch rounds 1/(n+1) to float32 and we do not.
"""

import copy
import gc
import io
import pickle
import signal
import weakref

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.optim import swa_utils as theirs

from swatool import swa_utils as ours
from swatool.errors import SwatoolError
from swatool.swa_utils import averaged_model

FUNCTIONS = ["default", "get_swa_avg_fn", "get_swa_multi_avg_fn", "get_ema_avg_fn", "get_ema_multi_avg_fn"]


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(6, 4)
        self.body = nn.Linear(4, 4)
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.embedding.weight


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = self.first


class Custom(nn.Module):
    """A parameter without dimensions, and buffers of all sorts."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.empty = nn.Parameter(torch.empty(0, 3))
        self.parts = nn.ParameterDict({"a": nn.Parameter(torch.randn(3, 2))})
        self.register_buffer("count", torch.tensor([3, 4]))
        self.register_buffer("flags", torch.tensor([True, False]))
        self.register_buffer("bytes", torch.tensor([250], dtype=torch.uint8))
        self.register_buffer("moving", torch.randn(3))
        self.register_buffer("passing", torch.randn(2), persistent=False)
        self.register_buffer("nothing", None)


def frozen():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    return model


def lazy():
    model = nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d())
    model(torch.randn(3, 5))
    return model


MODELS = {
    "plain": lambda: nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)),
    "convolution": lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1)),
    "tied": Tied,
    "shared": Shared,
    "custom": Custom,
    "frozen": frozen,
    "lazy": lazy,
    "parametrized": lambda: parametrizations.weight_norm(nn.Linear(3, 4)),
    "orthogonal": lambda: parametrizations.orthogonal(nn.Linear(3, 3)),
    "recurrent": lambda: nn.LSTM(3, 4),
    "channels_last": lambda: nn.Conv2d(4, 8, 3).to(memory_format=torch.channels_last),
}
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64]


def keywords(module, name):
    if name == "default":
        return {}
    return {"multi_avg_fn" if "multi" in name else "avg_fn": getattr(module, name)()}


def train(model, seed):
    """Change everything in a model."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point() or tensor.is_complex():
                tensor += torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
            elif tensor.dtype is torch.bool:
                tensor.logical_not_()
            else:
                tensor += 7


def tensors(module):
    return dict(module.named_parameters()) | dict(module.named_buffers())


def snapshot(module):
    return {name: tensor.detach().clone() for name, tensor in tensors(module).items()}


def assert_same(found, expected, tolerance=0.0):
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype is expected[name].dtype, name
        if tolerance:
            torch.testing.assert_close(tensor, expected[name], rtol=0, atol=tolerance, msg=name)
        else:
            assert torch.equal(tensor, expected[name]), name


def run(pairs, model, updates, first=0):
    for seed in range(first, first + updates):
        train(model, seed)
        for averaged in pairs:
            averaged.update_parameters(model)


def allowed(name, dtype, updates):
    """How far two averages of a few units may be apart; every update may differ by some last places."""
    if name == "default":
        return 4 * updates * torch.finfo(dtype).eps
    return 1e-6 if name == "get_swa_multi_avg_fn" and dtype is torch.float64 else 0.0


@pytest.mark.parametrize("updates", [1, 2, 50])
@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("name", MODELS)
def test_averages_are_torchs(name, function, updates):
    torch.manual_seed(0)
    model = MODELS[name]()
    mine, reference = (m.AveragedModel(model, **keywords(m, function)) for m in (ours, theirs))
    run((mine, reference), model, updates)
    assert_same(tensors(mine), tensors(reference), allowed(function, torch.float32, updates))
    assert int(mine.n_averaged) == updates


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_averages_of_every_type_are_torchs(dtype, function):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4, dtype=dtype), nn.Linear(40, 40, dtype=dtype))
    mine, reference = (m.AveragedModel(model, **keywords(m, function)) for m in (ours, theirs))
    run((mine, reference), model, 12)
    assert_same(tensors(mine), tensors(reference), allowed(function, dtype, 12))


def test_the_mean_of_float64_is_nearer_to_the_truth_than_torchs():
    model = nn.Linear(30, 30, dtype=torch.float64)
    mine, reference = (m.AveragedModel(model, multi_avg_fn=m.get_swa_multi_avg_fn()) for m in (ours, theirs))
    seen = []
    for seed in range(9):
        run((mine, reference), model, 1, first=seed)
        seen.append(model.weight.detach().clone())
    truth = torch.stack(seen).mean(0)
    assert (mine.module.weight - truth).abs().max() < 1e-14
    assert (reference.module.weight - truth).abs().max() > 1e-9


def test_the_default_is_nearer_to_the_truth_than_torchs_in_low_precision():
    model = nn.Linear(100, 100, dtype=torch.bfloat16)
    mine, reference = (m.AveragedModel(model) for m in (ours, theirs))
    seen = []
    for seed in range(20):
        run((mine, reference), model, 1, first=seed)
        seen.append(model.weight.detach().double())
    truth = torch.stack(seen).mean(0)
    errors = [(one.module.weight.double() - truth).square().mean() for one in (mine, reference)]
    assert errors[0] < errors[1]


@pytest.mark.parametrize("function", ["default", "get_swa_avg_fn", "get_ema_avg_fn", "get_ema_multi_avg_fn"])
@pytest.mark.parametrize("name", ["convolution", "custom", "lazy"])
def test_buffers_are_averaged_as_by_torch_and_whole_numbers_copied(name, function):
    torch.manual_seed(0)
    model = MODELS[name]()
    if name == "custom":
        # torch's own default fails on flags.
        del model.flags
    mine, reference = (
        m.AveragedModel(model, use_buffers=True, **keywords(m, function)) for m in (ours, theirs)
    )
    run((mine, reference), model, 9)
    found, expected = tensors(mine.module), tensors(reference.module)
    whole = {name for name, tensor in found.items() if not tensor.is_floating_point()}
    assert whole
    for one in whole:
        assert torch.equal(found.pop(one), tensors(model)[one])
        del expected[one]
    assert_same(found, expected, allowed(function, torch.float32, 9))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_whole_numbers_and_flags_are_copied_with_every_function(function):
    model = Custom()
    averaged = ours.AveragedModel(model, use_buffers=True, **keywords(ours, function))
    run([averaged], model, 4)
    for name in ("count", "flags", "bytes"):
        assert torch.equal(getattr(averaged.module, name), getattr(model, name))
    assert not torch.equal(averaged.module.moving, model.moving)
    assert not torch.equal(averaged.module.passing, model.passing)


def test_without_use_buffers_all_buffers_are_copied():
    model = Custom()
    averaged = ours.AveragedModel(model)
    run([averaged], model, 3)
    assert_same(dict(averaged.module.named_buffers()), dict(model.named_buffers()))


def test_use_buffers_may_be_changed_later():
    model = Custom()
    averaged = ours.AveragedModel(model)
    run([averaged], model, 1)
    averaged.use_buffers = True
    run([averaged], model, 1, first=1)
    assert not torch.equal(averaged.module.moving, model.moving)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_own_functions_of_torch_work_too(function):
    model = MODELS["plain"]()
    name = function if function != "default" else "get_swa_multi_avg_fn"
    mine, reference = (m.AveragedModel(model, **keywords(theirs, name)) for m in (ours, theirs))
    run((mine, reference), model, 5)
    assert_same(tensors(mine), tensors(reference))


def test_our_functions_work_in_torchs_class():
    model = MODELS["plain"]()
    for name in FUNCTIONS[1:]:
        mine = theirs.AveragedModel(model, **keywords(ours, name))
        reference = theirs.AveragedModel(model, **keywords(theirs, name))
        run((mine, reference), model, 5)
        assert_same(tensors(mine), tensors(reference))


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(("before", "after"), [(ours, theirs), (theirs, ours)])
@pytest.mark.parametrize("use_buffers", [False, True])
def test_states_load_both_ways(function, before, after, use_buffers):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model.register_buffer("moving", torch.randn(3))
    options = {"use_buffers": use_buffers}
    through = after.AveragedModel(model, **options, **keywords(after, function))
    first = before.AveragedModel(model, **options, **keywords(before, function))
    run([first, through], model, 4)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = after.AveragedModel(model, **options, **keywords(after, function))
    assert not second.load_state_dict(torch.load(file, weights_only=True)).missing_keys
    run([second, through], model, 4, first=4)
    assert int(second.n_averaged) == 8
    assert_same(tensors(second), tensors(through), allowed(function, torch.float32, 8))


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_copies_and_pickles_go_on_where_the_original_was(function, copied):
    model = MODELS["convolution"]()
    averaged = ours.AveragedModel(model, **keywords(ours, function))
    run([averaged], model, 3)
    other = copied(averaged)
    kept = snapshot(other)
    run([averaged], model, 2, first=3)
    assert_same(tensors(other), kept)
    run([other], model, 0)
    for averaged_one in (averaged, other):
        averaged_one.n_averaged.fill_(5)
    assert other.module is not averaged.module
    other.load_state_dict(averaged.state_dict())
    run([averaged, other], model, 2, first=5)
    assert_same(tensors(other), tensors(averaged))


def test_a_pickle_holds_the_average_and_not_the_model():
    model = nn.Linear(300, 300)
    averaged = ours.AveragedModel(model, scheme=ours.PowerEma(3.0))
    plain = len(pickle.dumps(averaged))
    run([averaged], model, 3)
    assert len(pickle.dumps(averaged)) < plain + 1000
    assert pickle.loads(pickle.dumps(averaged)).scheme == ours.PowerEma(3.0)


def test_n_averaged_set_by_hand_is_respected():
    model = MODELS["plain"]()
    mine, reference = (m.AveragedModel(model, multi_avg_fn=m.get_ema_multi_avg_fn()) for m in (ours, theirs))
    for averaged in (mine, reference):
        averaged.n_averaged.fill_(3)
    run((mine, reference), model, 1)
    assert_same(tensors(mine), tensors(reference))
    for averaged in (mine, reference):
        averaged.n_averaged.zero_()
    run((mine, reference), model, 1, first=1)
    assert_same(tensors(mine), tensors(reference))
    assert torch.equal(mine.module[0].weight, model[0].weight)


def as_often_written(counter):
    """Return another counter, of 0, that only its identity tells from this one."""
    other = torch.tensor(0)
    while other._version < counter._version:
        other.add_(0)
    return other


def test_on_the_cpu_the_count_is_read_whoever_wrote_it():
    model = nn.Linear(2, 2)
    averaged = ours.AveragedModel(model)
    run([averaged], model, 3)
    averaged.n_averaged.data.fill_(0)
    run([averaged], model, 1, first=3)
    assert torch.equal(averaged.module.weight, model.weight)


@pytest.mark.parametrize(
    "change",
    [
        lambda averaged: averaged.n_averaged.fill_(0),
        lambda averaged: setattr(averaged, "n_averaged", torch.tensor(0)),
        lambda averaged: setattr(averaged, "n_averaged", as_often_written(averaged.n_averaged)),
        lambda averaged: averaged.load_state_dict(ours.AveragedModel(nn.Linear(2, 2)).state_dict()),
    ],
)
def test_the_count_is_not_fetched_from_a_device_unless_it_was_changed(change, monkeypatch):
    monkeypatch.setattr(averaged_model, "READ_AT_ONCE", set())  # as if the counter were not on the CPU
    fetched = []
    original = torch.Tensor.__int__
    monkeypatch.setattr(torch.Tensor, "__int__", lambda tensor: fetched.append(1) or original(tensor))
    model = nn.Linear(2, 2)
    averaged, reference = ours.AveragedModel(model), theirs.AveragedModel(model)
    run([averaged], model, 4)
    assert len(fetched) == 1
    assert int(averaged.n_averaged) == 4
    model.load_state_dict(reference.module.state_dict())
    run([reference], model, 4)
    assert_same(tensors(averaged), tensors(reference), 1e-5)
    change(averaged)
    fetched.clear()
    run([averaged], model, 1, first=5)
    assert len(fetched) == 1
    assert torch.equal(averaged.module.weight, model.weight)  # as the first of a new average


def test_a_counter_without_a_version_is_read():
    model = nn.Linear(2, 2)
    averaged = ours.AveragedModel(model)
    with torch.inference_mode():
        averaged.n_averaged = torch.tensor(0)
        averaged.update_parameters(model)
        averaged.update_parameters(model)
    assert int(averaged.n_averaged) == 2


def test_the_wrapper_is_built_as_torchs():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout()).eval()
    model[0].weight.grad = torch.ones(2, 2)
    averaged = ours.AveragedModel(model)
    assert averaged.training
    assert not averaged.module.training
    assert averaged.module[0].weight.grad is None
    assert averaged.module[0].weight.requires_grad
    assert averaged(torch.ones(1, 2)).grad_fn is not None
    assert torch.equal(averaged(torch.ones(1, 2)), model(torch.ones(1, 2)))
    assert averaged.module[0].weight is not model[0].weight


def test_forward_passes_everything_on():
    class Adder(nn.Module):
        def forward(self, a, *, b):
            return a + b

    assert ours.AveragedModel(Adder())(1, b=2) == 3


def test_inner_functions_see_what_torchs_see():
    seen = []

    def look(average, model, n):
        flags = (average.requires_grad, model.requires_grad, torch.is_grad_enabled())
        seen.append((*flags, n.dtype, n.shape, int(n), average.shape))
        return average + model

    model = nn.Linear(2, 2)
    results = []
    for module in (ours, theirs):
        seen.clear()
        averaged = module.AveragedModel(model, avg_fn=look)
        run([averaged], model, 3)
        results.append(seen[:])
    assert results[0] == results[1]
    assert len(seen) == 4


def test_lists_given_to_functions_are_of_one_type():
    groups = []

    def look(averages, models, n):
        groups.append(({one.dtype for one in averages}, {one.dtype for one in models}, int(n), len(averages)))
        assert n.dtype is torch.int64
        assert not any(one.requires_grad for one in averages + models)
        for average, model in zip(averages, models, strict=True):
            average.copy_(model)

    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, dtype=torch.float64), nn.Linear(2, 2))
    averaged = ours.AveragedModel(model, multi_avg_fn=look)
    run([averaged], model, 2)
    assert sorted(groups, key=str) == [
        ({torch.float32}, {torch.float32}, 1, 4),
        ({torch.float64}, {torch.float64}, 1, 2),
    ]
    assert torch.equal(averaged.module[1].weight, model[1].weight)


def test_a_model_without_tensors_is_only_counted():
    averaged = ours.AveragedModel(nn.ReLU())
    run([averaged], nn.ReLU(), 3)
    assert int(averaged.n_averaged) == 3


def test_at_most_one_rule_is_taken():
    model = nn.Linear(2, 2)
    function, many = ours.get_ema_avg_fn(), ours.get_ema_multi_avg_fn()
    for options in (
        {"avg_fn": function, "multi_avg_fn": many},
        {"avg_fn": function, "scheme": ours.Swa()},
        {"multi_avg_fn": many, "scheme": ours.Swa()},
    ):
        with pytest.raises(AssertionError, match="Only one of avg_fn"):
            ours.AveragedModel(model, **options)


@pytest.mark.parametrize(
    ("options", "error", "what"),
    [
        ({"update_every": 0}, ValueError, "update_every"),
        ({"update_every": 1.5}, ValueError, "update_every"),
        ({"dtype": torch.int64}, ValueError, "dtype"),
        ({"device": ours.get_ema_multi_avg_fn()}, TypeError, "multi_avg_fn="),
        ({"scheme": "swa"}, TypeError, "online form"),
        ({"scheme": ours.PowerEma}, TypeError, "give an instance"),
        ({"dtype": "float32"}, TypeError, "such as torch.float32"),
        ({"avg_fn": ours.get_ema_avg_fn}, TypeError, r"avg_fn=get_ema_avg_fn\(\)"),
        ({"avg_fn": theirs.get_swa_avg_fn}, TypeError, r"avg_fn=get_swa_avg_fn\(\)"),
        ({"multi_avg_fn": ours.get_swa_multi_avg_fn}, TypeError, r"multi_avg_fn=get_swa_multi_avg_fn\(\)"),
        ({"multi_avg_fn": theirs.get_ema_multi_avg_fn}, TypeError, "call it"),
        ({"multi_avg_fn": 0.9}, TypeError, "must be a function, not 0.9"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(options, error, what):
    with pytest.raises(error, match=what) as caught:
        ours.AveragedModel(nn.Linear(2, 2), **options)
    assert isinstance(caught.value, SwatoolError)


def test_only_modules_are_averaged():
    averaged = ours.AveragedModel(nn.Linear(2, 2))
    for call in (ours.AveragedModel, averaged.update_parameters, lambda _: swap(averaged, None)):
        with pytest.raises(TypeError, match="the model is a NoneType") as caught:
            call(None)
        assert isinstance(caught.value, SwatoolError)


def swap(averaged, model):
    with averaged.swapped_into(model):
        pass


def test_a_counter_on_the_meta_device_is_refused():
    with torch.device("meta"):
        averaged = ours.AveragedModel(nn.Linear(2, 2))
    with pytest.raises(ours.ArgumentError, match="meta"):
        averaged.update_parameters(nn.Linear(2, 2))


@pytest.mark.parametrize("options", [{}, {"scheme": ours.Ema(0.9)}, {"avg_fn": ours.get_swa_avg_fn()}])
def test_a_negative_count_is_refused(options):
    averaged = ours.AveragedModel(nn.Linear(2, 2), **options)
    averaged.n_averaged.fill_(-1)
    with pytest.raises(ours.ArgumentError, match="n_averaged is -1"):
        averaged.update_parameters(nn.Linear(2, 2))


# Schemes, and how often they are applied


@pytest.mark.parametrize("name", ours.ONLINE_SCHEMES)
def test_a_scheme_gives_the_weights(name):
    arguments = {"ema": (0.8,), "power-ema": (2.0,), "restarted-mean": (3,)}.get(name, ())
    scheme = ours.ONLINE_SCHEMES[name](*arguments)
    model = nn.Linear(3, 3, dtype=torch.float64)
    averaged = ours.AveragedModel(model, scheme=scheme)
    seen = []
    for seed in range(8):
        run([averaged], model, 1, first=seed)
        seen.append(model.weight.detach().clone())
    coefficients = scheme.coefficients([None] * 8)
    expected = sum(c * one for c, one in zip(coefficients, seen, strict=True))
    torch.testing.assert_close(averaged.module.weight.detach(), expected, rtol=0, atol=1e-12)


def test_every_nth_call_counts_from_the_first_on():
    model = nn.Linear(2, 2)
    averaged, expected = ours.AveragedModel(model, update_every=3), ours.AveragedModel(model)
    for call in range(8):
        train(model, call)
        averaged.update_parameters(model)
        if call in (0, 3, 6):
            expected.update_parameters(model)
        assert_same(tensors(averaged), tensors(expected))
    assert int(averaged.n_averaged) == 3


def test_an_average_that_is_begun_anew_is_begun_at_once():
    model = nn.Linear(2, 2)
    averaged = ours.AveragedModel(model, update_every=3)
    run([averaged], model, 2)
    averaged.n_averaged.zero_()
    expected = [1, 1, 1, 2]
    for call, count in enumerate(expected):
        run([averaged], model, 1, first=2 + call)
        assert int(averaged.n_averaged) == count
        if call == 0:
            assert torch.equal(averaged.module.weight, model.weight)


def test_a_failed_call_is_not_counted_as_one():
    model = nn.Linear(2, 2)
    averaged = ours.AveragedModel(model, update_every=2)
    with pytest.raises(ours.PairingError):
        averaged.update_parameters(nn.Linear(3, 2))
    averaged.update_parameters(model)
    assert int(averaged.n_averaged) == 1


# Types and devices of the average


@pytest.mark.parametrize("function", [*FUNCTIONS, "scheme"])
def test_an_average_in_float32_of_a_model_in_bfloat16(function):
    torch.manual_seed(0)
    options = {"scheme": ours.Ema(0.999)} if function == "scheme" else keywords(ours, function)
    model = nn.Sequential(nn.Linear(7, 5), nn.Conv2d(2, 4, 3), nn.BatchNorm1d(3)).bfloat16()
    averaged = ours.AveragedModel(model, dtype=torch.float32, **options)
    wide = copy.deepcopy(model).float()
    reference = ours.AveragedModel(wide, **options)
    for seed in range(6):
        train(model, seed)
        wide.load_state_dict(model.state_dict())
        averaged.update_parameters(model)
        reference.update_parameters(wide)
    assert next(model.parameters()).dtype is torch.bfloat16
    assert_same(tensors(averaged), tensors(reference))


def test_a_bfloat16_ema_moves_only_in_float32():
    model = nn.Linear(2, 2, bias=False, dtype=torch.bfloat16)
    nn.init.ones_(model.weight)
    functions = {"multi_avg_fn": ours.get_ema_multi_avg_fn(0.999)}
    narrow, wide = (
        ours.AveragedModel(model, **functions),
        ours.AveragedModel(model, dtype=torch.float32, **functions),
    )
    for averaged in (narrow, wide):
        averaged.update_parameters(model)
    nn.init.constant_(model.weight, 2)
    for _ in range(1000):
        for averaged in (narrow, wide):
            averaged.update_parameters(model)
    assert narrow.module.weight.flatten().tolist() == [1] * 4
    assert wide.module.weight.flatten().tolist() == pytest.approx([2 - 0.999**1000] * 4, rel=1e-5)


def test_dtype_converts_floating_tensors_and_keeps_ties():
    model = Tied().half()
    model.phase = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    model.register_buffer("moving", torch.ones(2, dtype=torch.float16))
    model.body.register_buffer("same", model.moving)
    model.register_buffer("count", torch.tensor(1))
    averaged = ours.AveragedModel(model, dtype=torch.float32)
    module = averaged.module
    assert module.head.weight is module.embedding.weight
    assert module.body.same is module.moving
    kinds = {name: tensor.dtype for name, tensor in tensors(module).items()}
    assert kinds.pop("phase") is torch.complex64
    assert kinds.pop("count") is torch.int64
    assert set(kinds.values()) == {torch.float32}
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float16, torch.complex64}
    run([averaged], model, 3)


@pytest.mark.parametrize("flag", ["overwrite_module_params", "swap_module_params"])
def test_ties_are_kept_however_torch_converts(flag):
    set_flag = getattr(torch.__future__, f"set_{flag}_on_conversion")
    model = Tied().half()
    set_flag(True)
    try:
        averaged = ours.AveragedModel(model, dtype=torch.float32)
    finally:
        set_flag(False)
    assert averaged.module.head.weight is averaged.module.embedding.weight
    assert {one.dtype for one in averaged.module.parameters()} == {torch.float32}
    run([averaged], model, 2)


@pytest.mark.filterwarnings("ignore:ComplexHalf support")
def test_complex_tensors_are_as_wide_as_the_floating_ones():
    model = nn.Linear(2, 2)
    model.narrow = nn.Parameter(torch.ones(3, dtype=torch.complex32))
    model.wide = nn.Parameter(torch.ones(3, dtype=torch.complex64))
    averaged = ours.AveragedModel(model)
    with pytest.raises(ours.PairingError, match=r"complex32 on cpu cannot be averaged.*dtype=torch\.float32"):
        averaged.update_parameters(model)
    for dtype, narrow, wide in (
        (torch.float32, torch.complex64, torch.complex64),
        (torch.float64, torch.complex128, torch.complex128),
        (torch.float16, torch.complex32, torch.complex64),
    ):
        averaged = ours.AveragedModel(model, dtype=dtype)
        assert averaged.module.narrow.dtype is narrow
        assert averaged.module.wide.dtype is wide
    averaged = ours.AveragedModel(model, dtype=torch.float32)
    run([averaged], model, 1)
    averaged.module.narrow.data.zero_()
    averaged.update_parameters(model)
    expected = model.narrow.detach().to(torch.complex64) / 2
    torch.testing.assert_close(averaged.module.narrow.detach(), expected)


def in_inference_mode(make):
    with torch.inference_mode():
        return make()


@pytest.mark.parametrize("what", ["the average", "a part of it", "the counter"])
@pytest.mark.parametrize("options", [{}, {"dtype": torch.float64}, {"avg_fn": ours.get_ema_avg_fn()}])
def test_what_was_made_in_inference_mode_is_averaged_inside_and_outside_of_it(what, options):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.BatchNorm1d(2))
    reference = ours.AveragedModel(model, **options)
    if what == "the average":
        averaged = in_inference_mode(lambda: ours.AveragedModel(model, **options))
        assert averaged.module[0].weight.is_inference()
    else:
        averaged = ours.AveragedModel(model, **options)
    if what == "a part of it":
        averaged.module[1] = in_inference_mode(lambda: copy.deepcopy(averaged.module[1]))
        assert averaged.module[1].weight.is_inference()
    elif what == "the counter":
        averaged.n_averaged = in_inference_mode(lambda: torch.tensor(0))
    for step in range(4):
        with torch.inference_mode(step == 2):
            run([averaged, reference], model, 1, first=step)
        assert_same(tensors(averaged), tensors(reference))
    assert int(averaged.n_averaged) == 4


@pytest.mark.parametrize("first", [True, False])
def test_updates_may_be_made_in_inference_mode_and_outside_in_turn(first):
    model = nn.Linear(4, 4).bfloat16()
    averaged, reference = (ours.AveragedModel(model, dtype=torch.float32) for _ in range(2))
    for step in range(4):
        train(model, step)
        with torch.inference_mode(first is (step % 2 == 0)):
            averaged.update_parameters(model)
        reference.update_parameters(model)
    assert_same(tensors(averaged), tensors(reference))


def turned(model):
    model[0].weight.data = model[0].weight.data.transpose(0, 1).contiguous().transpose(0, 1)


@pytest.mark.parametrize("side", ["model", "average"])
@pytest.mark.parametrize(
    "change", [lambda model: model.to(memory_format=torch.channels_last), turned], ids=["channels", "turned"]
)
def test_another_order_in_memory_is_followed(change, side):
    model = nn.Sequential(nn.Conv2d(128, 256, 3)).bfloat16()  # of several pieces
    averaged, reference = (
        ours.AveragedModel(model, dtype=torch.float32, scheme=ours.Ema(0.5)) for _ in range(2)
    )
    run([averaged, reference], model, 2)
    reference._plan = None
    change(model if side == "model" else averaged.module)
    run([averaged, reference], model, 2, first=2)
    assert_same(tensors(averaged), tensors(reference))


def test_another_order_of_a_buffer_that_is_copied_is_followed():
    model = nn.Module()
    model.register_buffer("table", torch.randn(600, 700).bfloat16())
    averaged = ours.AveragedModel(model, dtype=torch.float32)
    averaged.update_parameters(model)
    model.table.data = model.table.data.t().contiguous().t()
    averaged.update_parameters(model)
    assert torch.equal(averaged.module.table, model.table.float())


def test_an_expanded_model_is_read_as_it_is():
    model = nn.Linear(1024, 1024, bias=False).bfloat16()
    averaged = ours.AveragedModel(model, dtype=torch.float32)
    averaged.update_parameters(model)
    model.weight.data = model.weight.data[:1].expand(1024, 1024)
    averaged.n_averaged.zero_()
    averaged.update_parameters(model)
    assert torch.equal(averaged.module.weight, model.weight.float())


@pytest.mark.usefixtures("interrupts")
@pytest.mark.parametrize("options", [{}, {"dtype": torch.float64}, {"avg_fn": lambda a, b, _: (a + b) / 2}])
def test_an_interrupted_update_is_a_whole_one(options, monkeypatch):
    model = nn.Sequential(nn.Linear(1024, 1024), nn.BatchNorm1d(3))
    averaged, reference = (ours.AveragedModel(model, **options) for _ in range(2))
    run([averaged, reference], model, 2)
    original = torch._foreach_copy_ if "avg_fn" in options else torch._foreach_lerp_
    name = original.__name__.removeprefix("torch.")

    def interrupt(*args):
        signal.raise_signal(signal.SIGINT)
        original(*args)

    train(model, 2)
    reference.update_parameters(model)
    with monkeypatch.context() as patch:
        patch.setattr(torch, name, interrupt)
        with pytest.raises(KeyboardInterrupt):
            averaged.update_parameters(model)
    assert_same(tensors(averaged), tensors(reference))


def test_a_model_cast_in_training_is_followed():
    model = nn.Linear(3, 3)
    averaged, reference = (ours.AveragedModel(model, scheme=ours.Ema(0.5)) for _ in range(2))
    run([averaged, reference], model, 2)
    model.bfloat16()  # the same parameters, with other data
    wide = copy.deepcopy(model).float()
    averaged.update_parameters(model)
    reference.update_parameters(wide)
    assert_same(tensors(averaged), tensors(reference))


def test_types_without_arithmetic_are_refused_before_anything_is_changed():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = nn.Parameter(torch.zeros(2, 2).to(torch.float8_e4m3fn), requires_grad=False)
    for options in ({}, {"scheme": ours.Ema(0.5)}, {"avg_fn": ours.get_ema_avg_fn()}):
        averaged = ours.AveragedModel(model, **options)
        averaged.n_averaged.fill_(1)
        kept = snapshot(averaged)
        nn.init.ones_(model[0].weight)
        with pytest.raises(ours.PairingError, match=r"float8_e4m3fn on cpu cannot be averaged"):
            averaged.update_parameters(model)
        assert_same(tensors(averaged), kept)
    averaged = ours.AveragedModel(model, dtype=torch.float32)
    averaged.update_parameters(model)
    averaged.update_parameters(model)


def test_device_is_where_average_and_counter_are():
    averaged = ours.AveragedModel(nn.Linear(2, 2), device="meta")
    assert averaged.module.weight.device.type == averaged.n_averaged.device.type == "meta"
    averaged = ours.AveragedModel(nn.Linear(2, 2), torch.device("cpu"))
    assert averaged.n_averaged.device.type == "cpu"


class Uncopyable(nn.Linear):
    def __deepcopy__(self, memo):
        raise RuntimeError("cannot be copied")


def test_modules_that_cannot_be_copied_can_be_given():
    model, own = Uncopyable(2, 2), Uncopyable(2, 2)
    with pytest.raises(RuntimeError, match="cannot be copied"):
        ours.AveragedModel(model)
    averaged = ours.AveragedModel(own, deepcopy=False)
    assert averaged.module is own
    run([averaged], model, 2)
    assert not torch.equal(own.weight, model.weight)


def test_the_trained_model_itself_is_no_average():
    model = nn.Linear(2, 2)
    averaged = ours.AveragedModel(model, deepcopy=False)
    with pytest.raises(ours.PairingError, match="same tensor in both"):
        averaged.update_parameters(model)


# Saving, letting go


def allocated(function):
    """Return how many bytes are allocated in a call, all together."""
    with torch.profiler.profile(
        profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]
    ) as profile:
        function()
    return sum(
        max(0, event.self_device_memory_usage or event.self_cpu_memory_usage) for event in profile.events()
    )


@pytest.mark.parametrize("function", ["default", "get_swa_multi_avg_fn", "get_ema_multi_avg_fn", "scheme"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_update_takes_no_memory_of_the_size_of_the_model(function, dtype):
    options = {"scheme": ours.WarmupEma()} if function == "scheme" else keywords(ours, function)
    model = nn.Sequential(*(nn.Linear(512, 1024, bias=False, dtype=dtype) for _ in range(8)))
    averaged = ours.AveragedModel(model, dtype=torch.float32, **options)
    averaged.update_parameters(model)
    reference = theirs.AveragedModel(model.float() if dtype is torch.float32 else copy.deepcopy(model))
    reference.update_parameters(model)
    assert allocated(lambda: reference.update_parameters(model)) > 8 * 512 * 1024 * dtype.itemsize
    assert (
        allocated(lambda: averaged.update_parameters(model)) < 10_000
    )  # its buffer, if any, is there already


def test_the_averaged_state_has_clean_names():
    plain = MODELS["convolution"]()
    averaged = ours.AveragedModel(nn.DataParallel(torch.compile(plain, backend="eager")))
    assert next(iter(averaged.module.state_dict())).startswith("module._orig_mod.")
    state = averaged.averaged_state_dict()
    assert isinstance(state, dict)
    assert list(state) == list(plain.state_dict())
    assert state["0.weight"].data_ptr() == next(averaged.module.parameters()).data_ptr()
    assert not state["0.weight"].requires_grad
    plain.load_state_dict(state)


def test_wrapped_models_are_averaged_into_plain_ones_and_the_other_way_round():
    plain = MODELS["convolution"]()
    wrapped = nn.DataParallel(torch.compile(plain, backend="eager"))
    for averaged, model in (
        (ours.AveragedModel(plain), wrapped),
        (ours.AveragedModel(wrapped), plain),
        (ours.AveragedModel(nn.DataParallel(plain)), torch.compile(plain, backend="eager")),
    ):
        reference = ours.AveragedModel(plain)
        reference.update_parameters(plain)
        averaged.update_parameters(model)
        run([], plain, 1)
        reference.update_parameters(plain)
        averaged.update_parameters(model)
        found, expected = averaged.averaged_state_dict(), reference.averaged_state_dict()
        assert_same(found, expected)


def test_a_model_that_nobody_needs_is_let_go():
    model = MODELS["convolution"]()
    averaged = ours.AveragedModel(model)
    run([averaged], model, 2)
    gone = [weakref.ref(model), weakref.ref(model[0].weight), weakref.ref(model[1])]
    del model
    gc.collect()
    assert [one() for one in gone] == [None] * 3
    run([averaged], MODELS["convolution"](), 1)
    assert int(averaged.n_averaged) == 3


def test_several_models_in_turn_are_all_averaged():
    models = [nn.Linear(2, 2) for _ in range(3)]
    averaged = ours.AveragedModel(models[0])
    for model in models:
        averaged.update_parameters(model)
    torch.testing.assert_close(averaged.module.weight, torch.stack([one.weight for one in models]).mean(0))
