"""`update_bn`: the running statistics of BatchNorm layers from one pass over data, as torch computes them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from swatool.batchnorm.batches import Batch, Forward, call, moved
from swatool.errors import DataError

__all__ = ["update_bn"]


def update_bn(
    loader: Iterable[Any],
    model: nn.Module,
    device: int | str | torch.device | None = None,
    *,
    forward: Forward | None = None,
) -> None:
    """Recompute the running means and variances of all BatchNorm layers in place, bit for bit as torch does.

    The whole model runs in training mode, dropout included; every batch weighs the same, and the variance is
    the mean of the variances inside the batches. `swatool.recalibrate_bn(model, loader, mode="exact")` gives
    those of all data together instead, in evaluation mode.

    Whatever happens, modes and momenta are afterwards as they were, module by module; after an exception the
    statistics, too. A model without BatchNorm is left alone, and the loader is not looked at.

    Args:
        loader: gives batches: a tensor; a tuple or list whose first item is the model's input; or a mapping,
            which is given to the model as keyword arguments; to a model that takes one as its argument, give
            it by `forward=lambda model, batch: model(batch)`.
        model: is changed in place.
        device: where the batches are put; by default they stay where they are.
        forward: is called with model and batch in place of the model, for whatever else a batch may be.

    Raises:
        DataError: the loader gives no batch.
    """
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    if not layers:
        return
    where = None if device is None else torch.empty(0, device=device).device
    with torch.no_grad(), _restoring(model, layers):
        for layer in layers:
            layer.reset_running_stats()
        model.train()
        for layer in layers:
            layer.momentum = None  # the mean over the batches instead of a moving average
        count = 0
        for batch in loader:
            call(model, _moved(batch, where, forward), forward)
            count += 1
        if not count:
            raise DataError(
                "the loader gives no batch, and there are no statistics of nothing: give it data, or make it "
                "anew if it is a generator that was used up"
            )


def _moved(batch: Batch, device: torch.device | None, forward: Forward | None) -> Batch:
    """Put on the device what the model will be given."""
    if device is None:
        return batch
    if forward is None and isinstance(batch, tuple | list):
        # The rest is not for the model: labels stay where they are, whatever they are.
        return (_on(device, batch[0]),)
    return cast(Batch, _on(device, batch))


def _on(device: torch.device, value: Any) -> Any:  # noqa: ANN401
    if hasattr(value, "to"):
        return value.to(device)  # a tensor, a graph, a packed sequence: whatever can go by itself
    return moved(value, device, None)


@contextmanager
def _restoring(model: nn.Module, layers: list[_BatchNorm]) -> Iterator[None]:
    """Put modes and momenta back in the end, and statistics after an exception."""
    modes = [(module, module.training) for module in model.modules()]
    momenta = [(layer, layer.momentum) for layer in layers]
    old: list[tuple[Tensor, Tensor]] = [
        (buffer, buffer.clone()) for layer in layers for buffer in layer.buffers(recurse=False)
    ]
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for buffer, values in old:
                buffer.copy_(values)
        raise
    finally:
        for module, mode in modes:
            module.training = mode
        for layer, momentum in momenta:
            layer.momentum = momentum
