"""Which tensor of a model belongs to which of its average: by name, and checked before any is changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from swatool.errors import printable
from swatool.swa_utils.refusals import PairingError

__all__ = ["Pair", "clean_names", "local", "pair_tensors"]

COMPILED = "_orig_mod"  # what torch.compile puts between a module and its parameters
WRAPPED = "module."  # what DataParallel, DistributedDataParallel and AveragedModel put before all names


@dataclass(frozen=True, eq=False)
class Pair:
    """A tensor of the average, and what is averaged into it.

    Attributes:
        name: clean, see `clean_names`.
        average: is changed by an update.
        model: of the same shape.
        is_buffer: whether they are buffers, not parameters.
    """

    name: str
    average: Tensor
    model: Tensor
    is_buffer: bool


def clean_names(names: Iterable[str]) -> dict[str, str]:
    """Return for each name what is left of it without the marks of compilation and data parallelism.

    `module.` is taken off, repeatedly, where every name begins with it.

    Raises:
        PairingError: two names become the same.
    """
    given = list(names)
    clean = [".".join(part for part in name.split(".") if part != COMPILED) for name in given]
    while clean and all(name.startswith(WRAPPED) for name in clean):
        clean = [name.removeprefix(WRAPPED) for name in clean]
    if len(set(clean)) < len(clean):
        twice = sorted({name for name in clean if clean.count(name) > 1})
        raise PairingError(
            f"without {COMPILED} and {WRAPPED[:-1]} several tensors have the same name: "
            f"{', '.join(map(printable, twice[:5]))}"
        )
    return dict(zip(given, clean, strict=True))


def local(tensor: Tensor) -> Tensor:
    """Return what this process holds of a distributed tensor, sharing its memory; others as they are."""
    to_local = getattr(tensor, "to_local", None)
    with torch.no_grad():  # else it would be the output of an operation, which must not be written
        return tensor if to_local is None else cast(Tensor, to_local())


def pair_tensors(average: nn.Module, model: nn.Module) -> list[Pair]:
    """Pair all parameters and buffers; a tensor that several names share is paired once.

    Raises:
        PairingError: lists every tensor that the other one lacks, or has in another shape, or cannot be read.
    """
    averages, models = _named_tensors(average), _named_tensors(model)
    if averages.keys() != models.keys():
        averages, models = _cleaned(averages), _cleaned(models)
    differences = list(_differences(averages, models))
    if differences:
        raise PairingError(
            "the model is not built as its average, and nothing was changed; average a model of the same "
            "names and shapes:",
            differences,
        )
    found: dict[int, Pair] = {}
    for name, (tensor, is_buffer) in averages.items():
        found.setdefault(id(tensor), Pair(name, tensor, models[name][0], is_buffer))
    return list(found.values())


Named = Mapping[str, tuple[Tensor, bool]]


def _named_tensors(module: nn.Module) -> Named:
    """Return all tensors by name, those with two names twice, and whether they are buffers."""
    parameters = module.named_parameters(remove_duplicate=False)
    buffers = module.named_buffers(remove_duplicate=False)
    return {name: (tensor, False) for name, tensor in parameters} | {
        name: (tensor, True) for name, tensor in buffers
    }


def _cleaned(named: Named) -> Named:
    return {clean: named[name] for name, clean in clean_names(named).items()}


def _differences(averages: Named, models: Named) -> Iterator[str]:
    for name in averages.keys() - models.keys():
        yield f"{printable(name)} is in the average, but not in the model"
    for name in models.keys() - averages.keys():
        yield f"{printable(name)} is in the model, but not in the average"
    owners: dict[int, tuple[str, Tensor]] = {}
    for name, (average, is_buffer) in averages.items():
        if name not in models:
            continue
        model, is_model_buffer = models[name]
        if is_buffer != is_model_buffer:
            yield f"{printable(name)} is a buffer in one and a parameter in the other"
        yield from _unlike(name, average, model)
        first, owner = owners.setdefault(id(average), (name, model))
        if owner is not model:
            yield f"{printable(first)} and {printable(name)} are one tensor in the average, two in the model"


def _unlike(name: str, average: Tensor, model: Tensor) -> Iterator[str]:
    for tensor, where in ((average, "average"), (model, "model")):
        if is_lazy(tensor):
            yield f"{printable(name)} in the {where} has no shape yet: run the model once first"
            return
        if tensor.is_meta:
            yield f"{printable(name)} in the {where} is on the meta device, and has no values"
    if average is model:
        yield f"{printable(name)} is the same tensor in both: average into a copy of the model"
    if any(stride == 0 and size > 1 for stride, size in zip(average.stride(), average.shape, strict=True)):
        yield f"{printable(name)} in the average is expanded, and cannot be written: make it contiguous"
    if _kind(average) != _kind(model):
        yield f"{printable(name)} is {average.dtype} in the average, and {model.dtype} in the model"
    if average.shape != model.shape:
        yield (
            f"{printable(name)} has the shape {tuple(average.shape)} in the average, and "
            f"{tuple(model.shape)} in the model"
        )
    elif _placement(average) != _placement(model):
        yield (
            f"{printable(name)} is distributed as {_placement(average)} in the average, and as "
            f"{_placement(model)} in the model"
        )
    elif average.layout is not model.layout or average.layout is not torch.strided:
        yield f"{printable(name)} is {average.layout} in the average and {model.layout} in the model"


def _kind(tensor: Tensor) -> str:
    """Return what copying does not change: between kinds, it would round or lose a part."""
    if tensor.is_complex():
        return "complex"
    return "floating" if tensor.is_floating_point() else "whole"


def _placement(tensor: Tensor) -> object:
    """Return how a distributed tensor is divided, None for others; equal if parts belong to each other."""
    if not hasattr(tensor, "to_local"):
        return None
    return getattr(tensor, "device_mesh", None), getattr(tensor, "placements", None)
