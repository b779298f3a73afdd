"""Opening a checkpoint by its bytes: what it is read as, what is said of anything else, nothing left open."""

import collections
import contextlib
import gzip
import io
import json
import os
import pickle
import random
import tarfile
import zipfile

import pytest
import torch

from swatool.checkpoints.opening import Reading, open_checkpoint
from swatool.errors import CheckpointError, MismatchError, SwatoolError, UsageError

STATE = {
    "fc.weight": torch.arange(12.0).reshape(3, 4),
    "fc.bias": torch.arange(3.0).to(torch.bfloat16),
    "bn.num_batches_tracked": torch.tensor(7),
}


@pytest.fixture(autouse=True)
def everything_is_closed():
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) == before


def as_safetensors(metadata):
    """STATE as a safetensors file; the reference library needs NumPy to write one."""
    header, data = {"__metadata__": metadata}, b""
    for name, tensor in STATE.items():
        raw = bytes(tensor.reshape(-1).view(torch.uint8).tolist())
        code = {torch.float32: "F32", torch.bfloat16: "BF16", torch.int64: "I64"}[tensor.dtype]
        offsets = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": code, "shape": list(tensor.shape), "data_offsets": offsets}
        data += raw
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def values(checkpoint):
    found = {}
    for name, stored in checkpoint.tensors.items():
        raw = b"".join(extent.source.read(extent.offset, extent.nbytes) for extent in stored.extents)
        flat = torch.frombuffer(bytearray(raw), dtype=getattr(torch, stored.dtype.name))
        found[name] = flat.reshape(stored.shape)
    return found


def assert_read(path, format, key, state=STATE, reading=None):
    checkpoint = open_checkpoint(path, reading)
    found = values(checkpoint)
    checkpoint.close()
    assert checkpoint.path == os.fspath(path)
    assert (checkpoint.format, checkpoint.key) == (format, key)
    assert list(found) == list(state)
    assert all(torch.equal(found[name], state[name]) for name in state)
    assert all(found[name].dtype == state[name].dtype for name in state)
    return checkpoint


def refusal(path, data, reading=None):
    path.write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path, reading)
    message = str(caught.value)
    assert repr(os.fspath(path)) in message
    assert message.isprintable()
    return message


@pytest.mark.parametrize("name", ["x.pt", "x.ckpt", "x.bin", "x.safetensors", "x.json", "x"])
def test_a_torch_file_is_known_by_its_bytes(tmp_path, name):
    torch.save({"model": STATE, "epoch": 3}, tmp_path / name)
    checkpoint = assert_read(tmp_path / name, "torch zip", "model")
    assert checkpoint.fields == {"epoch": 3}
    assert checkpoint.metadata == {}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("name", ["x.pt", "x.safetensors", "x"])
def test_a_torch_file_of_before_1_6_is_known_by_its_bytes(tmp_path, name, protocol):
    root = {"model": STATE, "epoch": 3}
    torch.save(root, tmp_path / name, _use_new_zipfile_serialization=False, pickle_protocol=protocol)
    checkpoint = assert_read(tmp_path / name, "torch legacy", "model")
    assert checkpoint.fields == {"epoch": 3}


@pytest.mark.parametrize("name", ["x.safetensors", "x.pt", "x.gz", "x"])
def test_a_safetensors_file_is_known_by_its_bytes(tmp_path, name):
    (tmp_path / name).write_bytes(as_safetensors({"step": "12", "format": "pt"}))
    checkpoint = assert_read(tmp_path / name, "safetensors", "")
    assert checkpoint.metadata == {"step": "12", "format": "pt"}
    assert checkpoint.fields == {"step": 12}


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0", 0),
        ("007", 7),
        ("9" * 18, 10**18 - 1),
        ("9" * 19, None),
        ("-1", -1.0),
        ("1.5", 1.5),
        ("2.5e-3", 0.0025),
        (".", None),
        ("nan", None),
        ("1_0", None),
        ("1." + "0" * 40, None),
        ("", None),
        ("\u0663", None),
        ("\u00b2", None),
        (" 1", None),
    ],
)
def test_numbers_in_the_metadata_are_fields(tmp_path, text, number):
    (tmp_path / "x").write_bytes(as_safetensors({"step": text}))
    checkpoint = open_checkpoint(tmp_path / "x")
    checkpoint.close()
    assert checkpoint.fields == ({} if number is None else {"step": number})


def test_entries_that_are_no_tensors_are_told(tmp_path):
    torch.save(STATE | {"version": 2, "names": ["a"]}, tmp_path / "x.pt")
    checkpoint = assert_read(tmp_path / "x.pt", "torch zip", "")
    assert checkpoint.skipped == ("version", "names")
    assert checkpoint.fields == {"version": 2}


def test_the_state_dict_of_a_module_is_read(tmp_path):
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    torch.save(module.state_dict(), tmp_path / "x.pt")
    assert_read(tmp_path / "x.pt", "torch zip", "", module.state_dict())


def test_what_a_reading_says_is_done(tmp_path):
    root = {"model": STATE, "ema": {f"module.net.{name}": value for name, value in STATE.items()}}
    torch.save(root, tmp_path / "x.pt")
    path = tmp_path / "x.pt"
    assert_read(path, "torch zip", "model")
    assert_read(path, "torch zip", "ema", {f"net.{n}": v for n, v in STATE.items()}, Reading(key="ema"))
    assert_read(path, "torch zip", "ema", root["ema"], Reading(key="ema", keep_prefix=True))
    assert_read(path, "torch zip", "ema", STATE, Reading(key="ema", strip_prefix=("net.",)))


def test_a_prefix_that_is_missing_is_a_mismatch(tmp_path):
    torch.save(STATE, tmp_path / "x.pt")
    with pytest.raises(MismatchError, match=r"x\.pt' begins with 'net\.'"):
        open_checkpoint(tmp_path / "x.pt", Reading(strip_prefix=("net.",)))


def test_an_empty_prefix_is_refused():
    with pytest.raises(UsageError, match="--strip-prefix is empty"):
        Reading(strip_prefix=("module.", ""))


def tar(path, member="model.pt"):
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo(member))
    return path.read_bytes()


def empty_zip(path):
    with zipfile.ZipFile(path, "w"):
        pass
    return path.read_bytes()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"
OTHERS = {
    "LFS pointer": (LFS, "Git LFS pointer, not the file itself: run `git lfs pull`"),
    "web page": (b"<!DOCTYPE html><html><head>", "a web page: the download went wrong"),
    "web page in lower case": (b"\n  <!doctype html>\n", "a web page"),
    "web page without doctype": (b"<html><body>404</body></html>", "a web page"),
    "web page in capitals": (b"<HTML><BODY>", "a web page"),
    "nothing": (b"", "is empty: the checkpoint was not written, or its download failed"),
    "JSON": (b'{"weight_map": {"a": "b"}}', "a JSON text: give the file that holds the weights"),
    "indented JSON": (b'\n {\n  "weight_map": {}}', "a JSON text"),
    "gzip": (gzip.compress(b"weights"), "a gzip archive: unpack it first"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(100), "an HDF5 file"),
    "NumPy": (b"\x93NUMPY\x01\x00v\x00{'descr': '<f4'}", "a NumPy array"),
    "GGUF": (b"GGUF\x03\0\0\0" + bytes(100), "a GGUF file: give the checkpoint that it was made from"),
    "plain pickle": (pickle.dumps({"w": [1.0]}), "a plain pickle: save a state dict with torch.save"),
    "plain pickle, protocol 2": (pickle.dumps({"w": [1.0]}, 2), "a plain pickle"),
    "text": (b"hello, world\n" * 10, "is no checkpoint: neither a safetensors file nor a zip file"),
    "pickle of protocol 0": (pickle.dumps({"w": 1.0}, 0), "is no checkpoint"),
    "one byte": (b"P", "is no checkpoint"),
    "zeros": (bytes(1000), "is no checkpoint"),
    "PNG": (b"\x89PNG\r\n\x1a\n" + bytes(100), "is no checkpoint"),
}


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
@pytest.mark.parametrize("case", OTHERS)
def test_what_is_no_checkpoint_is_called_what_it_is(tmp_path, case, name):
    data, what = OTHERS[case]
    assert what in refusal(tmp_path / name, data)


def test_a_tar_archive_is_called_what_it_is(tmp_path):
    assert "is a tar archive" in refusal(tmp_path / "x.pt", tar(tmp_path / "x.tar"))


@pytest.mark.parametrize("member", ["sys_info", "pickle", "storages", "tensors"])
def test_the_tar_format_of_old_torch_is_called_what_it_is(tmp_path, member):
    message = refusal(tmp_path / "x.pt", tar(tmp_path / "x.tar", member))
    assert "is a torch file in the tar format of before 2018: load it with torch and save it again" in message


def test_an_empty_zip_archive_is_called_what_it_is(tmp_path):
    assert "is an empty zip archive" in refusal(tmp_path / "x.pt", empty_zip(tmp_path / "x.zip"))


def test_random_bytes_are_refused(tmp_path):
    generator = random.Random(6)
    beginnings = [b"", b"PK\x03\x04", b"\x80\x02", b"\x10\0\0\0\0\0\0\0{", b"{"]
    for beginning in beginnings:
        for length in (0, 1, 7, 8, 9, 30, 511, 512, 513, 5000):
            data = beginning + generator.randbytes(length)
            refusal(tmp_path / "x.pt", data)


def cut(write):
    file = io.BytesIO()
    write(file)
    data = file.getvalue()
    return [data[: len(data) * part // 10] for part in range(10)]


def test_a_truncated_torch_file_is_refused(tmp_path):
    for data in cut(lambda file: torch.save(STATE, file)):
        refusal(tmp_path / "x.pt", data)


def test_a_truncated_safetensors_file_is_refused(tmp_path):
    for data in cut(lambda file: file.write(as_safetensors({}))):
        refusal(tmp_path / "x.safetensors", data)


class Model(torch.nn.Module):
    pass


def saved(root):
    file = io.BytesIO()
    torch.save(root, file)
    return file.getvalue()


def test_a_pickled_model_is_refused_with_advice(tmp_path):
    message = refusal(tmp_path / "x.pt", saved(Model()))
    assert "Model', not a state dict: save model.state_dict() instead" in message


@pytest.mark.filterwarnings("ignore:Sparse")
def test_a_sparse_tensor_is_refused_by_name(tmp_path):
    sparse = torch.eye(3).to_sparse()
    assert "'fc.mask' is sparse" in refusal(tmp_path / "x.pt", saved(STATE | {"fc.mask": sparse}))


def test_ambiguous_and_unknown_keys_are_refused(tmp_path):
    data = saved({"generator": STATE, "discriminator": STATE | {"a": torch.ones(1)}})
    assert "'generator' (3 tensors, 62 bytes)" in refusal(tmp_path / "x.pt", data)
    assert "under the key 'ema'" in refusal(tmp_path / "x.pt", data, Reading(key="ema"))


def test_a_tensor_that_lies_about_its_bytes_is_named(tmp_path):
    data = saved(collections.OrderedDict(weight=torch.ones(1).expand(2_000_000)))
    assert message_names_tensor(refusal(tmp_path / "x.pt", data))


def message_names_tensor(message):
    return message.startswith("tensor 'weight': ") and "save it after .contiguous()" in message


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, RuntimeError])
def test_the_file_is_closed_whatever_goes_wrong(tmp_path, monkeypatch, error):
    torch.save(STATE, tmp_path / "x.pt")

    def fail(*_, **__):
        raise error

    monkeypatch.setattr("swatool.checkpoints.opening.without_prefixes", fail)
    with pytest.raises(error):
        open_checkpoint(tmp_path / "x.pt")


def test_a_missing_file_is_an_error_of_the_checkpoint(tmp_path):
    with pytest.raises(SwatoolError, match="No such file"):
        open_checkpoint(tmp_path / "x.pt")


def test_a_json_text_with_a_brace_in_the_ninth_place_is_called_json(tmp_path):
    path = tmp_path / "index.safetensors"
    path.write_text('{"abcd":{"a": 1}}')
    with pytest.raises(CheckpointError, match="JSON"):
        open_checkpoint(path)


def test_torchscript_whose_code_is_compressed_is_called_torchscript(tmp_path):
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/code/__torch__.py", "x" * 999, zipfile.ZIP_DEFLATED)
        archive.writestr("model/data.pkl", b"\x80\x02N.")
    with pytest.raises(CheckpointError, match="TorchScript"):
        open_checkpoint(path)


def test_a_dict_of_a_class_of_its_own_is_told_and_not_looked_into(tmp_path):
    """What torch.load makes of a Counter looks like a dict, but only its class knows what is in it."""
    state = {"w": torch.ones(3)}
    path = tmp_path / "x.pt"
    torch.save(collections.Counter(state), path)
    with pytest.raises(
        CheckpointError, match=r"a pickled object of class 'collections.Counter', not a state"
    ):
        open_checkpoint(path)
    torch.save({"model": collections.Counter(state), "step": 3}, path)
    with pytest.raises(CheckpointError, match=r"'model' is a pickled object of class 'collections.Counter'"):
        open_checkpoint(path)
    with pytest.raises(CheckpointError, match="no state dict under the key 'model'"):
        open_checkpoint(path, Reading(key="model"))
    torch.save({"model": state, "ema": collections.Counter(state)}, path)
    with contextlib.closing(open_checkpoint(path)) as opened:
        assert (opened.key, opened.opaque) == ("model", ("ema",))


def test_numbers_among_the_metrics_are_fields(tmp_path):
    beside = {"metrics": {"acc": 0.5, "name": "x", "ok": True, 3: 1.0}, "step": 7}
    torch.save({"model": STATE, **beside}, tmp_path / "x.pt")
    checkpoint = open_checkpoint(tmp_path / "x.pt")
    checkpoint.close()
    assert checkpoint.fields == {"metrics.acc": 0.5, "step": 7}


def test_weights_around_the_state_dict_are_warned_of_unless_a_key_was_given(tmp_path):
    path = tmp_path / "x.pt"
    path.write_bytes(saved({"model": {"emb": torch.ones(2), "blk": {"c": torch.ones(30)}}}))
    for key in (None, "model.blk"):
        checkpoint = open_checkpoint(path, Reading(key=key))
        checkpoint.close()
        assert list(checkpoint.tensors) == ["c"]
        found = [warning for warning in checkpoint.warnings if "are left out: 'emb'; --key" in warning]
        assert len(found) == len(checkpoint.warnings) == (key is None)
