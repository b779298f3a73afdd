"""Arrays that are damaged at random: how they are written, damaged and read, and by whom."""

import contextlib
import io
import warnings
import zipfile

import torch

from hostile import comparing, mutating
from hostile.arrays import npy, zipped
from swatool.data.arrays import open_arrays
from swatool.data.options import DataOptions


def npy_mutant(dice):
    seed = dice.choice(
        (npy((4, 3), bytes(range(48))), npy((6,), bytes(range(48)), "<f8"), npy((2, 2), bytes(4), "|b1"))
    )
    change = dice.randrange(4)
    if change == 0:
        return mutating.of_bytes(dice, seed)
    text = mutating.of_bytes(dice, seed[10 : seed.index(b"}") + 1], 2)
    return seed[:8] + len(text).to_bytes(2, "little") + text + seed[seed.index(b"}") + 1 :]


def npz_mutant(dice):
    method = dice.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    if dice.randrange(2):
        return bytes(zipped(("y.npy", npy((1,), bytes(4))), ("x.npy", npy_mutant(dice)), method=method))
    seed = bytes(
        zipped(("y.npy", npy((1,), bytes(4))), ("x.npy", npy((4, 3), bytes(range(48)))), method=method)
    )
    return mutating.of_bytes(dice, seed)


def rows_of(key):
    def read(path):
        data = open_arrays(path, path, key, DataOptions(shuffle=False))
        with contextlib.closing(data):
            return torch.cat(list(data))

    return read


def numpy_reads(key):
    def read(mutant):
        import numpy

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = numpy.load(io.BytesIO(mutant), allow_pickle=False)
            found = found if key is None else found[key]
            if not isinstance(found, numpy.ndarray):
                raise ValueError("an archive")
            return found

    return read


def compare_arrays(ours, theirs):
    """Compare values: bytes that are no bool are true, and the order of bytes is the machine's."""
    expected = torch.from_numpy(theirs.astype(theirs.dtype.newbyteorder("=")).copy())
    if theirs.dtype == bool:
        return "" if tuple(ours.shape) == theirs.shape and ours.dtype is torch.bool else "bools"
    return "" if comparing.raw(ours) == comparing.raw(expected) else f"{ours} {expected}"
