"""What swatool says of its own torch files, which a stranger's file may say, too, in any way."""

import io
import json
import zipfile

import pytest
import torch

from swatool.checkpoints import torch_file
from swatool.checkpoints.file_formats import read_file
from swatool.checkpoints.files import LocalFile
from swatool.errors import CheckpointError


def saved_with(body, path):
    """A file by torch.save, with one more record beside its own."""
    file = io.BytesIO()
    torch.save({"w": torch.ones(2)}, file)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("archive/swatool.json", body)
    path.write_bytes(file.getvalue())
    assert torch.load(path, mmap=True)["w"].tolist() == [1, 1]
    return path


def metadata(path):
    source = LocalFile(path)
    try:
        return dict(read_file(source).metadata)
    finally:
        source.close()


def test_texts_by_name_are_read(tmp_path):
    body = json.dumps({"swatool": "{}", "note": "caf\u00e9"})
    assert metadata(saved_with(body, tmp_path / "x.pt")) == {"swatool": "{}", "note": "caf\u00e9"}


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b"\xff", b"[" * 200_000, b"1" * 10_000, b'{"a": NaN}', b'{"a": {}, "b": 1}'],
)
def test_what_is_not_texts_by_name_is_not_metadata(body, tmp_path):
    assert metadata(saved_with(body, tmp_path / "x.pt")) == {}


def test_metadata_that_is_too_long_is_not_read(tmp_path, monkeypatch):
    body = json.dumps({"swatool": "x" * 100})
    path = saved_with(body, tmp_path / "x.pt")
    monkeypatch.setattr(torch_file, "MAX_METADATA", len(body))
    assert metadata(path) == json.loads(body)
    monkeypatch.setattr(torch_file, "MAX_METADATA", len(body) - 1)
    assert metadata(path) == {}


def test_a_header_that_lies_is_refused(tmp_path):
    path = saved_with(b'{"a": "b"}', tmp_path / "x.pt")
    data = path.read_bytes()
    path.write_bytes(data.replace(b"archive/swatool.json", b"archive/swatool.jsox", 1))
    with pytest.raises(CheckpointError, match=r"swatool\.json' contradicts the directory"):
        metadata(path)
