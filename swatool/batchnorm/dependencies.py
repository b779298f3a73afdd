"""Which layers depend on which others' statistics: found by a forward in which every tensor is tagged.

The running buffers of layer i carry the tag i, and what is computed from a tagged tensor carries its tags,
through views, in-place writes, indices and comparisons alike. The tags that reach a layer's input are the
layers that it depends on. Tags belong to storages, so that views share them; these are referred to weakly, so
that memory is not held and an address is not mistaken for another's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from swatool.batchnorm.layers import Layer

__all__ = ["Plan", "Trace", "make_plan", "trace"]

Tags = frozenset[int]
NONE: Tags = frozenset()
INPUT = -1  # the tag of the batch
# They hand the values to Python without an operation that a dispatch mode would see.
ESCAPES = {"tolist", "numpy", "__array__", "__dlpack__"}


@dataclass
class Trace:
    """What was seen of the layers in one or several forwards.

    Attributes:
        first: for each layer that was reached, in that order, the layers that its input depended on first.
        all: the same over all its uses.
        dynamic: whether the values decide what is computed, so that another batch may go another way.
    """

    first: dict[int, Tags] = field(default_factory=dict)
    all: dict[int, Tags] = field(default_factory=dict)
    dynamic: bool = False

    def note(self, layer: int, tags: Tags) -> None:
        """Record that a layer was reached by an input with these tags."""
        self.first.setdefault(layer, tags)
        self.all[layer] = self.all.get(layer, NONE) | tags

    def add(self, other: Trace) -> None:
        """Take in what was seen in another forward."""
        for layer, tags in other.first.items():
            self.note(layer, tags | other.all[layer])
        self.dynamic |= other.dynamic


@dataclass(frozen=True)
class Plan:
    """In which pass each layer is finalised.

    Attributes:
        levels: the pass of each layer that was reached, counted from 1.
        circular: the layers that depend on themselves, in part by way of others: these have no exact
            statistics, and are finalised over all their uses in the order of their first one.
        dynamic: whether another batch may take another way through the model.
    """

    levels: Mapping[int, int]
    circular: Collection[int]
    dynamic: bool

    @property
    def passes(self) -> int:
        """The number of passes."""
        return max(self.levels.values(), default=0)


def make_plan(seen: Trace) -> Plan:
    """Give each layer the first pass in which all that it depends on is final."""
    order = {layer: place for place, layer in enumerate(seen.first)}
    reached = _closure(seen.all)
    needs: dict[int, set[int]] = {}
    for layer, tags in seen.all.items():
        # In a circle only the order of first use is left to go by.
        needs[layer] = {
            one
            for one in tags & order.keys()
            if one != layer
            and (layer not in reached[one] or (one in seen.first[layer] and order[one] < order[layer]))
        }
    levels: dict[int, int] = {}
    for layer in TopologicalSorter(needs).static_order():
        levels[layer] = 1 + max((levels[one] for one in needs[layer]), default=0)
    circular = [layer for layer in order if layer in reached[layer]]
    return Plan({layer: levels[layer] for layer in order}, circular, seen.dynamic)


def _closure(direct: Mapping[int, Tags]) -> dict[int, set[int]]:
    """Return for each layer everything that it depends on, also by way of others."""
    reached: dict[int, set[int]] = {}
    for layer in direct:
        found: set[int] = set()
        pending = [*direct[layer]]
        while pending:
            one = pending.pop()
            if one not in found and one in direct:
                found.add(one)
                pending += direct[one]
        reached[layer] = found
    return reached


def trace(layers: Sequence[Layer], batch: object, forward: Callable[[], object]) -> Trace:
    """Run a forward of a batch and record what each layer's input depends on."""
    tags = _Tags(layers, batch)
    seen = Trace()

    def note(layer: Layer) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
            seen.note(layer.index, tags.arriving((args, kwargs), seen.first))

        return hook

    with contextlib.ExitStack() as stack:
        for layer in layers:
            handle = layer.module.register_forward_pre_hook(note(layer), with_kwargs=True)
            stack.callback(handle.remove)
        with tags, _Escapes(tags):
            forward()
    seen.dynamic = tags.dynamic
    return seen


class _Tags(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Passes the tags of what is read on to what is written, operation by operation."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Say that nothing is compiled here; else a second is spent on importing the compiler."""
        return False

    def __init__(self, layers: Sequence[Layer], batch: object) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dynamic = False
        # Something was computed out of sight, so that any layer may depend on all that came before it.
        self._lost = False
        self._tags: dict[StorageWeakRef, Tags] = {}
        self._unwritten: set[StorageWeakRef] = set()
        for tensor in _tensors(batch):
            self._write(tensor, frozenset([INPUT]))
        for layer in layers:
            for buffer in layer.running:
                self._write(buffer, frozenset([layer.index]))

    def arriving(self, values: object, before: Iterable[int]) -> Tags:
        """Return the layers that a layer's arguments depend on, given those that were reached before."""
        found = self._read(_tensors(values))
        # Without any tag the values came from nowhere that was seen.
        if self._lost or not found:
            found |= frozenset(before)
        return found - {INPUT}

    def escape(self, tags: Tags) -> None:
        """Note that values have left the tensors and may decide over anything."""
        if tags:
            self.dynamic = self._lost = True

    def escape_of(self, values: object) -> None:
        """Note that the values of these tensors have left them."""
        self.escape(self._read(_tensors(values)))

    def __torch_dispatch__(
        self,
        func: OpOverload[..., object],
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        read: list[Tensor] = []
        written: list[Tensor] = []
        for value, alias in _with_aliases(func, args, kwargs):
            tensors = list(_tensors(value))
            if alias is None and any(key in self._unwritten for key in self._keys(tensors)):
                self._lost = True  # memory that nothing was seen to fill is read
            read += tensors
            written += tensors if alias is not None and alias.is_write else ()
        tags = self._read(read)
        for tensor in (*written, *_tensors(result)):
            self._write(tensor, tags)
        self._unwritten.difference_update(self._keys(written))
        if "empty" in func._schema.name:
            self._unwritten.update(self._keys(_tensors(result)))
        if _decides(func, args) or any(isinstance(leaf, bool | int | float) for leaf in tree_leaves(result)):
            self.escape(tags)
        return result

    def _keys(self, tensors: Iterable[Tensor]) -> Iterator[StorageWeakRef]:
        for tensor in tensors:
            if tensor.layout is torch.strided:
                yield StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
            else:
                self._lost = True

    def _read(self, tensors: Iterable[Tensor]) -> Tags:
        return NONE.union(*(self._tags.get(key, NONE) for key in self._keys(tensors)))

    def _write(self, tensor: Tensor, tags: Tags) -> None:
        for key in self._keys([tensor]):
            self._tags[key] = self._tags.get(key, NONE) | tags


class _Escapes(TorchFunctionMode):
    """Sees the calls that hand values to Python directly."""

    def __init__(self, tags: _Tags) -> None:
        super().__init__()
        self._tags = tags

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        if getattr(func, "__name__", "") in ESCAPES:
            self._tags.escape_of(args)
        return func(*args, **(kwargs or {}))


def _tensors(values: object) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor))


def _with_aliases(
    func: OpOverload[..., object], args: tuple[object, ...], kwargs: Mapping[str, object]
) -> Iterator[tuple[object, Any]]:
    """Give each argument with what the operation's schema says of its memory."""
    declared = func._schema.arguments
    yield from ((value, known.alias_info) for value, known in zip(args, declared, strict=False))
    by_name = {known.name: known.alias_info for known in declared}
    yield from ((value, by_name.get(name)) for name, value in kwargs.items())


def _decides(func: OpOverload[..., object], args: tuple[object, ...]) -> bool:
    """Tell whether an operation's result has a value or a shape that Python can look at."""
    if func is torch.ops.aten.index.Tensor:  # by positions its shape is known, by a mask it is not
        return any(leaf.dtype in (torch.bool, torch.uint8) for leaf in _tensors(args[1]))
    return torch.Tag.data_dependent_output in func.tags or torch.Tag.dynamic_output_shape in func.tags
