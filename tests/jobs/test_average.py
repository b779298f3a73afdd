import dataclasses
import json
import math
import os
import struct
from itertools import pairwise

import pytest
import safetensors
import safetensors.torch
import torch
from hostile import dcp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

import swatool
from swatool.averaging import blocks
from swatool.averaging.schemes import make_scheme
from swatool.errors import CheckpointError, MismatchError, OutputError, SwatoolError, UsageError
from swatool.jobs.average import DEFAULT_OUTPUT, AverageSettings, average
from swatool.output import publish
from swatool.tensors import DTYPES

FLOATS = ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"]
COMPLEX = ["complex64", "complex128"]
OTHERS = ["int64", "uint8", "int16", "bool"]
gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
DEVICES = ["cpu", pytest.param("cuda", marks=gpu)]
METHODS = [
    {},
    {"method": "ema", "decay": 0.8},
    {"method": "ema", "decay": 0.3, "debias": True},
    {"weights": (1.5, -0.7, 0.2)},
]


def raw(tensor):
    flat = tensor.detach().clone(memory_format=torch.contiguous_format).view(-1)
    return bytes(flat.view(torch.uint8).tolist())


def save(path, tensors, metadata=None):
    """Write tensors with torch.save, or as the safetensors format prescribes, by the name's suffix."""
    if path.suffix != ".safetensors":
        torch.save(tensors, path)
        return path
    header, data = {"__metadata__": metadata} if metadata else {}, b""
    for name, tensor in tensors.items():
        code = DTYPES[str(tensor.dtype).removeprefix("torch.")].code
        begin, data = len(data), data + raw(tensor)
        header[name] = {"dtype": code, "shape": list(tensor.shape), "data_offsets": [begin, len(data)]}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def load(path):
    """Load tensors with the libraries that the formats come from."""
    if path.suffix == ".safetensors":
        return safetensors.torch.load_file(path)
    return torch.load(path, weights_only=True)


def write_all(folder, state_dicts, suffix=".pt"):
    return [save(folder / f"ckpt-{step}{suffix}", some) for step, some in enumerate(state_dicts)]


def mean(folder, state_dicts, **options):
    """Average state dicts and return the result as safetensors loads it."""
    average(write_all(folder, state_dicts), folder / "out.safetensors", overwrite=True, **options)
    return load(folder / "out.safetensors")


def provenance(path):
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
    return json.loads(metadata["swatool"]), metadata


def wide(tensor):
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


def check_mean(found, rows, coefficients, sums="float32"):
    """Compare with float64 arithmetic: exact but for what rounding the sums can do before the last one."""
    scaled = [wide(row) * c for row, c in zip(rows, coefficients, strict=True)]
    exact = torch.stack(scaled).sum(0)
    if found.is_complex():
        found, exact = torch.view_as_real(found), torch.view_as_real(exact)
        scaled = [torch.view_as_real(row) for row in scaled]
    error = torch.finfo(getattr(torch, sums)).eps * (len(rows) + 1)
    slack = torch.stack(scaled).abs().sum(0) * error + 1e-44
    assert found.shape == exact.shape
    # Rounding is monotone; where both ends round to one value, it is the only right one.
    assert (found.double() >= (exact - slack).to(found.dtype).double()).all()
    assert (found.double() <= (exact + slack).to(found.dtype).double()).all()


def made(dtype, shape, form, generator):
    """Make a tensor of any type whose bytes lie in the file as its form says."""
    if form == "transposed":
        return made(dtype, shape[::-1], "plain", generator).permute(*reversed(range(len(shape))))
    if form == "sliced":
        return made(dtype, (*shape[:-1], 2 * shape[-1] + 1), "plain", generator)[..., 1::2]
    values = torch.randn(shape, generator=generator) * 3
    if dtype in COMPLEX:
        values = torch.complex(values, torch.randn(shape, generator=generator))
    values = (values > 0 if dtype == "bool" else values.abs() if dtype == "uint8" else values).to(
        getattr(torch, dtype)
    )
    return values.to(memory_format=torch.channels_last) if form == "channels_last" else values


SHAPES = [(), (0,), (1,), (7,), (3, 5), (5, 0, 2), (1, 1), (2, 3, 4, 5), (17, 33)]


@st.composite
def tensors(draw):
    """Draw the description of a tensor: dtype, shape and form."""
    dtype = draw(st.sampled_from([*FLOATS, *COMPLEX[:1], *OTHERS]))
    shape = draw(st.sampled_from(SHAPES))
    forms = [
        "plain",
        *(["transposed", "sliced"] if shape else []),
        *(["channels_last"] if len(shape) == 4 else []),
    ]
    return dtype, shape, draw(st.sampled_from(forms))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_result_is_the_float64_mean_rounded_once(tmp_path, suffix, device, data):
    described = data.draw(st.lists(tensors(), min_size=1, max_size=6))
    n = data.draw(st.integers(2, 9))
    seed = data.draw(st.integers(0, 1000))
    elements = data.draw(st.sampled_from([64, 4096, 10**6]))
    options = data.draw(st.sampled_from([{}, {"method": "ema", "decay": 0.6}, {"accumulate": "float64"}]))
    threads = data.draw(st.sampled_from([1, 2]))
    generator = torch.Generator().manual_seed(seed)
    states = [{f"t{i}": made(*one, generator) for i, one in enumerate(described)} for _ in range(n)]
    files = write_all(tmp_path, states, suffix)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(blocks, "LARGEST_BLOCK", elements)
        monkeypatch.setattr(blocks, "SMALLEST_BLOCK", 64)
        report = average(files, tmp_path / "o", overwrite=True, device=device, threads=threads, **options)
    found, loaded = safetensors.torch.load_file(tmp_path / "o"), [load(file) for file in files]
    assert set(found) == set(states[0])
    coefficients = [c.coefficient for c in report.checkpoints]
    for name, tensor in found.items():
        rows = [state[name] for state in loaded]
        assert tensor.dtype is rows[0].dtype
        assert tensor.shape == rows[0].shape
        if tensor.dtype.is_floating_point or tensor.is_complex():
            sums = options.get("accumulate") or ("float64" if tensor.dtype is torch.float64 else "float32")
            check_mean(tensor, rows, coefficients, sums)
        else:
            assert torch.equal(tensor, rows[-1])


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("dtype", ["same", "float32", "float16", "bfloat16"])
def test_each_method_and_type_of_the_output(tmp_path, method, dtype):
    generator = torch.Generator().manual_seed(5)
    types = [*FLOATS, *(COMPLEX if dtype != "same" else COMPLEX[:1])]
    states = [{name: made(name, (9, 11), "plain", generator) for name in types} for _ in range(3)]
    found = mean(tmp_path, states, dtype=dtype, **method)
    scheme = AverageSettings(**method).scheme()
    for name, tensor in found.items():
        written = name if dtype == "same" else "complex64" if name in COMPLEX else dtype
        assert tensor.dtype is getattr(torch, written)
        sums = "float64" if name in ("float64", "complex128") else "float32"
        check_mean(tensor, [state[name] for state in states], scheme.coefficients([0, 1, 2]), sums)


def test_last_rounding_is_to_the_nearest_even(tmp_path):
    """Every bfloat16 between 1 and 2, and the midpoints between them, against rounding by integers."""
    bits = torch.arange(0x3F80, 0x4000)
    lower = (bits << 16).to(torch.int32).view(torch.float32)
    upper = ((bits + 1) << 16).to(torch.int32).view(torch.float32)
    found = mean(tmp_path, [{"w": lower}, {"w": upper}], dtype="bfloat16")["w"]
    expected = [even if even % 2 == 0 else even + 1 for even in bits.tolist()]
    assert [struct.unpack("<H", raw(value))[0] for value in found] == expected


def test_types_of_the_inputs_may_differ_if_one_is_named_for_the_output(tmp_path):
    types = ["float32", "bfloat16", "float64", "float16"]
    values = torch.tensor([1.5, -2.0, 0.25])
    states = [{"w": (values * i).to(getattr(torch, dtype))} for i, dtype in enumerate(types)]
    assert torch.equal(mean(tmp_path, states, dtype="float32")["w"], values * 1.5)


def test_both_formats_give_the_same_bytes(tmp_path):
    generator = torch.Generator().manual_seed(1)
    types = [*FLOATS, "complex64", *OTHERS]
    states = [{name: made(name, (13, 5), "plain", generator) for name in types} for _ in range(3)]
    outputs = []
    for suffix in (".pt", ".safetensors"):
        output = tmp_path / f"out-of{suffix}.safetensors"
        average(write_all(tmp_path, states, suffix), output)
        content = output.read_bytes()
        outputs.append(content[8 + int.from_bytes(content[:8], "little") :])
    assert outputs[0] == outputs[1]


def network(seed):
    """A small model with BatchNorm, as training would leave it."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 9, 2))


def averaged_by_torch(models, **options):
    result = AveragedModel(models[0], use_buffers=True, **options)
    for model in models:
        result.update_parameters(model)
    return result.module.state_dict()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("decay", [None, 0.9, 0.5, 0.0, 1.0])
@pytest.mark.parametrize("device", DEVICES)
def test_result_is_torchs_averaged_model(tmp_path, suffix, decay, device):
    models = [network(seed) for seed in range(6)]
    for model in models:
        update_bn([torch.randn(8, 3, 5, 5)], model)
    method = {} if decay is None else {"method": "ema", "decay": decay}
    options = {} if decay is None else {"multi_avg_fn": get_ema_multi_avg_fn(decay)}
    expected = averaged_by_torch(models, **options)
    files = write_all(tmp_path, [model.state_dict() for model in models], suffix)
    average(files, tmp_path / "out.safetensors", device=device, **method)
    found = load(tmp_path / "out.safetensors")
    network(0).load_state_dict(found, strict=True)
    assert found.pop("1.num_batches_tracked") == 1
    for name, tensor in found.items():
        scale = torch.stack([model.state_dict()[name].abs() for model in models]).max(0).values
        assert ((tensor - expected[name]).abs() <= 1e-6 * scale + 1e-12).all(), name


def test_policies_are_carried_out(tmp_path):
    one = {"w": torch.zeros(2), "only": torch.ones(2), "n": torch.tensor(1), "bn": torch.zeros(1)}
    two = {"w": torch.full((2,), 4.0), "n": torch.tensor(2), "bn": torch.ones(1)}
    found = mean(tmp_path, [one, two], match="union", integers="first", exclude=("bn",))
    assert {name: tensor.tolist() for name, tensor in found.items()} == {
        "w": [2, 2],
        "only": [1, 1],
        "n": 1,
        "bn": [1],
    }
    found = mean(tmp_path, [one, two], match="intersection", integers="last", exclude=("b?", "w"))
    assert {name: tensor.tolist() for name, tensor in found.items()} == {"w": [4, 4], "n": 2, "bn": [1]}
    with pytest.raises(MismatchError, match="'only' is missing in"):
        mean(tmp_path, [one, two])
    with pytest.raises(MismatchError, match="--integers equal"):
        mean(tmp_path, [one, two], match="union", integers="equal")


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight


def test_tied_tensors_are_kept_or_dropped(tmp_path):
    models = [Tied() for _ in range(3)]
    files = write_all(tmp_path, [model.state_dict() for model in models])
    expected = torch.stack([model.embed.weight.detach() for model in models]).mean(0)
    report = average(files, tmp_path / "keep.safetensors")
    assert len(report.tensors.tied) == len(report.tensors.averaged) == 1
    found = load(tmp_path / "keep.safetensors")
    assert set(found) == {"embed.weight", "head.weight"}
    assert torch.equal(found["embed.weight"], found["head.weight"])
    assert torch.allclose(found["embed.weight"], expected, rtol=1e-6, atol=1e-7)
    assert report.bytes_written == (tmp_path / "keep.safetensors").stat().st_size
    average(files, tmp_path / "drop.safetensors", tied="drop")
    assert set(load(tmp_path / "drop.safetensors")) == {"embed.weight"}
    model = Tied()
    assert safetensors.torch.load_model(model, tmp_path / "drop.safetensors") == (set(), [])
    assert torch.equal(model.head.weight, found["embed.weight"])


def test_tied_name_that_is_excluded_alone_is_copied(tmp_path):
    states = []
    for value in (0.0, 2.0):
        weight = torch.full((3,), value)
        states.append({"a": weight, "b": weight})
    found = mean(tmp_path, states, exclude=("b",))
    assert found["a"].tolist() == [1, 1, 1]
    assert found["b"].tolist() == [2, 2, 2]


def test_tied_names_cannot_replace_what_the_output_says_of_itself(tmp_path):
    weight = torch.ones(2)
    files = write_all(tmp_path, [{"a": weight, "swatool": weight, "format": weight}] * 2)
    try:
        average(files, tmp_path / "out", tied="drop")
    except SwatoolError:
        return
    said, metadata = provenance(tmp_path / "out")
    assert said["method"] == "swa"
    assert metadata["format"] == "pt"


def test_keys_and_prefixes(tmp_path):
    weight = torch.ones(2)
    plain = [{"module.w": weight * i, "module.b": weight} for i in range(2)]
    assert set(mean(tmp_path, plain)) == {"w", "b"}
    assert set(mean(tmp_path, plain, keep_prefix=True)) == {"module.w", "module.b"}
    inner = [{"net.w": weight * i, "net.b": weight} for i in range(2)]
    assert set(mean(tmp_path, inner, strip_prefix=("net.",))) == {"w", "b"}
    with pytest.raises(MismatchError, match="not every name"):
        mean(tmp_path, inner, strip_prefix=("other.",))
    two = [{"model": {"w": weight}, "student": {"w": weight * 4 * i}} for i in range(2)]
    assert mean(tmp_path, two, key="student")["w"].tolist() == [2, 2]
    with pytest.raises(CheckpointError, match="choose one with --key"):
        mean(tmp_path, two)


def test_the_same_file_twice_counts_twice_if_allowed(tmp_path):
    files = write_all(tmp_path, [{"w": torch.zeros(1)}, {"w": torch.full((1,), 3.0)}])
    average([*files, files[1]], tmp_path / "out.safetensors", allow_duplicates=True)
    assert load(tmp_path / "out.safetensors")["w"].tolist() == [2]
    average([tmp_path / "out.safetensors", files[0]], tmp_path / "again", allow_duplicates=True)
    assert safetensors.torch.load_file(tmp_path / "again")["w"].tolist() == [1]


def test_output_says_what_it_was_made_from(tmp_path):
    files = write_all(tmp_path / "", [{"w": torch.ones(3) * i} for i in range(3)])
    output = tmp_path / "out.safetensors"
    average(files, output, method="ema", decay=0.5)
    said, metadata = provenance(output)
    assert set(metadata) == {"format", "swatool"}
    assert metadata["format"] == "pt"
    assert said == {
        "version": swatool.__version__,
        "method": "ema",
        "parameters": {"decay": 0.5, "debias": False},
        "sources": [
            {"name": file.name, "size": file.stat().st_size, "step": step, "coefficient": coefficient}
            for step, (file, coefficient) in enumerate(zip(files, [0.25, 0.25, 0.5], strict=True))
        ],
    }
    assert str(tmp_path).encode() not in output.read_bytes()


def test_output_does_not_depend_on_the_time_or_the_order_given(tmp_path):
    files = write_all(tmp_path, [{"w": torch.randn(30)} for _ in range(11)])
    contents = []
    for some in (files, files[::-1], [tmp_path / "ckpt-*.pt"]):
        average(some, tmp_path / "out", overwrite=True, method="ema", decay=0.5)
        contents.append((tmp_path / "out").read_bytes())
        for file in files:
            os.utime(file, (1, 1))
    assert contents[0] == contents[1] == contents[2]


def merge_signal(rows, dtype):
    exact = torch.stack(rows).double().mean(0)
    rounding = (exact.to(dtype).double() - exact).norm()
    return 1 - (rounding / (exact - rows[-1].double()).norm()).item()


@pytest.mark.parametrize("spread", [1.0, 1e-3])
def test_merge_signal_is_what_rounding_leaves_of_the_change(tmp_path, spread):
    generator = torch.Generator().manual_seed(2)
    base = torch.rand(500, generator=generator) + 1
    rows = [base + spread * torch.randn(500, generator=generator) for _ in range(4)]
    report = average(write_all(tmp_path, [{"w": row} for row in rows]), tmp_path / "out", dtype="bfloat16")
    assert report.merge_signal_kept == pytest.approx(merge_signal(rows, torch.bfloat16), abs=1e-3)
    poor = [w for w in report.warnings if "--dtype float32" in w]
    assert len(poor) == (1 if report.merge_signal_kept < 0.5 else 0) == (0 if spread == 1 else 1)
    kept = average([tmp_path / "ckpt-*.pt"], tmp_path / "wide", dtype="float32").merge_signal_kept
    assert kept is None


def warnings_of(folder, states, **options):
    return average(write_all(folder, states), folder / "out", overwrite=True, **options).warnings


def test_warnings(tmp_path):
    weight, statistics = {"w": torch.ones(2)}, {"w": torch.ones(2), "bn.running_var": torch.ones(2)}
    assert warnings_of(tmp_path, [weight] * 3) == ()
    (warning,) = warnings_of(tmp_path, [weight] * 3, method="ema", decay=0.999)
    assert "ckpt-0.pt' alone has 100% of the weight" in warning
    assert warnings_of(tmp_path, [weight] * 2) == ()
    assert warnings_of(tmp_path, [weight] * 3, weights=(9, 1, 1)) == ()
    (warning,) = warnings_of(tmp_path, [statistics] * 2)
    assert "BatchNorm" in warning
    (warning,) = warnings_of(tmp_path, [{"n": torch.tensor(i)} | weight for i in range(2)])
    assert warning.endswith("differ between the checkpoints: 'n'")
    many = [{f"n{j}": torch.tensor(i) for j in range(5)} | weight for i in range(2)]
    (warning,) = warnings_of(tmp_path, many)
    assert warning.endswith("'n0', 'n1', 'n2' and 2 more")


def test_warnings_about_steps(tmp_path):
    for name in ("a-1.pt", "b-1.pt", "c.pt"):
        save(tmp_path / name, {"w": torch.ones(1)})
    report = average([tmp_path / "a-1.pt", tmp_path / "b-1.pt"], tmp_path / "out")
    assert report.warnings == ("several checkpoints have the same step (1); those are ordered by name",)
    report = average([tmp_path / "a-1.pt", tmp_path / "c.pt"], tmp_path / "out", overwrite=True)
    assert report.warnings == ("no training step is known for some checkpoints, so they are ordered by name",)
    options = {"overwrite": True, "sort": "given"}
    report = average([tmp_path / "c.pt", tmp_path / "a-1.pt"], tmp_path / "out", **options)
    assert report.warnings == ()
    assert [os.path.basename(c.path) for c in report.checkpoints] == ["c.pt", "a-1.pt"]


@pytest.mark.parametrize("change", ["append", "truncate", "rewrite"])
def test_input_that_changes_while_it_is_read_is_refused(tmp_path, change):
    files = write_all(tmp_path, [{"w": torch.randn(2000)} for _ in range(2)])

    def disturb(_):
        content = files[1].read_bytes()
        if change == "append":
            files[1].write_bytes(content + b"\0")
        elif change == "truncate":
            os.truncate(files[1], 3000)
        else:
            os.utime(files[1], ns=(1, 1))

    with pytest.raises(CheckpointError, match=r"ckpt-1\.pt'.*(changed while it was read|truncated)"):
        average(files, tmp_path / "out", on_plan=disturb)
    assert sorted(tmp_path.iterdir()) == files


def test_output_claimed_in_the_meantime_is_left_alone(tmp_path):
    files = write_all(tmp_path, [{"w": torch.ones(2)}] * 2)
    with pytest.raises(UsageError, match="somebody else"):
        average(files, tmp_path / "out", on_plan=lambda _: (tmp_path / "out").write_text("theirs"))
    assert (tmp_path / "out").read_text() == "theirs"
    assert len(list(tmp_path.iterdir())) == 3


def test_dry_run_plans_and_writes_nothing(tmp_path):
    files = write_all(tmp_path, [{"w": torch.ones(2)}] * 2)
    plans = []
    report = average(files, tmp_path / "out", dry_run=True, on_plan=plans.append)
    assert report.dry_run
    assert plans == [report]
    assert sorted(tmp_path.iterdir()) == files
    done = average(files, tmp_path / "out", on_plan=plans.append)
    assert not done.dry_run
    same = ("output", "checkpoints", "tensors", "dtype", "bytes_read", "bytes_written", "warnings")
    assert [getattr(done, name) for name in same] == [getattr(report, name) for name in same]


def test_device_is_checked_by_a_dry_run_too(tmp_path):
    files = write_all(tmp_path, [{"w": torch.ones(2)}] * 2)
    with pytest.raises(UsageError, match="--device"):
        average(files, tmp_path / "out", dry_run=True, device="abacus")


def test_device_of_the_report_is_where_the_arithmetic_was_done(tmp_path):
    files = write_all(tmp_path, [{"w": torch.ones(2)}] * 2)
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert average(files, tmp_path / "out", device="auto").device.startswith(expected)


def test_output_is_where_the_default_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert average(write_all(tmp_path, [{"w": torch.ones(2)}] * 2)).output.path == DEFAULT_OUTPUT
    assert load(tmp_path / DEFAULT_OUTPUT)["w"].tolist() == [1, 1]


def test_only_empty_tensors_and_no_blocks(tmp_path):
    states = [{"e": torch.zeros(0, 3), "n": torch.zeros(0, dtype=torch.int64)}] * 2
    found = mean(tmp_path, states)
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == {"e": (0, 3), "n": (0,)}


def test_many_checkpoints_are_open_at_once(tmp_path):
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = write_all(tmp_path, [{"w": torch.full((2,), float(i))} for i in range(101)])
    resource.setrlimit(resource.RLIMIT_NOFILE, (80, limits[1]))
    try:
        average(files, tmp_path / "out.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert load(tmp_path / "out.safetensors")["w"].tolist() == pytest.approx([50, 50], rel=1e-6)


def test_settings_and_options_exclude_each_other(tmp_path):
    with pytest.raises(TypeError, match="either settings or single options"):
        average([tmp_path], settings=AverageSettings(), decay=0.5)
    with pytest.raises(TypeError, match="unknown"):
        average([tmp_path], unknown=1)


def test_scheme_of_the_settings():
    assert AverageSettings().scheme() == make_scheme("swa", {})
    assert AverageSettings(weights=(1.0,)).scheme() == make_scheme("weights", {"weights": (1.0,)})
    assert AverageSettings(method="ema", decay=0.5).scheme() == make_scheme("ema", {"decay": 0.5})
    with pytest.raises(UsageError, match="--decay does not belong to --method swa"):
        AverageSettings(decay=0.5).scheme()
    with pytest.raises(UsageError, match="--decay does not belong to --method weights"):
        AverageSettings(decay=0.5, weights=(1.0,)).scheme()
    with pytest.raises(dataclasses.FrozenInstanceError):
        AverageSettings().decay = 1


GOOD = {"w": torch.ones(100)}


def two(folder):
    return write_all(folder, [GOOD, GOOD])


def with_bytes(content):
    def make(folder):
        files = two(folder)
        files[1].write_bytes(content)
        return files, {}

    return make


def truncated(suffix):
    def make(folder):
        files = write_all(folder, [GOOD, GOOD], suffix)
        os.truncate(files[1], files[1].stat().st_size - 50)
        return files, {}

    return make


def holding(first, second):
    return lambda folder: (write_all(folder, [first, second]), {})


def options(**given):
    return lambda folder: (two(folder), given)


def missing(folder):
    return [*two(folder), folder / "gone.pt"], {}


def no_checkpoints(folder):
    (folder / "sub").mkdir()
    return [folder / "sub"], {}


def twice(link):
    def make(folder):
        files = two(folder)
        if link is None:
            return [*files, files[0]], {}
        link(files[0], folder / "other-7.pt")
        return [*files, folder / "other-7.pt"], {}

    return make


def own_output(folder):
    files = two(folder)
    average(files, folder / "old.safetensors")
    return [*files, folder / "old.safetensors"], {}


def output_exists(folder):
    (folder / "out").write_text("old")
    return two(folder), {}


def output_is_input(folder):
    files = two(folder)
    return files, {"output": files[0], "overwrite": True, "format": "safetensors"}


def output_is_folder(folder):
    (folder / "out").mkdir()
    return two(folder), {"overwrite": True, "format": "safetensors"}


def output_is_folder_of_others(folder):
    (folder / "out").mkdir()
    (folder / "out" / "notes.txt").write_text("mine")
    return two(folder), {"overwrite": True}


def output_holds_input(folder):
    (folder / "out").mkdir()
    files = two(folder)
    (folder / "out" / "model.safetensors").hardlink_to(files[0])
    return files, {"overwrite": True}


def no_folder(folder):
    return two(folder), {"output": folder / "gone" / "out"}


def pattern_without_match(folder):
    return [folder / "none-*.pt"], {}


REFUSED = {
    "missing file": (missing, CheckpointError, "cannot open .*gone"),
    "pattern without match": (pattern_without_match, CheckpointError, "no file matches"),
    "folder without checkpoints": (no_checkpoints, CheckpointError, "holds no checkpoints"),
    "empty": (with_bytes(b""), CheckpointError, "ckpt-1.* is empty"),
    "truncated .pt": (truncated(".pt"), CheckpointError, "ckpt-1"),
    "truncated .safetensors": (truncated(".safetensors"), CheckpointError, "ckpt-1.*truncated"),
    "LFS pointer": (
        with_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
        CheckpointError,
        "git lfs pull",
    ),
    "HTML": (with_bytes(b"<!DOCTYPE html><html>404</html>"), CheckpointError, "web page"),
    "noise": (with_bytes(bytes(range(32, 232))), CheckpointError, "is no checkpoint"),
    "names differ": (holding(GOOD, {"v": torch.ones(100)}), MismatchError, r"2 differences"),
    "shapes differ": (holding(GOOD, {"w": torch.ones(99)}), MismatchError, r"shape \[99\]"),
    "dtypes differ": (holding(GOOD, {"w": torch.ones(100).half()}), MismatchError, "--dtype"),
    "no state dict": (holding(GOOD, {"step": 3}), CheckpointError, "no state dict"),
    "ambiguous": (holding(GOOD, {"left": {**GOOD}, "right": {**GOOD}}), CheckpointError, "'left' .*'right'"),
    "unknown key": (options(key="model"), CheckpointError, "no state dict under the key 'model'"),
    "one checkpoint": (
        lambda f: (two(f)[:1], {}),
        UsageError,
        "at least two checkpoints, and 1 is left of 1",
    ),
    "one left": (options(last=1), UsageError, "1 is left of 2"),
    "none": (lambda _: ([], {}), UsageError, "at least two"),
    "same file twice": (twice(None), UsageError, "the same file"),
    "same file by symlink": (twice(lambda a, b: b.symlink_to(a)), UsageError, "the same file"),
    "same file by hard link": (twice(os.link), UsageError, "the same file"),
    "own output": (own_output, UsageError, "itself an average by swatool"),
    "unknown method": (options(method="swaa"), UsageError, "did you mean swa"),
    "decay too large": (options(method="ema", decay=1.5), UsageError, r"\[0, 1\], not 1.5"),
    "decay negative": (options(method="ema", decay=-0.5), UsageError, r"\[0, 1\]"),
    "decay missing": (options(method="ema"), UsageError, "needs --decay"),
    "too few weights": (options(weights=(1.0,)), UsageError, "1 numbers for 2 checkpoints"),
    "weights cancel": (options(weights=(1.0, -1.0)), UsageError, "sum to zero"),
    "weights not a number": (options(weights=(1.0, math.nan)), UsageError, "finite"),
    "output exists": (output_exists, UsageError, "exists: give --overwrite"),
    "output is an input": (output_is_input, UsageError, "is one of the inputs"),
    "output is a folder": (output_is_folder, UsageError, "not a file"),
    "output folder holds something else": (output_is_folder_of_others, UsageError, "holds 'notes.txt'"),
    "output folder holds an input": (output_holds_input, UsageError, "holds an input, 'model.safetensors'"),
    "output folder exists": (
        lambda folder: ((folder / "out").mkdir(), (two(folder), {}))[1],
        UsageError,
        "exists: give --overwrite",
    ),
    "folder with a file's name": (
        lambda folder: (two(folder), {"output": folder / "o.safetensors", "max_shard_size": "1GB"}),
        UsageError,
        "is a file's name",
    ),
    "no folder for the folder": (
        lambda folder: (two(folder), {"output": f"{folder}/gone/out/"}),
        OutputError,
        "gone': No such file",
    ),
    "bad format": (options(format="gguf"), UsageError, "--format must be one of"),
    "bad shard size": (options(max_shard_size="5XB"), UsageError, "--max-shard-size must be"),
    "shards of a file": (
        options(max_shard_size=10, format="safetensors"),
        UsageError,
        "does not belong to --format safetensors",
    ),
    "no folder": (no_folder, OutputError, "No such file"),
    "bad device": (options(device="gpu"), UsageError, "--device"),
    "device that is not there": (options(device="cuda:99"), UsageError, "--device cuda:99 is not there"),
    "bad dtype": (options(dtype="int8"), UsageError, "--dtype must be one of"),
    "bad threads": (options(threads=0), UsageError, "--threads must be from 1 to 1,024"),
    "too many threads": (options(threads=1025), UsageError, "--threads must be from 1 to 1,024"),
    "bad exclude": (options(exclude=("x*",)), UsageError, "matches no tensor"),
    "bad sort": (options(sort="size"), UsageError, "--sort must be one of"),
    "bad range": (options(min_step=5, max_step=4), UsageError, "above --max-step"),
    "empty prefix": (options(strip_prefix=("",)), UsageError, "--strip-prefix is empty"),
    "complex128 as it is": (
        holding({"w": torch.ones(2, dtype=torch.complex128)}, {"w": torch.ones(2, dtype=torch.complex128)}),
        UsageError,
        "safetensors cannot store",
    ),
    "real and complex": (
        lambda folder: (
            write_all(folder, [{"w": torch.ones(2)}, {"w": torch.ones(2, dtype=torch.complex64)}]),
            {"dtype": "float32"},
        ),
        SwatoolError,
        "'w'",
    ),
}


def snapshot(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_leaves_nothing_behind(tmp_path, case):
    make, error, match = REFUSED[case]
    files, given = make(tmp_path)
    before = snapshot(tmp_path)
    given = {"output": tmp_path / "out", **given}
    with pytest.raises(error, match=match) as caught:
        average(files, **given)
    assert snapshot(tmp_path) == before
    assert str(caught.value)
    if not isinstance(caught.value, MismatchError):
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("case", [c for c in REFUSED if c not in ("bad device", "device that is not there")])
def test_dry_run_refuses_the_same(tmp_path, case):
    make, error, match = REFUSED[case]
    files, given = make(tmp_path)
    with pytest.raises(error, match=match):
        average(files, **{"output": tmp_path / "out", "dry_run": True, **given})


def test_full_disk_is_noticed_before_the_work(tmp_path, monkeypatch):
    real = os.statvfs
    files = two(tmp_path)

    def full(path):
        found = list(real(path))
        found[4] = 0  # f_bavail
        return os.statvfs_result(found)

    monkeypatch.setattr(publish.os, "statvfs", full)
    with pytest.raises(OutputError, match="0 are free; make room"):
        average(files, tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == files


def test_files_are_closed(tmp_path):
    folder = "/proc/self/fd"
    if not os.path.isdir(folder):
        pytest.skip("this system does not tell which files are open")
    average(two(tmp_path), tmp_path / "out")
    before = len(os.listdir(folder))
    average(two(tmp_path), tmp_path / "out", overwrite=True)
    for case in ("truncated .pt", "names differ", "output is a folder"):
        sub = tmp_path / case
        sub.mkdir()
        files, given = REFUSED[case][0](sub)
        with pytest.raises(SwatoolError):
            average(files, **{"output": sub / "out", **given})
    assert len(os.listdir(folder)) == before


def test_order_is_that_of_the_steps(tmp_path):
    names = ["ckpt-10.pt", "ckpt-9.pt", "ckpt-100.pt"]
    files = [save(tmp_path / name, GOOD) for name in names]
    report = average(files, tmp_path / "out")
    steps = [c.step for c in report.checkpoints]
    assert steps == [9, 10, 100]
    assert all(one < other for one, other in pairwise(steps))


def test_a_single_path_is_one_path(tmp_path):
    for step in (1, 2):
        torch.save({"w": torch.full((2,), float(step))}, tmp_path / f"ckpt-{step}.pt")
    average(str(tmp_path), tmp_path / "out")
    average(tmp_path, tmp_path / "out2")
    found = [safetensors.torch.load_file(tmp_path / name)["w"].tolist() for name in ("out", "out2")]
    assert found == [[1.5, 1.5]] * 2


def test_a_step_that_is_a_tensor_is_a_step(tmp_path):
    for name, step in (("x-1", 20), ("x-2", 10)):
        state = {"model": {"w": torch.full((2,), float(step))}, "step": torch.tensor(step)}
        torch.save(state, tmp_path / f"{name}.pt")
    report = average(tmp_path, tmp_path / "out", method="ema", decay=0.75)
    assert [(c.step, c.coefficient) for c in report.checkpoints] == [(10, 0.75), (20, 0.25)]


def test_a_step_that_cannot_be_read_is_told(tmp_path):
    numpy = pytest.importorskip("numpy")
    for step in (1, 2):
        torch.save({"model": {"w": torch.ones(2)}, "step": numpy.int64(step)}, tmp_path / f"x-{step}.pt")
    warnings = average(tmp_path, tmp_path / "out").warnings
    assert any("no plain number" in warning for warning in warnings)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
def test_a_step_that_a_distributed_checkpoint_keeps_as_a_pickle_is_told(tmp_path):
    folders = [
        dcp.save(tmp_path / f"x-{step}", {"model": {"w": torch.ones(2)}, "step": step}) for step in (1, 2)
    ]
    report = average(folders, tmp_path / "out")
    assert [one.step for one in report.checkpoints] == [1, 2]
    assert any("pickled, as in a distributed checkpoint" in warning for warning in report.warnings)


def test_weights_and_averages_of_weights_are_not_mixed(tmp_path):
    both = {"model": {"w": torch.ones(2)}, "ema": {"w": torch.full((2,), 9.0)}}
    files = [tmp_path / "x-1.pt", tmp_path / "x-2.pt"]
    torch.save(both, files[0])
    torch.save({"ema": both["ema"]}, files[1])
    with pytest.raises(MismatchError, match="would be mixed"):
        average(files, tmp_path / "out")
    report = average(files, tmp_path / "out", key="ema")
    assert safetensors.torch.load_file(tmp_path / "out")["w"].tolist() == [9, 9]
    assert [checkpoint.key for checkpoint in report.checkpoints] == ["ema", "ema"]


def test_different_keys_are_told(tmp_path):
    torch.save({"model": {"w": torch.ones(2)}}, tmp_path / "x-1.pt")
    torch.save({"state_dict": {"w": torch.ones(2)}}, tmp_path / "x-2.pt")
    warnings = average(tmp_path, tmp_path / "out").warnings
    assert "the state dicts were found under different keys: 'model', 'state_dict'" in warnings


def test_large_transposed_tensors_are_told(tmp_path):
    for step in (1, 2):
        torch.save({"w": torch.ones(2048, 2049).t()}, tmp_path / f"x-{step}.pt")
    warnings = average(tmp_path, tmp_path / "out").warnings
    assert any("stored transposed" in warning and "16,785,408 bytes" in warning for warning in warnings)


@pytest.mark.parametrize("option", ["exclude", "strip_prefix"])
def test_one_text_for_several_is_refused(option):
    with pytest.raises(UsageError, match=option):
        AverageSettings(**{option: "w"})


def test_the_advice_on_the_decay_depends_on_which_checkpoint_is_heavy(tmp_path):
    files = write_all(tmp_path, [{"w": torch.ones(2)}] * 2)
    for decay, advice in ((0.9, "smaller decay"), (0.1, "larger decay")):
        report = average(files, tmp_path / f"out-{decay}", method="ema", decay=decay)
        assert any(warning.endswith(advice) for warning in report.warnings)


def test_variances_that_would_be_negative(tmp_path):
    for step, value in enumerate((4.0, 1.0)):
        state = {"bn.running_var": torch.full((3,), value), "w": torch.full((3,), value)}
        torch.save(state, tmp_path / f"{step}.pt")
    options = {"method": "extrapolate", "factor": 0.5}
    with pytest.raises(MismatchError, match="make variances negative") as caught:
        average(tmp_path, tmp_path / "out", **options)
    assert caught.value.differences == ("'bn.running_var' has values below 0",)
    assert not (tmp_path / "out").exists()
    average(tmp_path, tmp_path / "out", exclude=("bn.*",), **options)
    found = safetensors.torch.load_file(tmp_path / "out")
    assert found["w"].tolist() == [-0.5] * 3
    assert found["bn.running_var"].tolist() == [1.0] * 3
    average(tmp_path, tmp_path / "mild", method="extrapolate", factor=0.25)
    assert safetensors.torch.load_file(tmp_path / "mild")["bn.running_var"].tolist() == [0.25] * 3


@pytest.mark.parametrize(
    "given", [{"last": 2.0}, {"every": True}, {"first": "2"}, {"min_step": 1.5}, {"best": 2.0}]
)
def test_selections_are_whole_numbers(given):
    with pytest.raises(UsageError, match=f"--{next(iter(given)).replace('_', '-')} must be a whole number"):
        AverageSettings(metric="m", mode="max", **given)


def test_posthoc_ema_takes_averages_by_power_ema_as_they_are(tmp_path):
    generator = torch.Generator().manual_seed(0)
    walk = torch.randn(40, 50, generator=generator).cumsum(0)
    folder = write_all(tmp_path, [{"w": one} for one in [walk[0], *walk]])
    widths = {"sigma_rel": (0.05, 0.1), "gamma": (2.5,)}
    paths = []
    for name, values in widths.items():
        for value in values:
            for last in (20, 40):
                path = tmp_path / f"{name}-{value}-{last}.safetensors"
                average(folder, path, method="power-ema", max_step=last, **{name: value})
                paths.append(path)
    found = average(paths, tmp_path / "long.safetensors", method="posthoc-ema", sigma_rel=0.07)
    assert sorted(one.step for one in found.checkpoints) == [20, 20, 20, 40, 40, 40]
    average(folder, tmp_path / "direct.safetensors", method="power-ema", sigma_rel=0.07)
    wanted, got = load(tmp_path / "direct.safetensors")["w"], load(tmp_path / "long.safetensors")["w"]
    assert (got - wanted).norm() < 0.05 * wanted.norm()
    with pytest.raises(UsageError, match="is itself an average by swatool"):
        average(paths, tmp_path / "mean.safetensors")


@pytest.mark.parametrize("link", [False, True])
@pytest.mark.parametrize("option", ["metrics", "like"])
def test_what_is_read_besides_is_never_replaced(tmp_path, option, link):
    files = write_all(tmp_path, [{"w": torch.ones(2)}] * 3)
    table = tmp_path / "m.csv"
    table.write_text("step,acc\n0,1\n1,2\n2,3\n")
    given = {"like": tmp_path / "like.pt"} if option == "like" else {"metrics": table}
    save(tmp_path / "like.pt", {"w": torch.ones(2)})
    (read,) = given.values()
    output = tmp_path / ("linked.pt" if link else read.name)
    if link:
        os.link(read, output)
    before = read.read_bytes()
    choice = {"best": 2, "metric": "acc", "mode": "max"} if option == "metrics" else {}
    kind = {"format": "pt"}
    with pytest.raises(UsageError, match="is one of the inputs"):
        average(
            files,
            output,
            overwrite=True,
            **{name: str(path) for name, path in given.items()},
            **choice,
            **kind,
        )
    assert read.read_bytes() == before
