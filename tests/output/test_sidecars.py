import json

import pytest
import torch

from swatool.errors import CheckpointError
from swatool.output.sidecars import MOST_BYTES, SIDECARS, read_sidecars, sidecar_warnings, with_dtype


class Bytes:
    """A file in memory, as readers know files."""

    def __init__(self, path, data, size=None):
        self.path = path
        self.size = len(data) if size is None else size
        self._data = data

    def read(self, offset, nbytes):
        return self._data[offset : offset + nbytes]


class Shelf:
    """A folder in memory."""

    path = "shelf"

    def __init__(self, files):
        self.files = files

    @property
    def names(self):
        return sorted(self.files)

    def open(self, name):
        if isinstance(self.files[name], Exception):
            raise self.files[name]
        return Bytes(f"shelf/{name}", self.files[name])


def test_only_known_names_are_read():
    files = {"config.json": b"{}", "tokenizer.json": b"\xff\0"}
    others = {
        "model.safetensors": b"w",
        "pytorch_model.bin": b"w",
        "modeling_custom.py": b"code",
        "training_args.bin": b"pickle",
        "optimizer.pt": b"pickle",
        "config.json.bak": b"",
        "README.md": b"",
        "model.safetensors.index.json": b"{}",
    }
    assert read_sidecars(Shelf(files | others)) == files


def test_no_known_name_is_one_of_weights_code_or_a_pickle():
    for name in SIDECARS:
        assert not name.endswith((".py", ".bin", ".pt", ".pth", ".safetensors", ".pkl", ".index.json"))
        assert "/" not in name


def test_a_file_that_is_too_large_is_refused_before_it_is_read():
    shelf = Shelf({"config.json": b"{}"})
    shelf.open = lambda name: Bytes(f"shelf/{name}", b"", MOST_BYTES + 1)
    with pytest.raises(CheckpointError, match=r"'shelf/config.json' has 67,108,865 bytes.*--no-sidecars"):
        read_sidecars(shelf)


def test_a_file_that_cannot_be_opened_is_refused_with_advice():
    shelf = Shelf({"config.json": CheckpointError("'config.json' is not a regular file")})
    with pytest.raises(CheckpointError, match="not a regular file; --no-sidecars"):
        read_sidecars(shelf)


CONFIG = b'{"model_type":"x",  "dtype": "float32", "eps": 1e-05}'


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        b'{"torch_dtype": "float32"}\n',
        b'{"no": "type"}',
        b'{"dtype": "int8"}',
        b'{"dtype": null}',
        b"not JSON",
        b"[1, 2]",
        b"\xff",
        b"[" * 100_000,
        b"",
    ],
)
def test_a_configuration_that_says_the_right_type_or_none_stays_byte_for_byte(config):
    files = {"config.json": config, "vocab.txt": b"a"}
    assert with_dtype(files, "float32") == files


def test_without_a_configuration_nothing_changes():
    assert with_dtype({"vocab.txt": b"a"}, "bfloat16") == {"vocab.txt": b"a"}


def test_the_type_is_changed_and_nothing_else():
    config = {
        "b": [1, 2.5, 1e-5, None, True, "é"],
        "dtype": "float32",
        "a": {"dtype": "float32"},
        "text_config": {"torch_dtype": "float16", "x": 1},
        "vision_config": {"dtype": "bfloat16"},
        "quantization_config": {"dtype": "float32"},
    }
    files = {"config.json": json.dumps(config).encode(), "vocab.txt": b"a"}
    changed = with_dtype(files, "bfloat16")
    assert changed["vocab.txt"] == b"a"
    found = json.loads(changed["config.json"])
    assert list(found) == list(config)
    assert found == {
        **config,
        "dtype": "bfloat16",
        "text_config": {"torch_dtype": "bfloat16", "x": 1},
    }
    assert hasattr(torch, found["dtype"])


def test_code_that_is_not_copied_is_told():
    assert list(sidecar_warnings({"config.json": CONFIG})) == []
    assert list(sidecar_warnings({})) == []
    (warning,) = sidecar_warnings({"config.json": b'{"auto_map": {"AutoModel": "modeling.M"}}'})
    assert "auto_map" in warning
