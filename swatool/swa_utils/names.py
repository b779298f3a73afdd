"""The names of tensors, without what compilation and data parallelism put into them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from swatool.errors import printable
from swatool.swa_utils.refusals import PairingError

__all__ = ["clean_names", "clean_state_dict", "names_as_usual"]

COMPILED = "_orig_mod"  # what torch.compile puts between a module and its parameters
WRAPPED = "module."  # what those that wrap a model for many devices put before all names
WRAPPERS = (DataParallel, DistributedDataParallel)
NAMING = ("named_parameters", "named_buffers", "named_modules")


def names_as_usual(module: nn.Module) -> bool:
    """Tell whether a module names its tensors by where they lie, not in a way of its own."""
    return all(getattr(type(module), name) is getattr(nn.Module, name) for name in NAMING)


def clean_names(names: Iterable[str]) -> dict[str, str]:
    """Return for each name what is left of it without the marks of compilation and data parallelism.

    `module.` is taken off, repeatedly, where every name begins with it.

    Raises:
        PairingError: two names become the same.
    """
    given = list(names)
    clean = [_uncompiled(name) for name in given]
    while clean and all(name.startswith(WRAPPED) for name in clean):
        clean = [name.removeprefix(WRAPPED) for name in clean]
    return _distinct(given, clean)


def clean_state_dict(module: nn.Module) -> OrderedDict[str, Any]:
    """Return a module's state dict as it would be without wrappers, versions of modules included.

    Wrappers are known by their types, so that a model's own part of the name `module` keeps it.

    Raises:
        PairingError: two names become the same.
    """
    state = _unwrapped(module).state_dict()
    names = _distinct(list(state), [_uncompiled(name) for name in state])
    clean = OrderedDict((names[name], value) for name, value in state.items())
    metadata = getattr(state, "_metadata", None)
    if metadata is not None:
        # What is inside a compiled module comes after it, and its version is the one that counts.
        versions = OrderedDict((_uncompiled(path), version) for path, version in metadata.items())
        clean._metadata = versions  # type: ignore[attr-defined]  # as in every state dict
    return clean


def _unwrapped(module: nn.Module) -> nn.Module:
    while True:
        if isinstance(module, WRAPPERS):
            module = module.module
        elif (compiled := module._modules.get(COMPILED)) is not None:
            module = compiled
        else:
            return module


def _uncompiled(name: str) -> str:
    return ".".join(part for part in name.split(".") if part != COMPILED)


def _distinct(given: list[str], clean: list[str]) -> dict[str, str]:
    if len(set(clean)) < len(clean):
        twice = sorted({name for name in clean if clean.count(name) > 1})
        raise PairingError(
            f"without {COMPILED} and {WRAPPED[:-1]} several tensors have the same name: "
            f"{', '.join(map(printable, twice[:5]))}"
        )
    return dict(zip(given, clean, strict=True))
