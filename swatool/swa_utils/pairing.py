"""Which tensor of a model belongs to which of its average: by name, and checked before any is changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from swatool.errors import printable
from swatool.swa_utils.arguments import check_module
from swatool.swa_utils.names import clean_names, names_as_usual
from swatool.swa_utils.refusals import PairingError
from swatool.swa_utils.sharding import placement, reshard

__all__ = ["Pair", "pair_tensors", "writable"]

Side = Literal["average", "model"]


@dataclass(frozen=True, eq=False)
class Pair:
    """A tensor of the average, and what is averaged into it.

    Attributes:
        name: as in the average, or clean if the names differ, see `clean_names`.
        average: is changed by an update.
        model: of the same shape.
        is_buffer: whether they are buffers, not parameters.
    """

    name: str
    average: Tensor
    model: Tensor
    is_buffer: bool


def writable(tensor: Tensor) -> Tensor:
    """Return a tensor as it may be written: one that was made in inference mode by another name only."""
    return tensor.detach() if tensor.is_inference() else tensor


def pair_tensors(average: nn.Module, model: nn.Module, *, written: Side = "average") -> list[Pair]:
    """Pair all parameters and buffers; a tensor that several names share is paired once.

    Args:
        average: the average; whole parameters that FSDP2 has left in it are divided again.
        model: what it is the average of; likewise.
        written: which of them is going to be changed.

    Raises:
        PairingError: lists every tensor that the other one lacks, or has in another shape, or cannot be read
            or written.
        ArgumentTypeError: the model is no module.
    """
    check_module(model)
    reshard(average)
    reshard(model)
    averages, models = _named_tensors(average), _named_tensors(model)
    if averages.keys() != models.keys():
        averages, models = _cleaned(averages), _cleaned(models)
    differences = list(_differences(averages, models, written))
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
    if names_as_usual(module):
        parts = list(_parts(module))
        parameters = [(prefix + name, p) for prefix, part in parts for name, p in part._parameters.items()]
        buffers = [(prefix + name, b) for prefix, part in parts for name, b in part._buffers.items()]
    else:
        # Their own way may be older than the keyword that asks for tensors with two names.
        parameters, buffers = list(module.named_parameters()), list(module.named_buffers())
    return {name: (tensor, False) for name, tensor in parameters if tensor is not None} | {
        name: (tensor, True) for name, tensor in buffers if tensor is not None
    }


def _parts(
    module: nn.Module, prefix: str = "", above: Sequence[nn.Module] = ()
) -> Iterator[tuple[str, nn.Module]]:
    """Give a module and those inside it with what their tensors' names begin with; those with two, twice.

    A module that is inside itself, as a parent that its children know, is given once.
    """
    yield prefix, module
    around = [*above, module]
    for name, part in module._modules.items():
        if part is not None and not any(part is one for one in around):
            yield from _parts(part, f"{prefix}{name}.", around)


def _cleaned(named: Named) -> Named:
    return {clean: named[name] for name, clean in clean_names(named).items()}


def _differences(averages: Named, models: Named, written: Side) -> Iterator[str]:
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
        unlike = list(_unlike(average, model))
        if not unlike:
            unlike = list(_untreatable(average, model, is_buffer, written))
        yield from (f"{printable(name)} {difference}" for difference in unlike)
        first, owner = owners.setdefault(id(average), (name, model))
        if owner is not model:
            yield f"{printable(first)} and {printable(name)} are one tensor in the average, two in the model"


def _unlike(average: Tensor, model: Tensor) -> Iterator[str]:
    """Give what keeps two tensors from belonging to each other."""
    for tensor, where in ((average, "average"), (model, "model")):
        if is_lazy(tensor):
            yield f"in the {where} has no shape yet: run the model once first"
            return
        if tensor.is_meta:
            yield f"in the {where} is on the meta device, and has no values"
    if average is model:
        yield "is the same tensor in both: average into a copy of the model"
    if _kind(average) != _kind(model):
        yield f"is {average.dtype} in the average, and {model.dtype} in the model"
    if average.shape != model.shape:
        yield (f"has the shape {tuple(average.shape)} in the average, and {tuple(model.shape)} in the model")
    elif placement(average) != placement(model):
        yield (
            f"is distributed as {placement(average)} in the average, and as {placement(model)} in the model"
        )
    elif average.layout is not model.layout:
        yield f"is {average.layout} in the average, and {model.layout} in the model"


def _untreatable(average: Tensor, model: Tensor, is_buffer: bool, written: Side) -> Iterator[str]:
    """Give what keeps two tensors that belong to each other from being averaged or copied."""
    target = average if written == "average" else model
    if average.layout is torch.strided:
        if any(stride == 0 and size > 1 for stride, size in zip(target.stride(), target.shape, strict=True)):
            yield f"in the {written} is expanded, and cannot be written: make it contiguous"
    elif average.layout is not torch.sparse_coo or not is_buffer:  # such buffers are copied
        yield f"is of the layout {average.layout}, of which there is no average: make it dense"


def _kind(tensor: Tensor) -> str:
    """Return what copying does not change: between kinds, it would round or lose a part."""
    if tensor.is_complex():
        return "complex"
    return "floating" if tensor.is_floating_point() else "whole"
