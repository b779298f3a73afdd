"""Odd inputs that were made by hand: what two readers read is the same, and what one refuses both refuse."""

import contextlib
import shutil
import warnings
from pathlib import Path

import pytest
import safetensors
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

from hostile import comparing, hf, odd
from hostile.corpus_folders import hf_folder, saved
from hostile.reading import everything_of, read_a_folder
from swatool.checkpoints.file_formats import read_file
from swatool.checkpoints.files import LocalFile
from swatool.errors import CheckpointError

REFUSALS = (safetensors.SafetensorError, TypeError, ValueError, KeyError, OSError, AttributeError)


def named(reading):
    return {name: reading.values[id(leaf)] for name, leaf in reading.root.items()}


def ours_of(read, what):
    """What swatool reads, and None if it refuses it."""
    try:
        return read(what)
    except CheckpointError:
        return None


def read_safetensors(path):
    with contextlib.closing(LocalFile(path)) as file:
        return named(everything_of(read_file(file)))


@pytest.mark.parametrize("name", odd.SAFETENSORS)
def test_odd_headers_are_read_as_the_library_reads_them(name, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(odd.SAFETENSORS[name])
    ours = ours_of(read_safetensors, path)
    try:
        theirs = comparing.safetensors_reads(odd.SAFETENSORS[name])
    except REFUSALS:
        theirs = None
    assert (ours is None and theirs is not None) is (name in odd.STRICTER_SAFETENSORS)
    assert ours is None or ours == theirs


@pytest.mark.parametrize("name", odd.INDEXES)
def test_odd_indexes_are_read_as_one_who_trusts_them_reads(name, tmp_path):
    hf_folder()(tmp_path / "folder")
    (tmp_path / "folder" / hf.INDEX).write_bytes(odd.INDEXES[name])
    ours = ours_of(lambda path: named(read_a_folder(path)), tmp_path / "folder")
    try:
        theirs = comparing.folder_reads(tmp_path / "folder", hf.INDEX)
    except REFUSALS:
        theirs = None
    assert (ours is None and theirs is not None) is (name in odd.STRICTER_INDEXES)
    assert ours is None or ours == theirs


def torch_reads(folder):
    """What torch makes of a folder, whose metadata were made here and call nothing."""
    state = {}
    planner = _EmptyStateDictLoadPlanner()
    _load_state_dict(state, storage_reader=dcp.FileSystemReader(folder), planner=planner, no_dist=True)
    return state


@pytest.mark.parametrize("name", odd.DCP)
def test_odd_folders_of_ranks_are_read_as_torch_reads_them(name, tmp_path):
    folder = tmp_path / "folder"
    shutil.copytree(saved("plain"), folder)
    odd.DCP[name](Path(folder))
    ours = ours_of(read_a_folder, folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            theirs, error = torch_reads(folder), None
        except (Exception, CheckpointException) as refused:  # noqa: BLE001 - it raises anything
            theirs, error = None, refused
    assert ours is None or theirs is not None, error
    assert (ours is None and theirs is not None) is (name in odd.STRICTER_DCP)
    assert ours is None or comparing.difference(ours.root, theirs, ours.values) == ""
