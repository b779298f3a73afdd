"""An update, prepared: which tensors are averaged and which copied, in groups that are treated at once."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from swatool.averaging.kernels import copy_together
from swatool.swa_utils.averaging_functions import is_averaged
from swatool.swa_utils.pairing import Pair, pair_tensors, writable
from swatool.swa_utils.sharding import local
from swatool.swa_utils.transfer import Apply, Route, Transfer
from swatool.swa_utils.watch import Watch

__all__ = ["Group", "Plan"]


@dataclass(frozen=True, eq=False)
class Group:
    """Averages of one type on one device, and tensors of a model of one type on one device.

    Attributes:
        averages: are changed by an update.
        models: in the same order.
        places: where in the order of all the pairs these are.
        transfer: how the one get to the other if they differ in type or device.
        route: the same, in words.
    """

    averages: tuple[Tensor, ...]
    models: tuple[Tensor, ...]
    places: tuple[int, ...]
    route: Route
    transfer: Transfer | None

    def apply(self, function: Apply) -> None:
        """Apply a function of two lists, the first of which it changes."""
        if self.transfer is None:
            function(self.averages, self.models)
        else:
            self.transfer.run(self.averages, self.models, function)

    def copy(self) -> None:
        """Copy the model's tensors."""
        self.apply(copy_together)

    def fits(self) -> bool:
        """Tell whether the tensors lie in memory as they did; the rest is looked at by `Watch`."""
        return self.transfer is None or self.transfer.fits(self.averages, self.models)


class Plan:
    """Everything about an update but the weight; good for as long as `fits` says so.

    Attributes:
        averaged: groups of tensors that are averaged.
        copied: groups of tensors that take the model's values: buffers, or only those of whole numbers.
    """

    averaged: list[Group]
    copied: list[Group]

    def __init__(self, average: nn.Module, model: nn.Module, *, use_buffers: bool) -> None:
        """Pair and group; PairingError if the model is not built as its average."""
        pairs = pair_tensors(average, model)
        means = [pair for pair in pairs if _is_mean(pair, use_buffers)]
        self.averaged = _grouped(means)
        self.copied = _grouped(pair for pair in pairs if not _is_mean(pair, use_buffers))
        self._use_buffers = use_buffers
        self._average = Watch(average, [pair.average for pair in pairs])
        self._watched = Watch(model, [pair.model for pair in pairs])
        # A model that nobody else needs any more must be free to go, and its tensors with it.
        self._model = weakref.ref(model, self._forget)

    def fits(self, average: nn.Module, model: nn.Module, *, use_buffers: bool) -> bool:
        """Tell whether this plan is still that of these modules."""
        return (
            self._model() is model
            and self._use_buffers == use_buffers
            and self._watched.unchanged(model)
            and self._average.unchanged(average)
            and all(group.fits() for group in (*self.averaged, *self.copied))
        )

    def _forget(self, _: object) -> None:
        self.averaged = []
        self.copied = []
        del self._watched


def _is_mean(pair: Pair, use_buffers: bool) -> bool:
    if pair.is_buffer and not use_buffers:
        return False
    return is_averaged(pair.average) and pair.average.layout is torch.strided


def _grouped(pairs: Iterable[Pair]) -> list[Group]:
    """Group pairs by the types and devices of both, and sparse ones apart."""
    found: dict[tuple[Route, torch.layout], list[tuple[Tensor, Tensor, int]]] = {}
    for place, pair in enumerate(pairs):
        # Two distributed tensors are divided alike, so each process averages its own part.
        average, model = writable(local(pair.average)), local(pair.model)
        kind = (Route.of(average, model), average.layout)
        found.setdefault(kind, []).append((average, model, place))
    return [_group(route, layout, members) for (route, layout), members in found.items()]


def _group(route: Route, layout: torch.layout, members: Iterable[tuple[Tensor, Tensor, int]]) -> Group:
    averages, models, places = zip(*members, strict=True)
    # Sparse tensors are not laid out in rows of elements that could be sent on: torch copies each as a whole.
    is_direct = route.is_direct or layout is not torch.strided
    transfer = None if is_direct else Transfer(route, averages, models)
    return Group(averages, models, places, route, transfer)
