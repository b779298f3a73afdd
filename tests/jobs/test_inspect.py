import json
import math
import pathlib
import pickle
import zipfile

import pytest
import safetensors.torch
import torch
from torch import nn

import swatool
from swatool.errors import CheckpointError, MismatchError, UsageError
from swatool.jobs.inspect import Failure, InspectSettings, inspect_each


@pytest.fixture
def model():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 4, bias=False), nn.Linear(4, 4))
    net[3].weight = net[2].weight
    return net


@pytest.fixture
def training(model, tmp_path):
    """A checkpoint as training loops write them, by DistributedDataParallel, with an optimizer."""
    optimizer = torch.optim.Adam(model.parameters())
    sum(p.sum() for p in model.parameters()).backward()
    optimizer.step()
    state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    path = tmp_path / "ckpt.pt"
    torch.save(
        {"model": state, "optimizer": optimizer.state_dict(), "step": 700, "loss": 0.25, "note": "hello"},
        path,
    )
    return path


def test_a_training_checkpoint(training, model):
    report = swatool.inspect(training)
    assert (report.format, report.key, report.prefix) == ("torch zip", "model", "module.")
    assert (report.bytes, report.files) == (training.stat().st_size, 1)
    assert report.fields == {"step": 700, "loss": 0.25}
    state = model.state_dict()
    assert [one.name for one in report.tensors] == list(state)
    for one in report.tensors:
        tensor = state[one.name]
        assert (f"torch.{one.dtype}", one.shape) == (str(tensor.dtype), tuple(tensor.shape))
        assert (one.elements, one.bytes) == (tensor.numel(), tensor.nbytes)
        assert one.stats is None
    kinds = {one.name: one.kind for one in report.tensors}
    assert {name for name, kind in kinds.items() if kind == "BatchNorm buffer"} == {
        "1.running_mean",
        "1.running_var",
        "1.num_batches_tracked",
    }
    assert set(kinds.values()) == {"BatchNorm buffer", "parameter"}
    assert {one.name: one.tied_with for one in report.tensors if one.tied_with} == {"3.weight": "2.weight"}
    parameters = sum(p.numel() for p in model.parameters())
    assert report.kinds["parameter"] == (6, parameters, 4 * parameters)
    assert report.totals == (9, parameters + 9, 4 * parameters + 40)
    assert report.dtypes["int64"] == (1, 1, 8)
    assert [one for one in report.state_dicts if one.chosen] == [
        ("model", 10, 4 * (parameters + 8 + 16) + 8, True)
    ]


def test_kinds_that_are_no_parameters(tmp_path):
    state = {
        "ids": torch.arange(3),
        "mask": torch.ones(2, dtype=torch.bool),
        "alone.running_mean": torch.ones(2),
        "num_batches_tracked": torch.tensor(1),
        "running_mean": torch.ones(1),
        "running_var": torch.ones(1),
    }
    safetensors.torch.save_file(state, tmp_path / "a.safetensors")
    report = swatool.inspect(tmp_path / "a.safetensors")
    assert {one.name: one.kind for one in report.tensors} == {
        "ids": "integer",
        "mask": "bool",
        "alone.running_mean": "parameter",
        "num_batches_tracked": "BatchNorm buffer",
        "running_mean": "BatchNorm buffer",
        "running_var": "BatchNorm buffer",
    }
    assert report.key == ""


def test_several_state_dicts_are_no_error(tmp_path):
    one, two = {"w": torch.ones(3)}, {"w": torch.ones(5), "b": torch.ones(5)}
    torch.save({"generator": one, "discriminator": two, "step": 3}, tmp_path / "gan.pt")
    report = swatool.inspect(tmp_path / "gan.pt")
    assert (report.key, report.tensors, report.totals) == (None, (), (0, 0, 0))
    assert report.state_dicts == (("generator", 1, 12, False), ("discriminator", 2, 40, False))
    chosen = swatool.inspect(tmp_path / "gan.pt", key="discriminator")
    assert [t.name for t in chosen.tensors] == ["w", "b"]
    assert [one.chosen for one in chosen.state_dicts] == [False, True]
    with pytest.raises(CheckpointError, match="'critic'"):
        swatool.inspect(tmp_path / "gan.pt", key="critic")


def test_a_state_dict_beside_the_weights_only_is_no_error(tmp_path):
    torch.save({"optimizer": {"exp_avg": torch.ones(2)}}, tmp_path / "o.pt")
    report = swatool.inspect(tmp_path / "o.pt")
    assert (report.key, report.state_dicts) == (None, (("optimizer", 1, 8, False),))


def test_prefixes(training):
    assert swatool.inspect(training, keep_prefix=True).prefix == ""
    assert swatool.inspect(training, keep_prefix=True).tensors[0].name == "module.0.weight"
    with pytest.raises(MismatchError, match=r"'encoder\.'"):
        swatool.inspect(training, strip_prefix=("encoder.",))


def test_statistics(training, model):
    for one in swatool.inspect(training, stats=True, threads=1).tensors:
        values = model.state_dict()[one.name].double()
        assert one.stats.minimum == values.min().item()
        assert one.stats.norm == pytest.approx(torch.linalg.vector_norm(values).item(), rel=1e-12)


def test_the_json_is_json_and_complete(tmp_path):
    torch.save(
        {"model": {"w": torch.tensor([math.nan, 1.0])}, "loss": math.inf, "step": 1}, tmp_path / "a.pt"
    )
    report = swatool.inspect(tmp_path / "a.pt", stats=True)
    data = json.loads(json.dumps(report.as_json(), allow_nan=False))
    assert set(data) == {"schema", *type(report).__dataclass_fields__}
    assert (data["schema"], data["fields"]) == (1, {"loss": None, "step": 1})
    (tensor,) = data["tensors"]
    assert tensor["stats"] == {
        "minimum": 1.0,
        "maximum": 1.0,
        "mean": 1.0,
        "norm": 1.0,
        "nan": 1,
        "inf": 0,
    }
    assert data["dtypes"] == {"float32": {"tensors": 1, "elements": 2, "bytes": 8}}
    data = swatool.inspect(tmp_path / "a.pt").as_json()
    assert "stats" not in data["tensors"][0]


def test_where_an_average_comes_from(tmp_path):
    for step in (9, 10):
        torch.save({"w": torch.ones(3)}, tmp_path / f"c-{step}.pt")
    swatool.average([tmp_path / "c-9.pt", tmp_path / "c-10.pt"], tmp_path / "avg.safetensors")
    provenance = swatool.inspect(tmp_path / "avg.safetensors").provenance
    assert provenance["method"] == "swa"
    assert [one["step"] for one in provenance["sources"]] == [9, 10]
    assert swatool.inspect(tmp_path / "c-9.pt").provenance is None


@pytest.mark.parametrize("text", ["", "[1]", "{", "[" * 100_000, '"x"', "1" * 5000])
def test_what_claims_to_be_of_swatool_and_is_not(tmp_path, text):
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file({"w": torch.ones(1)}, path, {"swatool": text})
    assert swatool.inspect(path).provenance is None


def test_integers_that_cannot_be_printed_are_left_out(tmp_path):
    torch.save({"model": {"w": torch.ones(1)}, "step": 10**5000, "epoch": 3}, tmp_path / "a.pt")
    assert swatool.inspect(tmp_path / "a.pt").fields == {"epoch": 3}


class Canary:
    def __reduce__(self):
        return (pathlib.Path.touch, (pathlib.Path("canary"),))


def test_nothing_is_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": {"w": torch.ones(1)}}, "a.pt")
    with zipfile.ZipFile("a.pt") as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile("b.pt", "w") as archive:
        for name, data in records.items():
            archive.writestr(name, pickle.dumps(Canary(), 2) if name.endswith("data.pkl") else data)
    with pytest.raises(CheckpointError):
        swatool.inspect("b.pt")
    assert not pathlib.Path("canary").exists()


def test_each_is_inspected_also_after_a_bad_one(training, tmp_path):
    (tmp_path / "bad.pt").write_bytes(b"GGUF")
    given = [tmp_path / "none*", tmp_path / "bad.pt", training]
    nothing, bad, good = inspect_each(given, InspectSettings())
    assert isinstance(nothing, Failure)
    assert isinstance(bad, Failure)
    assert (bad.path, bad.error.exit_code) == (str(tmp_path / "bad.pt"), 3)
    assert "GGUF" in str(bad.error)
    assert good == swatool.inspect(training)


def test_a_folder_stands_for_the_files_in_it(training):
    (report,) = inspect_each([training.parent], InspectSettings())
    assert report.path == str(training)


def test_settings():
    with pytest.raises(UsageError, match="threads"):
        InspectSettings(threads=0)
    with pytest.raises(UsageError, match="strip_prefix"):
        InspectSettings(strip_prefix="a.")
    with pytest.raises(TypeError, match="not both"):
        swatool.inspect("x", settings=InspectSettings(), stats=True)


def test_files_are_closed(training, tmp_path):
    (tmp_path / "bad.pt").write_bytes(b"GGUF")
    before = len(list(pathlib.Path("/proc/self/fd").iterdir()))
    list(inspect_each([training, tmp_path / "bad.pt"], InspectSettings(stats=True)))
    assert len(list(pathlib.Path("/proc/self/fd").iterdir())) == before
