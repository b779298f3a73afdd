"""Hugging Face folders: what their own libraries write is read by tensor; an index that lies is refused."""

import contextlib
import json
import os
import warnings

import pytest
import safetensors.torch
import torch
from hostile.hf import (
    BAD_INDEXES,
    INDEX,
    OUTSIDE,
    PLACES,
    SHARDS,
    STATE,
    TOTAL,
    raw,
    save_safetensors,
    write_index,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import swatool
from swatool.checkpoints import hf_folder
from swatool.checkpoints.opening import Reading, open_checkpoint
from swatool.errors import CheckpointError, UsageError, printable


@pytest.fixture(autouse=True)
def everything_is_closed():
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def folder(tmp_path):
    """A model in two shards."""
    folder = tmp_path / "model"
    folder.mkdir()
    for shard in SHARDS:
        save_safetensors({n: t for n, t in STATE.items() if PLACES[n] == shard}, folder / shard)
    write_index(folder, PLACES)
    return folder


def values(checkpoint):
    found = {}
    for name, stored in checkpoint.tensors.items():
        data = b"".join(extent.source.read(extent.offset, extent.nbytes) for extent in stored.extents)
        flat = torch.frombuffer(bytearray(data), dtype=getattr(torch, stored.dtype.name))
        found[name] = (
            flat.as_strided(stored.shape, stored.strides) if stored.strides else flat.view(stored.shape)
        )
    return found


def assert_reads(path, state, **reading):
    """Compare with a state dict, byte by byte; return the checkpoint, closed."""
    with contextlib.closing(open_checkpoint(path, Reading(**reading))) as checkpoint:
        found = values(checkpoint)
    assert set(found) == set(state)
    for name, tensor in state.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert raw(found[name].contiguous()) == raw(tensor.contiguous()), name
    return checkpoint


def refusal(path, **reading):
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path, Reading(**reading))
    assert str(caught.value).isprintable()
    return str(caught.value)


def test_shards_are_read_as_one_checkpoint(folder):
    checkpoint = assert_reads(folder, STATE)
    assert checkpoint.format == "Hugging Face folder, 2 shards, safetensors"
    assert checkpoint.metadata == {"format": "pt"}
    assert checkpoint.warnings == ()
    assert checkpoint.files.size == sum(path.stat().st_size for path in folder.iterdir())


def test_the_index_stands_for_its_folder(folder, monkeypatch):
    assert_reads(folder / INDEX, STATE)
    monkeypatch.chdir(folder)
    assert_reads(INDEX, STATE)


def test_a_single_shard_is_that_file(folder):
    assert_reads(folder / SHARDS[1], {name: STATE[name] for name in ("b.weight", "b.count")})


@pytest.mark.parametrize("name", ["model.safetensors", "adapter_model.safetensors", "model.fp16.safetensors"])
def test_a_whole_safetensors_file(tmp_path, name):
    save_safetensors(STATE, tmp_path / name, {"format": "pt", "step": "12"})
    checkpoint = assert_reads(f"{tmp_path}/", STATE)
    assert checkpoint.format == "Hugging Face folder, safetensors"
    assert checkpoint.fields == {"step": 12}


@pytest.mark.parametrize("zipped", [True, False])
def test_bin_shards(tmp_path, zipped):
    places = {name: place.replace("model", "pytorch_model")[:-11] + "bin" for name, place in PLACES.items()}
    shared = torch.arange(20.0)
    state = STATE | {"a.weight": shared[2:14].view(4, 3).t()}
    for place in set(places.values()):
        part = {name: state[name] for name in state if places[name] == place}
        torch.save(part, tmp_path / place, _use_new_zipfile_serialization=zipped)
    write_index(tmp_path, places, "pytorch_model.bin.index.json")
    assert assert_reads(tmp_path, state).warnings == ()


def test_the_variant_that_is_asked_for(folder):
    save_safetensors({"x": torch.ones(2)}, folder / "model.fp16.safetensors")
    assert_reads(folder, STATE)
    assert_reads(folder, {"x": torch.ones(2)}, variant="fp16")
    assert "has no variant 'bf16'" in refusal(folder, variant="bf16")
    with pytest.raises(UsageError, match="--variant is empty"):
        Reading(variant="")


def test_an_index_that_is_named_goes_before_everything_else(folder):
    save_safetensors({"x": torch.ones(2)}, folder / "model.safetensors")
    assert "of two saves" in refusal(folder)
    assert_reads(folder / INDEX, STATE)
    assert_reads(folder / "model.safetensors", {"x": torch.ones(2)})


def test_links_of_the_hub_s_cache_are_followed(folder, tmp_path):
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    blobs = tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(blobs / f"{number:064x}")
        (snapshot / path.name).symlink_to(f"../../blobs/{number:064x}")
    assert_reads(snapshot, STATE)
    (snapshot / SHARDS[0]).unlink()
    (snapshot / SHARDS[0]).symlink_to("../../blobs/none")
    assert "No such file" in refusal(snapshot)


@pytest.mark.parametrize(
    ("state", "fields"),
    [
        (
            '{"global_step": 500, "epoch": 1.5, "best_metric": 0.25}',
            {"global_step": 500, "epoch": 1.5, "best_metric": 0.25},
        ),
        ('{"global_step": 500, "best_metric": null, "log_history": [{"step": 1}]}', {"global_step": 500}),
        ('{"global_step": "500", "epoch": true}', {}),
    ],
)
def test_the_state_of_a_trainer(folder, state, fields):
    (folder / "trainer_state.json").write_text(state)
    checkpoint = assert_reads(folder, STATE)
    assert checkpoint.fields == fields
    assert not checkpoint.warnings


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("[500]", "it is no object"),
        ("{", "it is no JSON, see line 1, column 2"),
        ("[" * 100_000, "it is nested too deep"),
        ('{"global_step": ' + "9" * 5000 + "}", "it has a number of 5,000 digits"),
        ('{"a": 1, "a": 2}', "it has the same key twice: 'a'"),
        ("[" + "{}," * 300_000 + "1]", "it has more than 500,000 values"),
        ("\udcff", "it is not UTF-8, near byte 0"),
        ("", "it is no JSON, see line 1, column 1"),
        ("[" + " " * (9 << 20), "it has 9,437,185 bytes, and at most 8,388,608 are read"),
    ],
)
def test_of_a_trainer_s_state_that_is_damaged_a_warning_tells(folder, state, said):
    (folder / "trainer_state.json").write_bytes(state.encode(errors="surrogateescape"))
    checkpoint = assert_reads(folder, STATE)
    assert checkpoint.fields == {}
    where = printable(folder / "trainer_state.json")
    assert checkpoint.warnings == (f"no step and no metric is read from {where}: {said}",)


def test_a_trainer_s_state_that_is_no_file_is_not_waited_for(folder):
    os.mkfifo(folder / "trainer_state.json")
    checkpoint = assert_reads(folder, STATE)
    assert checkpoint.fields == {}
    (warning,) = checkpoint.warnings
    assert "is not a regular file" in warning


@pytest.mark.parametrize("index", [INDEX, "pytorch_model.bin.index.json"])
@pytest.mark.parametrize("name", OUTSIDE)
def test_an_index_reaches_nothing_outside_its_folder(folder, tmp_path, index, name):
    save_safetensors({"a.weight": STATE["a.weight"]}, tmp_path / "secret.safetensors")
    (folder / INDEX).unlink()
    write_index(folder, {"a.weight": name}, index)
    message = refusal(folder / index)
    assert repr(f"{folder}/{index}") in message
    if not name.endswith(".safetensors"):
        assert "hold no weights by their names" in message
    elif not set(name).isdisjoint("/\\\0"):
        assert "names files outside its folder" in message
        assert message.endswith("refused")
    else:
        assert "not in its folder" in message
    assert printable(name) in message


def test_a_missing_shard_is_named(folder):
    for shard in SHARDS:
        (folder / shard).unlink()
    assert f"not in its folder: {SHARDS[0]!r}, {SHARDS[1]!r}; the save or the download" in refusal(folder)


def test_shards_of_another_save_are_named(folder):
    for number in range(1, 31):
        (folder / f"model-{number:05d}-of-00030.safetensors").touch()
    message = refusal(folder)
    assert "does not name 'model-00001-of-00030.safetensors', " in message
    assert "'model-00020-of-00030.safetensors' and 10 more, which lie beside its shards" in message


def test_a_tensor_that_its_shard_lacks_is_named(folder):
    write_index(folder, PLACES | {"c": SHARDS[0], "d\n": SHARDS[1]})
    assert f"'c' is not in {SHARDS[0]!r}, 'd\\n' is not in {SHARDS[1]!r}" in refusal(folder)


def test_a_tensor_that_the_index_lacks_is_named(folder):
    write_index(folder, {name: place for name, place in PLACES.items() if name != "a.bias"})
    assert f"'a.bias' is in {SHARDS[0]!r} and the index does not name it" in refusal(folder)


def test_a_tensor_in_another_shard_is_named(folder):
    write_index(folder, PLACES | {"a.bias": SHARDS[1]})
    assert f"'a.bias' is in {SHARDS[0]!r} and by the index in {SHARDS[1]!r}" in refusal(folder)


def test_a_tensor_in_two_shards_is_named(folder):
    save_safetensors({name: STATE[name] for name in ("a.bias", "b.weight", "b.count")}, folder / SHARDS[1])
    assert f"'a.bias' is in {SHARDS[1]!r} and by the index in {SHARDS[0]!r}" in refusal(folder)


def test_twenty_differences_are_named(folder):
    write_index(folder, PLACES | {f"c{number}": SHARDS[0] for number in range(30)})
    message = refusal(folder)
    assert f"'c19' is not in {SHARDS[0]!r} and 10 more" in message
    assert "'c20'" not in message


def test_a_total_size_that_lies_is_a_warning(folder):
    write_index(folder, PLACES, total=TOTAL + 1)
    (warning,) = assert_reads(folder, STATE).warnings
    assert warning.endswith(f"gives '{TOTAL + 1}' as the bytes of its tensors, which have {TOTAL}")
    for total in (None, float(TOTAL)):
        write_index(folder, PLACES, total=total)
        assert assert_reads(folder, STATE).warnings == ()
    for total in ("many", str(TOTAL), {}):
        write_index(folder, PLACES, total=total)
        assert len(assert_reads(folder, STATE).warnings) == 1


def test_a_warning_of_a_checkpoint_is_in_the_report(folder, tmp_path):
    write_index(folder, PLACES, total=1)
    save_safetensors(STATE, tmp_path / "other.safetensors")
    report = swatool.average(
        [folder, tmp_path / "other.safetensors"], tmp_path / "o.safetensors", dry_run=True
    )
    assert any("gives '1' as the bytes" in warning for warning in report.warnings)


def test_tensors_that_share_bytes_may_be_counted_once_or_each(tmp_path):
    table = torch.ones(5)
    torch.save({"in": table, "out": table}, tmp_path / "pytorch_model-00001-of-00001.bin")
    places = dict.fromkeys(("in", "out"), "pytorch_model-00001-of-00001.bin")
    for total, count in ((20, 0), (40, 0), (30, 1)):
        write_index(tmp_path, places, "pytorch_model.bin.index.json", total)
        with contextlib.closing(open_checkpoint(tmp_path)) as checkpoint:
            assert len(checkpoint.warnings) == count


@pytest.mark.parametrize("case", BAD_INDEXES)
def test_a_hostile_index_is_refused(folder, case):
    text, message = BAD_INDEXES[case]
    (folder / INDEX).write_bytes(text.encode(errors="surrogateescape"))
    assert message in refusal(folder)


def test_an_index_that_is_too_long_is_not_read(folder):
    with open(folder / INDEX, "r+b") as file:
        file.truncate(hf_folder.MAX_INDEX + 1)
    assert "25,000,001 bytes; an index of at most 25,000,000 is read" in refusal(folder)


def test_an_index_of_fifty_thousand_tensors_fits(folder):
    names = {
        f"model.layers.{i % 90}.mlp.experts.{i}.gate_up_proj.weight_scale": SHARDS[i % 2]
        for i in range(50_000)
    }
    (folder / INDEX).write_text(json.dumps({"weight_map": names}, indent=2))
    assert "does not fit its shards" in refusal(folder)


def test_a_total_size_of_infinity_is_a_warning(folder):
    text = (folder / INDEX).read_text().replace(f'"total_size": {TOTAL}', '"total_size": 1e999')
    (folder / INDEX).write_text(text)
    assert len(assert_reads(folder, STATE).warnings) == 1


@pytest.mark.parametrize(
    ("root", "message"),
    [
        ({"model": {"a.weight": torch.ones(1)}}, "holds 'model', which is no tensor"),
        ({"a.weight": torch.ones(1), "step": 1}, "holds 'step', which is no tensor"),
        ({1: torch.ones(1)}, "holds '1', which is no tensor"),
        ([torch.ones(1)], "holds no dict of tensors"),
        ({"a.weight": torch.ones(1).expand(2_000_000)}, "tensor 'a.weight': "),
        pytest.param(
            {"a.weight": torch.eye(3).to_sparse()},
            "sparse",
            marks=pytest.mark.filterwarnings("ignore:Sparse"),
        ),
    ],
)
def test_a_shard_is_a_flat_dict_of_tensors(tmp_path, root, message):
    torch.save(root, tmp_path / "pytorch_model-00001-of-00001.bin")
    places = {"a.weight": "pytorch_model-00001-of-00001.bin"}
    write_index(tmp_path, places, "pytorch_model.bin.index.json")
    assert message in refusal(tmp_path)


@pytest.mark.parametrize("kind", ["folder", "fifo", "cut", "index"])
def test_a_shard_that_is_no_file_of_weights_is_refused(folder, kind):
    data = (folder / SHARDS[1]).read_bytes()
    (folder / SHARDS[1]).unlink()
    if kind == "folder":
        (folder / SHARDS[1]).mkdir()
    elif kind == "fifo":
        os.mkfifo(folder / SHARDS[1])
    elif kind == "index":
        (folder / SHARDS[1]).write_bytes((folder / INDEX).read_bytes())
    else:
        (folder / SHARDS[1]).write_bytes(data[:-1])
    assert SHARDS[1] in refusal(folder)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from([*STATE, *SHARDS]),
    lambda some: st.lists(some) | st.dictionaries(st.text() | st.sampled_from([*STATE, "weight_map"]), some),
)
MAPS = st.dictionaries(st.sampled_from([*STATE, "c"]), st.sampled_from([*SHARDS, "x.bin", "../x"]) | JSON)


@settings(max_examples=60, deadline=None)
@given(index=JSON | st.fixed_dictionaries({"weight_map": MAPS, "metadata": JSON}))
def test_any_index_is_read_or_refused(tmp_path_factory, index):
    folder = tmp_path_factory.getbasetemp() / "any"
    folder.mkdir(exist_ok=True)
    for shard in SHARDS:
        save_safetensors({n: t for n, t in STATE.items() if PLACES[n] == shard}, folder / shard)
    (folder / INDEX).write_text(json.dumps(index))
    try:
        open_checkpoint(folder).close()
    except CheckpointError:
        assert not isinstance(index, dict) or index.get("weight_map") != PLACES


# What the libraries themselves write.


def reference(folder):
    """Load all files of weights in a folder with the libraries that their formats come from."""
    found = {}
    for path in sorted(folder.iterdir()):
        if path.suffix == ".safetensors":
            found |= safetensors.torch.load_file(path)
        elif path.suffix == ".bin":
            found |= torch.load(path, weights_only=True)
    return found


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("size", [100, "1GB"])
def test_what_huggingface_hub_writes(tmp_path, safe, size):
    hub = pytest.importorskip("huggingface_hub")
    if safe:
        pytest.importorskip("numpy")  # safetensors needs it to write
    tied = torch.arange(30.0)
    state = STATE | {"in": tied, "out": tied, "half": torch.arange(40).to(torch.float16)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hub.save_torch_state_dict(state, tmp_path, max_shard_size=size, safe_serialization=safe)
    written = reference(tmp_path)
    checkpoint = assert_reads(tmp_path, written)
    assert checkpoint.warnings == ()
    assert ("shards" in checkpoint.format) == (size == 100)
    assert len(written) == (6 if safe else 7)


@pytest.fixture(scope="module")
def transformers():
    pytest.importorskip("numpy")
    try:
        import transformers
        from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel  # noqa: F401
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"transformers: {error}")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def gpt2(transformers, seed=0):
    torch.manual_seed(seed)
    config = transformers.GPT2Config(
        n_layer=2, n_embd=32, n_head=2, vocab_size=100, n_positions=16, bos_token_id=0, eos_token_id=0
    )
    return transformers.GPT2LMHeadModel(config)


def bert(transformers, seed=0):
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=100
    )
    return transformers.BertForMaskedLM(config)


@pytest.mark.parametrize("model", [gpt2, bert])
@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("size", ["20KB", "1GB"])
def test_what_transformers_writes(tmp_path, transformers, model, variant, size):
    made = model(transformers)
    made.save_pretrained(tmp_path, max_shard_size=size, variant=variant)
    written = reference(tmp_path)
    checkpoint = assert_reads(tmp_path, written)
    assert checkpoint.warnings == ()
    assert ("shards" in checkpoint.format) == (size == "20KB")
    state = made.state_dict()  # with the names of tied tensors, which are written once
    assert all(torch.equal(tensor, state[name]) for name, tensor in written.items())
    assert_reads(tmp_path, written, variant=variant)
    made.save_pretrained(tmp_path / "both", max_shard_size=size)
    made.half().save_pretrained(tmp_path / "both", max_shard_size="10KB", variant="fp16")
    assert_reads(tmp_path / "both", written)
    half = {name: tensor.half() for name, tensor in written.items()}
    assert_reads(tmp_path / "both", half, variant="fp16")


def test_a_trainer_s_run_is_averaged(tmp_path, transformers):
    models = [gpt2(transformers, seed) for seed in range(3)]
    for step, model in zip((500, 1000, 1500), models, strict=True):
        folder = tmp_path / "run" / f"checkpoint-{step}"
        model.save_pretrained(folder, max_shard_size="20KB")
        state = transformers.TrainerState(global_step=step, epoch=step / 500, log_history=[{"loss": 1.0}])
        state.save_to_json(str(folder / "trainer_state.json"))
        for name in ("optimizer.pt", "scheduler.pt", "training_args.bin", "rng_state.pth"):
            torch.save({"state": torch.ones(3)}, folder / name)
    models[-1].save_pretrained(tmp_path / "run")
    output = tmp_path / "averaged.safetensors"
    report = swatool.average(tmp_path / "run", output, accumulate="float64")
    assert [one.step for one in report.checkpoints] == [500, 1000, 1500]
    assert [os.path.basename(one.path) for one in report.checkpoints] == [
        *("checkpoint-500", "checkpoint-1000", "checkpoint-1500")
    ]
    assert any("only folders named by a step are taken" in warning for warning in report.warnings)
    written = [reference_weights(tmp_path / "run" / f"checkpoint-{step}") for step in (500, 1000, 1500)]
    averaged = safetensors.torch.load_file(output)
    assert set(averaged) == set(written[0])
    for name, tensor in averaged.items():
        mean = torch.stack([one[name].double() for one in written]).mean(0)
        torch.testing.assert_close(tensor.double(), mean, rtol=1e-6, atol=1e-9)


def reference_weights(folder):
    found = {}
    for path in folder.glob("model*.safetensors"):
        found |= safetensors.torch.load_file(path)
    return found
