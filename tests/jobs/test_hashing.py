import hashlib
import json

import pytest
import torch

import swatool
from swatool.checkpoints.opening import open_checkpoint
from swatool.errors import CheckpointError
from swatool.jobs import hashing
from swatool.jobs.average_settings import AverageSettings
from swatool.jobs.hashing import hash_checkpoints
from swatool.jobs.scoring import Scoring


@pytest.fixture
def run(tmp_path):
    for step in (1, 2, 3):
        torch.save({"w": torch.full((1000,), float(step)), "b": torch.ones(3)}, tmp_path / f"c{step}.pt")
    return tmp_path


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def opened(paths):
    return [open_checkpoint(path) for path in paths]


@pytest.mark.parametrize("threads", [1, 2, 16])
@pytest.mark.parametrize("piece", [100, 1 << 20])
def test_files_are_hashed_in_threads(run, threads, piece, monkeypatch):
    monkeypatch.setattr(hashing, "PIECE", piece)
    paths = sorted(run.iterdir())
    checkpoints = opened(paths)
    told = []
    assert hash_checkpoints(checkpoints, threads, told.append) == list(map(sha256, paths))
    assert told[-1] == sum(path.stat().st_size for path in paths)
    assert told == sorted(told)
    for one in checkpoints:
        one.close()


def test_a_folder_is_told_as_sha256sum_tells_its_files(tmp_path):
    folder = tmp_path / "checkpoint-1"
    folder.mkdir()
    torch.save({"w": torch.ones(3)}, folder / "pytorch_model.bin")
    (folder / "trainer_state.json").write_text("{}")
    (checkpoint,) = opened([folder])
    lines = "".join(
        f"{sha256(folder / name)}  {name}\n" for name in ("pytorch_model.bin", "trainer_state.json")
    )
    assert hash_checkpoints([checkpoint], 2) == [hashlib.sha256(lines.encode()).hexdigest()]
    checkpoint.close()


def test_the_first_that_fails_ends_it(run):
    checkpoints = opened(sorted(run.iterdir()))
    data = bytearray((run / "c2.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (run / "c2.pt").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"c2\.pt"):
        hash_checkpoints(checkpoints, 2)
    assert hash_checkpoints([], 2) == []
    for one in checkpoints:
        one.close()


# --- average --checksum


def provenance(path):
    return json.loads(swatool.inspect(path).metadata["swatool"])


@pytest.mark.parametrize("name", ["out.safetensors", "out.pt"])
def test_sources_and_output_are_recorded(run, name):
    plain = swatool.average(run, run.parent / f"{run.name}-plain", format=None)
    told = []
    report = swatool.average(str(run / "c*.pt"), run / name, checksum=True, on_progress=told.append)
    assert [one["sha256"] for one in provenance(run / name)["sources"]] == [
        sha256(run / f"c{step}.pt") for step in (1, 2, 3)
    ]
    assert [one.sha256 for one in report.checkpoints] == [sha256(run / f"c{step}.pt") for step in (1, 2, 3)]
    assert report.output.sha256 == {name: sha256(run / name)}
    assert (run / f"{name}.sha256").read_text() == f"{sha256(run / name)}  {name}\n"
    assert (report.checksum, plain.checksum) == (True, False)
    assert report.seconds.checksum > 0 == plain.seconds.checksum
    assert [one.sha256 for one in plain.checkpoints] == [None] * 3
    assert told == sorted(told)
    assert told[-1] == report.bytes_read + sum(one.bytes for one in report.checkpoints)
    assert report.bytes_written == report.output.bytes


def test_the_bytes_do_not_depend_on_threads_and_a_dry_run_hashes_nothing(run, monkeypatch):
    for threads in (1, 3):
        swatool.average(str(run / "c?.pt"), run / f"{threads}.safetensors", checksum=True, threads=threads)
    assert (run / "1.safetensors").read_bytes() == (run / "3.safetensors").read_bytes()
    monkeypatch.setattr(hashing, "hash_files", None)
    report = swatool.average(str(run / "c?.pt"), run / "dry.safetensors", checksum=True, dry_run=True)
    assert report.checksum
    assert report.output.bytes == (run / "1.safetensors").stat().st_size


def test_a_source_that_changes_after_it_was_hashed(run, monkeypatch):
    real = hashing.hash_files

    def and_then_change(*rest):
        found = real(*rest)
        (run / "c2.pt").write_bytes((run / "c2.pt").read_bytes())
        return found

    monkeypatch.setattr(hashing, "hash_files", and_then_change)
    with pytest.raises(CheckpointError, match=r"c2\.pt' changed while it was read"):
        swatool.average(str(run / "c?.pt"), run / "out.pt", checksum=True)
    assert sorted(path.name for path in run.iterdir()) == ["c1.pt", "c2.pt", "c3.pt"]


def test_what_a_sweep_does_not_keep_leaves_no_checksum(run):
    (run / "score.py").write_text(
        "import torch\ndef score(path): return float(torch.load(path, weights_only=True)['w'][0])\n"
    )
    swatool.average_sweep(
        str(run / "c?.pt"),
        str(run / "avg-{last}.pt"),
        ["last=2,3"],
        settings=AverageSettings(checksum=True),
        scoring=Scoring(evaluate=f"{run / 'score.py'}:score", mode="max"),
    )
    assert sorted(path.name for path in run.glob("avg*")) == ["avg-2.pt", "avg-2.pt.sha256"]


def test_a_soup_and_a_recipe(run):
    (run / "score.py").write_text(
        "import torch\ndef score(path): return float(torch.load(path, weights_only=True)['w'][0])\n"
    )
    (run / "recipe.yaml").write_text(
        "inputs: c?.pt\nrun: {checksum: true}\nevaluate: {command: 'score.py:score', mode: max}\n"
        "outputs:\n  - path: avg-{last}.pt\n    sweep: {last: [2, 3]}\n"
    )
    assert swatool.run_recipe(run / "recipe.yaml").passed
    assert sorted(path.name for path in run.glob("avg*")) == ["avg-2.pt", "avg-2.pt.sha256"]
    scoring = Scoring(evaluate=f"{run / 'score.py'}:score", mode="max")
    swatool.soup(str(run / "c?.pt"), run / "soup.pt", scoring=scoring, checksum=True)
    assert swatool.verify(run / "soup.pt", str(run / "c?.pt"), require_checksum=True).failures == ()
