"""What a dry run says that the run would take."""

import json
import subprocess
import sys

import torch

import swatool
from swatool.averaging.plan import make_plan
from swatool.averaging.policies import Policies
from swatool.checkpoints.opening import open_checkpoint
from swatool.jobs import average_estimate

MEBI = 1 << 20


def save(folder, tensors, count=2):
    paths = [folder / f"ckpt-{step}.pt" for step in range(count)]
    for path in paths:
        torch.save(tensors, path)
    return paths


def planned(paths, folder, **options):
    return swatool.average(paths, folder / "o.safetensors", dry_run=True, **options)


def test_only_a_dry_run_estimates(tmp_path):
    paths = save(tmp_path, {"w": torch.ones(10)})
    assert planned(paths, tmp_path).estimate is not None
    assert swatool.average(paths, tmp_path / "o.safetensors").estimate is None


def test_seconds_follow_from_the_sizes_and_the_rate(tmp_path, monkeypatch):
    monkeypatch.setattr(average_estimate, "_bytes_per_second", lambda _: 8e6)
    paths = save(tmp_path, {"w": torch.ones(1_000_000)}, count=4)
    report = planned(paths, tmp_path)
    assert report.estimate.bytes_per_second == 8e6
    assert 2.0 <= report.estimate.seconds - report.seconds.plan <= 2.1  # 16 MB read, 4 MB written


def test_the_sample_is_bounded_in_bytes_and_time(tmp_path, monkeypatch):
    class Source:
        nbytes = 0

        def read_into(self, buffers, offset):
            assert offset >= 0
            Source.nbytes += sum(map(len, buffers))

    paths = save(tmp_path, {f"w{number}": torch.ones(600_000) for number in range(100)}, count=1)
    opened = open_checkpoint(paths[0])
    plan = make_plan([opened], [[1.0]], Policies())
    opened.close()
    for name, stored in opened.tensors.items():
        (extent,) = stored.extents
        opened.tensors[name] = type(stored)(stored.dtype, stored.shape, (extent._replace(source=Source()),))
    assert average_estimate._bytes_per_second(plan) > 0
    assert Source.nbytes == 64 * MEBI
    monkeypatch.setattr(average_estimate, "SAMPLE_SECONDS", 0)
    average_estimate._bytes_per_second(plan)
    assert Source.nbytes == 65 * MEBI


def test_nothing_to_read_is_no_division_by_zero(tmp_path):
    assert planned(save(tmp_path, {"w": torch.ones(0)}), tmp_path).estimate.seconds < 10


def test_a_tensor_that_is_taken_whole_counts_three_times(tmp_path):
    plain = planned(save(tmp_path, {"w": torch.ones(1024, 16384)}), tmp_path, threads=1)
    whole = planned(save(tmp_path, {"w": torch.ones(16384, 1024).t()}), tmp_path, threads=1)
    difference = whole.estimate.memory_bytes - plain.estimate.memory_bytes
    assert 192 * MEBI <= difference < 200 * MEBI


def test_memory_is_about_what_the_run_takes(tmp_path):
    paths = save(tmp_path, {f"w{number}": torch.ones(500_000) for number in range(10)})
    command = [sys.executable, "-m", "swatool", "average", *map(str, paths), "--json", "-q", "-o"]

    def report(*options):
        done = subprocess.run(
            [*command, tmp_path / "x.safetensors", *options], check=True, capture_output=True
        )
        return json.loads(done.stdout)

    estimate = report("--dry-run")["estimate"]["memory_bytes"]
    assert 0.8 < estimate / report()["peak_rss_bytes"] < 1.25
