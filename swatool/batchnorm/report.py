"""What was recalibrated, as plain data: `dataclasses.asdict` gives what JSON can hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["BatchNormReport", "Change", "LayerReport", "Progress", "compare"]

TINY = torch.finfo(torch.float32).tiny


class Progress(NamedTuple):
    """How far a run is.

    Attributes:
        turn: the pass that is under way, from 1.
        passes: how many there will be.
        samples: that the model has seen in this pass, in this process.
    """

    turn: int
    passes: int
    samples: int


class Change(NamedTuple):
    """How far a layer's statistics moved.

    The unit is what the layer divides by, sigma = sqrt(variance + eps), so that a channel which never varies
    has finite figures. None if the old statistics were not finite.

    Attributes:
        mean_shift: |new mean - old mean| / new sigma, of the channel where it is largest.
        mean_shift_channel: that channel.
        variance_ratio: new sigma^2 / old sigma^2, of the channel where it is farthest from 1 as a factor.
        variance_ratio_channel: that channel.
    """

    mean_shift: float | None
    mean_shift_channel: int | None
    variance_ratio: float | None
    variance_ratio_channel: int | None


def compare(old: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor], eps: float) -> Change:
    """Compare means and variances, [C] each."""
    (old_mean, old_var), (new_mean, new_var) = ([t.cpu().double() for t in pair] for pair in (old, new))
    if not len(new_mean) or not bool(torch.isfinite(old_mean + old_var).all()):
        return Change(None, None, None, None)
    # A checkpoint's variance may be zero, or negative where somebody took it as E[x^2] - E[x]^2.
    new_square, old_square = (new_var + eps).clamp(min=TINY), (old_var + eps).clamp(min=TINY)
    shifts = (new_mean - old_mean).abs() / new_square.sqrt()
    ratios = new_square / old_square
    shift, ratio = int(shifts.argmax()), int(ratios.log().abs().argmax())
    return Change(float(shifts[shift]), shift, float(ratios[ratio]), ratio)


@dataclass(frozen=True)
class LayerReport:
    """What became of one layer.

    Attributes:
        name: its first name in the model.
        kind: the name of its class.
        channels: how many it has.
        values: per channel, that its statistics were taken from; for InstanceNorm the instances.
        uses: how often it was reached, over all batches.
        batches: that its pass used; fewer than there are where `tolerance` was met before.
        mean_shift, mean_shift_channel, variance_ratio, variance_ratio_channel: see `Change`.
        mean_error: standard error of the mean in units of sigma, of the worst channel; None if not asked for.
        variance_error: relative standard error of the variance, likewise.
    """

    name: str
    kind: str
    channels: int
    values: int
    uses: int
    batches: int
    mean_shift: float | None
    mean_shift_channel: int | None
    variance_ratio: float | None
    variance_ratio_channel: int | None
    mean_error: float | None = None
    variance_error: float | None = None


@dataclass(frozen=True)
class BatchNormReport:
    """What was done to a model.

    Attributes:
        mode: `batch`, `exact` or `torch`.
        samples: in the data, over all processes; less where `tolerance` was met in every pass.
        batches: likewise.
        passes: over the data.
        layers: those that were recalibrated, in the order of the model's modules.
        unreached: the names of layers that no batch came by; they keep their statistics.
        untouched: for every other normalisation, by name, why it was left alone.
        warnings: what the user should know, one sentence each.
    """

    mode: str
    samples: int
    batches: int
    passes: int
    layers: tuple[LayerReport, ...] = ()
    unreached: tuple[str, ...] = ()
    untouched: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
