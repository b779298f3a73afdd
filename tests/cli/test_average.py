import dataclasses
import importlib
import inspect
import json
import math
import os
import re
import subprocess
import sys

import pytest
import safetensors.torch
import torch
import typer
from typer.testing import CliRunner

import swatool
from swatool.cli import COMMANDS, app
from swatool.cli.average import average as command
from swatool.jobs.average import DEFAULT_OUTPUT, AverageSettings

# Options that are not settings of the average: where it goes, and how it is told.
BESIDE_THE_SETTINGS = {
    "checkpoints",
    "output",
    "as_json",
    "quiet",
    "verbose",
    "sweep",
    "evaluate",
    "keep",
    "no_normalize",
    "saved_recipe",
}


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / f"ckpt-{i}.pt" for i in (9, 10)]
    for i, path in enumerate(paths):
        torch.save({"w": torch.full((3, 4), float(i)), "n": torch.tensor(7)}, path)
    return paths


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out.safetensors"


def run(*arguments):
    return CliRunner().invoke(app, ["average", *map(str, arguments)])


def fresh(*arguments, **options):
    """Run in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "swatool", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        **options,
    )


def weights_of(output):
    return safetensors.torch.load_file(output)["w"]


def test_average(files, output):
    result = run(*files, "-o", output)
    assert (result.exit_code, result.stderr) == (0, "")
    assert weights_of(output).tolist() == [[0.5] * 4] * 3
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["checkpoint", "step", "size", "coefficient"]
    assert lines[3] == "method: swa"
    assert lines[-2].startswith(f"wrote '{output}': 1 averaged, 1 copied")


def test_parameters_and_options_have_the_settings_names_and_defaults():
    parameters = inspect.signature(command).parameters
    settings = {field.name: field.default for field in dataclasses.fields(AverageSettings)}
    assert set(parameters) - BESIDE_THE_SETTINGS == set(settings)
    for name, default in settings.items():
        # Tuples are given as lists, or as numbers between commas.
        expected = None if default == () else default
        assert parameters[name].default == expected, name
    assert parameters["output"].default == DEFAULT_OUTPUT
    options = {one.name: one for one in typer.main.get_command(app).commands["average"].params}
    options = {one.name: one for one in typer.main.get_command(app).commands["average"].params}
    for name in settings:
        assert f"--{name.replace('_', '-')}" in options[name].opts
        assert options[name].help


GIVEN = {
    "method": (["--method", "ema"], "ema"),
    "decay": (["--decay", "0.5"], 0.5),
    "debias": (["--debias"], True),
    "weights": (["--weights", "1,-2.5,3e0"], (1.0, -2.5, 3.0)),
    "normalize": (["--no-normalize"], False),
    "accumulate": (["--accumulate", "float64"], "float64"),
    "sort": (["--sort", "mtime"], "mtime"),
    "last": (["--last", "3"], 3),
    "first": (["--first", "4"], 4),
    "every": (["--every", "2"], 2),
    "min_step": (["--min-step", "0"], 0),
    "max_step": (["--max-step", "99"], 99),
    "allow_duplicates": (["--allow-duplicates"], True),
    "key": (["--key", "ema.model"], "ema.model"),
    "strip_prefix": (["--strip-prefix", "a.", "--strip-prefix", "b."], ("a.", "b.")),
    "keep_prefix": (["--keep-prefix"], True),
    "variant": (["--variant", "fp16"], "fp16"),
    "match": (["--match", "union"], "union"),
    "integers": (["--integers", "first"], "first"),
    "tied": (["--tied", "drop"], "drop"),
    "exclude": (["--exclude", "bn.*", "--exclude", "*.n"], ("bn.*", "*.n")),
    "dtype": (["--dtype", "bfloat16"], "bfloat16"),
    "allow_nonfinite": (["--allow-nonfinite"], True),
    "format": (["--format", "hf"], "hf"),
    "like": (["--like", "a.ckpt"], "a.ckpt"),
    "per_step": (["--per-step", "100"], 100),
    "inv_gamma": (["--inv-gamma", "2"], 2.0),
    "power": (["--power", "0.75"], 0.75),
    "min_decay": (["--min-decay", "0.1"], 0.1),
    "gamma": (["--gamma", "3"], 3.0),
    "sigma_rel": (["--sigma-rel", "0.1"], 0.1),
    "spacing": (["--spacing", "index"], "index"),
    "target_step": (["--target-step", "7"], 7),
    "profile": (["--profile", "x-{step}"], "x-{step}"),
    "sigma_rels": (["--sigma-rels", "0.05,0.1"], (0.05, 0.1)),
    "snapshot_steps": (["--snapshot-steps", "10,20"], (10, 20)),
    "schedule": (["--schedule", "cosine"], "cosine"),
    "alpha": (["--alpha", "0.25"], 0.25),
    "eta": (["--eta", "2"], 2.0),
    "lrs": (["--lrs", "0.1,0.2"], (0.1, 0.2)),
    "kappa": (["--kappa", "0.4"], 0.4),
    "rho": (["--rho", "5"], 5.0),
    "factor": (["--factor", "0.1"], 0.1),
    "window": (["--window", "3"], 3),
    "counts": (["--counts", "3,5"], (3.0, 5.0)),
    "best": (["--best", "2", "--metric", "m", "--mode", "max"], {"best": 2, "metric": "m", "mode": "max"}),
    "metric": (["--metric", "m", "--best", "2", "--mode", "max"], {"best": 2, "metric": "m", "mode": "max"}),
    "mode": (["--mode", "min", "--best", "2", "--metric", "m"], {"best": 2, "metric": "m", "mode": "min"}),
    "metrics": (
        ["--metrics", "m.csv", "--best", "2", "--metric", "m", "--mode", "max"],
        {"metrics": "m.csv", "best": 2, "metric": "m", "mode": "max"},
    ),
    "max_shard_size": (["--max-shard-size", "5GB"], "5GB"),
    "sidecars": (["--no-sidecars"], False),
    "device": (["--device", "cuda:1"], "cuda:1"),
    "threads": (["-j", "3"], 3),
    "overwrite": (["--overwrite"], True),
    "checksum": (["--checksum"], True),
    "dry_run": (["--dry-run"], True),
}


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(AverageSettings)])
def test_every_option_reaches_the_settings(monkeypatch, name):
    seen = []

    def average(checkpoints, output, _, *, settings, **__):
        seen.append((checkpoints, output, settings))
        raise swatool.UsageError("seen")

    monkeypatch.setattr(sys.modules[command.__module__], "average_sweep", average)
    arguments, expected = GIVEN[name]
    assert run("a", "b", *arguments).exit_code == 2
    expected = expected if isinstance(expected, dict) else {name: expected}
    assert seen == [(["a", "b"], DEFAULT_OUTPUT, dataclasses.replace(AverageSettings(), **expected))]


def test_json(files, output):
    result = run(*files, "-o", output, "--json", "--method", "ema", "--decay", "0.25", "-j", "1")
    assert result.exit_code == 0
    assert result.stderr == (
        f"warning: '{files[1]}' alone has 75% of the weight; a sequence of saved checkpoints is short, so "
        "take a larger decay\n"
    )
    data = json.loads(result.stdout)
    seconds = data.pop("seconds")
    assert set(seconds) == {"plan", "stream", "fsync", "total", "checksum"}
    assert all(type(value) is float and value >= 0 for value in seconds.values())
    assert seconds["total"] >= seconds["plan"] + seconds["stream"] + seconds["fsync"]
    assert type(data["peak_rss_bytes"]) is int
    assert data.pop("peak_rss_bytes") > 10_000_000
    warnings = data.pop("warnings")
    assert [f"warning: {warning}\n" for warning in warnings] == [result.stderr]
    assert data.pop("estimate") is None
    assert data == {
        "schema": 1,
        "version": swatool.__version__,
        "command": "average",
        "dry_run": False,
        "method": "ema",
        "parameters": {"decay": 0.25, "debias": False},
        "checkpoints": [
            {
                "path": str(path),
                "step": step,
                "bytes": path.stat().st_size,
                "coefficient": coefficient,
                "key": "",
                "sha256": None,
            }
            for path, step, coefficient in zip(files, (9, 10), (0.25, 0.75), strict=True)
        ],
        "figures": {"effective": pytest.approx(1.6), "lag": 0.25, "lag_unit": "steps", "l1": 1.0},
        "output": {
            "path": str(output),
            "bytes": output.stat().st_size,
            "files": {},
            "format": "safetensors",
            "sha256": {},
        },
        "checksum": False,
        "tensors": {"averaged": 1, "copied": 1, "dropped": 0, "tied": 0, "differing": 0},
        "dtype": {"float32": 48},
        "device": "cpu",
        "threads": 1,
        "bytes_read": 2 * (48 + 8),
        "bytes_written": output.stat().st_size,
        "merge_signal_kept": None,
    }


def test_json_with_names(files, output):
    data = json.loads(run(*files, "-o", output, "--json", "-v").stdout)
    assert data["tensors"] == {"averaged": ["w"], "copied": ["n"], "dropped": [], "tied": [], "differing": []}


def test_json_of_a_dry_run(files, output):
    result = run(*files, "-o", output, "--json", "--dry-run")
    assert json.loads(result.stdout)["dry_run"] is True
    assert not output.exists()


def test_json_of_an_error(files, output):
    result = run(*files[:1], "-o", output, "--json")
    assert (result.exit_code, result.stdout) == (2, "")
    told = json.loads(result.stderr)
    assert set(told) == {"schema", "error", "exit_code"}
    assert told["exit_code"] == 2
    assert "at least two checkpoints" in told["error"]


def test_json_has_no_numbers_that_json_lacks(tmp_path):
    for i in range(2):
        torch.save({"w": torch.full((3,), float("nan"), dtype=torch.bfloat16)}, tmp_path / f"{i}.pt")
    result = run(tmp_path, "-o", tmp_path / "out", "--json", "--allow-nonfinite")
    assert result.exit_code == 0

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    json.loads(result.stdout, parse_constant=refuse)


@pytest.mark.parametrize("option", ["-q", "--quiet"])
def test_quiet_prints_nothing(files, output, option):
    result = run(*files, "-o", output, option, "--method", "ema", "--decay", "0.9")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")
    assert output.exists()
    assert run(*files, "-o", output, option).stderr.startswith("error: ")


def test_verbose_names_tensors(files, output):
    lines = run(*files, "-o", output, "-v").stdout.splitlines()
    assert "averaged: 'w'" in lines
    assert "copied: 'n'" in lines


def test_warnings_go_to_stderr(files, output):
    result = run(*files, "-o", output, "--method", "ema", "--decay", "0.9")
    assert result.stderr.startswith("warning: ")
    assert not any(line.startswith("warning") for line in result.stdout.splitlines())


def test_dry_run_writes_nothing_and_does_not_import_torch(files, output):
    script = (
        "import sys; from swatool.cli import app; app(sys.argv[1:], standalone_mode=False); "
        "print([name for name in ('torch', 'numpy', 'rich') if name in sys.modules])"
    )
    arguments = ["average", *map(str, files), "-o", str(output), "--dry-run"]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[-1] == "[]"
    assert not any(line.startswith("wrote") for line in lines)
    assert lines[-3].startswith("reads 112 B, writes ")
    assert re.fullmatch(r"estimate: \d\.\d s, \d+ MB of memory", lines[-2])
    assert not output.exists()


def test_python_m_swatool_and_the_default_output(files, tmp_path):
    done = fresh("average", "ckpt-*.pt", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert weights_of(tmp_path / DEFAULT_OUTPUT).tolist() == [[0.5] * 4] * 3
    assert sorted(tmp_path.iterdir()) == sorted([*files, tmp_path / DEFAULT_OUTPUT])


def test_version_and_help():
    runner = CliRunner()
    assert runner.invoke(app, ["--version"]).stdout == f"swatool {swatool.__version__}\n"
    assert "average" in runner.invoke(app, ["--help"]).stdout
    text = run("-h").stdout
    for name in GIVEN:
        assert f"--{name.replace('_', '-')}" in text


def test_commands_are_introduced_by_their_first_sentence():
    for name, summary in COMMANDS.items():
        module = importlib.import_module(f"swatool.cli.{name.replace('-', '_')}")
        function = getattr(module, name.replace("-", "_"))
        assert inspect.getdoc(function).partition("\n\n")[0] == summary
    assert all(f"  {name} " in fresh("--help").stdout for name in COMMANDS)


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_import_no_command(option):
    code = (
        "import atexit, sys, swatool.cli; "
        "atexit.register(lambda: print([n for n in sys.modules if n.startswith('swatool.jobs')])); "
        "swatool.cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code, option], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_an_option_may_stand_before_the_command():
    done = fresh("--no-such", "average")
    assert done.returncode == 2
    assert "No such option: --no-such" in done.stderr


def test_names_from_hostile_files_are_escaped(tmp_path):
    hostile = "\x1b]0;owned\x07\nerror: you lost"
    folder = tmp_path / "\x1b[31mred"
    folder.mkdir()
    for i in range(2):
        torch.save({hostile: torch.ones(2), "n": torch.ones(1), hostile * 2: i}, folder / f"{i}.pt")
    result = run(folder, "-o", folder / "out", "-v")
    assert result.exit_code == 0
    assert "averaged: '\\x1b]0;owned\\x07\\nerror: you lost'" in result.stdout
    torch.save({"m": torch.ones(2)}, folder / "1.pt")
    failed = run(folder / "0.pt", folder / "1.pt", "-o", folder / "out2")
    assert failed.exit_code == 4
    for text in (result.stdout, result.stderr, failed.stdout, failed.stderr):
        assert not set("\x1b\x07\r") & set(text)
        assert not any(line.startswith("error: you lost") for line in text.splitlines())


def damaged(files, content):
    files[1].write_bytes(content)
    return files


def replaced(files, state):
    torch.save(state, files[1])
    return files


# What is wrong: the exit code, a piece of the message, and the arguments.
WRONG = {
    "missing file": (3, "cannot open", lambda f: [*f, f[0].parent / "gone.pt"]),
    "pattern": (3, "no file matches", lambda f: [f[0].parent / "x*.pt"]),
    "empty": (3, "is empty", lambda f: damaged(f, b"")),
    "truncated": (3, "ckpt-10.pt", lambda f: damaged(f, f[1].read_bytes()[:-30])),
    "pointer": (3, "git lfs pull", lambda f: damaged(f, b"version https://git-lfs.github.com/spec/v1\n")),
    "web page": (3, "web page", lambda f: damaged(f, b"<html></html>")),
    "no state dict": (3, "no state dict", lambda f: replaced(f, {"lr": 0.1})),
    "nan": (
        3,
        "'w' is not finite",
        lambda f: replaced(f, {"w": torch.full((3, 4), math.nan), "n": torch.tensor(7)}),
    ),
    "names": (4, "'n' is missing in", lambda f: replaced(f, {"w": torch.ones(3, 4)})),
    "shapes": (4, "has shape [2]", lambda f: replaced(f, {"w": torch.ones(2), "n": torch.tensor(7)})),
    "dtypes": (4, "--dtype", lambda f: replaced(f, {"w": torch.ones(3, 4).half(), "n": torch.tensor(7)})),
    "integers": (
        4,
        "'n' in ",
        lambda f: [*replaced(f, {"w": torch.ones(3, 4), "n": torch.tensor(8)}), "--integers", "equal"],
    ),
    "one checkpoint": (2, "at least two", lambda f: f[:1]),
    "twice": (2, "the same file", lambda f: [*f, f[0]]),
    "method": (2, "did you mean ema?", lambda f: [*f, "--method", "emo"]),
    "decay": (2, "[0, 1], not 1.5", lambda f: [*f, "--method", "ema", "--decay", "1.5"]),
    "nan decay": (2, "[0, 1]", lambda f: [*f, "--method", "ema", "--decay", "nan"]),
    "weights": (2, "3 numbers for 2", lambda f: [*f, "--weights", "1,2,3"]),
    "weights text": (2, "separated by commas, not '1;2'", lambda f: [*f, "--weights", "1;2"]),
    "weights none": (2, "--weights", lambda f: [*f, "--weights", ""]),
    "weights cancel": (2, "sum to zero", lambda f: [*f, "--weights", "1,-1"]),
    "weights huge": (2, "--weights", lambda f: [*f, "--weights", "1e308,1e308"]),
    "device": (2, "--device", lambda f: [*f, "--device", "tpu"]),
    "dtype": (2, "--dtype must be one of", lambda f: [*f, "--dtype", "int4"]),
    "threads": (2, "--threads must be from 1 to 1,024", lambda f: [*f, "--threads", "0"]),
    "exclude": (2, "matches no tensor", lambda f: [*f, "--exclude", "x"]),
    "output is input": (
        2,
        "one of the inputs",
        lambda f: [*f, "--overwrite", "-o", f[0], "--format", "safetensors"],
    ),
    "no folder": (5, "No such file or directory", lambda f: [*f, "-o", f[0].parent / "no" / "out"]),
}


def snapshot(folder):
    return {path: path.read_bytes() for path in folder.rglob("*")}


@pytest.mark.parametrize("case", WRONG)
def test_exit_code_and_one_sentence(files, output, case):
    code, piece, make = WRONG[case]
    arguments = make(files)
    before = snapshot(output.parent)
    result = run("-o", output, *arguments)
    assert result.exit_code == code
    assert result.stderr.startswith("error: ")
    assert piece in result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.splitlines()) == 1 or code == 4
    assert snapshot(output.parent) == before


def test_output_that_exists(files, output):
    output.write_text("old")
    result = run(*files, "-o", output)
    assert result.exit_code == 2
    assert (
        result.stderr == f"error: '{output}' exists: give --overwrite to replace it, or choose another -o\n"
    )
    assert output.read_text() == "old"
    assert run(*files, "-o", output, "--overwrite").exit_code == 0
    assert weights_of(output).shape == (3, 4)


@pytest.mark.parametrize(
    "arguments",
    [["--threads", "x"], ["--decay", "much"], ["--no-such-option"], ["--last"], ["--every", "1.5"]],
)
def test_options_that_cannot_be_parsed(files, output, arguments):
    result = run(*files, "-o", output, *arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.stderr
    assert not output.exists()


def test_all_that_differs_is_counted_and_some_shown(tmp_path):
    torch.save({f"n{i}": torch.ones(1) for i in range(30)}, tmp_path / "1.pt")
    torch.save({f"m{i}": torch.ones(1) for i in range(30)}, tmp_path / "2.pt")
    result = run(tmp_path / "1.pt", tmp_path / "2.pt", "-o", tmp_path / "out")
    assert result.exit_code == 4
    lines = result.stderr.splitlines()
    assert lines[0] == "error: the checkpoints do not match (60 differences):"
    assert len(lines) == 22
    assert lines[-1] == "  ... and 40 more"


def test_unreadable_file(files, output):
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    files[0].chmod(0)
    result = run(*files, "-o", output)
    assert result.exit_code == 3
    assert "Permission denied" in result.stderr


def test_command_is_registered():
    assert command in [one.callback for one in app.registered_commands]
    assert isinstance(app, typer.Typer)
