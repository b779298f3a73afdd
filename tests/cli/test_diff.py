import dataclasses
import inspect as signatures
import json
import sys

import pytest
import safetensors.torch
import torch
from typer.testing import CliRunner

import swatool
from swatool.cli import app
from swatool.cli.diff import diff as command
from swatool.jobs.diff import DiffSettings


def run(*arguments):
    return CliRunner().invoke(app, ["diff", *map(str, arguments)])


@pytest.fixture
def files(tmp_path):
    a = {
        "w": torch.ones(4),
        "v": torch.ones(2),
        "n": torch.tensor(7),
        "only": torch.ones(1),
        "s": torch.ones(2),
    }
    b = {"w": torch.full((4,), 1.5), "v": torch.ones(2).half(), "n": torch.tensor(7), "s": torch.ones(3)}
    torch.save({"model": {f"module.{n}": t for n, t in a.items()}}, tmp_path / "a.pt")
    safetensors.torch.save_file(b, tmp_path / "b.safetensors")
    return tmp_path / "a.pt", tmp_path / "b.safetensors"


def told(result):
    return [" ".join(line.split()) for line in result.stdout.splitlines()]


def test_diff(files):
    result = run(*files)
    assert (result.exit_code, result.stderr) == (0, "")
    lines = told(result)
    assert lines[0].startswith(f"A: {files[0]}: torch zip, ")
    assert lines[0].endswith(", 5 tensors, state dict 'model', 'module.' taken off the names")
    assert lines[1].startswith(f"B: {files[1]}: safetensors, ")
    assert lines[2:-1] == [
        "only in A: 'only'",
        "shapes differ: 's' [2] in A, [3] in B",
        "types differ: 'v' float32 in A, float16 in B",
        "tensor relative L2 max abs cosine differing of",
        "w 0.5 0.5 1 4 4",
        "2 of 3 tensors have equal values",
        "all floating tensors together: relative L2 0.408248, max abs 0.5, cosine 0.98473193, "
        "4 of 6 elements differ",
    ]
    assert lines[-1].startswith("read 60 B in ")


def test_identical(files):
    result = run(files[0], files[0], "--tolerance", "0")
    assert result.exit_code == 0
    assert "bit-identical: 5 tensors" in result.stdout
    assert "within the tolerance of 0" in result.stdout


def test_a_tolerance_that_is_exceeded(files):
    result = run(*files, "--tolerance", "0.1")
    assert result.exit_code == 6
    assert "w " in result.stdout
    assert result.stderr == (
        f"error: '{files[1]}' differs from '{files[0]}' by more than the tolerance of 0.1: 1 of 3 tensors, "
        "the worst 'w' by 0.5; names only in A: 1; shapes that differ: 1\n"
    )
    assert run(*files, "--tolerance", "0.6").exit_code == 6
    assert run(*files, "--tolerance", "0.6", "--exclude", "[os]*").exit_code == 0
    assert run(*files, "--tolerance", "-1").exit_code == 2
    assert run(*files, "--tolerance", "nan").exit_code == 2


def test_quiet(files):
    assert run(*files, "-q").output == ""
    result = run(*files, "-q", "--tolerance", "0")
    assert (result.exit_code, result.stdout) == (6, "")
    assert result.stderr.startswith("error: ")


def test_json(files):
    result = run(*files, "--json", "--tolerance", "0")
    assert result.exit_code == 6
    data = json.loads(result.stdout)
    expected = json.loads(json.dumps(swatool.diff(*files, tolerance=0).as_json()))
    measured = {"seconds", "peak_rss_bytes"}
    assert {k: v for k, v in data.items() if k not in measured} == {
        k: v for k, v in expected.items() if k not in measured
    }
    assert json.loads(result.stderr)["exit_code"] == 6


def test_the_worst_twenty(tmp_path):
    torch.save({f"t{i:02}": torch.ones(3) for i in range(30)}, tmp_path / "a.pt")
    torch.save({f"t{i:02}": torch.full((3,), 1.0 + i) for i in range(30)}, tmp_path / "b.pt")
    lines = told(run(tmp_path / "a.pt", tmp_path / "b.pt"))
    assert [line.split()[0] for line in lines[3:23]] == [f"t{i:02}" for i in range(29, 9, -1)]
    assert lines[23] == "... and 9 more that differ less; -v shows all"
    lines = told(run(tmp_path / "a.pt", tmp_path / "b.pt", "-v"))
    assert [line.split()[0] for line in lines[3:33]] == [f"t{i:02}" for i in range(29, -1, -1)]
    torch.save({f"u{i:02}": torch.ones(3) for i in range(30)}, tmp_path / "c.pt")
    lines = told(run(tmp_path / "a.pt", tmp_path / "c.pt"))
    assert lines.count("only in A: ... and 10 more; -v shows all") == 1
    assert "no tensor to compare: the two have no name in common with one shape" in lines


def test_nan_and_inf_are_shown_where_there_are_any(tmp_path):
    torch.save({"w": torch.tensor([1.0, float("nan"), float("inf")])}, tmp_path / "a.pt")
    torch.save({"w": torch.tensor([1.0, 2.0, float("inf")])}, tmp_path / "b.pt")
    lines = told(run(tmp_path / "a.pt", tmp_path / "b.pt"))
    assert lines[2] == "tensor relative L2 max abs cosine differing of NaN in A, B Inf in A, B"
    assert lines[3] == "w inf inf - 1 3 1, 0 1, 1"


def test_names_from_files_cannot_drive_a_terminal(tmp_path):
    hostile = "\x1b]0;owned\x07\r\n"
    for name, state in (
        ("a", {hostile: torch.ones(1), hostile + "s": torch.ones(1), hostile + "a": torch.ones(1)}),
        (
            "b",
            {hostile: torch.ones(1).half() * 2, hostile + "s": torch.ones(2), hostile + "b": torch.ones(1)},
        ),
    ):
        torch.save({hostile: state}, tmp_path / name)
    result = run(tmp_path / "a", tmp_path / "b", "-v", "--tolerance", "0")
    assert result.exit_code == 6
    assert not {"\x1b", "\x07", "\r"} & set(result.output)


def test_bad_input(files, tmp_path):
    (tmp_path / "bad.pt").write_bytes(b"GGUF")
    result = run(files[0], tmp_path / "bad.pt")
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr.startswith("error: ")
    assert run(files[0], files[1], "--exclude", "nothing").exit_code == 2
    assert run(files[0], files[1], "--strip-prefix", "x.").exit_code == 4


def test_every_option_is_a_setting_with_its_default():
    parameters = signatures.signature(command).parameters
    settings = {field.name: field.default for field in dataclasses.fields(DiffSettings)}
    assert set(parameters) - {"a", "b", "as_json", "quiet", "verbose"} == set(settings)
    for name, default in settings.items():
        assert parameters[name].default == (None if default == () else default)


@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        (["--key", "a.b"], "key", "a.b"),
        (["--key-b", "c"], "key_b", "c"),
        (["--strip-prefix", "a.", "--strip-prefix", "b."], "strip_prefix", ("a.", "b.")),
        (["--keep-prefix"], "keep_prefix", True),
        (["--variant", "fp16"], "variant", "fp16"),
        (["--exclude", "a*", "--exclude", "b"], "exclude", ("a*", "b")),
        (["--tolerance", "1e-3"], "tolerance", 0.001),
        (["-j", "3"], "threads", 3),
    ],
)
def test_every_option_reaches_the_settings(monkeypatch, arguments, name, value):
    seen = []

    def diff(a, b, *, settings, **_):
        seen.append((a, b, settings))
        raise swatool.UsageError("seen")

    monkeypatch.setattr(sys.modules[command.__module__], "run", diff)
    assert run("x.pt", "y.pt", *arguments).exit_code == 2
    assert seen == [("x.pt", "y.pt", dataclasses.replace(DiffSettings(), **{name: value}))]
