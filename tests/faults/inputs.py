"""Checkpoints of every kind that is read, as large as they need be for something to happen meanwhile."""

import ctypes
import json
import struct
import warnings
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp

KINDS = ("file.safetensors", "file.pt", "shards", "dcp")
TENSORS = 8


def state(seed, nbytes):
    """Return a state dict of about so many bytes."""
    generator = torch.Generator().manual_seed(seed)
    shape = (16, nbytes // 4 // TENSORS // 16)
    tensors = {f"layer{i}.weight": torch.randn(shape, generator=generator) for i in range(TENSORS)}
    return {**tensors, "steps": torch.tensor(seed)}


def safetensors_header(shapes, code="F32", itemsize=4):
    """Return the header of a safetensors file, and the number of bytes that must follow it."""
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + torch.Size(shape).numel() * itemsize
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, end


def save_safetensors(path, tensors):
    """Write floats of 32 bits as safetensors, with neither NumPy nor the library."""
    tensors = {name: tensor for name, tensor in tensors.items() if tensor.dtype == torch.float32}
    header, _ = safetensors_header({name: tensor.shape for name, tensor in tensors.items()})
    with open(path, "wb") as file:
        file.write(header)
        for tensor in tensors.values():
            whole = tensor.contiguous()
            file.write(ctypes.string_at(whole.data_ptr(), whole.nbytes))


def save_sparse(path, nbytes):
    """Make a safetensors file of so many zeros, of which the disk holds only the header."""
    shapes = {f"layer{i}.weight": (1024, nbytes // 4 // TENSORS // 1024) for i in range(TENSORS)}
    header, length = safetensors_header(shapes)
    with open(path, "wb") as file:
        file.write(header)
        file.truncate(len(header) + length)


def save_shards(folder, tensors, count=4):
    """Make a folder of shards and their index, as Hugging Face's libraries do."""
    folder.mkdir()
    names = sorted(name for name, tensor in tensors.items() if tensor.dtype == torch.float32)
    shards = {f"model-{i + 1:05}-of-{count:05}.safetensors": names[i::count] for i in range(count)}
    for shard, held in shards.items():
        save_safetensors(folder / shard, {name: tensors[name] for name in held})
    index = {
        "metadata": {"total_size": sum(tensors[name].nbytes for name in names)},
        "weight_map": {name: shard for shard, held in shards.items() for name in held},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def save(path, kind, seed, nbytes):
    """Make a checkpoint of a kind."""
    tensors = state(seed, nbytes)
    path = Path(path)
    if kind == "file.safetensors":
        save_safetensors(path, tensors)
    elif kind == "file.pt":
        torch.save({"model": tensors, "step": seed}, path)
    elif kind == "shards":
        save_shards(path, tensors)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dcp.save({"model": tensors}, checkpoint_id=path, no_dist=True)


def names(kind, count=2):
    """Return what checkpoints of a kind are called."""
    suffix = kind.removeprefix("file") if kind.startswith("file") else ""
    return [f"ckpt-{i}{suffix}" for i in range(1, count + 1)]


def make(folder, kind, nbytes, count=2):
    """Make some checkpoints of a kind in a folder, and return their names."""
    for seed, name in enumerate(names(kind, count), 1):
        save(Path(folder, name), kind, seed, nbytes)
    return names(kind, count)
