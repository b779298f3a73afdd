import dataclasses
import inspect as signatures
import json
import subprocess
import sys

import pytest
import safetensors.torch
import torch
from hostile.dcp import save
from typer.testing import CliRunner

import swatool
from swatool.cli import app
from swatool.cli.inspect import inspect as command
from swatool.jobs.inspect import InspectSettings

# Options that are not settings of the inspection, but of how it is told.
BESIDE_THE_SETTINGS = {"checkpoints", "tree", "limit", "as_json", "quiet", "verbose"}


def run(*arguments):
    return CliRunner().invoke(app, ["inspect", *map(str, arguments)])


@pytest.fixture
def ckpt(tmp_path):
    shared = torch.ones(2, 3)
    state = {
        "module.enc.0.weight": shared,
        "module.enc.0.bias": torch.tensor([1.0, float("nan")]),
        "module.enc.bn.running_mean": torch.zeros(2),
        "module.enc.bn.running_var": torch.zeros(2),
        "module.head.weight": shared,
        "module.ids": torch.arange(4),
    }
    path = tmp_path / "ckpt.pt"
    torch.save({"model": state, "ema": {"w": torch.ones(9)}, "step": 5, "acc": 0.5}, path)
    return path


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
def test_what_a_distributed_checkpoint_keeps_as_pickles_is_told(tmp_path):
    state = {"model": {"w": torch.ones(3), "extra": {"a": 1}}, "step": 5}
    told = run(save(tmp_path / "a", state)).stdout.splitlines()
    assert "no plain values, not read: 'step'" in told
    assert "no tensors, skipped: 'extra'" in told


def test_inspect(ckpt):
    result = run(ckpt)
    assert (result.exit_code, result.stderr) == (0, "")
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert lines == [
        f"{ckpt}: torch zip, {swatool.cli.render.size(ckpt.stat().st_size)}",
        "state dict: 'model', 'module.' taken off the names",
        "other state dicts, for --key: 'ema' (1 tensor, 36 B)",
        "beside it: step 5, acc 0.5",
        "tensor dtype shape size kind",
        "enc.0.weight float32 [2, 3] 24 B parameter",
        "enc.0.bias float32 [2] 8 B parameter",
        "enc.bn.running_mean float32 [2] 8 B BatchNorm buffer",
        "enc.bn.running_var float32 [2] 8 B BatchNorm buffer",
        "head.weight float32 [2, 3] 24 B parameter, tied with 'enc.0.weight'",
        "ids int64 [4] 32 B integer",
        "5 tensors, 16 elements, 80 B under 6 names",
        "by type: float32 4 tensors, 12 elements, 48 B; int64 1 tensor, 4 elements, 32 B",
        "by kind: parameter 2 tensors, 8 elements, 32 B; BatchNorm buffer 2 tensors, 4 elements, 16 B; "
        "integer 1 tensor, 4 elements, 32 B",
    ]


def test_tree(ckpt):
    lines = run(ckpt, "--tree").stdout.splitlines()
    assert [line.rstrip() for line in lines[4:10]] == [
        "module  tensors  elements  size",
        "(all)         5        16  80 B",
        "  enc         4        12  48 B",
        "    0         2         8  32 B",
        "    bn        2         4  16 B",
        "5 tensors, 16 elements, 80 B under 6 names",
    ]


def test_statistics(ckpt):
    lines = [line.split() for line in run(ckpt, "--stats").stdout.splitlines()]
    assert lines[4][-6:] == ["min", "max", "mean", "norm", "NaN", "Inf"]
    assert lines[6][-6:] == ["1", "1", "1", "1", "1", "0"]
    assert lines[10][-6:] == ["0", "3", "1.5", "3.7417", "0", "0"]


def test_limit(ckpt):
    lines = run(ckpt, "--limit", "2").stdout.splitlines()
    assert lines[6].startswith("enc.0.bias")
    assert lines[7].startswith("... and 4 more")
    assert run(ckpt, "--limit", "0").stdout.splitlines()[4].startswith("... and 6 more")
    assert run(ckpt, "--limit", "-1").exit_code == 2


def test_several_state_dicts_are_shown(tmp_path):
    torch.save({f"net{i}": {"w": torch.ones(3)} for i in range(12)}, tmp_path / "a.pt")
    result = run(tmp_path / "a.pt")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[1].startswith("nothing tells which state dict is meant")
    assert lines[2] == "  'net0' (1 tensor, 12 B)"
    assert lines[-1] == "  ... and 2 more; -v shows all"
    assert run(tmp_path / "a.pt", "-v").stdout.splitlines()[-1] == "  'net11' (1 tensor, 12 B)"
    assert "state dict: 'net3'" in run(tmp_path / "a.pt", "--key", "net3").stdout


def test_a_bad_file_is_told_and_the_others_are_shown(ckpt, tmp_path):
    (tmp_path / "bad.pt").write_bytes(b"GGUF")
    result = run(tmp_path / "bad.pt", ckpt, tmp_path / "none.pt")
    assert result.exit_code == 3
    assert [line.split(":")[0] for line in result.stderr.splitlines()] == ["error", "error"]
    assert "GGUF" in result.stderr
    assert "torch zip" in result.stdout
    assert "Traceback" not in result.output


def test_the_exit_code_is_that_of_the_worst(ckpt, tmp_path):
    assert run(tmp_path / "none.pt", ckpt).exit_code == 3
    assert run(tmp_path / "none.pt", ckpt, "--strip-prefix", "x.").exit_code == 4
    assert run(ckpt, tmp_path / "none.pt", "--strip-prefix", "x.").exit_code == 4
    assert run(ckpt, "--threads", "0").exit_code == 2


def test_json(ckpt, tmp_path):
    (tmp_path / "bad.pt").write_bytes(b"GGUF")
    result = run(ckpt, tmp_path / "bad.pt", "--json", "--stats")
    data = json.loads(result.stdout)
    assert result.exit_code == 3
    assert {name: data[name] for name in ("schema", "version", "command")} == {
        "schema": 1,
        "version": swatool.__version__,
        "command": "inspect",
    }
    assert data["checkpoints"] == [json.loads(json.dumps(swatool.inspect(ckpt, stats=True).as_json()))]
    error = json.loads(result.stderr)
    assert (error["schema"], error["exit_code"]) == (1, 3)


def test_quiet(ckpt, tmp_path):
    assert run(ckpt, "-q").output == ""
    result = run(ckpt, tmp_path / "none.pt", "-q")
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr.startswith("error: ")


def test_where_an_average_comes_from(tmp_path):
    for step in (9, 10):
        torch.save({"w": torch.ones(3)}, tmp_path / f"c-{step}.pt")
    swatool.average([tmp_path / "c-9.pt", tmp_path / "c-10.pt"], tmp_path / "avg.safetensors")
    line = run(tmp_path / "avg.safetensors").stdout.splitlines()[1]
    assert line.startswith(
        f"written by swatool: version {swatool.__version__}, method swa, 2 checkpoints, steps 9 to 10"
    )


@pytest.mark.parametrize(
    "said",
    [
        {"version": "\x1b[31m", "method": ["\x1b"], "sources": [1, {"step": "x"}, {"step": True}]},
        {"method": {"a": {}}, "sources": "none", "\x1b]0;x\x07": 1},
        {},
    ],
)
def test_what_a_file_says_of_itself_cannot_drive_a_terminal(tmp_path, said):
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file(
        {"w\x1b[2J\n": torch.ones(1)}, path, {"swatool": json.dumps(said), "\x07": "\x07"}
    )
    for arguments in ([], ["--tree"], ["-v"], ["--stats"]):
        result = run(path, *arguments)
        assert result.exit_code == 0
        assert not {"\x1b", "\x07"} & set(result.stdout)
        assert "written by swatool: " in result.stdout


def test_names_of_any_depth(tmp_path):
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file({".".join("a" * 50_000): torch.ones(1), "b": torch.ones(1)}, path)
    lines = run(path, "--tree").stdout.splitlines()
    assert max(map(len, lines)) < 300
    assert len(lines) < 30


def test_every_option_is_a_setting_with_its_default():
    parameters = signatures.signature(command).parameters
    settings = {field.name: field.default for field in dataclasses.fields(InspectSettings)}
    assert set(parameters) - BESIDE_THE_SETTINGS == set(settings)
    for name, default in settings.items():
        assert parameters[name].default == (None if default == () else default)


@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        (["--stats"], "stats", True),
        (["--key", "a.b"], "key", "a.b"),
        (["--strip-prefix", "a.", "--strip-prefix", "b."], "strip_prefix", ("a.", "b.")),
        (["--keep-prefix"], "keep_prefix", True),
        (["--variant", "fp16"], "variant", "fp16"),
        (["-j", "3"], "threads", 3),
    ],
)
def test_every_option_reaches_the_settings(monkeypatch, arguments, name, value):
    seen = []
    monkeypatch.setattr(
        sys.modules[command.__module__], "inspect_each", lambda _, settings, __: seen.append(settings) or []
    )
    assert run("x.pt", *arguments).exit_code == 0
    assert seen == [dataclasses.replace(InspectSettings(), **{name: value})]


def test_torch_is_not_imported(ckpt):
    code = (
        f"import sys; sys.argv = ['swatool', 'inspect', {str(ckpt)!r}, '--tree']\n"
        "from swatool.cli import main\n"
        "import os; os._exit = sys.exit\n"
        "try:\n    main()\n"
        "except SystemExit as exit:\n    assert not exit.code\n"
        "assert not {'torch', 'numpy', 'rich'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, timeout=60, capture_output=True)
    assert b"(all)" in done.stdout


def test_a_pipe_that_closes_is_no_traceback(ckpt):
    command = f"{sys.executable} -m swatool inspect {' '.join([str(ckpt)] * 200)} | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == ""
    assert "torch zip" in done.stdout
