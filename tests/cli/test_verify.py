import dataclasses
import inspect as signatures
import json

import pytest
import torch
from typer.testing import CliRunner

import swatool
from swatool.cli import app
from swatool.cli.verify import verify as command
from swatool.jobs.verify import VerifySettings


def run(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture
def folder(tmp_path):
    for step in (1, 2, 3):
        torch.save({"w": torch.randn(50), "v": torch.randn(20, 3)}, tmp_path / f"c{step}.pt")
    arguments = ["--method", "ema", "--decay", "0.5", "--checksum", "-o", tmp_path / "out.safetensors"]
    result = run("average", *(tmp_path / f"c{step}.pt" for step in (1, 2, 3)), *arguments)
    assert result.exit_code == 0, result.output
    assert "SHA-256 of the checkpoints and of the output recorded" in result.stdout
    return tmp_path


def sources(folder):
    return [folder / f"c{step}.pt" for step in (1, 2, 3)]


def flip(path, place=-1):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_verify(folder):
    out = folder / "out.safetensors"
    result = run("verify", out, "--sources", *sources(folder))
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0].startswith(f"{out}: safetensors, ")
    assert lines[0].endswith(", 2 tensors")
    assert lines[1:-1] == [
        f"compared with the checksums in '{out}.sha256'",
        "claims: ema, decay 0.5, debias False, of 3 sources",
        "sources: 3 of 3 found, 3 of them with a checksum",
        "made again: 2 tensors, byte by byte; all are the same",
        "every check holds",
    ]
    assert lines[-1].startswith("read ")


def test_sources_are_all_that_follows_up_to_the_next_option(folder):
    out = folder / "out.safetensors"
    for arguments in (
        [out, "--sources", *sources(folder), "-q"],
        ["-q", out, "--sources", folder / "c?.pt"],
        [out, f"--sources={folder}/c?.pt", "-q"],
        [out, "--sources", sources(folder)[0], "--sources", *sources(folder)[1:], "--threads", "1", "-q"],
        ["--sources", *sources(folder), "-q", out],
        ["--sources", *sources(folder), "-q", "--", out],
    ):
        result = run("verify", *arguments)
        assert (result.exit_code, result.output) == (0, ""), arguments
    assert run("verify", "--sources", *sources(folder), out).exit_code == 2
    assert run("verify", out, "--sources").exit_code == 2


def test_exit_codes_and_the_worst_of_several(folder):
    out, other = folder / "out.safetensors", folder / "c1.pt"
    assert run("verify", out, other, "-q").exit_code == 0
    (folder / "bad.pt").write_bytes(b"GGUF")
    result = run("verify", folder / "bad.pt", out, "-q")
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr.startswith(f"error: '{folder}/bad.pt' is a GGUF file")
    flip(out)
    result = run("verify", folder / "bad.pt", out, other)
    assert result.exit_code == 6
    assert result.stderr.splitlines()[1] == (
        f"error: '{out}' fails: 'out.safetensors' does not have the SHA-256 that '{out}.sha256' records"
    )
    assert f"{other}: torch zip" in result.stdout
    result = run("verify", out, "--sources", *sources(folder), "-v")
    assert "; it is not the average of its sources: 1 of 2 tensors have other values, 'w'" in result.stderr
    assert "differs: 'w'" in result.stdout
    assert "every check holds" not in result.stdout
    assert run("verify", folder / "none.pt").exit_code == 3
    assert run("verify", out, "-j", "0").exit_code == 2
    assert run("verify").exit_code == 2


def test_an_output_without_a_checksum(folder):
    assert "no checksum recorded" in run("verify", folder / "c1.pt").stdout
    assert "records compared with the CRC-32 in the file" in run("verify", folder / "c1.pt").stdout
    result = run("verify", folder / "c1.pt", "--require-checksum", "-q")
    assert (result.exit_code, result.stderr) == (
        6,
        f"error: '{folder}/c1.pt' fails: no checksum is recorded\n",
    )


def test_nan(folder):
    torch.save({"a": torch.tensor([float("nan")]), "\x1b[31m": torch.tensor([float("inf")])}, folder / "x.pt")
    result = run("verify", folder / "x.pt")
    assert result.exit_code == 6
    assert "NaN or Inf: 'a'" in result.stdout
    assert "\x1b" not in result.output
    assert run("verify", folder / "x.pt", "--allow-nonfinite").exit_code == 0


def test_json(folder):
    out = folder / "out.safetensors"
    result = run("verify", out, folder / "c1.pt", "--sources", *sources(folder), "--json")
    assert result.exit_code == 6
    data = json.loads(result.stdout)
    assert {**data, "outputs": None} == {
        "schema": 1,
        "version": swatool.__version__,
        "command": "verify",
        "outputs": None,
    }
    measured = {"seconds", "peak_rss_bytes"}
    expected = json.loads(json.dumps(swatool.verify(out, sources(folder)).as_json()))
    assert {k: v for k, v in data["outputs"][0].items() if k not in measured} == {
        k: v for k, v in expected.items() if k not in measured
    }
    assert [one["passed"] for one in data["outputs"]] == [True, False]
    assert json.loads(result.stderr)["exit_code"] == 6


def test_what_a_stranger_says_cannot_drive_a_terminal(folder):
    out = folder / "out.safetensors"
    (folder / "out.safetensors.sha256").unlink()
    data = out.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    said = json.loads(header["__metadata__"]["swatool"])
    said["method"], said["parameters"] = "\x1b]0;owned\x07", {"\r\n": {"\x1b": "\x1b" * 1000}}
    header["__metadata__"]["swatool"] = json.dumps(said)
    text = json.dumps(header).encode()
    out.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    result = run("verify", out, "--sources", *sources(folder))
    assert result.exit_code == 6
    assert not {"\x1b", "\x07", "\r"} & set(result.output)
    assert max(map(len, result.output.splitlines())) < 1000


def test_every_option_is_a_setting_with_its_default():
    parameters = signatures.signature(command).parameters
    settings = {field.name: field.default for field in dataclasses.fields(VerifySettings)}
    assert set(parameters) - {"outputs", "sources", "as_json", "quiet", "verbose"} == set(settings)
    for name, default in settings.items():
        assert parameters[name].default == default


@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        (["--key", "a.b"], "key", "a.b"),
        (["--variant", "fp16"], "variant", "fp16"),
        (["--allow-nonfinite"], "allow_nonfinite", True),
        (["--require-checksum"], "require_checksum", True),
        (["-j", "3"], "threads", 3),
    ],
)
def test_options_become_settings(folder, monkeypatch, arguments, name, value):
    given = {}

    def take(*_, settings, **__):
        given.update(dataclasses.asdict(settings))
        raise swatool.UsageError("enough")

    monkeypatch.setattr("swatool.cli.verify.run", take)
    assert run("verify", folder / "c1.pt", *arguments).exit_code == 2
    assert given[name] == value
