"""Where modules keep their parameters, buffers and inner modules, and what lies there."""

from __future__ import annotations

import operator
from collections.abc import MutableMapping
from typing import Any, NamedTuple

from torch import nn

__all__ = ["STORES", "Slot", "slots"]

STORES = tuple(map(operator.attrgetter, ("_parameters", "_buffers", "_modules")))


class Slot(NamedTuple):
    """A place in a module, and what lay there when this was made: a tensor, a module or nothing."""

    store: MutableMapping[str, Any]
    name: str
    value: object

    def current(self) -> object:
        """Return what lies there now; None if there is no such place any more."""
        # TorchScript's stores have no `get`.
        return self.store[self.name] if self.name in self.store else None  # noqa: SIM401

    def put(self, value: object) -> None:
        """Lay something there, in the place of what lies there now."""
        self.store[self.name] = value


def slots(module: nn.Module) -> list[Slot]:
    """Return all places in a module and in those inside it."""
    stores = [store(part) for part in module.modules() for store in STORES]
    return [Slot(store, name, value) for store in stores for name, value in store.items()]
