"""Putting an average into a model for a while, and all that was the model's own back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from weakref import WeakSet

import torch
from torch import Tensor, nn

from swatool.averaging.kernels import copy_together
from swatool.swa_utils.interrupts import interrupts_held
from swatool.swa_utils.pairing import pair_tensors, writable
from swatool.swa_utils.refusals import ArgumentError
from swatool.swa_utils.sharding import is_distributed, local, reshard
from swatool.swa_utils.slots import slots

__all__ = ["in_a_swap", "swapped"]

_TAKING_PART: WeakSet[nn.Module] = WeakSet()  # averages that are in a model, and models that they are in


def in_a_swap(module: nn.Module) -> bool:
    """Tell whether a module, or one inside it, holds an average's values, or is an average that is lent."""
    return bool(_TAKING_PART) and any(part in _TAKING_PART for part in module.modules())


@contextmanager
def swapped(average: nn.Module, model: nn.Module) -> Iterator[None]:
    """Put the average's parameters and buffers into a model, and its own back on any exit.

    Raises:
        PairingError: the model is not built as the average, or cannot be written.
        ArgumentError: the average is in a model already.
    """
    if in_a_swap(average):
        raise ArgumentError("the average is swapped into a model already: leave that context first")
    pairs = pair_tensors(average, model, written="model")
    own = _Own(model, [pair.model for pair in pairs])
    new = {*average.modules(), *model.modules()} - set(_TAKING_PART)
    _TAKING_PART.update(new)
    try:
        targets = [writable(local(pair.model)) for pair in pairs]
        copy_together(targets, [local(pair.average) for pair in pairs])
        yield
    finally:
        with interrupts_held():
            own.restore()
            _TAKING_PART.difference_update(new)


class _Own:
    """What is a model's own: which tensors lie where in it, where in memory they lie, and their values."""

    def __init__(self, model: nn.Module, tensors: Sequence[Tensor]) -> None:
        """Take note of it; `tensors` are all of the model's."""
        self._model = model
        self._slots = slots(model)
        self._tensors = tensors
        # FSDP2 keeps account of the memory of its tensors itself.
        self._plain = [
            (tensor, tensor.detach())
            for tensor in tensors
            if tensor.layout is torch.strided and not is_distributed(tensor)
        ]
        self._values = [local(tensor).detach().clone() for tensor in tensors]

    def restore(self) -> None:
        """Put all of it back, whatever has been put in its place."""
        reshard(self._model)
        for slot in self._slots:
            slot.put(slot.value)
        for tensor, before in self._plain:
            if _place(tensor) != _place(before):
                tensor.data = before
        copy_together([writable(local(tensor)) for tensor in self._tensors], self._values)


def _place(tensor: Tensor) -> tuple[object, ...]:
    return tensor.dtype, tensor.device, tensor.shape, tensor.stride(), tensor.data_ptr()
