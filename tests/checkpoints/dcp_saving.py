"""Run by dcp_folders in conftest.py: saves distributed checkpoints with 1, 2 and 4 ranks of gloo.

The ranks are forked from one process, so that torch is imported once. What was saved is written beside the
folders, whole, by torch.save.
"""

import multiprocessing
import os
import pathlib
import sys
import warnings

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

SHAPES = {
    "even": (8, 6),
    "uneven": (5, 7),
    "few_rows": (2, 9),
    "vector": (11,),
    "cube": (3, 10, 4),
    "one_row": (1, 9),
    "scalar": (),
    "empty": (0, 4),
    "hollow": (6, 0),
}


def some(shape, seed, dtype=torch.float32):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return values.mul(50).to(dtype)


def whole(value):
    if isinstance(value, dict):
        return {name: whole(inner) for name, inner in value.items()}
    if isinstance(value, DTensor):
        return value.full_tensor().detach().clone()
    return value.detach().clone() if isinstance(value, torch.Tensor) else value


def keep(value, path):
    complete = whole(value)
    if dist.get_rank() == 0:
        torch.save(complete, f"{path}.pt")


def save_training(folder, ranks):
    """FSDP2 as people use it: layers of uneven sizes, BatchNorm buffers, the optimizer's state beside."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 3, bias=False), nn.Linear(3, 1))
    mesh = init_device_mesh("cpu", (ranks,))
    for layer in (model[0], model[2]):
        fully_shard(layer, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), 0.1)
    for step in range(1, 4):
        model(some((4, 5), step)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        weights, state = get_state_dict(model, optimizer)
        path = folder / f"train{ranks}-step{step}"
        dcp.save({"model": weights, "optimizer": state, "epoch": step}, checkpoint_id=path)
        keep({"model": weights}, path)


def tensors(meshes):
    """Tensors of every way to shard, some dimensions of which the ranks do not divide."""
    found = {}
    for place, (mesh, placements) in meshes.items():
        for index, (name, shape) in enumerate(SHAPES.items()):
            dtype = (torch.float32, torch.bfloat16, torch.int64)[index % 3]
            dims = {p.dim for p in placements if isinstance(p, Shard)}
            if all(dim < len(shape) for dim in dims):
                value = some(shape, index, dtype)
                found[f"{place}.{name}"] = distribute_tensor(value, mesh, placements)
    found["plain"] = some((4, 3), 77)
    return found


def layouts(ranks):
    line = init_device_mesh("cpu", (ranks,))
    found = {f"shard{dim}": (line, [Shard(dim)]) for dim in range(3)}
    found["replicated"] = (line, [Replicate()])
    if ranks == 4:
        square = init_device_mesh("cpu", (2, 2), mesh_dim_names=("a", "b"))
        found["both"] = (square, [Shard(0), Shard(1)])
        found["swapped"] = (square, [Shard(1), Shard(0)])
        found["twice"] = (square, [Shard(0), Shard(0)])
        found["hybrid"] = (square, [Replicate(), Shard(1)])
    return found


def save_layouts(folder, ranks):
    state = tensors(layouts(ranks))
    keep(state, folder / f"layouts{ranks}")
    dcp.save(state, checkpoint_id=folder / f"layouts{ranks}")
    if ranks > 1:
        # torch's own writer of this layout keeps one part of a tensor in each file, and no pickles.
        writer = HuggingFaceStorageWriter(str(folder / f"safetensors{ranks}"), save_distributed=True)
        dcp.save(state, storage_writer=writer)
        keep(state, folder / f"safetensors{ranks}")


def save_odd(folder, ranks):
    """Two ranks whose parts are stored transposed; and a save that goes on beside the training."""
    mesh = init_device_mesh("cpu", (ranks,))
    state = {}
    for dim in (0, 1):
        local = some((6, 8), dim + dist.get_rank()).t()
        state[f"transposed{dim}"] = DTensor.from_local(local, mesh, [Shard(dim)], run_check=False)
    local = some((4, 3, 6, 2), 5 + dist.get_rank()).to(memory_format=torch.channels_last)
    state["channels_last"] = DTensor.from_local(local, mesh, [Shard(1)], run_check=False)
    keep(state, folder / "odd")
    dcp.save(state, checkpoint_id=folder / "odd")
    dcp.async_save({"model": state}, checkpoint_id=folder / "async").result()
    keep({"model": state}, folder / "async")


def run(rank, ranks, folder):
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for size in ranks:
        if rank < size:
            dist.init_process_group(
                "gloo", init_method=f"file://{folder}/store{size}", rank=rank, world_size=size
            )
            save_training(folder, size)
            save_layouts(folder, size)
            if size == 2:
                save_odd(folder, size)
            dist.barrier()
            dist.destroy_process_group()


def main():
    folder = pathlib.Path(sys.argv[1])
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    forking = multiprocessing.get_context("fork")
    processes = [forking.Process(target=run, args=(rank, (4, 2, 1), folder)) for rank in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert not any(process.exitcode for process in processes)


if __name__ == "__main__":
    main()
