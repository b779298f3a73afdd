"""Whether what swatool reads of a file is what the reference library reads of it."""

import io
import json
import math
import warnings

import safetensors
import torch

from swatool.checkpoints.contents import Opaque, TensorDescriptor, Unnamed, UnsupportedTensor
from swatool.checkpoints.pickle_globals import is_key
from swatool.tensors import DTYPES, StoredTensor

MAX_STEPS = 100_000
DTYPE_OF_CODE = {dtype.code: dtype.name for dtype in DTYPES.values() if dtype.code}


def torch_reads(data):
    """What torch.load makes of a file, which is damaged at random and not crafted; raises anything."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.load(io.BytesIO(data), weights_only=True, mmap=False)


def raw(tensor):
    """A tensor's dtype, shape and bytes in C order."""
    whole = torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor.detach())
    return (
        str(tensor.dtype).removeprefix("torch."),
        tuple(tensor.shape),
        bytes(whole.view(-1).view(torch.uint8).tolist()),  # ten times as fast as of a storage
    )


def difference(ours, theirs, values):
    """Say where two readings differ; empty if they do not. Cycles, and what is inert, are passed over."""
    pending, steps = [("", ours, theirs)], 0
    seen = set()
    while pending and steps < MAX_STEPS:
        where, left, right = pending.pop()
        steps += 1
        if (id(left), id(right)) in seen or isinstance(left, Opaque | UnsupportedTensor):
            continue
        if isinstance(left, TensorDescriptor | StoredTensor):
            if not isinstance(right, torch.Tensor) or values[id(left)] != raw(right):
                return f"tensor {where!r}"
        elif isinstance(left, dict | list | tuple):
            seen.add((id(left), id(right)))
            inner = _paired(left, right)
            if inner is None:
                return f"container {where!r}"
            pending += ((f"{where}/{key}"[-99:], one, other) for key, one, other in inner)
        elif not _equal(left, right):
            return f"value {where!r}"
    return ""


def _paired(left, right):
    if isinstance(left, dict):
        return _paired_entries(left, right) if isinstance(right, dict) else None
    if not isinstance(right, list | tuple) or len(left) != len(right):
        return None
    return [(index, *pair) for index, pair in enumerate(zip(left, right, strict=True))]


def _paired_entries(left, right):
    """Entries by their keys; of those under other keys only tensors count, each of which must be told."""
    named = {key: value for key, value in left.items() if not isinstance(key, Unnamed)}
    known = {key: value for key, value in right.items() if is_key(key)}
    untold = sum(isinstance(value, torch.Tensor) for key, value in right.items() if not is_key(key))
    if known.keys() != named.keys() or untold > len(left) - len(named):
        return None
    return [(key, value, known[key]) for key, value in named.items()]


def _equal(left, right):
    if isinstance(left, float) and isinstance(right, float) and math.isnan(left):
        return math.isnan(right)
    return left == right


def safetensors_reads(data):
    """What the library makes of a file, by name: dtype, shape and bytes."""
    return {
        name: (DTYPE_OF_CODE[one["dtype"]], tuple(one["shape"]), bytes(one["data"]))
        for name, one in safetensors.deserialize(data)
    }


def folder_reads(folder, index):
    """What a reader does that trusts an index of safetensors files."""
    found = {}
    for file in set(json.loads((folder / index).read_bytes())["weight_map"].values()):
        found |= safetensors_reads((folder / file).read_bytes())
    return found
