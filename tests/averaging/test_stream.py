import json
import math
import threading
import weakref

import pytest
import safetensors.torch
import torch

import swatool
from swatool.averaging import blocks, kernels, reducers
from swatool.averaging.stream import choose_device
from swatool.errors import CheckpointError, MismatchError, UsageError
from swatool.jobs.average_settings import AverageSettings
from swatool.jobs.sweep_average import average_sweep
from swatool.output.publish import PendingFile
from swatool.tensors import DTYPES

gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
DEVICES = ["cpu", pytest.param("cuda", marks=gpu)]
METHODS = {
    "swa": {},
    "ema": {"method": "ema", "decay": 0.7},
    "weights": {"weights": (-0.5, 0.1, 0.9, 0.7, 0.2, 0.11, -0.3, 1.3, 0.4)},
    "float64": {"accumulate": "float64"},
}


def raw(tensor):
    flat = tensor.detach().clone(memory_format=torch.contiguous_format).view(-1)
    return bytes(flat.view(torch.uint8).tolist())


def save(path, tensors, metadata=None):
    """Write tensors with torch.save, or as the safetensors format prescribes, by the name's suffix."""
    if path.suffix == ".pt":
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


def model(seed):
    """A state dict of many types, shapes and memory formats, with values that do not sum exactly."""
    generator = torch.Generator().manual_seed(seed)

    def some(*shape):
        return torch.randn(shape, generator=generator)

    return {
        "weight": some(33, 17),
        "bias": some(7),
        "scale": some(),
        "empty": some(0, 3),
        "conv": some(4, 3, 5, 2).to(memory_format=torch.channels_last),
        "transposed": some(13, 9).t(),
        "half": some(101).to(torch.float16),
        "brain": some(5, 31).to(torch.bfloat16),
        "brain_t": some(5, 31).to(torch.bfloat16).t(),
        "wide": some(77).to(torch.float64) / 3,
        "eight": some(45).to(torch.float8_e4m3fn),
        "complex": torch.complex(some(19), some(19)),
        "counts": torch.arange(50) * (seed % 3),
        "mask": some(21) > 0,
    }


@pytest.fixture
def run(tmp_path):
    """Nine checkpoints, every third of them in the other format."""
    names = [f"ckpt-{i}.{'safetensors' if i % 3 == 1 else 'pt'}" for i in range(9)]
    return [save(tmp_path / name, model(seed)) for seed, name in enumerate(names)]


def result(run, **options):
    output = run[0].parent / "out.safetensors"
    swatool.average(run, output, overwrite=True, **options)
    return output.read_bytes()


def block_size(monkeypatch, elements):
    monkeypatch.setattr(blocks, "LARGEST_BLOCK", elements)
    monkeypatch.setattr(blocks, "SMALLEST_BLOCK", 1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("device", DEVICES)
def test_output_is_the_same_for_any_number_of_threads_and_block_size(run, monkeypatch, method, device):
    expected = result(run, **METHODS[method])
    assert result(run, **METHODS[method], threads=1, device=device) == expected
    for elements, threads in [(1, 3), (7, 2), (64, 7), (4096, 1), (4096, 3), (64, 1)]:
        block_size(monkeypatch, elements)
        found = result(run, **METHODS[method], threads=threads, device=device)
        assert found == expected, (elements, threads)


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_large_tensors_are_the_same_from_run_to_run(tmp_path, threads):
    generator = torch.Generator().manual_seed(0)
    tensors = [{"w": torch.randn(700_001, generator=generator)} for _ in range(5)]
    files = [save(tmp_path / f"{i}.safetensors", some) for i, some in enumerate(tensors)]
    output = tmp_path / "out.safetensors"
    found = []
    for _ in range(2):
        swatool.average(files, output, overwrite=True, threads=threads)
        found.append(safetensors.torch.load_file(output)["w"])
    chain = tensors[0]["w"] * 0.2
    for some in tensors[1:]:
        chain = torch.add(chain, some["w"], alpha=0.2)
    assert torch.equal(found[0], chain)
    assert torch.equal(found[1], chain)


def test_rows_added_one_by_one_give_the_same(run, monkeypatch):
    expected = result(run)
    monkeypatch.setattr(kernels, "most_together", lambda *_: 1)
    assert result(run) == expected


def test_number_of_torchs_own_threads_is_restored(run):
    before = torch.get_num_threads()
    result(run, threads=3)
    assert torch.get_num_threads() == before


def test_progress_ends_at_the_bytes_that_are_read(run):
    told = []
    report = swatool.average(run, run[0].parent / "out", on_progress=told.append)
    assert told == sorted(told)
    # What lies between the elements of strided tensors is read, too, but here there is nothing.
    assert told[-1] == report.bytes_read
    planned = swatool.average(run, run[0].parent / "dry", dry_run=True)
    assert planned.bytes_read == report.bytes_read
    assert planned.bytes_written == report.bytes_written == (run[0].parent / "out").stat().st_size


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.uint16, torch.float32])
def test_strided_tensor_whose_last_block_is_one_element(tmp_path, monkeypatch, dtype):
    block_size(monkeypatch, 36)
    column = (torch.arange(81) % 2).view(9, 9).to(dtype)[:, 4]
    files = [save(tmp_path / f"{i}.pt", {"w": column}) for i in range(2)]
    for options in ({}, {"exclude": ("w",)}):
        swatool.average(files, tmp_path / "out", overwrite=True, **options)
        assert torch.equal(safetensors.torch.load_file(tmp_path / "out")["w"], column)


@pytest.mark.parametrize("elements", [3, 4096])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64", "complex64"])
@pytest.mark.parametrize("device", DEVICES)
def test_what_is_not_finite_is_named_with_its_checkpoint(
    tmp_path, monkeypatch, elements, value, dtype, device
):
    block_size(monkeypatch, elements)
    tensors = [{n: torch.ones(5, dtype=getattr(torch, dtype)) for n in "abc"} for _ in range(3)]
    tensors[1]["b"][4] = value
    files = [save(tmp_path / f"{i}.pt", some) for i, some in enumerate(tensors)]
    with pytest.raises(
        CheckpointError, match=r"tensor 'b' is not finite: there is NaN or Inf in it in .*1\.pt'"
    ):
        swatool.average(files, tmp_path / "out", device=device)
    assert sorted(tmp_path.iterdir()) == files
    report = swatool.average(files, tmp_path / "out", device=device, allow_nonfinite=True)
    assert any("NaN or Inf in 1 tensors: 'b'" in warning for warning in report.warnings)
    found = safetensors.torch.load_file(tmp_path / "out")
    assert found["a"].isfinite().all()
    assert not found["b"][4].isfinite()
    assert found["b"][:4].isfinite().all()


def test_strided_tensors_that_are_not_finite_are_named(tmp_path):
    tensors = [{"w": torch.ones(3, 4).t().clone(memory_format=torch.preserve_format)} for _ in range(2)]
    tensors[1]["w"][2, 1] = math.nan
    files = [save(tmp_path / f"{i}.pt", some) for i, some in enumerate(tensors)]
    with pytest.raises(CheckpointError, match=r"'w' is not finite.*1\.pt"):
        swatool.average(files, tmp_path / "out")


@pytest.fixture
def large(tmp_path):
    """Checkpoints whose tensor b, and no other, is too large for float16."""
    tensors = {"a": torch.ones(5), "b": torch.full((5,), 1e6), "c": torch.ones(5)}
    return [save(tmp_path / f"{i}.safetensors", tensors) for i in range(2)]


def test_average_that_its_type_cannot_hold_is_refused(large):
    with pytest.raises(CheckpointError, match="it is too large for float16"):
        result(large, dtype="float16")
    assert result(large, dtype="bfloat16")


def test_overflow_names_the_tensor_that_is_too_large(large):
    with pytest.raises(CheckpointError, match="tensor 'b' is not finite"):
        result(large, dtype="float16")


def test_a_checkpoint_that_counts_nothing_may_hold_anything(tmp_path):
    for index, value in enumerate([math.nan, 1.0, 3.0]):
        save(tmp_path / f"{index}.pt", {"w": torch.full((3,), value)})
    paths = [tmp_path / f"{index}.pt" for index in range(3)]
    report = swatool.average(paths, tmp_path / "out", method="weights", weights=(0.0, 1.0, 1.0))
    assert safetensors.torch.load_file(tmp_path / "out")["w"].tolist() == [2.0] * 3
    assert [one.coefficient for one in report.checkpoints] == [0, 0.5, 0.5]
    settings = AverageSettings(method="tail", allow_nonfinite=True)
    average_sweep(paths, tmp_path / "a-{alpha}", ["alpha=0,0.5"], settings=settings)
    assert safetensors.torch.load_file(tmp_path / "a-0.5")["w"].isfinite().all()
    assert safetensors.torch.load_file(tmp_path / "a-0")["w"].isnan().all()


def test_overflow_of_the_type_of_the_sums_is_refused(tmp_path):
    files = [save(tmp_path / f"{i}.pt", {"w": torch.full((3,), 3e38)}) for i in range(2)]
    with pytest.raises(CheckpointError, match="too large for float32"):
        swatool.average(files, tmp_path / "out", weights=(1.0, 1.0), normalize=False)


def test_overflow_of_a_type_without_infinity_is_refused(tmp_path):
    values = [torch.full((3,), 400.0), torch.full((3,), 100.0)]
    files = [save(tmp_path / f"{i}.pt", {"w": v.to(torch.float8_e4m3fn)}) for i, v in enumerate(values)]
    with pytest.raises(CheckpointError, match="too large for float8_e4m3fn"):
        swatool.average(files, tmp_path / "out", weights=(2.0, -1.0))


@pytest.mark.parametrize("elements", [4, 4096])
@pytest.mark.parametrize("threads", [1, 3])
def test_each_tensor_that_is_not_finite_is_named_once(tmp_path, monkeypatch, elements, threads):
    block_size(monkeypatch, elements)
    tensors = {"nan": torch.full((40,), math.nan), "over": torch.full((40,), 1e6), "fine": torch.ones(9)}
    files = [save(tmp_path / f"{i}.pt", tensors) for i in range(2)]
    output = tmp_path / "out"
    report = swatool.average(files, output, dtype="float16", allow_nonfinite=True, threads=threads)
    (warning,) = (w for w in report.warnings if "NaN" in w)
    beginning, _, names = warning.partition(": ")
    assert sorted(names.split(", ")) == ["'nan'", "'over'"]
    assert beginning == "there is NaN or Inf in 2 tensors"


def test_tied_names_get_all_blocks(tmp_path, monkeypatch):
    block_size(monkeypatch, 4)
    states = []
    for seed in range(3):
        weight = torch.randn(5, 7, generator=torch.Generator().manual_seed(seed))
        counts = torch.arange(30) + seed
        states.append({"a": torch.ones(3), "w": weight, "x": weight, "y": weight, "n": counts, "m": counts})
    files = [save(tmp_path / f"{i}.pt", some) for i, some in enumerate(states)]
    report = swatool.average(files, tmp_path / "out", threads=2)
    found = safetensors.torch.load_file(tmp_path / "out")
    assert set(report.tensors.tied) == {"x", "y", "m"}
    for name in "wxy":
        assert torch.equal(found[name], found["w"])
        assert torch.allclose(found[name], sum(state["w"] for state in states) / 3)
    for name in "mn":
        assert torch.equal(found[name], states[-1]["n"])
    assert report.bytes_written == (tmp_path / "out").stat().st_size


def test_strided_tensors_that_all_have_alike_are_put_in_order(tmp_path, monkeypatch):
    block_size(monkeypatch, 50)
    paths = []
    for step in range(3):
        weight = (torch.arange(240).view(4, 5, 3, 4) * 3.0 + step).to(memory_format=torch.channels_last)
        count = (torch.arange(24).view(4, 6) + 100 * step).t()
        paths.append(tmp_path / f"{step}.pt")
        torch.save({"w": weight, "tied": weight, "n": count}, paths[-1])
    swatool.average(paths, tmp_path / "out.safetensors", integers="last")
    found = safetensors.torch.load_file(tmp_path / "out.safetensors")
    expected = torch.arange(240).view(4, 5, 3, 4) * 3.0 + 1
    assert torch.equal(found["w"], expected)
    assert torch.equal(found["tied"], expected)
    assert torch.equal(found["n"], (torch.arange(24).view(4, 6) + 200).t())


def test_integers_that_must_be_equal(tmp_path, monkeypatch):
    block_size(monkeypatch, 4)
    tensors = [
        {"same": torch.arange(9), "other": torch.arange(9), "flag": torch.tensor(True)} for _ in range(3)
    ]
    tensors[2]["other"][7] = 0
    files = [save(tmp_path / f"{i}.pt", some) for i, some in enumerate(tensors)]
    with pytest.raises(MismatchError) as caught:
        swatool.average(files, tmp_path / "out", integers="equal")
    (difference,) = caught.value.differences
    assert difference.startswith("'other' in ")
    assert "2.pt" in difference
    assert swatool.average(files, tmp_path / "out").tensors.differing == ("other",)
    assert swatool.average(files[:2], tmp_path / "equal", integers="equal").tensors.differing == ()


def test_failing_worker_ends_the_others(run, monkeypatch):
    block_size(monkeypatch, 1)
    written, whole = [], PendingFile.write

    def write(self, offset, buffer):
        if offset and len(written) == 10:
            written.append(threading.get_ident())
            raise CheckpointError("the eleventh write fails")
        written.append(threading.get_ident())
        whole(self, offset, buffer)

    monkeypatch.setattr(PendingFile, "write", write)
    with pytest.raises(CheckpointError, match="the eleventh write fails"):
        result(run, threads=2)
    assert len(written) < 100
    assert not (run[0].parent / "out.safetensors").exists()
    assert not [t for t in threading.enumerate() if t.name.startswith("swatool")]


@pytest.mark.parametrize("name", ["", "gpu", "cpu:0", "cuda:", "cuda:x", "cuda:-1", "CUDA", "meta"])
def test_names_of_no_device_are_refused(name):
    with pytest.raises(UsageError, match="--device"):
        swatool.AverageSettings(device=name)


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(UsageError, match="--device"):
        choose_device("cuda:999")


def test_devices():
    assert choose_device("cpu").type == "cpu"
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_what_larger_blocks_take_anew_is_not_kept_for_smaller_ones(tmp_path, monkeypatch):
    alive, found = weakref.WeakSet(), []

    class Rows(reducers.Rows):
        def __init__(self, *arguments):
            found.append(len(alive))
            super().__init__(*arguments)
            alive.add(self)

    monkeypatch.setattr(reducers, "Rows", Rows)
    for step in (1, 2):  # each is a block of its own, as it is stored transposed
        state = {f"w{n}": torch.full((n, 5), float(step)).t() for n in (100, 200, 300, 400)}
        torch.save(state, tmp_path / f"x-{step}.pt")
    swatool.average(tmp_path, tmp_path / "out.safetensors", threads=1)
    assert found == [0, 0, 0, 0]
