"""Mode `batch`, what all modes share, and that nothing but the statistics changes."""

import copy
import dataclasses
import json
import math

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from swatool.batchnorm import passes
from swatool.batchnorm.ranks import Ranks
from swatool.batchnorm.recalibrate import MODES, recalibrate_bn
from swatool.batchnorm.report import Progress
from swatool.errors import DataError, MismatchError, OutputError, UsageError


class Net(nn.Module):
    """A residual net with dropout, a layer of each kind, and a buffer that a forward changes."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(2, 4, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(4, momentum=0.3)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(4, momentum=None)
        self.instance = nn.InstanceNorm2d(4, affine=True, track_running_stats=True)
        self.drop = nn.Dropout(0.5)
        self.linear = nn.Linear(4, 3)
        self.bn3 = nn.BatchNorm1d(3, affine=False)
        self.group = nn.GroupNorm(1, 3)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x):
        self.calls += 1
        x = self.bn1(self.conv1(x)).relu()
        x = self.drop(x + self.bn2(self.conv2(x)))
        x = self.instance(x)
        return self.group(self.bn3(self.linear(x.mean((2, 3)))))


def net(dtype=torch.float32):
    torch.manual_seed(0)
    model = Net().to(dtype)
    for module in model.modules():
        if hasattr(module, "running_mean"):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
    model.train()
    model.bn2.eval()
    model.drop.eval()
    return model


def images(*sizes, side=5, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(size, 2, side, side, generator=generator) * (k + 1) + k for k, size in enumerate(sizes)
    ]


def is_statistic(name):
    return name.rpartition(".")[2] in ("running_mean", "running_var", "num_batches_tracked")


def snapshot(model):
    """Everything that must not change: values by their bytes, and the objects that hold them."""
    return {
        "values": {name: t.detach().clone() for name, t in model.state_dict().items()},
        "dtypes": {name: t.dtype for name, t in model.state_dict().items()},
        "places": {name: t.data_ptr() for name, t in model.state_dict().items()},
        "objects": [id(t) for t in (*model.parameters(), *model.buffers())],
        "modes": [module.training for module in model.modules()],
        "momenta": [getattr(module, "momentum", None) for module in model.modules()],
        "hooks": [len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules()],
        "keywords": [len(module._forward_pre_hooks_with_kwargs) for module in model.modules()],
        "random": torch.get_rng_state(),
        "gradients": torch.is_grad_enabled(),
    }


def assert_same(before, after, *, except_statistics=False):
    for key, value in before.items():
        if key == "values":
            for name, tensor in value.items():
                if not (except_statistics and is_statistic(name)):
                    assert torch.equal(tensor, after[key][name]), name
        elif key == "random":
            assert torch.equal(value, after[key])
        else:
            assert value == after[key], key


def statistics(model):
    return {name: t for name, t in model.state_dict().items() if name.endswith(("_mean", "_var"))}


def reference(model, batches):
    """Mode `batch` by the definition: train mode for the norms only, float64 over all their inputs."""
    model = copy.deepcopy(model).eval()
    inputs = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            module.train()
            keep = inputs.setdefault(name, [])
            module.register_forward_pre_hook(lambda _, args, keep=keep: keep.append(args[0].double()))
    with torch.no_grad():
        for batch in batches:
            model(batch)
    found = {}
    for name, seen in inputs.items():
        if name == "instance":
            values = torch.cat(seen).flatten(2)
            found[f"{name}.running_mean"] = values.mean(2).mean(0)
            found[f"{name}.running_var"] = values.var(2).mean(0)
        else:
            values = torch.cat([part.movedim(1, 0).flatten(1) for part in seen], 1)
            found[f"{name}.running_mean"] = values.mean(1)
            found[f"{name}.running_var"] = values.var(1)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_batch_pools_what_training_mode_sees(dtype):
    model = net(dtype)
    batches = [batch.to(dtype) for batch in images(6, 9, 4)]
    expected = reference(model, batches)
    report = recalibrate_bn(model, batches)
    # Beyond the first layer, inputs differ by the rounding of the normalisation itself.
    tolerance = 1e-12 if dtype is torch.float64 else 2e-5
    for name, tensor in statistics(model).items():
        torch.testing.assert_close(tensor.double(), expected[name], rtol=tolerance, atol=tolerance)
    first = {name: expected[name].to(dtype) for name in ("bn1.running_mean", "bn1.running_var")}
    for name, tensor in first.items():
        found = model.state_dict()[name]
        assert bool(((found - tensor).abs() <= torch.finfo(dtype).eps * 4 * tensor.abs()).all())
    assert (report.samples, report.batches, report.passes) == (19, 3, 1)
    tracked = [t for name, t in model.state_dict().items() if name.endswith("tracked")]
    assert [int(t) for t in tracked] == [3] * 4


def test_the_report_tells_what_was_done():
    model = net()
    before = copy.deepcopy(model)
    report = recalibrate_bn(model, images(6, 9), skip=["bn2"])
    assert [layer.name for layer in report.layers] == ["bn1", "instance", "bn3"]
    assert [layer.kind for layer in report.layers] == ["BatchNorm2d", "InstanceNorm2d", "BatchNorm1d"]
    assert [layer.values for layer in report.layers] == [15 * 25, 15, 15]
    first = report.layers[0]
    assert (first.uses, first.channels, first.batches) == (2, 4, 2)
    assert set(report.untouched) == {"bn2", "group"}
    assert not report.unreached
    assert not report.warnings
    assert report.layers[0].mean_error is None
    sigma = (model.bn1.running_var + 1e-5).sqrt()
    shifts = (model.bn1.running_mean - before.bn1.running_mean).abs() / sigma
    assert report.layers[0].mean_shift == pytest.approx(float(shifts.max()), rel=1e-5)
    assert report.layers[0].mean_shift_channel == int(shifts.argmax())
    json.dumps(dataclasses.asdict(report), allow_nan=False)


@pytest.mark.parametrize("mode", MODES)
def test_only_the_statistics_change(mode):
    model = net()
    model.linear.weight.grad = torch.ones_like(model.linear.weight)
    before = snapshot(model)
    recalibrate_bn(model, images(6, 9, 4), mode=mode)
    assert_same(before, snapshot(model), except_statistics=True)
    assert not torch.equal(before["values"]["bn1.running_mean"], model.bn1.running_mean)
    assert model.linear.weight.requires_grad
    assert bool(model.linear.weight.grad.all())


@pytest.mark.parametrize("mode", MODES)
def test_skipped_layers_keep_everything_and_normalise_as_in_inference(mode):
    model = net()
    before = snapshot(model)
    recalibrate_bn(model, images(6, 9), mode=mode, skip=["bn1", "inst*"])
    for name, tensor in before["values"].items():
        if name.startswith(("bn1", "instance")):
            assert torch.equal(tensor, model.state_dict()[name]), name
    with torch.no_grad():
        kept = copy.deepcopy(model).eval()
        seen = [kept.conv2(kept.bn1(kept.conv1(batch)).relu()) for batch in images(6, 9)]
    mean = (
        torch.cat(seen).mean((0, 2, 3))
        if mode != "torch"
        else (seen[0].mean((0, 2, 3)) + seen[1].mean((0, 2, 3))) / 2
    )
    torch.testing.assert_close(model.bn2.running_mean, mean)


class Interrupt(BaseException):
    pass


FAILURES = [
    RuntimeError("no\nmore"),
    ValueError(),
    KeyboardInterrupt(),
    Interrupt(),
    MemoryError(),
    DataError("own"),
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
@pytest.mark.parametrize("where", ["bn1", "bn2", "linear", "data", "progress"])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_after_an_exception_nothing_has_changed(mode, failure, where, at):
    model = net()
    count = 0

    def fail(*_):
        nonlocal count
        count += 1
        # Mode exact traces the first batch, and goes over the data several times.
        if count > at + (3 if mode == "exact" else 0):
            raise failure

    class Data:
        def __iter__(self):
            for batch in images(6, 9, 4, 5):
                if where == "data":
                    fail()
                yield batch

    if where in ("bn1", "bn2", "linear"):
        getattr(model, where).register_forward_pre_hook(fail)
    before = snapshot(model)
    with pytest.raises(BaseException) as caught:  # noqa: PT011
        recalibrate_bn(model, Data(), mode=mode, on_progress=fail if where == "progress" else None)
    own = where in ("bn1", "bn2", "linear") and isinstance(failure, RuntimeError | ValueError)
    assert caught.type is MismatchError if own else caught.value is failure
    assert_same(before, snapshot(model))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("mode", ["batch", "exact"])
def test_a_failure_gives_converted_parameters_back(dtype, mode):
    model = net(dtype)
    before = snapshot(model)
    batches = [*images(6), torch.zeros(3, 5, 5, 5)]
    with pytest.raises(MismatchError):
        recalibrate_bn(model, batches, mode=mode, dtype=torch.float32)
    assert_same(before, snapshot(model))


def test_an_interrupt_while_statistics_are_written_takes_them_back(monkeypatch):
    model = net()
    before = snapshot(model)
    copy_ = torch.Tensor.copy_
    monkeypatch.setattr(torch.Tensor, "copy_", lambda self, other: interrupting(self, other))
    targets = {model.bn3.running_var.data_ptr()}

    def interrupting(self, other):
        if self.data_ptr() in targets:
            targets.clear()
            raise KeyboardInterrupt
        return copy_(self, other)

    with pytest.raises(KeyboardInterrupt):
        recalibrate_bn(model, images(6, 9))
    assert_same(before, snapshot(model))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mode", ["batch", "exact"])
def test_a_narrow_model_is_run_in_float32(dtype, mode):
    model = net(dtype)
    wide = copy.deepcopy(model).float()
    before = snapshot(model)
    seen = []
    model.conv2.register_forward_pre_hook(
        lambda module, args: seen.append((module.weight.dtype, args[0].dtype))
    )
    handles = snapshot(model)["hooks"]
    recalibrate_bn(model, [batch.to(dtype) for batch in images(6, 9)], mode=mode)
    assert set(seen) == {(torch.float32, torch.float32)}
    assert_same(before | {"hooks": handles}, snapshot(model), except_statistics=True)
    recalibrate_bn(wide, [batch.to(dtype) for batch in images(6, 9)], mode=mode)
    for name, tensor in statistics(model).items():
        assert tensor.dtype == dtype
        assert torch.equal(tensor, wide.state_dict()[name].to(dtype)), name


def test_another_type_can_be_asked_for():
    model, wide = net(), net(torch.float64)
    recalibrate_bn(model, images(6, 9), dtype=torch.float64)
    recalibrate_bn(wide, images(6, 9))  # the batches become float64 with the model
    for name, tensor in statistics(model).items():
        assert torch.equal(tensor, wide.state_dict()[name].float()), name


def test_statistics_that_do_not_fit_the_buffers_are_refused():
    model = nn.Sequential(nn.BatchNorm1d(2)).half()
    batches = [torch.randn(50, 2) * 1000]
    before = snapshot(model)
    with pytest.raises(DataError, match="layer '0' do not fit into float16"):
        recalibrate_bn(model, batches)
    assert_same(before, snapshot(model))


def test_mixed_types_are_left_as_they_are():
    model = nn.Sequential(nn.BatchNorm1d(2).double(), nn.Flatten())
    model.add_module("2", nn.Linear(2, 1))
    seen = []
    recalibrate_bn(
        model,
        [torch.randn(9, 2, dtype=torch.float64)],
        forward=lambda model, batch: seen.append(model[0](batch)),
    )
    assert seen[0].dtype == torch.float64


@pytest.mark.parametrize("size", [4, 64, 500])
def test_sorted_data_give_the_truth_and_update_bn_does_not(size):
    # Ten classes of different means, one after the other.
    values = torch.randn(500, 3, generator=torch.Generator().manual_seed(0)) * 0.5
    values += torch.arange(500).div(50, rounding_mode="floor").unsqueeze(1)
    truth = values.double().var(0)
    model, torchs = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    recalibrate_bn(model, values.split(size))
    torch.testing.assert_close(model.running_var.double(), truth, rtol=1e-6, atol=0)
    update_bn(values.split(size), torchs)
    if size == 4:
        assert float((torchs.running_var / truth).max()) < 0.05
    torch.testing.assert_close(model.running_mean.double(), values.double().mean(0), rtol=1e-6, atol=0)


def test_a_ragged_last_batch_weighs_what_it_holds():
    model = nn.BatchNorm1d(1)
    values = torch.cat([torch.randn(512, 1), torch.randn(8, 1) + 3])
    recalibrate_bn(model, values.split(64))
    assert float(model.running_mean) == pytest.approx(float(values.mean()), abs=1e-6)


def test_a_last_single_sample_is_not_lost():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    values = torch.randn(9, 2)
    report = recalibrate_bn(model, values.split(4))
    assert (report.samples, report.batches) == (9, 2)
    with torch.no_grad():
        torch.testing.assert_close(model[1].running_mean, model[0](values).mean(0))


@pytest.mark.parametrize("kind", [nn.SyncBatchNorm, nn.BatchNorm2d, nn.BatchNorm3d])
@pytest.mark.parametrize("momentum", [None, 0.0, 0.5])
def test_all_kinds_are_recalibrated_whatever_their_momentum(kind, momentum):
    model = kind(3, momentum=momentum, affine=False)
    values = torch.randn(6, 3, 2, 4, 3)[..., : 3 if kind is not nn.BatchNorm2d else 1].squeeze(-1)
    recalibrate_bn(model, [values])
    torch.testing.assert_close(model.running_var, values.transpose(0, 1).flatten(1).var(1))
    assert model.momentum == momentum


@pytest.mark.parametrize("mode", MODES)
def test_batches_may_be_tuples_and_mappings(mode):
    batches = images(6, 9)
    expected = net()
    recalibrate_bn(expected, batches, mode=mode)
    forms = [
        ([(batch, torch.zeros(len(batch))) for batch in batches], None),
        ([[batch, "name"] for batch in batches], None),
        ([{"x": batch} for batch in batches], None),
        ([{"image": batch, "n": 3} for batch in batches], lambda model, batch: model(batch["image"])),
    ]
    for form, forward in forms:
        model = net()
        recalibrate_bn(model, form, mode=mode, forward=forward)
        assert all(torch.equal(t, expected.state_dict()[name]) for name, t in statistics(model).items())


@pytest.mark.parametrize("mode", MODES)
def test_layers_that_are_not_reached_keep_their_statistics(mode):
    model = nn.ModuleDict({"used": nn.BatchNorm1d(2), "head": nn.BatchNorm1d(2)})
    model.head.running_mean.fill_(7)
    model.head.num_batches_tracked.fill_(5)
    report = recalibrate_bn(
        model, [torch.randn(8, 2)], mode=mode, forward=lambda model, batch: model["used"](batch)
    )
    assert report.unreached == ("head",)
    assert "no batch reached" in report.warnings[0]
    assert model.head.running_mean.tolist() == [7, 7]
    assert int(model.head.num_batches_tracked) == 5


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("skip", [[], ["*"]])
def test_without_layers_nothing_is_read(mode, skip):
    class Untouchable:
        def __iter__(self):
            raise AssertionError

    model = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1) if skip else nn.LayerNorm(1))
    report = recalibrate_bn(model, Untouchable(), mode=mode, skip=skip)
    assert report.layers == ()
    assert report.passes == report.samples == 0
    assert list(report.untouched) == ["1"]
    assert "nothing to recalibrate" in report.warnings[0]
    assert "skipped" in report.warnings[0] if skip else "no layers" in report.warnings[0]


@pytest.mark.parametrize("mode", MODES)
def test_no_data_is_an_error_and_changes_nothing(mode):
    model = net()
    before = snapshot(model)
    with pytest.raises(DataError, match="no samples"):
        recalibrate_bn(model, [], mode=mode)
    assert_same(before, snapshot(model))


def test_a_single_value_has_no_statistics():
    model = nn.Sequential(nn.BatchNorm1d(2))
    for mode, match in (("batch", r"layer '0' .*\(batch 1\).*larger batches"), ("exact", "in all the data")):
        with pytest.raises(DataError, match=match):
            recalibrate_bn(model, [torch.zeros(1, 2)], mode=mode)
    with pytest.raises(DataError, match=r"layer '0' .*batch 2"):
        recalibrate_bn(model, [torch.zeros(3, 2), torch.zeros(1, 2)], mode="torch")
    for mode in MODES:
        with pytest.raises(DataError, match=r"layer '0' .*single value"):
            recalibrate_bn(
                nn.Sequential(nn.InstanceNorm1d(2, track_running_stats=True)),
                [torch.zeros(4, 2, 1)],
                mode=mode,
            )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_data_that_are_not_finite_are_told_with_their_batch(mode, bad):
    model = net()
    batches = images(6, 9, 4)
    batches[1][3, 1, 2, 2] = bad
    before = snapshot(model)
    with pytest.raises(
        DataError, match=r"batch 2 of the data \(shape \(9, 2, 5, 5\) and dtype float32\) .*NaN"
    ):
        recalibrate_bn(model, batches, mode=mode)
    assert_same(before, snapshot(model))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("raises", [False, True])
def test_activations_that_are_not_finite_are_told_with_their_layer(mode, raises):
    class Log(nn.Module):
        def forward(self, x):
            return (x + 100).log()

    class Check(nn.Module):
        def forward(self, x):
            if raises and not bool(x.isfinite().all()):
                raise ValueError("not finite")
            return x

    model = nn.Sequential(nn.BatchNorm1d(2), Log(), nn.BatchNorm1d(2), Check(), nn.BatchNorm1d(2))
    # Mode exact normalises by statistics of all batches, so that the outlier must be one of many.
    batches = [torch.randn(64, 2), torch.randn(100_000, 2)]
    batches[1][0, 0] = -1e6
    before = snapshot(model)
    # In mode exact the model objects in the first pass, in which later layers are not looked at yet.
    itself = raises and mode == "exact"
    match = "makes it raise ValueError: not finite" if itself else "of layer '2' NaN or Inf"
    with pytest.raises(MismatchError if itself else DataError, match=rf"batch 2 .*{match}"):
        recalibrate_bn(model, batches, mode=mode)
    assert_same(before, snapshot(model))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "bad", [torch.zeros(4, 3, 5, 5), torch.zeros(4, 2), torch.zeros(4, 2, 5, 5, dtype=torch.uint8)]
)
def test_data_that_do_not_fit_the_model_are_told(mode, bad):
    model = net()
    before = snapshot(model)
    shape = str(tuple(bad.shape)).replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(
        MismatchError, match=rf"does not take the data: batch 2 \(shape {shape} and dtype"
    ) as caught:
        recalibrate_bn(model, [*images(6), bad], mode=mode)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert_same(before, snapshot(model))


@pytest.mark.parametrize("mode", MODES)
def test_layers_say_themselves_what_they_do_not_take(mode):
    with pytest.raises(MismatchError, match="expected 4D input"):
        recalibrate_bn(nn.Sequential(nn.BatchNorm2d(2)), [torch.zeros(4, 2)], mode=mode)
    with pytest.raises(MismatchError, match="running_mean should contain 3 elements"):
        recalibrate_bn(nn.Sequential(nn.BatchNorm1d(2)), [torch.zeros(4, 3)], mode=mode)


def test_lack_of_memory_on_a_device_is_the_systems_failure():
    def forward(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(OutputError, match=r"no memory left for batch 1 .*smaller batches"):
        recalibrate_bn(net(), images(4), forward=forward)


def test_requests_that_make_no_sense_are_refused():
    model, data = net(), images(4)
    for options, match in [
        ({"mode": "train"}, "unknown mode 'train': choose one of"),
        ({"tolerance": 0.0}, "greater than 0"),
        ({"tolerance": math.nan}, "greater than 0"),
        ({"tolerance": 0.1, "mode": "torch"}, "uses all data"),
        ({"tolerance": 0.1, "ranks": Ranks(0, 2)}, "single process"),
        ({"mode": "torch", "ranks": Ranks(0, 2)}, "single process"),
        ({"dtype": torch.int64}, "floating"),
        ({"device": "nowhere"}, "device 'nowhere' cannot be used"),
        ({"skip": ["nothing"]}, "matches no layer"),
    ]:
        before = snapshot(model)
        with pytest.raises(UsageError, match=match):
            recalibrate_bn(model, data, **options)
        assert_same(before, snapshot(model))
    with pytest.raises(UsageError, match=r"give its \.module"):
        recalibrate_bn(nn.DataParallel(model), data)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_torchscript_is_refused():
    with pytest.raises(UsageError, match="TorchScript"):
        recalibrate_bn(torch.jit.script(nn.Sequential(nn.BatchNorm1d(2))), [torch.zeros(4, 2)])


def test_progress_is_told():
    told, passes_told = [], []
    recalibrate_bn(net(), images(6, 9), on_progress=told.append, on_passes=passes_told.append)
    assert told == [Progress(1, 1, 6), Progress(1, 1, 15)]
    assert passes_told == [1]


def test_shared_layers_pool_all_uses():
    model = nn.ModuleDict({"bn": nn.BatchNorm1d(2)})
    x = torch.randn(10, 2)
    report = recalibrate_bn(
        model, [x], forward=lambda model, batch: (model["bn"](batch), model["bn"](batch + 5))
    )
    torch.testing.assert_close(model.bn.running_var, torch.cat([x, x + 5]).var(0))
    assert report.layers[0].uses == 2
    assert report.layers[0].values == 20


def test_inputs_without_a_batch_dimension():
    model = nn.Sequential(nn.InstanceNorm1d(2, track_running_stats=True))
    x = torch.randn(2, 9)
    recalibrate_bn(model, [x])
    torch.testing.assert_close(model[0].running_mean, x.mean(1))


def test_a_pass_ends_when_the_tolerance_is_met():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2), nn.BatchNorm1d(2))
    data = list(torch.randn(4000, 3).split(10))
    for mode in ("batch", "exact"):
        report = recalibrate_bn(model, data, mode=mode, tolerance=0.1)
        assert 50 <= report.samples < 1000
        assert report.samples == report.batches * 10
        for layer in report.layers:
            assert max(layer.mean_error, layer.variance_error) <= 0.1
            assert layer.values == layer.batches * 10
    loose = recalibrate_bn(model, data, tolerance=100.0)
    assert loose.samples == passes_minimum()
    strict = recalibrate_bn(model, data[:20], tolerance=1e-9)
    assert strict.samples == 200
    assert strict.layers[0].mean_error > 1e-9


def passes_minimum():
    from swatool.batchnorm import taking

    return taking.MIN_SAMPLES


def test_uses_of_one_sample_do_not_count_as_samples():
    model = nn.ModuleDict({"bn": nn.BatchNorm1d(2)})
    data = list(torch.randn(300, 2).split(10))
    plain = recalibrate_bn(model, data, tolerance=1e-9, forward=lambda model, batch: model["bn"](batch))
    thrice = recalibrate_bn(
        model, data, tolerance=1e-9, forward=lambda model, batch: [model["bn"](batch) for _ in range(3)]
    )
    steps = recalibrate_bn(
        model, data, tolerance=1e-9, forward=lambda model, batch: model["bn"](batch.repeat_interleave(5, 0))
    )
    for report in (thrice, steps):
        assert report.layers[0].mean_error == pytest.approx(plain.layers[0].mean_error, rel=0.02)
        assert report.layers[0].variance_error == pytest.approx(plain.layers[0].variance_error, rel=0.02)


def test_it_works_in_inference_mode_and_with_inference_tensors():
    with torch.inference_mode():
        model = net()
        recalibrate_bn(model, images(6, 9))
    expected = net()
    recalibrate_bn(expected, images(6, 9))
    other = net()
    with torch.inference_mode():
        recalibrate_bn(other, images(6, 9))
        frozen = net()
    recalibrate_bn(frozen, images(6, 9))
    for name, tensor in statistics(expected).items():
        assert torch.equal(tensor, model.state_dict()[name])
        assert torch.equal(tensor, other.state_dict()[name])
        assert torch.equal(tensor, frozen.state_dict()[name])


def test_buffers_that_lie_in_one_memory_are_kept():
    model = nn.ModuleDict({"a": nn.BatchNorm1d(2), "b": nn.BatchNorm1d(2)})
    model.b._buffers["running_mean"] = model.a.running_mean
    model.register_buffer("wide", torch.zeros(1).expand(5))
    recalibrate_bn(model, [torch.randn(9, 2)], forward=lambda model, batch: model["a"](batch))
    assert model.a.running_mean is model.b.running_mean
    assert model.wide.stride() == (0,)


def test_the_watch_protocol_is_small():
    assert {name for name in vars(passes.Watch) if not name.startswith("_")} == {"begin", "end", "settled"}


def test_one_text_is_no_sequence_of_patterns():
    with pytest.raises(UsageError, match="skip must be a sequence"):
        recalibrate_bn(nn.BatchNorm1d(2), [torch.rand(4, 2)], skip="*1")
