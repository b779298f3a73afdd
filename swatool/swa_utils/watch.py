"""Telling cheaply whether a module still has the tensors that it had: what a prepared update depends on.

Twenty thousand parameters are looked over in a few milliseconds, because every loop is one of C's.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor, nn

from swatool.swa_utils.names import names_as_usual
from swatool.swa_utils.sharding import is_distributed
from swatool.swa_utils.slots import STORES

__all__ = ["Watch"]

# What the grouping and the pairing of tensors depend on, and an assignment to `.data` may change.
METADATA = tuple(map(operator.attrgetter, ("dtype", "device", "shape")))


class Watch:
    """A module as it was when this was made: which modules, names and tensors, and of what kind they were.

    The module itself is not kept alive by this, its parts are.
    """

    def __init__(self, module: nn.Module, tensors: Sequence[Tensor]) -> None:
        """Take note.

        Args:
            module: is watched.
            tensors: of the module, or of others, whose types, devices and shapes are watched.
        """
        parts = list(module.modules())[1:]
        # Modules that are not built as usual may name their tensors as they like, and differently each time.
        self._usual = all(type(store(part)) is dict for part in (module, *parts) for store in STORES)
        self._usual &= names_as_usual(module)
        # Of other tensors more may change than is looked at here.
        self._usual &= all(one.layout is torch.strided and not is_distributed(one) for one in tensors)
        self._usual &= not any(one.is_inference() for one in tensors)
        self._parts = parts
        self._tensors = tuple(tensors)
        if self._usual:
            self._names, self._values = self._structure(module)
            self._metadata = [list(map(look, self._tensors)) for look in METADATA]

    def unchanged(self, module: nn.Module) -> bool:
        """Tell whether all of it is as it was; never of modules that are not built as usual."""
        if not self._usual:
            return False
        names, values = self._structure(module)
        return (
            names == self._names
            and all(map(operator.is_, values, self._values))
            # One after the other: lists of so many new objects would set the garbage collector to work.
            and all(
                all(map(operator.eq, map(look, self._tensors), known))
                for look, known in zip(METADATA, self._metadata, strict=True)
            )
        )

    def _structure(self, module: nn.Module) -> tuple[list[str], list[object]]:
        stores = list(chain.from_iterable(map(store, (module, *self._parts)) for store in STORES))
        names = list(chain.from_iterable(stores))
        return names, list(chain.from_iterable(map(dict.values, stores)))
