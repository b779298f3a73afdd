"""The whole job on small models: what is written, what is left as it was, and what is refused."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from torch.optim.swa_utils import update_bn

import swatool
from swatool.errors import (
    CheckpointError,
    DataError,
    MismatchError,
    OutputError,
    SettingError,
    SwatoolError,
    UsageError,
)
from swatool.jobs.recalibrate_settings import default_output

SOURCE = """
import torch
from torch import nn


def build(width=4):
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout(0.5),
        nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(),
        nn.Linear(width * 36, 5), nn.BatchNorm1d(5),
    )


def images():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(50, 3, 6, 6, generator=generator) * torch.arange(1, 51).view(-1, 1, 1, 1) / 25


def loader():
    return images().split(16)


def shuffled():
    return images()[torch.randperm(50)].split(16)


def pairs():
    return [(batch, torch.zeros(len(batch))) for batch in loader()]


def mappings():
    return [{"input": batch} for batch in loader()]


def nothing():
    return []


def one():
    return [images()[:1]]


def poisoned():
    batches = [batch.clone() for batch in loader()]
    batches[1][3, 1] = float("nan")
    return batches


def exploding():
    return [batch * 1e30 for batch in loader()]


def grey():
    return [batch[:, :1] for batch in loader()]


def raising():
    yield loader()[0]
    raise OSError("the share is gone")


def plain():
    return nn.Sequential(nn.Flatten(), nn.Linear(108, 2))


def half_reached():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.spare = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

        def forward(self, x):
            return self.used(x)

    return Net()


def doubled(model, batch):
    model(batch * 2)


def variance(model):
    return model[1].running_var.mean()


def scores(model):
    return {"accuracy": float(model[1].running_var[0]), "loss": 2}


def text(model):
    return "good"


def broken(model):
    raise ZeroDivisionError("no images")
"""


@pytest.fixture(autouse=True)
def work(tmp_path, monkeypatch):
    """A folder with a model, data and a checkpoint whose statistics are wrong."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(SOURCE)
    torch.manual_seed(0)
    model = load("build")()
    for layer in model:
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            layer.running_mean.uniform_(-1, 1)
            layer.running_var.uniform_(0.5, 2)
            layer.num_batches_tracked.fill_(77)
    torch.save({"model": model.state_dict(), "step": 9}, "averaged.pt")
    return tmp_path


def load(name):
    space = {}
    exec(SOURCE, space)
    return space[name]


def built(name="build"):
    model = load(name)()
    model.load_state_dict(torch.load("averaged.pt", weights_only=True)["model"])
    return model


def recalibrate(**options):
    options = {"model": "mine.py:build", "data": "mine.py:loader", **options}
    checkpoint = options.pop("checkpoint", "averaged.pt")
    output = os.path.splitext(os.path.basename(checkpoint))[0] + "-bn.safetensors"
    return swatool.recalibrate_checkpoint(checkpoint, **{"output": output, **options})


STATISTICS = [f"{layer}.{name}" for layer in (1, 5, 9) for name in ("running_mean", "running_var")]
COUNTS = [f"{layer}.num_batches_tracked" for layer in (1, 5, 9)]


def test_everything_but_the_statistics_is_as_it_was():
    report = recalibrate()
    before, after = (
        torch.load("averaged.pt", weights_only=True)["model"],
        load_file("averaged-bn.safetensors"),
    )
    assert set(before) == set(after)
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert sorted(changed) == sorted([*STATISTICS, *COUNTS])
    assert all(after[name] == 4 for name in COUNTS)
    assert report.output.path == "averaged-bn.safetensors"
    assert report.output.bytes == os.path.getsize("averaged-bn.safetensors")
    assert (report.batchnorm.samples, report.batchnorm.batches, report.batchnorm.passes) == (50, 4, 1)
    assert report.layers == ("1", "5", "9")
    assert set(os.listdir()) - {"__pycache__"} == {"averaged-bn.safetensors", "averaged.pt", "mine.py"}


def test_a_folder_of_shards_is_recalibrated_like_a_file():
    swatool.average(["averaged.pt"] * 2, "averaged/", max_shard_size="1KB", allow_duplicates=True)
    assert len(os.listdir("averaged")) > 3
    recalibrate()
    report = recalibrate(checkpoint="averaged/", output="of-folder.safetensors")
    assert report.checkpoint.path == "averaged/"
    found, expected = load_file("of-folder.safetensors"), load_file("averaged-bn.safetensors")
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-7)


def test_torch_mode_is_update_bn():
    torch.manual_seed(5)
    recalibrate(mode="torch")
    torch.manual_seed(5)
    reference = built()  # draws random numbers, as there
    update_bn(load("loader")(), reference)
    found = load_file("averaged-bn.safetensors")
    for name in STATISTICS + COUNTS:
        assert torch.equal(found[name], reference.state_dict()[name]), name


def test_batch_mode_pools_over_all_batches():
    recalibrate()
    found = load_file("averaged-bn.safetensors")
    first = built()[0](load("images")()).double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(found["1.running_mean"], first.mean(1).float(), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(found["1.running_var"], first.var(1).float(), rtol=1e-6, atol=0)


def test_exact_mode_gives_what_inference_sees():
    report = recalibrate(mode="exact")
    assert report.batchnorm.passes == 3
    model = built()
    model.load_state_dict(load_file("averaged-bn.safetensors"))
    model.eval()
    values = load("images")()
    with torch.no_grad():
        for layer in model:
            if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
                pooled = values.double().transpose(0, 1).flatten(1)
                torch.testing.assert_close(layer.running_mean, pooled.mean(1).float(), rtol=1e-5, atol=1e-6)
                torch.testing.assert_close(layer.running_var, pooled.var(1).float(), rtol=1e-5, atol=0)
            values = layer(values)


@pytest.mark.parametrize("data", ["pairs", "mappings"])
def test_all_kinds_of_batches(data):
    recalibrate(output="plain.safetensors")
    recalibrate(output="other.safetensors", data=f"mine.py:{data}")
    plain, other = load_file("plain.safetensors"), load_file("other.safetensors")
    assert all(torch.equal(plain[name], other[name]) for name in plain)


def test_arrays():
    numpy = pytest.importorskip("numpy")
    images = load("images")()
    numpy.savez("images.npz", x=images.numpy())
    recalibrate(output="loader.safetensors")
    report = recalibrate(output="array.safetensors", data="images.npz:x", batch_size=16, shuffle=False)
    loader, array = load_file("loader.safetensors"), load_file("array.safetensors")
    assert all(torch.equal(loader[name], array[name]) for name in loader)
    assert report.data.samples == 50


def test_a_function_in_place_of_the_model():
    recalibrate(output="plain.safetensors", mode="exact")
    recalibrate(output="doubled.safetensors", mode="exact", forward="mine.py:doubled")
    plain, doubled = load_file("plain.safetensors"), load_file("doubled.safetensors")
    bias = built()[0].bias.detach()
    torch.testing.assert_close(doubled["1.running_mean"] - bias, 2 * (plain["1.running_mean"] - bias))


def test_arguments_of_the_factory():
    with pytest.raises(MismatchError) as caught:
        recalibrate(model_arguments={"width": 5})
    assert "'0.weight' has shape [4, 3, 3, 3] in the checkpoint, [5, 3, 3, 3] in the model" in str(
        caught.value
    )
    assert not os.path.exists("averaged-bn.safetensors")


def test_layers_that_are_skipped():
    report = recalibrate(skip=("5",))
    before, after = (
        torch.load("averaged.pt", weights_only=True)["model"],
        load_file("averaged-bn.safetensors"),
    )
    assert torch.equal(before["5.running_var"], after["5.running_var"])
    assert not torch.equal(before["9.running_var"], after["9.running_var"])
    assert report.layers == ("1", "9")


def test_bfloat16_checkpoint():
    state = {name: t.bfloat16() if t.is_floating_point() else t for name, t in built().state_dict().items()}
    torch.save(state, "narrow.pt")
    recalibrate(checkpoint="narrow.pt", output="narrow.safetensors")
    recalibrate(output="wide.safetensors")
    narrow, wide = load_file("narrow.safetensors"), load_file("wide.safetensors")
    for name, tensor in state.items():
        assert narrow[name].dtype is tensor.dtype
        if name not in STATISTICS + COUNTS:
            assert torch.equal(narrow[name], tensor)
    for name in STATISTICS:
        torch.testing.assert_close(narrow[name].float(), wide[name], rtol=2e-2, atol=2e-2)


def test_statistics_too_large_for_the_checkpoint(work):
    state = {name: t.half() if t.is_floating_point() else t for name, t in built().state_dict().items()}
    torch.save(state, "narrow.pt")
    (work / "big.py").write_text(SOURCE + "\n\ndef loader():\n    return (images() * 1e4).split(16)\n")
    with pytest.raises(DataError, match=r"'1.running_var' has a value that is too large for float16"):
        recalibrate(checkpoint="narrow.pt", data="big.py:loader")
    assert not os.path.exists("narrow-bn.safetensors")


def metadata(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


def test_says_in_the_file_what_was_done():
    torch.save(built().state_dict(), "other.pt")
    swatool.average(["averaged.pt", "other.pt"], "mean.safetensors")
    recalibrate(checkpoint="mean.safetensors")
    found = metadata("mean-bn.safetensors")
    assert found["format"] == "pt"
    told = json.loads(found["swatool"])
    assert told["method"] == "swa"
    assert {one["name"] for one in told["sources"]} == {"averaged.pt", "other.pt"}
    assert told["recalibrated"] == {
        "model": "mine.py:build",
        "data": "mine.py:loader",
        "mode": "batch",
        "samples": 50,
        "batches": 4,
        "layers": ["1", "5", "9"],
    }


def test_hints_at_layers_that_were_frozen_in_training():
    state = built().state_dict()
    torch.save(state, "other.pt")
    state["5.running_mean"] += 1
    torch.save(state, "another.pt")
    swatool.average(["other.pt", "another.pt"], "mean.safetensors")
    assert json.loads(metadata("mean.safetensors")["swatool"])["frozen_statistics"] == ["1", "9"]
    report = recalibrate(checkpoint="mean.safetensors")
    (hint,) = [warning for warning in report.warnings if "frozen" in warning]
    assert hint.startswith("2 layers had the same statistics in all averaged checkpoints")
    assert not any("frozen" in warning for warning in recalibrate(skip=("1", "9")).warnings)


def test_the_input_may_be_anything_that_average_reads(work):
    state = {f"module.{name}": tensor for name, tensor in built().state_dict().items()}
    torch.save({"epoch": 3, "ema": {"weights": state}, "optimizer": {"lr": 1.0}}, "nested.pt")
    recalibrate(checkpoint="nested.pt", key="ema.weights")
    recalibrate()
    assert (work / "nested-bn.safetensors").read_bytes() == (work / "averaged-bn.safetensors").read_bytes()


@pytest.mark.parametrize("output", [None, "x.pth.tar", "folder/", "x.ckpt"])
def test_the_output_has_the_format_that_its_name_tells(output):
    recalibrate()
    report = swatool.recalibrate_checkpoint(
        "averaged.pt", output, model="mine.py:build", data="mine.py:loader"
    )
    expected = load_file("averaged-bn.safetensors")
    if output == "folder/":
        found = load_file("folder/model.safetensors")
    else:
        found = torch.load(report.output.path, weights_only=True)
    assert report.output.path == output or (output is None and report.output.path == "averaged-bn.pt")
    assert report.output.format == ("hf" if output == "folder/" else "pt")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("output", "said"), [("x.onnx", "a format that is not written"), ("averaged.pt/", "not a folder")]
)
def test_names_that_do_not_fit(output, said):
    with pytest.raises(UsageError, match=said):
        recalibrate(output=output)


def test_a_module_under_two_names(work):
    (work / "shared.py").write_text(
        SOURCE
        + """

def twice():
    norm = nn.BatchNorm2d(3)
    return nn.ModuleDict({"a": norm, "b": norm})


def run(model, batch):
    model["a"](batch)
"""
    )
    norm = nn.BatchNorm2d(3)
    torch.save(nn.ModuleDict({"a": norm, "b": norm}).state_dict(), "two.pt")
    recalibrate(checkpoint="two.pt", model="shared.py:twice", forward="shared.py:run")
    found = load_file("two-bn.safetensors")
    expected = load("images")().double().transpose(0, 1).flatten(1).mean(1).float()
    for name in ("a.running_mean", "b.running_mean"):
        torch.testing.assert_close(found[name], expected, rtol=1e-6, atol=1e-7)


def test_a_model_without_layers_is_copied():
    model = load("plain")()
    torch.save(model.state_dict(), "plain.pt")
    report = recalibrate(checkpoint="plain.pt", model="mine.py:plain")
    assert report.layers == ()
    assert any("no " in warning for warning in report.warnings)
    found = load_file("plain-bn.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in model.state_dict().items())
    with pytest.raises(MismatchError, match="no layer"):
        recalibrate(checkpoint="plain.pt", model="mine.py:plain", strict=True, overwrite=True)


def test_layers_that_are_not_reached():
    torch.save(load("half_reached")().state_dict(), "half.pt")
    report = recalibrate(checkpoint="half.pt", model="mine.py:half_reached")
    assert report.batchnorm.unreached == ("spare",)
    assert any("spare" in warning for warning in report.warnings)
    with pytest.raises(MismatchError, match="does not reach 1 layers") as caught:
        recalibrate(checkpoint="half.pt", model="mine.py:half_reached", strict=True, output="x")
    assert caught.value.differences == ("'spare'",)
    assert not os.path.exists("x")


def test_numbers_before_and_after():
    report = recalibrate(evaluate="mine.py:variance")
    assert report.before == {"variance": pytest.approx(built()[1].running_var.mean().item())}
    found = load_file("averaged-bn.safetensors")["1.running_var"].mean().item()
    assert report.after == {"variance": pytest.approx(found)}
    assert not any("worse" in warning for warning in report.warnings)


@pytest.mark.parametrize("higher", [True, False])
def test_says_so_if_it_got_worse(higher):
    report = recalibrate(evaluate="mine.py:scores", higher_is_better=higher)
    rose = report.after["accuracy"] > report.before["accuracy"]
    worse = [warning for warning in report.warnings if "worse" in warning]
    assert len(worse) == (rose is not higher)
    assert all("'accuracy'" in warning for warning in worse)


def test_dry_run_writes_and_runs_nothing():
    report = recalibrate(dry_run=True, data="mine.py:raising")
    assert (report.dry_run, report.layers, report.batchnorm) == (True, ("1", "5", "9"), None)
    assert not os.path.exists("averaged-bn.safetensors")


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"data": "mine.py:nothing"}, DataError, ""),
        ({"data": "mine.py:one"}, DataError, "9"),
        ({"data": "mine.py:poisoned"}, DataError, "batch 2"),
        ({"data": "mine.py:exploding"}, DataError, "layer '1'"),
        ({"data": "mine.py:grey"}, MismatchError, "batch 1"),
        ({"data": "mine.py:raising"}, UsageError, "the share is gone"),
        ({"data": "missing.npy"}, DataError, "missing.npy"),
        ({"data": "nonsense"}, UsageError, "no known form"),
        ({"model": "mine.py:absent"}, UsageError, "absent"),
        ({"checkpoint": "missing.pt"}, CheckpointError, "missing.pt"),
        ({"evaluate": "mine.py:text"}, UsageError, "returned 'str'"),
        ({"evaluate": "mine.py:broken"}, UsageError, "ZeroDivisionError: no images"),
        ({"forward": "mine.py:SOURCE"}, UsageError, "SOURCE"),
        ({"mode": "fast"}, SettingError, "--mode"),
        ({"dtype": "int8"}, SettingError, "--dtype"),
        ({"tolerance": 0.0}, SettingError, "--tolerance"),
        ({"tolerance": 0.1, "mode": "torch"}, UsageError, "--tolerance"),
        ({"higher_is_better": True}, UsageError, "--eval"),
        ({"skip": ("head*",)}, UsageError, "head"),
        ({"skip": "5"}, UsageError, "skip"),
        ({"device": "tpu"}, SettingError, "--device"),
        ({"output": "no/folder/x"}, OutputError, "no/folder"),
        ({"output": "averaged.pt", "overwrite": True}, UsageError, "one of the inputs"),
        ({"output": "mine.py"}, UsageError, "one of the inputs"),
    ],
    ids=str,
)
def test_what_is_refused_leaves_nothing_behind(work, options, error, said):
    before = {name: (work / name).read_bytes() for name in ("averaged.pt", "mine.py")}
    with pytest.raises(SwatoolError) as caught:
        recalibrate(**options)
    assert type(caught.value) is error, caught.value
    assert said in str(caught.value)
    assert {name: (work / name).read_bytes() for name in os.listdir() if name != "__pycache__"} == before


@pytest.mark.parametrize(
    ("checkpoint", "output"),
    [
        ("run/averaged.safetensors", "averaged-bn.safetensors"),
        ("a.pt", "a-bn.pt"),
        ("model.v1.ckpt", "model.v1-bn.ckpt"),
        ("best.pth.tar", "best-bn.pth.tar"),
        ("plain", "plain-bn.safetensors"),
        ("run/checkpoint-1.5/", "checkpoint-1.5-bn.safetensors"),
    ],
)
def test_default_output(tmp_path, monkeypatch, checkpoint, output):
    monkeypatch.chdir(tmp_path)
    os.makedirs("run/checkpoint-1.5")
    assert default_output(checkpoint) == output
    monkeypatch.chdir("run/checkpoint-1.5")
    assert default_output(".") == "checkpoint-1.5-bn.safetensors"


# A loader that shuffles must give all processes the same order, or some samples count twice and others never.
@pytest.mark.parametrize(("mode", "data"), [("batch", "loader"), ("exact", "loader"), ("exact", "shuffled")])
def test_several_processes_give_the_same(mode, data):
    recalibrate(mode=mode, data=f"mine.py:{data}", output="one.safetensors", dtype="float64")
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"),
        *("--no-python", sys.executable, "-W", "ignore", "-m", "swatool", "recalibrate-bn", "averaged.pt"),
        *("--model", "mine.py:build", "--data", f"mine.py:{data}", "--mode", mode, "--dtype", "float64"),
        *("-o", "two.safetensors"),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("wrote 'two.safetensors'") == 1
    one, two = load_file("one.safetensors"), load_file("two.safetensors")
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-6, atol=1e-7)


MEDDLING = '''

def meddling(model):
    """What an evaluation in a training script may do to a model and to torch."""
    torch.rand(3)
    model.train()
    model(images())
    model.half()
    return 1.0


def leaving(model):
    raise SystemExit(0)
'''


def test_an_evaluation_changes_nothing_that_is_written(work):
    (work / "meddling.py").write_text(SOURCE + MEDDLING)
    recalibrate(output="plain.safetensors")
    report = recalibrate(output="evaluated.safetensors", evaluate="meddling.py:meddling")
    plain, evaluated = load_file("plain.safetensors"), load_file("evaluated.safetensors")
    assert all(torch.equal(plain[name], evaluated[name]) for name in plain)
    assert report.before == report.after == {"meddling": 1.0}


def test_an_evaluation_that_leaves_is_a_failure(work):
    (work / "meddling.py").write_text(SOURCE + MEDDLING)
    with pytest.raises(UsageError, match="SystemExit: 0"):
        recalibrate(evaluate="meddling.py:leaving")
    assert not os.path.exists("averaged-bn.safetensors")


@pytest.mark.parametrize("name", ["mine.py", "images.safetensors"])
def test_model_and_data_are_not_written_over(work, name):
    pytest.importorskip("numpy")
    from safetensors.torch import save_file

    save_file({"x": load("images")()}, "images.safetensors")
    before = (work / name).read_bytes()
    with pytest.raises(UsageError, match="one of the inputs"):
        recalibrate(output=name, data="images.safetensors:x", overwrite=True)
    assert (work / name).read_bytes() == before


@pytest.mark.parametrize("option", ["forward", "evaluate"])
def test_a_missing_function_is_found_before_anything_runs(option):
    with pytest.raises(UsageError, match="absent"):
        recalibrate(dry_run=True, **{option: "mine.py:absent"})
