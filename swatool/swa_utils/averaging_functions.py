"""The averaging functions, as small values that can be pickled, compared and printed.

The functions over lists work in place; those of single tensors return a new one. Each knows its own weight,
so that `AveragedModel` can apply it in its own way.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from swatool.averaging.kernels import lerp_together
from swatool.swa_utils.refusals import ArgumentError, ArgumentTypeError

__all__ = [
    "PARAM_LIST",
    "MultiEma",
    "MultiSwa",
    "SingleEma",
    "SingleSwa",
    "get_ema_avg_fn",
    "get_ema_multi_avg_fn",
    "get_swa_avg_fn",
    "get_swa_multi_avg_fn",
    "is_averaged",
]

PARAM_LIST = tuple[Tensor, ...] | list[Tensor]


def is_averaged(tensor: Tensor) -> bool:
    """Tell whether a mean of such tensors means something: not of integers, of flags or of indices."""
    return tensor.is_floating_point() or tensor.is_complex()


@dataclass(frozen=True)
class MultiEma:
    """W <- decay W + (1 - decay) w over lists, in place, in one pass: W += (1 - decay) (w - W)."""

    decay: float | Tensor

    @torch.no_grad()
    def __call__(
        self, ema_param_list: PARAM_LIST, current_param_list: PARAM_LIST, num_averaged: Tensor | int = 0
    ) -> None:
        """Update the first list; whole numbers are computed in floating point and truncated, as by torch."""
        floating = [is_averaged(tensor) for tensor in ema_param_list]
        pairs = list(zip(ema_param_list, current_param_list, floating, strict=True))
        lerp_together([a for a, _, f in pairs if f], [b for _, b, f in pairs if f], self.weight(0))
        for average, current, is_floating in pairs:
            if not is_floating:
                average.copy_(SingleEma(self.decay)(average, current, num_averaged))

    def weight(self, n: int) -> float:  # noqa: ARG002  # others depend on it
        """Return the weight of the current parameters."""
        return float(1 - self.decay)


@dataclass(frozen=True)
class MultiSwa:
    """W <- W + (w - W) / (n + 1) over lists, in place, in one pass."""

    @torch.no_grad()
    def __call__(
        self, averaged_param_list: PARAM_LIST, current_param_list: PARAM_LIST, num_averaged: Tensor | int
    ) -> None:
        """Update the first list; ArgumentTypeError for whole numbers, before anything is changed."""
        for average, current in zip(averaged_param_list, current_param_list, strict=True):
            if not is_averaged(average):
                raise ArgumentTypeError(
                    f"the mean of tensors of type {average.dtype} and shape {tuple(current.shape)} is not of "
                    "that type: average floating tensors only, and copy the others"
                )
        lerp_together(averaged_param_list, current_param_list, self.weight(int(num_averaged)))

    def weight(self, n: int) -> float:
        """Return the weight of the current parameters."""
        return 1 / (n + 1)


@dataclass(frozen=True)
class SingleEma:
    """decay W + (1 - decay) w, as a new tensor, rounded as torch rounds it."""

    decay: float | Tensor

    @torch.no_grad()
    def __call__(self, ema_param: Tensor, current_param: Tensor, num_averaged: Tensor | int = 0) -> Tensor:
        """Return the new average."""
        del num_averaged  # the same for all
        return self.decay * ema_param + (1 - self.decay) * current_param


@dataclass(frozen=True)
class SingleSwa:
    """W + (w - W) / (n + 1), as a new tensor, rounded as torch rounds it."""

    @torch.no_grad()
    def __call__(self, averaged_param: Tensor, current_param: Tensor, num_averaged: Tensor | int) -> Tensor:
        """Return the new average."""
        return averaged_param + (current_param - averaged_param) / (num_averaged + 1)


def get_ema_multi_avg_fn(decay: float | Tensor = 0.999) -> MultiEma:
    """Return the exponential moving average over lists, in place.

    Args:
        decay: how much of the average an update leaves, in [0, 1].

    Raises:
        ArgumentError: the decay is outside that range, or NaN. A ValueError.
    """
    return MultiEma(_checked(decay))


def get_swa_multi_avg_fn() -> MultiSwa:
    """Return the running mean over lists, in place."""
    return MultiSwa()


def get_ema_avg_fn(decay: float | Tensor = 0.999) -> SingleEma:
    """Return the exponential moving average of single tensors; see `get_ema_multi_avg_fn`."""
    return SingleEma(_checked(decay))


def get_swa_avg_fn() -> SingleSwa:
    """Return the running mean of single tensors."""
    return SingleSwa()


def _checked(decay: float | Tensor) -> float | Tensor:
    if not 0.0 <= decay <= 1.0:
        raise ArgumentError(f"Invalid decay value {decay}: it must lie in [0, 1]")
    return decay
