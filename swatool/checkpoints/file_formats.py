"""The formats that a single file may have, recognised by its bytes, whatever its name says."""

from __future__ import annotations

from swatool.checkpoints.contents import Contents
from swatool.checkpoints.legacy_torch_file import read_legacy_torch_file
from swatool.checkpoints.safetensors_file import looks_like_safetensors, read_safetensors
from swatool.checkpoints.torch_file import read_torch_file
from swatool.errors import CheckpointError, printable
from swatool.tensors import Source

__all__ = ["ZIP_MAGIC", "read_file"]

BEGINNING = 512
LEGACY_MAGIC = (
    b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch.serialization.MAGIC_NUMBER, pickled by any protocol
)
LEGACY_BEGINNING = 32
TAR_MAGIC = slice(257, 262)
LEGACY_TAR_MEMBERS = (b"sys_info", b"pickle", b"storages", b"tensors")  # one of them is the first
ZIP_MAGIC = b"PK\x03\x04"
# What people hand over by mistake, by its first bytes.
OTHER_FORMATS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself: run `git lfs pull`"),
    (b"<!DOCTYPE", "a web page: the download went wrong"),
    (b"<!doctype", "a web page: the download went wrong"),
    (b"<?xml", "a web page: the download went wrong"),
    (b"<!--", "a web page: the download went wrong"),
    (b"<html", "a web page: the download went wrong"),
    (b"<HTML", "a web page: the download went wrong"),
    (b"PK\x05\x06", "an empty zip archive"),
    (b"GGUF", "a GGUF file: give the checkpoint that it was made from"),
    (b"\x89HDF", "an HDF5 file: give a torch or safetensors checkpoint"),
    (b"\x93NUMPY", "a NumPy array: give a torch or safetensors checkpoint"),
    (b"\x1f\x8b", "a gzip archive: unpack it first"),
    (b"\x80", "a plain pickle: save a state dict with torch.save"),
    (b"{", "a JSON text: give the file that holds the weights"),
)


def read_file(source: Source) -> Contents:
    """Describe what a file holds, with nothing read but its descriptions.

    Raises:
        CheckpointError: it is of another format, damaged or hostile.
    """
    beginning = source.read(0, min(BEGINNING, source.size))
    where = printable(source.path)
    if not beginning:
        raise CheckpointError(f"{where} is empty: the checkpoint was not written, or its download failed")
    if beginning.startswith(ZIP_MAGIC):
        return read_torch_file(source)
    if looks_like_safetensors(beginning, source.size):
        return read_safetensors(source)
    if beginning[TAR_MAGIC] == b"ustar" and beginning.partition(b"\0")[0] in LEGACY_TAR_MEMBERS:
        raise CheckpointError(
            f"{where} is a torch file in the tar format of before 2018: load it with torch and save it again"
        )
    if beginning[TAR_MAGIC] == b"ustar":
        raise CheckpointError(f"{where} is a tar archive: unpack it, or save the checkpoint again")
    if LEGACY_MAGIC in beginning[:LEGACY_BEGINNING]:
        return read_legacy_torch_file(source)
    for magic, what in OTHER_FORMATS:
        if beginning.lstrip().startswith(magic):
            raise CheckpointError(f"{where} is {what}")
    raise CheckpointError(
        f"{where} is no checkpoint: neither a safetensors file nor a zip file by torch.save"
    )
