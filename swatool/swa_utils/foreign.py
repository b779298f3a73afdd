"""Updating by averaging functions that are not ours: nobody knows what they do, so all can be taken back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from swatool.averaging.kernels import copy_together
from swatool.swa_utils.averaging_functions import PARAM_LIST
from swatool.swa_utils.plan import Group
from swatool.swa_utils.refusals import ArgumentTypeError

__all__ = ["AvgFn", "MultiAvgFn", "apply_to_each", "apply_to_lists"]

AvgFn = Callable[[Tensor, Tensor, Tensor | int], Tensor]
MultiAvgFn = Callable[[PARAM_LIST, PARAM_LIST, Tensor | int], None]


def apply_to_each(function: AvgFn, groups: Sequence[Group], count: int) -> None:
    """Write what a function makes of each tensor, in their order: all results, or none if it raises.

    It is given copies of the averages, because it may change them; so this takes as much memory as they do.
    """
    pairs: list[tuple[Tensor, Tensor]] = []
    numbers = [_number(count, group) for group in groups]
    for average, model, number in _in_order(groups, numbers):
        result = function(average.detach().clone(), _brought(average, model), number)
        if not isinstance(result, Tensor) or result.shape != average.shape:
            found = f"shape {tuple(result.shape)}" if isinstance(result, Tensor) else type(result).__name__
            raise ArgumentTypeError(
                f"avg_fn returned {found} for a tensor of shape {tuple(average.shape)}: return the new "
                "average, of the same shape; nothing was changed"
            )
        pairs.append((average, result.detach()))
    copy_together([average for average, _ in pairs], [result for _, result in pairs])


def _in_order(groups: Sequence[Group], numbers: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Give averages, models and their groups' numbers in the order of the model, through all groups."""
    found: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
    for group, number in zip(groups, numbers, strict=True):
        for place, average, model in zip(group.places, group.averages, group.models, strict=True):
            found[place] = average, model, number
    for _, members in sorted(found.items()):
        yield members


def _brought(average: Tensor, model: Tensor) -> Tensor:
    """Return the model's tensor in the type and on the device of its average."""
    return model.detach().to(average.device, average.dtype)


def apply_to_lists(function: MultiAvgFn, groups: Sequence[Group], count: int) -> None:
    """Let a function change lists of averages in place; what it changed is taken back if it raises.

    For that, the averages are copied first.
    """
    averages = [average.detach() for group in groups for average in group.averages]
    kept = [average.clone() for average in averages]
    try:
        for group in groups:
            models = [_brought(*pair) for pair in zip(group.averages, group.models, strict=True)]
            function([average.detach() for average in group.averages], models, _number(count, group))
    except BaseException:
        copy_together(averages, kept)
        raise


def _number(count: int, group: Group) -> Tensor:
    """Return the count as a tensor on the group's device, without waiting for that device."""
    return torch.full((), count, dtype=torch.long, device=group.route.device)
