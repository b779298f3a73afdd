"""Averages that are written as folders, checked with the libraries that load such folders."""

import json
import os
import subprocess
import sys
import types

import pytest
import safetensors.torch
import torch
from safetensors.torch import save_file
from torch.optim.swa_utils import AveragedModel

from swatool.checkpoints.opening import open_checkpoint
from swatool.errors import CheckpointError, OutputError, UsageError
from swatool.jobs import average_output
from swatool.jobs.average import average
from swatool.jobs.average_output import FILE_SUFFIXES, OutputOptions, choose_format
from swatool.output import open_files
from swatool.output.sidecars import read_sidecars

INDEX = "model.safetensors.index.json"


def imported(name):
    try:
        return pytest.importorskip(name)
    except RuntimeError as error:  # what it stands on does not fit
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def transformers():
    return imported("transformers")


def states(count=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"z.weight": (40, 30), "a.weight": (300,), "m": (), "e": (0, 3), "k": (7, 5), "l": (64, 64)}
    return [
        {
            **{name: torch.randn(shape, generator=generator) for name, shape in shapes.items()},
            "h": torch.randn(33, generator=generator).to(torch.bfloat16),
            "n": torch.tensor([1, 2]),
        }
        for _ in range(count)
    ]


def save_all(folder, some, **files):
    """Save state dicts as folders `step-1`, `step-2`, ..., each with these files beside the weights."""
    paths = []
    for step, state in enumerate(some, 1):
        path = folder / f"step-{step}"
        path.mkdir()
        safetensors.torch.save_file(state, path / "model.safetensors", {"format": "pt"})
        for name, data in files.items():
            (path / name.replace("__", ".")).write_bytes(data)
        paths.append(path)
    return paths


def load_shards(folder):
    """Load each shard with safetensors, and hold it against the index."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        shard = safetensors.torch.load_file(path)
        assert not set(found) & set(shard)
        found |= shard
        if (folder / INDEX).exists():
            weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
            assert {name for name, file in weight_map.items() if file == path.name} == set(shard)
    return found


def same(one, other):
    return one.keys() == other.keys() and all(
        one[name].dtype is other[name].dtype
        and one[name].shape == other[name].shape
        and torch.equal(one[name].reshape(-1).view(torch.uint8), other[name].reshape(-1).view(torch.uint8))
        for name in one
    )


# --- shards


@pytest.mark.parametrize("size", [1, 200, "2KB", 4000, "1GB", None])
@pytest.mark.parametrize("method", [{}, {"method": "ema", "decay": 0.7}])
@pytest.mark.parametrize("threads", [1, 3])
def test_shards_hold_bit_for_bit_what_a_single_file_holds(tmp_path, monkeypatch, size, method, threads):
    monkeypatch.setattr(open_files, "MOST_OPEN", 2)
    inputs = save_all(tmp_path, states())
    average(inputs, tmp_path / "one.safetensors", **method)
    single = safetensors.torch.load_file(tmp_path / "one.safetensors")
    report = average(inputs, f"{tmp_path}/out/", max_shard_size=size, threads=threads, **method)
    assert same(load_shards(tmp_path / "out"), single)
    assert (INDEX in os.listdir(tmp_path / "out")) == (size not in ("1GB", None))
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "out").iterdir()}
    assert report.output.files == sizes
    assert report.output.bytes == report.bytes_written == sum(sizes.values())
    assert sorted(os.listdir(tmp_path)) == ["one.safetensors", "out", "step-1", "step-2", "step-3"]


def test_a_folder_is_read_again_and_is_known_for_what_it_is(tmp_path):
    inputs = save_all(tmp_path, states())
    average(inputs, f"{tmp_path}/out/", max_shard_size=2000)
    checkpoint = open_checkpoint(tmp_path / "out")
    assert set(checkpoint.tensors) == set(states()[0])
    said = json.loads(checkpoint.metadata["swatool"])
    checkpoint.close()
    assert [source["name"] for source in said["sources"]] == ["step-1", "step-2", "step-3"]
    shards = sorted((tmp_path / "out").glob("*.safetensors"))
    for one in (tmp_path / "out", shards[-1]):
        with pytest.raises(UsageError, match="itself an average by swatool"):
            average([*inputs, one], tmp_path / "again")
    average([tmp_path / "out", inputs[0]], tmp_path / "again.safetensors", allow_duplicates=True)
    assert set(safetensors.torch.load_file(tmp_path / "again.safetensors")) == set(states()[0])


def test_tied_tensors_are_written_under_each_name_or_noted(tmp_path):
    weight = torch.randn(100)
    for step in (1, 2):
        torch.save({"embed": weight * step, "head": weight * step, "b": weight}, tmp_path / f"x-{step}.pt")
        state = torch.load(tmp_path / f"x-{step}.pt")
        state["head"] = state["embed"]
        torch.save(state, tmp_path / f"x-{step}.pt")
    average(tmp_path, f"{tmp_path}/keep/", max_shard_size=400)
    kept = load_shards(tmp_path / "keep")
    assert torch.equal(kept["embed"], kept["head"])
    assert len(list((tmp_path / "keep").glob("*.safetensors"))) == 3
    average(tmp_path, f"{tmp_path}/drop/", max_shard_size=400, tied="drop")
    assert set(load_shards(tmp_path / "drop")) == {"embed", "b"}
    assert json.loads((tmp_path / "drop" / INDEX).read_text())["metadata"]["head"] == "embed"


def test_an_interrupted_average_leaves_the_old_folder(tmp_path):
    inputs = save_all(tmp_path, states(), config__json=b"{}")
    average(inputs, f"{tmp_path}/out/", max_shard_size=2000)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    def spoil(_):
        os.utime(inputs[1] / "model.safetensors", ns=(1, 1))

    with pytest.raises(CheckpointError, match="changed while it was read"):
        average(inputs, tmp_path / "out", overwrite=True, method="ema", decay=0.5, on_plan=spoil)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert len(os.listdir(tmp_path)) == 4
    average(inputs, tmp_path / "out", overwrite=True)
    assert sorted(os.listdir(tmp_path / "out")) == ["config.json", "model.safetensors"]


def test_an_input_folder_is_never_replaced(tmp_path):
    inputs = save_all(tmp_path, states())
    for output in (inputs[1], f"{inputs[1]}/", tmp_path / "step-1" / ".." / "step-2"):
        with pytest.raises(UsageError, match="holds an input"):
            average(inputs, output, overwrite=True)
    with pytest.raises(UsageError, match="holds 'step-1'"):
        average(inputs, f"{tmp_path}/", overwrite=True)
    assert load_shards(inputs[1]).keys() == states()[0].keys()


def test_memory_does_not_grow_with_the_number_of_shards(tmp_path):
    generator = torch.Generator().manual_seed(0)
    state = {f"w{i}": torch.randn(256, 1024, generator=generator) for i in range(64)}
    inputs = save_all(tmp_path, [state, state])
    script = (
        "import sys, swatool\n"
        "for output, size in (('one.safetensors', None), ('out/', '1MB')):\n"
        "    report = swatool.average(sys.argv[2:], sys.argv[1] + output, max_shard_size=size, threads=2)\n"
        "    print(report.peak_rss_bytes)"
    )
    command = [sys.executable, "-c", script, f"{tmp_path}/", *map(str, inputs)]
    done = subprocess.run(command, check=True, capture_output=True, timeout=120)
    single, sharded = map(int, done.stdout.split())
    assert len(os.listdir(tmp_path / "out")) == 65
    assert sharded - single < 8 * 2**20


# --- which format


@pytest.mark.parametrize(
    ("output", "given", "expected"),
    [
        ("a.safetensors", {}, "safetensors"),
        ("a", {}, "safetensors"),
        ("a/", {}, "hf"),
        ("a.safetensors/", {}, "hf"),
        ("a", {"format": "hf"}, "hf"),
        ("a", {"max_shard_size": "5GB"}, "hf"),
        ("a", {"max_shard_size": 10**9, "format": "hf"}, "hf"),
        ("a.pt", {"format": "safetensors"}, "safetensors"),
        ("there", {}, "hf"),
        ("there", {"format": "safetensors"}, "safetensors"),
        ("there.safetensors", {}, "safetensors"),
    ],
)
def test_format(tmp_path, monkeypatch, output, given, expected):
    monkeypatch.chdir(tmp_path)
    for name in ("there", "there.safetensors"):
        os.mkdir(name)
    assert choose_format(output, OutputOptions(**given)) == expected


@pytest.mark.parametrize("suffix", FILE_SUFFIXES)
@pytest.mark.parametrize("given", [{"format": "hf"}, {"max_shard_size": "5GB"}])
def test_a_folder_is_not_given_a_files_name(suffix, given):
    with pytest.raises(UsageError, match=r"is a file's name.*-o averaged/"):
        choose_format(f"a{suffix}", OutputOptions(**given))


def test_a_format_that_is_refused_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(UsageError, match="is a file's name"):
        average([tmp_path / "gone.pt"], "a.safetensors", max_shard_size="5GB")


# --- sidecars


def test_sidecars_of_the_newest_checkpoint_are_copied(tmp_path):
    inputs = save_all(tmp_path, states(), config__json=b'{"a":  1}', tokenizer__json=b"\xff", code__py=b"x")
    (inputs[2] / "config.json").write_bytes(b'{"newest":  1}')
    (inputs[2] / "training_args.bin").write_bytes(b"pickle")
    average(inputs[::-1], f"{tmp_path}/out/")
    found = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    del found["model.safetensors"]
    assert found == {"config.json": b'{"newest":  1}', "tokenizer.json": b"\xff"}
    average(inputs, f"{tmp_path}/bare/", sidecars=False)
    assert os.listdir(tmp_path / "bare") == ["model.safetensors"]
    average([path / "model.safetensors" for path in inputs], f"{tmp_path}/files/")
    assert "config.json" in os.listdir(tmp_path / "files")
    average(inputs, tmp_path / "one.safetensors")
    assert (tmp_path / "one.safetensors").is_file()


def test_a_sidecar_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch):
    inputs = save_all(tmp_path, states(), config__json=b"{}")

    def read_and_write(folder):
        found = read_sidecars(folder)
        with open(f"{folder.path}/config.json", "a") as file:
            file.write(" ")
        return found

    monkeypatch.setattr(average_output, "read_sidecars", read_and_write)
    with pytest.raises(CheckpointError, match=r"config\.json' changed while it was read"):
        average(inputs, f"{tmp_path}/out/")
    assert not (tmp_path / "out").exists()


def test_a_loose_file_has_no_sidecars(tmp_path):
    for step, state in enumerate(states()):
        torch.save(state, tmp_path / f"x-{step}.pt")
    (tmp_path / "config.json").write_bytes(b"{}")
    average(tmp_path, f"{tmp_path}/out/")
    assert os.listdir(tmp_path / "out") == ["model.safetensors"]


@pytest.mark.parametrize("kind", ["fifo", "dangling", "folder"])
def test_a_sidecar_that_is_no_file_is_an_error_and_not_a_wait(tmp_path, kind):
    inputs = save_all(tmp_path, states())
    path = inputs[2] / "config.json"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "dangling":
        path.symlink_to("nowhere")
    else:
        path.mkdir()
    with pytest.raises(CheckpointError, match=r"config\.json.*--no-sidecars"):
        average(inputs, f"{tmp_path}/out/")
    assert not (tmp_path / "out").exists()
    average(inputs, f"{tmp_path}/out/", sidecars=False)


def test_the_type_in_the_configuration_follows_the_output(tmp_path):
    inputs = save_all(tmp_path, states(), config__json=b'{"dtype":  "float32"}')
    average(inputs, f"{tmp_path}/same/")
    assert (tmp_path / "same" / "config.json").read_bytes() == b'{"dtype":  "float32"}'
    average(inputs, f"{tmp_path}/half/", dtype="bfloat16")
    assert json.loads((tmp_path / "half" / "config.json").read_text()) == {"dtype": "bfloat16"}


def test_code_of_the_model_is_not_copied_and_that_is_told(tmp_path):
    inputs = save_all(tmp_path, states(), config__json=b'{"auto_map": {}}', modeling__py=b"code")
    report = average(inputs, f"{tmp_path}/out/")
    assert any("auto_map" in warning for warning in report.warnings)
    assert sorted(os.listdir(tmp_path / "out")) == ["config.json", "model.safetensors"]


# --- from_pretrained


def gpt2(transformers, seed):
    torch.manual_seed(seed)
    config = transformers.GPT2Config(
        n_layer=2, n_head=2, n_embd=32, vocab_size=64, n_positions=16, bos_token_id=1, eos_token_id=2
    )
    return transformers.GPT2LMHeadModel(config)


def bert(transformers, seed):
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, vocab_size=64
    )
    return transformers.BertForSequenceClassification(config)


@pytest.mark.parametrize("make", [gpt2, bert])
@pytest.mark.parametrize("saved", ["60KB", "5GB"])
@pytest.mark.parametrize("size", ["30KB", None])
@pytest.mark.parametrize("dtype", ["same", "bfloat16"])
def test_from_pretrained_loads_the_average(tmp_path, transformers, make, saved, size, dtype):
    models = [make(transformers, seed) for seed in range(3)]
    for step, model in enumerate(models, 1):
        model.save_pretrained(tmp_path / f"checkpoint-{step}", max_shard_size=saved)
    inputs = [tmp_path / f"checkpoint-{step}" for step in (1, 2, 3)]
    average(inputs, f"{tmp_path}/out/", max_shard_size=size, dtype=dtype)
    assert ((tmp_path / "out" / INDEX).exists()) == (size is not None)
    loaded, told = type(models[0]).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(told.values())
    expected = {
        name: torch.stack([model.state_dict()[name] for model in models]).mean(0)
        for name, tensor in models[0].state_dict().items()
        if tensor.is_floating_point()
    }
    wanted = torch.float32 if dtype == "same" else torch.bfloat16
    assert loaded.dtype is wanted
    for name, tensor in expected.items():
        found = loaded.state_dict()[name]
        assert found.dtype is wanted
        assert torch.allclose(found.float(), tensor, rtol=0 if dtype == "same" else 0.01, atol=1e-6), name
    before = (inputs[-1] / "config.json").read_bytes()
    after = (tmp_path / "out" / "config.json").read_bytes()
    assert after == (before if dtype == "same" else before.replace(b'"float32"', b'"bfloat16"'))


def test_the_hub_loads_the_average(tmp_path):
    hub = imported("huggingface_hub")
    inputs = save_all(tmp_path, states())
    average(inputs, f"{tmp_path}/out/", max_shard_size=2000)

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            for name, tensor in states()[0].items():
                self.register_buffer(name.replace(".", "_"), torch.zeros_like(tensor))

        def load_state_dict(self, state, strict=True, assign=False):
            renamed = {name.replace(".", "_"): tensor for name, tensor in state.items()}
            return super().load_state_dict(renamed, strict=strict, assign=assign)

    model = Model()
    hub.load_torch_model(model, tmp_path / "out", strict=False)
    expected = {name.replace(".", "_"): t for name, t in load_shards(tmp_path / "out").items()}
    assert same(dict(model.named_buffers()), expected)


def write_two(folder):
    folder.mkdir()
    for step in range(2):
        torch.save({"w": torch.full((3,), float(step))}, folder / f"{step}.pt")
    return folder


@pytest.mark.parametrize("name", ["x.onnx", "x.tar", "x.npz", "x.safetensors.json", "x.gguf"])
def test_names_of_other_formats_are_refused(tmp_path, name):
    with pytest.raises(UsageError, match="a format that is not written"):
        average(write_two(tmp_path / "run"), tmp_path / name)


def test_timm_s_name_is_a_torch_file(tmp_path):
    report = average(write_two(tmp_path / "run"), tmp_path / "best.pth.tar")
    assert report.output.format == "pt"
    assert torch.load(tmp_path / "best.pth.tar", weights_only=True)["w"].tolist() == [0.5] * 3


def test_nothing_is_written_into_a_folder_that_is_averaged(tmp_path):
    for step in range(2):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        save_file({"w": torch.full((3,), float(step))}, folder / "model.safetensors")
    folders = [tmp_path / f"checkpoint-{step}" for step in range(2)]
    before = sorted(folders[0].iterdir())
    for name in ("pytorch_model.bin", "new.safetensors", "inner/"):
        with pytest.raises(UsageError, match="would lie inside of"):
            average(folders, f"{folders[0]}/{name}")
    assert sorted(folders[0].iterdir()) == before


def test_a_dry_run_without_room_says_so_and_shows_the_plan(tmp_path, monkeypatch):
    run = write_two(tmp_path / "run")
    full = types.SimpleNamespace(f_bavail=0, f_frsize=4096, f_blocks=1)
    monkeypatch.setattr(os, "statvfs", lambda _: full)
    report = average(run, tmp_path / "out", dry_run=True)
    assert report.estimate is not None
    assert any("bytes are needed and 0 are free" in warning for warning in report.warnings)
    with pytest.raises(OutputError, match="bytes are needed and 0 are free"):
        average(run, tmp_path / "out")


def test_what_a_likeness_loses_is_told(tmp_path):
    for step in range(2):
        state = {"state_dict": {"w": torch.full((3,), float(step))}, "epoch": step}
        state["hyper_parameters"] = {"lr": 0.1, "heads": complex(4), "inner": {"x": {1, 2}}}
        torch.save(state, tmp_path / f"{step}.ckpt")
    report = average(tmp_path, tmp_path / "out.ckpt", like=str(tmp_path / "1.ckpt"))
    (warning,) = [one for one in report.warnings if "no plain values" in one]
    assert "'hyper_parameters.heads'" in warning
    assert "'hyper_parameters.inner.x'" in warning
    found = torch.load(tmp_path / "out.ckpt", weights_only=True)
    assert found["hyper_parameters"] == {"lr": 0.1}
    assert found["state_dict"]["w"].tolist() == [0.5] * 3


def test_the_count_of_an_averaged_model_is_told_to_be_missing(tmp_path):
    for step in range(2):
        averaged = AveragedModel(torch.nn.Linear(2, 2))
        averaged.update_parameters(torch.nn.Linear(2, 2))
        torch.save(averaged.state_dict(), tmp_path / f"{step}.pt")
    report = average(tmp_path, tmp_path / "out.pt", like=str(tmp_path / "1.pt"))
    assert any("n_averaged of" in warning and "left out" in warning for warning in report.warnings)


def test_a_sidecar_that_is_linked_from_elsewhere_is_not_copied(tmp_path):
    inputs = save_all(tmp_path, states())
    (tmp_path / "secret").write_text("{}")
    config = inputs[2] / "config.json"
    config.symlink_to(tmp_path / "secret")
    with pytest.raises(CheckpointError, match="is a link out of its folder"):
        average(inputs, f"{tmp_path}/out/")
    config.unlink()
    (config.parent / "real.json").write_text("{}")
    config.symlink_to("real.json")
    average(inputs, f"{tmp_path}/out/")
    assert (tmp_path / "out" / "config.json").read_text() == "{}"
