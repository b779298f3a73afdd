"""The mean, and means whose weights follow from the order or the time of the checkpoints."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import ClassVar, Self

from swatool.averaging.scheme import Described, Steps, unrolled
from swatool.averaging.scheme_checks import (
    SPACINGS,
    check_choice,
    check_number,
    check_whole,
    increasing_steps,
    positions,
    resolved_spacing,
    tuple_of_numbers,
)
from swatool.errors import UsageError, printable

__all__ = ["SCHEDULES", "LrWeighted", "Polynomial", "RestartedMean", "Swa", "Tail", "Wma", "Wsm"]

LR_FIELDS = ("lr", "learning_rate", "last_lr", "current_lr", "lrs")


@dataclass(frozen=True)
class Swa:
    """The mean: what `AveragedModel` computes by default."""

    name: ClassVar[str] = "swa"
    formula: ClassVar[str] = "c_i = 1/N"
    source: ClassVar[str] = "Izmailov et al. 2018, Averaging Weights Leads to Wider Optima"

    def coefficients(self, steps: Steps) -> tuple[float, ...]:
        """Return 1/N for each of the N checkpoints."""
        return (1 / len(steps),) * len(steps)

    def weight(self, n: int) -> float:
        """Return the weight of the next model in the running mean of n: 1/(n+1)."""
        return 1 / (n + 1)


@dataclass(frozen=True)
class Tail:
    """The mean of what came after the first part of the training.

    Attributes:
        alpha: the part of the training that is left out, in [0, 1); 0 is the mean of all.
        spacing: where the part ends: by steps, by index, or auto (by steps where all are known).
    """

    alpha: float = 0.5
    spacing: str = "auto"

    name: ClassVar[str] = "tail"
    formula: ClassVar[str] = "c_i = 1/m for the m checkpoints in (alpha T, T], else 0"
    source: ClassVar[str] = "Polyak & Juditsky 1992; Rakhlin et al. 2012 for the suffix"

    def __post_init__(self) -> None:
        check_number("alpha", self.alpha, 0, 1, without="high")
        check_choice("spacing", self.spacing, SPACINGS)

    def informed(self, steps: Steps, checkpoints: Sequence[Described]) -> Self:  # noqa: ARG002
        """Return the scheme with its spacing decided."""
        return replace(self, spacing=resolved_spacing(self.spacing, steps))

    def coefficients(self, steps: Steps) -> tuple[float, ...]:
        """Return 1/m for the m checkpoints after alpha T, where T is the last one's step, and 0 before."""
        times = positions(steps, self.spacing, self.name)
        # The decimal that the user wrote, so that 0.3 of 10 is 3, and steps of any size are exact.
        begin = Fraction(str(self.alpha)) * times[-1]
        inside = [
            time > begin or not self.alpha or index == len(times) - 1 for index, time in enumerate(times)
        ]
        return tuple(1 / sum(inside) if one else 0.0 for one in inside)


@dataclass(frozen=True)
class Wma:
    """The mean that weighs each checkpoint by its place: 1, 2, ..., N."""

    name: ClassVar[str] = "wma"
    formula: ClassVar[str] = "c_i = i / (1 + 2 + ... + N)"
    source: ClassVar[str] = "Li et al. 2025, Model Merging in Pre-training of Large Language Models (PMA)"

    def coefficients(self, steps: Steps) -> tuple[float, ...]:
        """Return 2 i / (N (N+1))."""
        count = len(steps)
        return tuple(2 * i / (count * (count + 1)) for i in range(1, count + 1))

    def weight(self, n: int) -> float:
        """Return 2/(n+2)."""
        return 2 / (n + 2)


@dataclass(frozen=True)
class Polynomial:
    """Polynomial-decay averaging, which weighs the i-th model by about i^eta.

    Attributes:
        eta: about the power of i, at least 0; 0 is the mean, 1 is wma.
    """

    eta: float = 3.0

    name: ClassVar[str] = "polynomial"
    formula: ClassVar[str] = "w_n = (eta+1)/(n+1+eta); c_i = w_{i-1} (1-w_i) ... (1-w_{N-1})"
    source: ClassVar[str] = "Shamir & Zhang 2013, Stochastic Gradient Descent for Non-smooth Optimization"

    def __post_init__(self) -> None:
        check_number("eta", self.eta, 0)

    def weight(self, n: int) -> float:
        """Return (eta+1)/(n+1+eta)."""
        return (self.eta + 1) / (n + 1 + self.eta)

    def coefficients(self, steps: Steps) -> tuple[float, ...]:
        """Return what the updates amount to."""
        return unrolled(map(self.weight, range(len(steps))))


@dataclass(frozen=True)
class RestartedMean:
    """The mean of the newest models, begun anew every k updates: of exactly k after each k-th update.

    It is for training, where keeping the newest k models costs k times their memory; of files, take `swa`
    with --last.

    Attributes:
        k: after how many models the mean is begun anew, at least 1.
    """

    k: int

    name: ClassVar[str] = "restarted-mean"
    formula: ClassVar[str] = "w_n = 1/(1 + n mod k); c_i = 1/m for the last m = 1 + (N-1) mod k, else 0"
    source: ClassVar[str] = "Kaddour 2022, Stop Wasting My Time! (LAWA), without its memory of k models"

    def __post_init__(self) -> None:
        check_whole("k", self.k, 1)

    def weight(self, n: int) -> float:
        """Return 1/(1 + n mod k)."""
        return 1 / (1 + n % self.k)

    def coefficients(self, steps: Steps) -> tuple[float, ...]:
        """Return 1/m for each checkpoint since the last restart, and 0 for those before."""
        count = 1 + (len(steps) - 1) % self.k
        return (0.0,) * (len(steps) - count) + (1 / count,) * count


@dataclass(frozen=True)
class LrWeighted:
    """The mean that weighs each checkpoint by a power of the largest learning rate up to it.

    A warm-up counts less, and a decay does not count less: the largest rate so far is what schedule-free
    training weighs by.

    Attributes:
        power: of the learning rate, at least 0; 0 is the mean.
        lrs: the learning rates, one per checkpoint, oldest first; by default the number `lr` (or
            `learning_rate`, ...) that is stored beside the weights.
    """

    power: float = 2.0
    lrs: tuple[float, ...] = ()

    name: ClassVar[str] = "lr-weighted"
    formula: ClassVar[str] = "c_i = m_i^p / sum(m^p), m_i = max(lr_1, ..., lr_i)"
    source: ClassVar[str] = "Defazio et al. 2024, The Road Less Scheduled"

    def __post_init__(self) -> None:
        check_number("power", self.power, 0)
        object.__setattr__(self, "lrs", tuple_of_numbers("lrs", self.lrs, 0))
        if self.lrs and not any(self.lrs):
            raise UsageError("--lrs are all zero, so they weigh nothing")

    def informed(self, steps: Steps, checkpoints: Sequence[Described]) -> Self:  # noqa: ARG002
        """Return the scheme with the learning rates that the checkpoints store, if none are given."""
        if self.lrs:
            return self
        for field in LR_FIELDS:
            rates = [checkpoint.fields.get(field) for checkpoint in checkpoints]
            if any(rate is not None for rate in rates):
                break
        else:
            raise UsageError(
                "--method lr-weighted needs learning rates, and the checkpoints store none beside the "
                f"weights ({', '.join(LR_FIELDS)}): give --lrs, one per checkpoint, oldest first"
            )
        lacking = [printable(c.path) for c, rate in zip(checkpoints, rates, strict=True) if rate is None]
        if lacking:
            raise UsageError(f"{', '.join(lacking[:3])} store no {field}, which others do: give --lrs")
        return replace(self, lrs=tuple(float(rate) for rate in rates if rate is not None))

    def coefficients(self, steps: Steps) -> tuple[float, ...]:
        """Return the powers of the largest rates so far, divided by their sum."""
        if len(self.lrs) != len(steps):
            raise UsageError(
                f"--lrs gives {len(self.lrs)} numbers for {len(steps)} checkpoints; give one per checkpoint, "
                "oldest first"
            )
        highest = max(self.lrs)  # taken out, so that no power leaves the range of float64
        powers = [(rate / highest) ** self.power for rate in itertools.accumulate(self.lrs, max)]
        total = math.fsum(powers)
        return tuple(power / total for power in powers)


def _mean_linear(a: float, b: float) -> float:
    return 1 - (a + b) / 2


def _mean_minus_sqrt(a: float, b: float) -> float:
    # 2/3 (b^1.5 - a^1.5)/(b-a), without its cancellation.
    return 1 - 2 / 3 * (a + math.sqrt(a * b) + b) / (math.sqrt(a) + math.sqrt(b))


def _mean_cosine(a: float, b: float) -> float:
    half = math.pi * (b - a) / 2
    return (1 + math.cos(math.pi * (a + b) / 2) * math.sin(half) / half) / 2


# f(x) of x in [0, 1], and its mean over [a, b].
SCHEDULES: Mapping[str, tuple[Callable[[float], float], Callable[[float, float], float]]] = {
    "linear": (lambda x: 1 - x, _mean_linear),
    "minus-sqrt": (lambda x: 1 - math.sqrt(x), _mean_minus_sqrt),
    "cosine": (lambda x: (1 + math.cos(math.pi * x)) / 2, _mean_cosine),
}


@dataclass(frozen=True)
class Wsm:
    """Emulates a decay of the learning rate to nothing over the checkpoints, in place of training it.

    The i-th change between neighbouring checkpoints counts d_i times. With index spacing d_i = f(i/N), which
    is Megatron-LM's convention; with steps it is the mean of f over the interval, and linear is then the mean
    over time of the straight path from checkpoint to checkpoint.

    Attributes:
        schedule: f: linear (with index spacing the mean), minus-sqrt (the oldest counts most) or cosine.
        spacing: index, or steps where the checkpoints are not equally far apart; auto is steps if known.
    """

    schedule: str = "linear"
    spacing: str = "index"

    name: ClassVar[str] = "wsm"
    formula: ClassVar[str] = (
        "c_1 = 1 - d_1, c_i = d_{i-1} - d_i, c_N = d_{N-1}; d_i = f(i/N), or with steps the mean of f over "
        "[t_i, t_{i+1}]; f(x) = 1-x, 1-sqrt(x) or (1+cos(pi x))/2"
    )
    source: ClassVar[str] = "Tian et al. 2025, WSM: Decay-Free Learning Rate Schedule via Checkpoint Merging"

    def __post_init__(self) -> None:
        check_choice("schedule", self.schedule, tuple(SCHEDULES))
        check_choice("spacing", self.spacing, SPACINGS)

    def informed(self, steps: Steps, checkpoints: Sequence[Described]) -> Self:  # noqa: ARG002
        """Return the scheme with its spacing decided."""
        return replace(self, spacing=resolved_spacing(self.spacing, steps))

    def coefficients(self, steps: Steps) -> tuple[float, ...]:
        """Return by how much the schedule falls from each change of the weights to the next."""
        value, mean = SCHEDULES[self.schedule]
        count = len(steps)
        if resolved_spacing(self.spacing, steps) == "index":
            factors = [value(i / count) for i in range(1, count)]
        else:
            times = increasing_steps(steps, "--method wsm with --spacing steps")
            ends = [(time - times[0]) / (times[-1] - times[0] or 1) for time in times]
            factors = [mean(a, b) for a, b in itertools.pairwise(ends)]
        return tuple(a - b for a, b in itertools.pairwise([1.0, *factors, 0.0]))
