"""Models that FSDP2 has divided between processes: what of them is here, and when it is."""

from __future__ import annotations

import sys
from typing import cast

import torch
from torch import Tensor, nn

__all__ = ["is_distributed", "local", "placement", "reshard"]


def is_distributed(tensor: Tensor) -> bool:
    """Tell whether a tensor is divided between processes, or repeated in them."""
    return hasattr(tensor, "to_local")


def local(tensor: Tensor) -> Tensor:
    """Return what this process holds of a distributed tensor, sharing its memory; others as they are."""
    to_local = getattr(tensor, "to_local", None)
    with torch.no_grad():  # else it would be the output of an operation, which must not be written
        return tensor if to_local is None else cast(Tensor, to_local())


def placement(tensor: Tensor) -> object:
    """Return how a distributed tensor is divided, None for others; equal if parts belong to each other."""
    if not is_distributed(tensor):
        return None
    return getattr(tensor, "device_mesh", None), getattr(tensor, "placements", None)


def reshard(module: nn.Module) -> None:
    """Put the divided parameters back where FSDP2 has left whole ones after a forward pass.

    Without a backward pass those of the outermost module stay. They are copies: what is written into them is
    lost, and they keep their values when the divided parameters get others.
    """
    fsdp = sys.modules.get("torch.distributed.fsdp")  # if nobody has imported it, nothing is divided by it
    kind = getattr(fsdp, "FSDPModule", ())
    if kind:
        for part in module.modules():
            if isinstance(part, kind):
                part.reshard()
