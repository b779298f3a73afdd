"""Files that are something else, that are no files, that change, and that are too large."""

import os
import socket

import torch

from hostile import models
from hostile.cases import Case, of_bytes
from hostile.corpus_folders import FILE, nothing
from hostile.pickles import program
from hostile.safetensors_headers import assembled, entry


def something_else():
    for name, data, said in (
        ("an LFS pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        ("a web page", b"<!DOCTYPE html><html></html>", "a web page"),
        ("another web page", b"\n<html></html>", "a web page"),
        ("an XML page", b"<?xml version='1.0'?><Error/>", "a web page"),
        ("an empty file", b"", "is empty"),
        ("GGUF", b"GGUF\3\0\0\0" + bytes(99), "a GGUF file"),
        ("HDF5", b"\x89HDF\r\n\x1a\n" + bytes(99), "an HDF5 file"),
        ("NumPy", b"\x93NUMPY\1\0" + bytes(99), "a NumPy array"),
        ("gzip", b"\x1f\x8b" + bytes(99), "a gzip archive"),
        ("a pickle", program(b"N"), "a plain pickle"),
        ("JSON", b'{"a": 1}', "JSON|damaged|truncated"),
        ("an empty zip", b"PK\5\6" + bytes(18), "an empty zip"),
        ("TensorFlow", b"W\xfb\x80\x8b\x24\x75\x47\xdb" + bytes(99), "no checkpoint"),
        ("noise", bytes(range(255, 0, -1)), "no checkpoint"),
        ("one byte", b"P", "no checkpoint"),
    ):
        yield of_bytes("U1", f"something else: {name}", "bad.pt", data, said)
    for name, make, said in (
        ("a FIFO", os.mkfifo, "not a regular file"),
        ("a socket", bind, "cannot open|not a regular file"),
        ("a device", lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
        ("a broken link", lambda path: path.symlink_to("nowhere"), "cannot open"),
        ("a link to itself", lambda path: path.symlink_to(path.name), "cannot open"),
        ("an empty folder", lambda path: path.mkdir(), "holds no checkpoints|none that holds"),
        ("nothing", nothing, "cannot open|there is no"),
    ):
        yield Case("U1", f"no file: {name}", "bad.pt", make, said)
    for name in ("\x1b[2Jbad.pt", "bad\nerror: x.pt", "\u202ebad.pt", "b" * 240 + ".pt"):
        yield of_bytes("U1", f"a file named {name[:20]!a}", name, b"", "is empty")


def bind(path):
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(path.name)


def sound(path):
    torch.save(models.state(), path)


def nonfinite(path):
    torch.save(models.state() | {"0.weight": torch.tensor([1.0, float("nan")])}, path)


AVERAGES = {"average": 3, "*": 0}
HUGE = 1 << 42


def huge(path):
    """Four terabytes of zeros, all of them a hole; also in place of the good partner."""
    header = {"w": entry(shape=[HUGE // 4], offsets=(0, HUGE))}
    for one in (path, path.with_name("good.safetensors")):
        one.write_bytes(assembled(header, b""))
        os.truncate(one, one.stat().st_size + HUGE)


def changing():
    for during, row, said in (
        ("truncate", "T1", "truncated or was changed"),
        ("rewrite", "T1", "changed while it was read"),
        ("replace", "T1", "changed while it was read"),
        ("fail", "T2", "Input/output error"),
    ):
        yield Case(
            row,
            f"{during} while it is read",
            "bad.pt",
            sound,
            said,
            codes={"dry-run": 3 * (during in ("truncate", "fail")), "inspect": 0, "like": 0},
            during=during,
        )
    yield Case("X1", "a NaN", "bad.pt", nonfinite, "(?s).*", codes={**AVERAGES, "soup": 3, "verify": 6})


def too_large():
    codes = {
        "average": 5,
        "dry-run": 0,
        "inspect": 0,
        "stats": -1,
        "verify": -1,
        "diff": -1,
        "reversed": -1,
        "recalibrate-bn": 5,
        "like": -1,
        "source": -1,
        "soup": 5,
    }
    yield Case("X2", "four terabytes", FILE, huge, "are needed and .* are free", codes=codes)


def cases():
    yield from something_else()
    yield from changing()
    yield from too_large()
