"""Outputs read again: damage of every kind is found, and what is sound passes."""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import swatool
from swatool.averaging.schemes import SCHEMES
from swatool.cli import app
from swatool.errors import CheckFailedError, CheckpointError, UsageError
from swatool.jobs import verify as verifying
from swatool.jobs.average_settings import AverageSettings
from swatool.jobs.provenance import MOST_SOURCES
from swatool.jobs.verify import check, verify

PARAMETERS = {
    "ema": {"decay": 0.7},
    "power-ema": {"sigma_rel": 0.1},
    "posthoc-ema": {"sigma_rel": 0.1, "sigma_rels": (0.05, 0.1, 0.05, 0.1)},
    "lr-weighted": {"lrs": (0.1, 0.2, 0.1, 0.05)},
    "extrapolate": {"factor": 0.5},
    "difference": {"counts": (1.0, 3.0), "last": 2},
    "weights": {"weights": (0.1, 0.2, 0.3, 0.4)},
}


@pytest.fixture
def run(tmp_path):
    generator = torch.Generator().manual_seed(0)
    for step in (100, 200, 300, 400):
        state = {
            "w": torch.randn(300, 40, generator=generator),
            "half": torch.randn(50, generator=generator).half(),
            "bn.running_mean": torch.randn(6, generator=generator),
            "bn.running_var": torch.rand(6, generator=generator),
            "bn.num_batches_tracked": torch.tensor(step),
            "empty": torch.zeros(0, 3),
        }
        torch.save({"model": state, "step": step}, tmp_path / f"ckpt-{step}.pt")
    return tmp_path


def averaged(run, name="out.safetensors", sources="ckpt-*.pt", **options):
    swatool.average(str(run / sources), run / name, **options)
    return run / name


def flip(path, place=-1):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def resaid(path, change):
    """Write a safetensors file again with another provenance, which `change` makes of the old one."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    said = change(json.loads(header["__metadata__"]["swatool"]))
    header["__metadata__"]["swatool"] = said if isinstance(said, str) else json.dumps(said)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    return path


def failures(path, *sources, **options):
    report = verify(path, *sources, **options)
    assert report.passed is not bool(report.failures)
    return " | ".join(report.failures)


# --- what is sound passes


@pytest.mark.parametrize("method", SCHEMES)
def test_an_average_by_each_method_is_the_one_that_it_claims(run, method):
    out = averaged(run, method=method, **PARAMETERS.get(method, {}), exclude=("bn.*",))
    report = verify(out, run)
    assert report.failures == ()
    assert (report.sources.method, report.sources.compared) == (method, 6)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dtype": "bfloat16"},
        {"accumulate": "float64"},
        {"integers": "first"},
        {"exclude": ("w",), "integers": "last"},
        {"key": "model"},
        {"keep_prefix": True},
        {"weights": (30.0, -60.0, 1.0, 30.0)},
        {"last": 2},
        {"every": 2, "sort": "name"},
    ],
)
@pytest.mark.parametrize("name", ["out.safetensors", "out.pt", "hf/", "dcp"])
def test_what_was_chosen_is_known_again(run, options, name):
    if name == "dcp":
        options = {**options, "format": "dcp"}
    options = {**options, **({"exclude": ("bn.*",)} if "weights" in options else {})}
    if name == "hf/":
        options["max_shard_size"] = 20_000
    swatool.average(str(run / "ckpt-*.pt"), str(run / name), **options)
    assert failures(run / name, run) == ""


def test_prefixes_ties_and_likeness(tmp_path):
    for step in (1, 2):
        shared = torch.randn(4, 3)
        state = {"module.a": shared, "module.b": shared, "module.c": torch.randn(5)}
        torch.save({"state_dict": state, "epoch": step}, tmp_path / f"c{step}.ckpt")
    sources = [tmp_path / "c1.ckpt", tmp_path / "c2.ckpt"]
    for number, options in enumerate(
        [{}, {"tied": "drop"}, {"keep_prefix": True}, {"strip_prefix": ("module.",), "keep_prefix": True}]
    ):
        out = tmp_path / f"out{number}.safetensors"
        swatool.average(sources, out, **options)
        assert failures(out, sources) == ""
    swatool.average(sources, tmp_path / "like.ckpt", like=str(sources[1]))
    assert failures(tmp_path / "like.ckpt", sources) == ""


@pytest.mark.parametrize("match", ["union", "intersection"])
def test_names_that_only_some_have(tmp_path, match):
    torch.save({"a": torch.randn(4), "b": torch.randn(3)}, tmp_path / "c1.pt")
    torch.save({"a": torch.randn(4), "c": torch.randn(2)}, tmp_path / "c2.pt")
    swatool.average([tmp_path / "c1.pt", tmp_path / "c2.pt"], tmp_path / "out.pt", match=match)
    assert failures(tmp_path / "out.pt", tmp_path / "c*.pt") == ""


def test_the_number_of_threads_does_not_matter(run):
    out = averaged(run, threads=1, checksum=True)
    assert failures(out, run, threads=7) == ""


def test_settings_that_an_output_claims_are_told(run):
    """Whoever forges them can call a copy of one source an average."""
    path = averaged(run, "copy.safetensors", exclude=("*",))
    found = swatool.verify(path, [str(run / "ckpt-*.pt")])
    assert found.passed
    assert found.sources.settings == {"exclude": ["*"]}
    assert found.sources.copied == found.sources.compared > 1
    plain = swatool.verify(averaged(run), [str(run / "ckpt-*.pt")]).sources
    assert plain.settings == {}
    assert plain.copied < plain.compared


def test_long_patterns_and_much_json_are_refused(run):
    path = averaged(run)
    for change in ({"settings": {"exclude": ["*a" * 6000]}}, {"more": [[]] * (1 << 20)}):
        resaid(path, strange(**change))
        with pytest.raises(CheckpointError, match="does not say where it comes from"):
            swatool.verify(path, [str(run / "ckpt-*.pt")])


def test_a_sweep_and_duplicates(run):
    swatool.average_sweep(
        [str(run / "ckpt-*.pt")],
        str(run / "avg-{last}.safetensors"),
        ["last=2,3"],
        settings=AverageSettings(checksum=True),
    )
    for last in (2, 3):
        assert failures(run / f"avg-{last}.safetensors", str(run / "ckpt-*.pt")) == ""
    swatool.average([run / "ckpt-100.pt"] * 2, run / "twice.pt", allow_duplicates=True)
    assert failures(run / "twice.pt", [run / "ckpt-100.pt"] * 2) == ""
    assert "claimed more often than it was given" in failures(run / "twice.pt", run / "ckpt-100.pt")


def test_sources_that_are_folders_are_told_by_one_digest(tmp_path):
    for step in (1, 2):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        safetensors.torch.save_file({"w": torch.randn(5)}, folder / "model.safetensors")
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    report = swatool.average(tmp_path, tmp_path / "out.safetensors", checksum=True)
    assert len({one.sha256 for one in report.checkpoints}) == 2
    assert failures(tmp_path / "out.safetensors", tmp_path) == ""
    flip(tmp_path / "checkpoint-2" / "trainer_state.json")
    assert "checkpoint-2' is not the source" in failures(tmp_path / "out.safetensors", tmp_path)


@pytest.mark.parametrize(
    ("inside", "given"),
    [(".", "."), (".", "./"), ("sub", ".."), ("sub", "../"), ("sub", "../../checkpoint-1/.")],
)
def test_a_source_that_is_where_one_stands_is_recorded_by_its_name(tmp_path, monkeypatch, inside, given):
    for number in (1, 2):
        (tmp_path / f"checkpoint-{number}" / "sub").mkdir(parents=True)
        safetensors.torch.save_file(
            {"w": torch.randn(5)}, tmp_path / f"checkpoint-{number}/model.safetensors"
        )
    monkeypatch.chdir(tmp_path / "checkpoint-1" / inside)
    swatool.average([given, tmp_path / "checkpoint-2"], tmp_path / "out.safetensors")
    monkeypatch.chdir(tmp_path)
    with safetensors.safe_open("out.safetensors", "pt") as file:
        said = json.loads(file.metadata()["swatool"])["sources"]
    assert [(one["name"], one["step"]) for one in said] == [("checkpoint-1", 1), ("checkpoint-2", 2)]
    assert failures("out.safetensors", ["checkpoint-1", "checkpoint-2"]) == ""
    monkeypatch.chdir(tmp_path / "checkpoint-1" / inside)
    assert failures(tmp_path / "out.safetensors", [given, tmp_path / "checkpoint-2"]) == ""


# --- damage


def test_each_byte_of_a_tensor_counts(run):
    out = averaged(run)
    whole = out.read_bytes()
    for place in (-1, -300 * 40 * 4, -12):
        out.write_bytes(whole)
        flip(out, place)
        assert failures(out) == ""
        assert "it is not the average of its sources: 1 of 6 tensors" in failures(out, run)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_bit_fails_where_a_checksum_is_recorded(run, data):
    out = run / "out.safetensors"
    if not out.exists():
        averaged(run, checksum=True)
    whole = out.read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    changed = bytearray(whole)
    changed[place] ^= 1 << data.draw(st.integers(0, 7))
    out.write_bytes(changed)
    try:
        assert "out.safetensors' does not have the SHA-256" in failures(out)
    except CheckpointError:
        pass
    finally:
        out.write_bytes(whole)
    assert failures(out) == ""


def test_a_header_that_lies_about_names_types_and_shapes(run):
    out = averaged(run)
    whole = out.read_bytes()
    out.write_bytes(whole.replace(b'"half"', b'"hall"'))
    assert failures(out, run) == "it lacks 'half' | it has 'hall', which the average has not"
    out.write_bytes(whole.replace(b"[300,40]", b"[40,300]"))
    assert "its 'w' is float32 [40, 300], and that of the average is float32 [300, 40]" in failures(out, run)
    out.write_bytes(whole.replace(b'"F16"', b'"I16"'))
    assert "its 'half' is int16 [50]" in failures(out, run)


def test_an_output_that_changes_while_it_is_read_is_refused(run, monkeypatch):
    path = averaged(run)
    look = verifying._nonfinite

    def look_and_write(*args):
        found = look(*args)
        with open(path, "ab") as file:
            file.write(b"x")
        return found

    monkeypatch.setattr(verifying, "_nonfinite", look_and_write)
    with pytest.raises(CheckpointError, match=r"out\.safetensors' changed while it was read"):
        verify(path)


@pytest.mark.parametrize("name", ["out.safetensors", "out.pt"])
def test_a_truncated_output_is_damaged(run, name):
    out = averaged(run, name)
    out.write_bytes(out.read_bytes()[:-7])
    with pytest.raises(CheckpointError):
        verify(out, run)


def test_nan_and_inf(tmp_path):
    torch.save(
        {"a": torch.ones(3), "b": torch.tensor([1.0, float("nan")]), "n": torch.ones(1).long()},
        tmp_path / "x.pt",
    )
    torch.save(
        {"a": torch.ones(3), "b": torch.tensor([1.0, float("inf")]), "n": torch.ones(1).long()},
        tmp_path / "y.pt",
    )
    assert failures(tmp_path / "x.pt") == "there is NaN or Inf in 1 tensors, 'b'"
    report = verify(tmp_path / "y.pt", allow_nonfinite=True)
    assert (report.passed, report.nonfinite) == (True, ("b",))
    swatool.average([tmp_path / "x.pt", tmp_path / "y.pt"], tmp_path / "out.pt", allow_nonfinite=True)
    assert failures(tmp_path / "out.pt", tmp_path / "?.pt", allow_nonfinite=True) == ""


def test_a_model_beside_the_chosen_one_is_told(tmp_path):
    good, bad = {"w": torch.ones(3)}, {"w": torch.full((3,), float("nan"))}
    beside = {"optimizer": {"state": {"w": torch.ones(3)}}, "rng": torch.zeros(5).byte(), "same": good}
    torch.save({"model": good, "model_ema": bad, "step": 1, **beside}, tmp_path / "x.pt")
    told = ("values under 'model_ema' are not looked at: name such a model with --key",)
    found = verify(tmp_path / "x.pt")
    assert (found.key, found.failures, found.warnings) == ("model", (), told)
    found = verify(tmp_path / "x.pt", key="model_ema")
    assert found.failures == ("there is NaN or Inf in 1 tensors, 'w'",)
    assert "values under 'model', 'same' are not looked at" in found.warnings[0]
    torch.save({"w": torch.ones(3), "extra": {"x": torch.ones(2)}}, tmp_path / "y.pt")
    assert verify(tmp_path / "y.pt").warnings == ()
    torch.save({"state": {"a": good, "step": 3}, **{f"ema{i}": bad for i in range(9)}}, tmp_path / "z.pt")
    assert verify(tmp_path / "z.pt").warnings[0].startswith("values under 'ema0', 'ema1', 'ema2', ")
    assert CliRunner().invoke(app, ["verify", str(tmp_path / "x.pt"), "-q"]).stderr == ""
    assert (
        "warning: values under 'model_ema'"
        in CliRunner().invoke(app, ["verify", str(tmp_path / "x.pt")]).stderr
    )


def test_a_record_that_does_not_match_its_crc(run):
    source = run / "ckpt-300.pt"
    assert verify(source).records > 6
    flip(source, 5000)  # in the middle of the largest tensor
    with pytest.raises(CheckpointError, match=r"ckpt-300.pt' is damaged: its record '.*' does not match"):
        verify(source)
    with pytest.raises(CheckpointError, match="does not match its checksum"):
        averaged(run, checksum=True)
    assert not (run / "out.safetensors").exists()
    averaged(run)  # without being asked to, it does not look


def test_a_legacy_file_and_a_dcp_folder_have_no_records(run):
    torch.save({"w": torch.ones(3)}, run / "old.pth", _use_new_zipfile_serialization=False)
    assert verify(run / "old.pth").records == 0
    averaged(run, "dcp", format="dcp", checksum=True)
    assert verify(run / "dcp").passed
    flip(run / "dcp" / "__0_0.distcp", 3000)
    assert "'__0_0.distcp' does not have the SHA-256" in failures(run / "dcp")


# --- sources that are others


def test_a_source_that_changed(run):
    out, checked = averaged(run), averaged(run, "checked.safetensors", checksum=True)
    state = torch.load(run / "ckpt-200.pt", weights_only=True)
    state["model"]["w"][0, 0] += 1
    torch.save(state, run / "ckpt-200.pt")
    assert "it is not the average of its sources: 1 of 6 tensors have other values, 'w'" in failures(out, run)
    assert failures(checked, run).endswith("ckpt-200.pt' is not the source: its SHA-256 is another one")
    state["model"]["w"] = torch.ones(3)
    torch.save(state, run / "ckpt-200.pt")
    assert "bytes, and the source had" in failures(out, run)


def test_sources_that_are_exchanged(run):
    out = averaged(run, method="ema", decay=0.5)
    (run / "ckpt-100.pt").rename(run / "x")
    (run / "ckpt-400.pt").rename(run / "ckpt-100.pt")
    (run / "x").rename(run / "ckpt-400.pt")
    assert "it is not the average of its sources" in failures(out, run)


def test_sources_that_are_missing_and_others(run):
    out = averaged(run, last=3)
    report = verify(out, [run / "ckpt-100.pt", run / "ckpt-200.pt", run / "ckpt-400.pt"])
    assert report.failures == ("the source 'ckpt-300.pt' is not among those that were given",)
    assert (report.sources.found, report.sources.recorded, report.sources.unused) == (2, 3, 1)
    (run / "ckpt-300.pt").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match=r"ckpt-300.pt"):
        verify(out, run / "ckpt-*.pt")


@pytest.mark.parametrize("checksum", [False, True])
def test_sources_of_one_name(tmp_path, checksum):
    paths = []
    for run in "abc":
        (tmp_path / run).mkdir()
        paths.append(tmp_path / run / "last.pt")
        torch.save({"w": torch.randn(1000)}, paths[-1])
    swatool.average(paths, tmp_path / "out.pt", checksum=checksum, sort="given", weights=(0.2, 0.3, 0.5))
    assert failures(tmp_path / "out.pt", paths) == ""
    found = failures(tmp_path / "out.pt", paths[::-1])
    assert found == "" if checksum else "several sources have one name and no checksum" in found


def test_another_output_than_that_of_its_sources(run):
    out, other = averaged(run), averaged(run, "other.safetensors", method="ema", decay=0.5)
    said = {}
    resaid(other, lambda one: said.update(one) or one)
    resaid(out, lambda _: said)
    assert "it is not the average of its sources" in failures(out, run)


def test_coefficients_that_are_not_those_of_the_method(run):
    out = averaged(run, method="ema", decay=0.5)
    resaid(out, lambda said: {**said, "parameters": {"decay": 0.6, "debias": False}})
    assert "the coefficient of 'ckpt-100.pt' is 0.125, and the method gives 0.216" in failures(out, run)
    resaid(out, lambda said: {**said, "parameters": {}})
    assert "its coefficients are not those of the method" in failures(out, run)


def test_an_output_that_claims_nothing(run):
    for path in (run / "ckpt-100.pt",):
        assert failures(path) == ""
        assert failures(path, run) == "it does not say which checkpoints it is the average of"
    with pytest.raises(CheckFailedError, match=r"ckpt-100\.pt' fails: it does not say"):
        check(verify(run / "ckpt-100.pt", run))
    check(verify(run / "ckpt-100.pt"))


def test_tensors_that_do_not_lie_as_swatool_writes_them(tmp_path):
    for step in (1, 2):
        torch.save({"w": torch.randn(6, 4), "v": torch.randn(24)}, tmp_path / f"c{step}.pt")
    swatool.average(tmp_path, tmp_path / "out.pt")
    said = swatool.inspect(tmp_path / "out.pt").metadata["swatool"]
    average = torch.load(tmp_path / "out.pt", weights_only=True)

    def stranger(tensors):
        torch.save(tensors, tmp_path / "x.pt")
        import zipfile

        with zipfile.ZipFile(tmp_path / "x.pt", "a", zipfile.ZIP_STORED) as archive:
            archive.writestr("x/swatool.json", json.dumps({"swatool": said}))
        return failures(tmp_path / "x.pt", tmp_path / "c?.pt")

    assert stranger(dict(average)) == ""
    transposed = average["w"].t().contiguous().t()
    assert stranger({**average, "w": transposed}) == "'w' is not stored as swatool writes it"
    both = torch.zeros(40)
    both[:24] = average["w"].view(-1)
    assert stranger({"w": both[:24].view(6, 4), "v": both[3:27]}) == "'v' is not stored as swatool writes it"
    assert "2 of 2 tensors have other values" in stranger({"w": both[:24].view(6, 4), "v": both[:24]})


# --- checksum files


def test_checksum_files_that_are_none(run):
    out = averaged(run, checksum=True)
    beside = run / "out.safetensors.sha256"
    line = beside.read_text()
    assert verify(out, require_checksum=True).checksum == str(beside)
    beside.write_text(line.replace(line[0], "0" if line[0] != "0" else "1", 1))
    assert "does not have the SHA-256" in failures(out)
    for text in ("", "hello\n", line[:-1], line.replace("out", "in"), line[1:], line + "x\n", line * 2 + "x"):
        beside.write_text(text)
        with pytest.raises(CheckpointError, match=r"out\.safetensors\.sha256"):
            verify(out)
    beside.write_text(f"{'0' * 64} *other\n{line.upper()[:64]}{line[64:]}")
    assert failures(out) == ""
    beside.unlink()
    assert verify(out).checksum is None
    assert failures(out, require_checksum=True) == "no checksum is recorded"
    os.mkfifo(beside)
    with pytest.raises(CheckpointError, match="not a regular file"):
        verify(out)


def test_the_checksums_of_a_folder(run):
    for step in (100, 200):
        folder = run / f"checkpoint-{step}"
        folder.mkdir()
        safetensors.torch.save_file(
            {"w": torch.randn(50), "v": torch.randn(60)}, folder / "model.safetensors"
        )
        (folder / "config.json").write_text("{}")
    out = run / "out"
    swatool.average(
        [run / "checkpoint-100", run / "checkpoint-200"], f"{out}/", checksum=True, max_shard_size=250
    )
    listed = (out / "SHA256SUMS").read_text()
    assert [line[66:] for line in listed.splitlines()] == [
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]
    assert failures(out, run / "checkpoint-*") == ""
    flip(out / "config.json", 0)
    assert failures(out) == f"'config.json' does not have the SHA-256 that '{out}/SHA256SUMS' records"
    (out / "config.json").unlink()
    assert failures(out) == f"'config.json', which '{out}/SHA256SUMS' lists, is not there"
    (out / "SHA256SUMS").write_text(listed.replace("model-00002", "nodel-00002"))
    assert "'model-00002-of-00002.safetensors' is not listed in" in failures(out)
    (out / "SHA256SUMS").write_text(f"{'0' * 64}  ../ckpt-100.pt\n")
    assert "'../ckpt-100.pt', which" in failures(out)


def listing(folder, *names):
    """Write a model and SHA256SUMS of a folder's files, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file({"w": torch.ones(3)}, folder / "model.safetensors")
    digests = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in ("model.safetensors", *names)
    }
    (folder / "SHA256SUMS").write_text("".join(f"{digest}  {name}\n" for name, digest in digests.items()))
    return folder


def test_a_file_is_compared_with_the_list_of_the_folder_that_it_lies_in(run):
    averaged(run, "out/", max_shard_size=100, checksum=True)
    out = run / "out"
    index, shard = out / "model.safetensors.index.json", min(out.glob("model-00001-of-*"))
    for one in (index, shard):
        report = verify(one, require_checksum=True)
        assert report.passed
        assert report.checksum == str(out / "SHA256SUMS")
    flip(max(out.glob("model-*-of-*")))
    assert not failures(shard)  # others do not count
    assert "does not have the SHA-256 that" in failures(index)
    flip(shard)
    assert failures(shard) == f"{shard.name!r} does not have the SHA-256 that '{out}/SHA256SUMS' records"
    listed = [line for line in (out / "SHA256SUMS").read_text().splitlines() if shard.name not in line]
    (out / "SHA256SUMS").write_text("".join(f"{line}\n" for line in listed))
    assert failures(shard, require_checksum=True) == "no checksum is recorded"
    assert f"{shard.name!r} is not listed in" in failures(index)


def test_the_checksum_beside_a_file_counts_before_the_list_of_its_folder(run):
    averaged(run, checksum=True)
    (run / "SHA256SUMS").write_text(f"{'0' * 64}  out.safetensors\n")
    assert verify(run / "out.safetensors").passed
    (run / "out.safetensors.sha256").unlink()
    assert "does not have the SHA-256" in failures(run / "out.safetensors")
    (run / "SHA256SUMS").write_text("noise")
    with pytest.raises(CheckpointError, match="is no list of checksums"):
        verify(run / "out.safetensors")


def test_of_very_many_files_that_are_not_there_some_are_named(tmp_path):
    folder = listing(tmp_path)
    with open(folder / "SHA256SUMS", "a") as file:
        file.writelines(f"{'0' * 64}  name-{number}\n" for number in range(30))
    found = verify(folder).failures
    assert len(found) == 21
    assert found[-1] == "and 10 more"


def test_listed_links_are_followed_within_the_folder_only(tmp_path):
    (tmp_path / "secret").write_text("x")
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "inside").write_text("y")
    (folder / "link").symlink_to("inside")
    assert failures(listing(folder, "inside", "link")) == ""
    for target in ("../secret", tmp_path / "secret", "/dev/zero"):
        (folder / "link").unlink()
        (folder / "link").symlink_to(target)
        found = failures(folder)
        assert found == (
            f"'link', which '{folder}/SHA256SUMS' lists, is a link that leads out of the folder: it is not "
            "followed"
        )


def test_links_of_the_cache_of_the_hub_are_followed(tmp_path):
    model = tmp_path / "models--a--b"
    (model / "blobs").mkdir(parents=True)
    (model / "blobs" / "0123").write_text("{}")
    (model / "other").write_text("{}")
    folder = model / "snapshots" / "abc"
    folder.mkdir(parents=True)
    (folder / "config.json").symlink_to("../../blobs/0123")
    assert failures(listing(folder, "config.json")) == ""
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("../../other")
    assert "'config.json', which" in failures(folder)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("nowhere", path)])
def test_a_listed_name_that_is_no_file_is_refused(tmp_path, make):
    (tmp_path / "x").write_text("")
    folder = listing(tmp_path, "x")
    (tmp_path / "x").unlink()
    make(tmp_path / "x")
    with pytest.raises(CheckpointError, match=r"x': No such file|x' is not a regular file"):
        verify(folder)


def test_many_listed_files_are_not_open_at_once(tmp_path):
    names = [f"{number}.json" for number in range(200)]
    for name in names:
        (tmp_path / name).write_text(name)
    listing(tmp_path, *names)
    code = (
        "import resource, sys, swatool\nresource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))\n"
        "assert swatool.verify(sys.argv[1]).passed\n"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True)
    flip(tmp_path / "150.json")
    assert failures(tmp_path).startswith("'150.json' does not have the SHA-256")


def test_a_listed_file_that_changes_meanwhile_is_refused(tmp_path):
    (tmp_path / "x.json").write_text("{}")
    folder = listing(tmp_path, "x.json")
    with pytest.raises(CheckpointError, match=r"x\.json' changed before it was read"):
        verify(folder, on_plan=lambda _: (tmp_path / "x.json").write_text("longer"))


# --- recalibrated outputs


def test_all_but_the_recalibrated_statistics_is_compared(run, monkeypatch):
    monkeypatch.chdir(run)
    for step in (100, 200, 300, 400):
        (run / f"ckpt-{step}.pt").unlink()
        state = {
            "0.weight": torch.randn(4, 3), "1.running_mean": torch.randn(4), "1.running_var": torch.rand(4),
            "1.weight": torch.ones(4), "1.bias": torch.ones(4), "1.num_batches_tracked": torch.tensor(step),
        }  # fmt: skip
        torch.save(state, run / f"ckpt-{step}.pt")
    out = averaged(run)
    (run / "net.py").write_text(
        "from torch.nn import *\nbuild = lambda: Sequential(Linear(3, 4, bias=False), BatchNorm1d(4))\n"
    )
    safetensors.torch.save_file({"x": torch.randn(32, 3)}, run / "x.safetensors")
    report = swatool.recalibrate_checkpoint(
        out, run / "bn.safetensors", model="net.py:build", data="x.safetensors:x", checksum=True
    )
    assert set(report.output.sha256) == {"bn.safetensors"}
    found = verify(run / "bn.safetensors", run / "ckpt-*.pt", require_checksum=True)
    assert found.failures == ()
    assert (found.sources.compared, found.sources.recalibrated) == (3, 3)
    assert found.sources.not_compared == ("1.num_batches_tracked", "1.running_mean", "1.running_var")
    recorded = json.loads(swatool.inspect(run / "bn.safetensors").metadata["swatool"])["recalibrated"]
    assert len(recorded["sha256"]) == 64
    (run / "bn.safetensors.sha256").unlink()
    loaded = safetensors.torch.load_file(run / "bn.safetensors")
    tensors = {name: tensor.clone() for name, tensor in loaded.items()}  # those are mapped
    for name in tensors:
        data = (run / "bn.safetensors").read_bytes()
        changed = dict(tensors)
        changed[name] = changed[name] + 1
        header = int.from_bytes(data[:8], "little")
        safetensors.torch.save_file(
            changed, run / "bn.safetensors", json.loads(data[8 : 8 + header])["__metadata__"]
        )
        replaced = name.startswith("1.running") or name.startswith("1.num")
        assert (failures(run / "bn.safetensors", run / "ckpt-*.pt") == "") is replaced, name
        (run / "bn.safetensors").write_bytes(data)


def test_only_statistics_of_layers_that_have_them_are_taken_for_recalibrated(tmp_path):
    for step in (1, 2):
        mean = torch.randn(6)
        state = {
            "bn.running_mean": mean,
            "bn.running_var": torch.rand(6),
            "bn.num_batches_tracked": torch.tensor(step),
            "bn.weight": torch.randn(6),
            "copy.running_mean": mean,
            "secret": mean,
            "a.running_mean": torch.randn(6, 4),
            "a.running_var": torch.randn(6, 4),
            "b.running_mean": torch.randn(6),
            "c.running_mean": torch.randn(6),
            "c.running_var": torch.randn(5),
            "d.running_mean": torch.randn(6),
            "d.running_var": torch.randn(6),
            "d.num_batches_tracked": torch.randn(6),
        }
        torch.save(state, tmp_path / f"c{step}.pt")
    out = averaged(tmp_path, name="out.safetensors", sources="c?.pt")
    layers = ["bn", "bn.weight", "a", "b", "c", "d", "nowhere", "", "secret", "bn.running_mean"]
    resaid(out, strange(recalibrated={"layers": layers}))
    found = verify(out, tmp_path / "c?.pt")
    assert found.failures == ()
    statistics = ["bn.num_batches_tracked", "bn.running_mean", "bn.running_var"]
    assert found.sources.not_compared == (*statistics, "copy.running_mean")
    assert found.sources.recalibrated == 4
    told = CliRunner().invoke(app, ["verify", str(out), "--sources", str(tmp_path / "c?.pt")])
    assert "not compared: 4 tensors recalibrated on data, by its own word\n" in told.stdout
    assert "not compared: 'copy.running_mean'\n" in told.stdout


# --- what strangers say


def strange(**changes):
    return lambda said: {**said, **changes}


def with_source(**changes):
    return lambda said: {**said, "sources": [{**one, **changes} for one in said["sources"]]}


HOSTILE = [
    lambda _: "[" * 100_000,
    lambda _: "no JSON",
    lambda _: "[]",
    lambda _: "1" * 5000,
    lambda _: '"' + "x" * (17 << 20) + '"',
    strange(sources={}),
    strange(sources=[]),
    strange(sources=[[]]),
    lambda said: {**said, "sources": said["sources"] * (MOST_SOURCES // 2)},
    strange(method=None),
    strange(method=["swa"]),
    strange(parameters=[]),
    strange(settings="x"),
    strange(settings={"dtype": 3}),
    strange(settings={"dtype": "int4"}),
    strange(settings={"exclude": "w"}),
    strange(settings={"exclude": [3]}),
    strange(settings={"exclude": ["*"] * 2_000}),
    strange(settings={"strip_prefix": [""]}),
    strange(settings={"keep_prefix": 1}),
    strange(settings={"unheard": "of"}),
    strange(settings={"device": "cuda"}),
    strange(recalibrated=[]),
    strange(recalibrated={"layers": {}}),
    strange(recalibrated={"layers": [1]}),
    with_source(coefficient=float("nan")),
    with_source(coefficient=float("inf")),
    with_source(coefficient="1"),
    with_source(coefficient=True),
    with_source(coefficient=10**400),
    with_source(size=-1),
    with_source(size=1.5),
    with_source(size=10**30),
    with_source(step="x"),
    with_source(step=10**30),
    with_source(name=None),
    with_source(sha256="x"),
    with_source(sha256=["x"]),
    with_source(sha256="A" * 64),
]


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_metadata_that_are_not_as_swatool_writes_them(run, number):
    out = resaid(averaged(run), HOSTILE[number])
    for sources in ((), (run / "ckpt-*.pt",)):
        with pytest.raises(
            CheckpointError, match="does not say where it comes from as swatool writes it"
        ) as told:
            verify(out, *sources)
        assert "\n" not in str(told.value)
        assert len(str(told.value)) < 600


@pytest.mark.parametrize(
    "change",
    [
        strange(method="no such"),
        strange(method="__class__"),
        strange(method="ema", parameters={"decay": "x"}),
        strange(method="ema", parameters={"decay": [0.5]}),
        strange(method="ema", parameters={"decay": None}),
        strange(method="ema", parameters={"decay": 0.5, "per_step": 10**400}),
        strange(method="ema", parameters={"\x1b[31m": 0.5}),
        strange(method="weights", parameters={"weights": {"a": 1}}),
        strange(method="weights", parameters={"weights": [1, "x", 3, 4]}),
        strange(method="weights", parameters={"weights": [1]}),
        strange(method="polynomial", parameters={"eta": 1e308}),
        strange(method="polynomial", parameters={"eta": 10**400}),
        strange(method="ema-warmup", parameters={"power": 1e308, "inv_gamma": 1e-300}),
        strange(method="bema", parameters={"kappa": 1e300, "rho": -1}),
        strange(method="posthoc-ema", parameters={"sigma_rel": 0.1, "profile": "{}" * 1000}),
        strange(method="tail", parameters={"alpha": {}}),
        strange(method="wsm", parameters={"schedule": []}),
        strange(method="wsm", parameters={"spacing": {"a": "b"}}),
        with_source(name="../../../etc/passwd"),
        with_source(name="/etc/passwd"),
        with_source(name="\x1b]0;owned\x07\r\n"),
        with_source(name="ckpt-100.pt\0"),
        strange(settings={"exclude": ["*?" * 200 + "x"]}),
        strange(settings={"exclude": ["none"]}),
        strange(settings={"match": "union", "tied": "drop", "dtype": "float16"}),
    ],
)
def test_claims_that_do_not_hold(run, change, monkeypatch):
    out = resaid(averaged(run), change)
    opened = []
    really = os.open
    monkeypatch.setattr(
        os, "open", lambda path, *rest, **more: opened.append(path) or really(path, *rest, **more)
    )
    found = failures(out, run / "ckpt-*.pt")
    assert found
    assert found.isprintable()
    assert {os.path.dirname(one) for one in opened if str(one).endswith((".pt", "passwd"))} <= {str(run)}


@pytest.mark.parametrize(("snapshots", "widths"), [(256, 16), (257, 2), (20, 17)])
def test_equations_that_take_long_are_not_solved_for_a_stranger(run, monkeypatch, snapshots, widths):
    from swatool.averaging import posthoc_scheme

    solved = []
    really = posthoc_scheme.reconstruct
    monkeypatch.setattr(posthoc_scheme, "reconstruct", lambda *a: solved.append(a) or really(*a))
    said = {"sigma_rel": 0.1, "sigma_rels": [0.05 + number % widths / 100 for number in range(snapshots)]}
    out = resaid(averaged(run), strange(method="posthoc-ema", parameters=said))
    copies = [str(run / "ckpt-100.pt")] * snapshots

    def many(claim):
        (first, *_) = claim["sources"]
        return {**claim, "sources": [{**first, "step": 100 * (number + 1)} for number in range(snapshots)]}

    found = failures(resaid(out, many), copies)
    within = (snapshots, widths) == (256, 16)
    assert bool(solved) is within
    assert ("of at most 256 snapshots and 16 widths" in found) is not within
    resaid(out, strange(parameters={"sigma_rel": 0.1, "sigma_rels": [0.1] * 300}))
    assert "of at most 256 snapshots" in failures(out, copies)


def test_a_prefix_that_is_not_on_every_name_is_told(run):
    out = resaid(averaged(run), strange(settings={"key": "nowhere"}))
    with pytest.raises(CheckpointError, match="nowhere"):
        verify(out, run / "ckpt-*.pt")


LONG = 4000
LONG_CLAIMS = {
    "method": strange(method="m" * (1 << 20)),
    "name of a parameter": strange(parameters={"p" * (1 << 20): 1}),
    "names of parameters": strange(parameters={f"p{number}": 1 for number in range(10_000)}),
    "number": strange(method="ema", parameters={"decay": int("9" * LONG)}),
    "whole number": strange(method="tail", parameters={"alpha": int("9" * LONG)}),
    "text": strange(method="wsm", parameters={"schedule": "x" * (1 << 20)}),
    "no word": strange(method="wsm", parameters={"spacing": int("9" * LONG)}),
    "no flag": strange(method="ema", parameters={"decay": 0.5, "debias": [0] * 10_000}),
    "steps": strange(
        method="posthoc-ema",
        parameters={"sigma_rel": 0.1, "sigma_rels": [0.1] * 4, "snapshot_steps": [int("9" * LONG)] * 4},
    ),
    "target": strange(
        method="posthoc-ema",
        parameters={"sigma_rel": 0.1, "sigma_rels": [0.1] * 4, "target_step": int("9" * LONG)},
    ),
    "numbers": strange(method="weights", parameters={"weights": [int("9" * 300)] * 4}),
    "sources": with_source(name="n" * (1 << 18)),
    "layers": strange(recalibrated={"layers": ["x" * (1 << 20)]}),
    "pattern": strange(settings={"exclude": ["x" * 9000]}),
    "key": strange(settings={"strip_prefix": ["x" * 9000]}),
}


@pytest.mark.parametrize("what", LONG_CLAIMS)
def test_long_words_and_numbers_of_a_claim_are_cut(run, what):
    out = resaid(averaged(run), LONG_CLAIMS[what])
    told = CliRunner().invoke(app, ["verify", str(out), "--sources", str(run / "ckpt-*.pt"), "-v"])
    assert told.exit_code in ((0,) if what == "layers" else (3, 6)), told.output
    assert max(map(len, told.output.splitlines())) < 4000
    assert len(told.output) < 8000


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    said=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda one: (
            st.lists(one, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "method",
                        "parameters",
                        "sources",
                        "settings",
                        "name",
                        "size",
                        "step",
                        "coefficient",
                        "sha256",
                    ]
                ),
                one,
                max_size=5,
            )
        ),
        max_leaves=20,
    ),
    part=st.sampled_from(["method", "parameters", "sources", "settings", "recalibrated"]),
)
def test_any_json_is_a_refusal_or_a_failure(run, said, part):
    out = run / "out.safetensors"
    whole = out.read_bytes() if out.exists() else averaged(run).read_bytes()
    resaid(out, lambda one: {**one, part: said})
    try:
        verify(out, run / "ckpt-*.pt")
    except CheckpointError:
        pass
    finally:
        out.write_bytes(whole)


# --- the interface


def test_progress_settings_and_the_file_that_changes(run, monkeypatch):
    out = averaged(run, checksum=True)
    totals, told = [], []
    report = verify(out, run, on_plan=totals.append, on_progress=told.append)
    assert totals == [report.bytes_read]
    assert told == sorted(told)
    assert told[-1] <= totals[0]
    with pytest.raises(TypeError, match="not both"):
        verify(out, settings=swatool.VerifySettings(), threads=1)
    with pytest.raises(UsageError):
        verify(out, threads=0)
    from swatool.checkpoints.files import LocalFile

    def changed(self):
        raise CheckpointError(f"{self.path} changed")

    monkeypatch.setattr(LocalFile, "check_unchanged", changed)
    with pytest.raises(CheckpointError, match="changed"):
        verify(out, run)


def test_the_report_is_plain_data(run):
    report = verify(averaged(run, method="ema", decay=0.5), run)
    data = json.loads(json.dumps(report.as_json()))
    assert set(data) == {"schema", "passed"} | {field.name for field in dataclasses.fields(report)}
    assert data["sources"]["parameters"] == {"decay": 0.5, "debias": False}
