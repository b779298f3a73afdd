"""Averaging schemes as training applies them: average += weight(n) (model - average), n models seen before.

`coefficients` of the same schemes says what that amounts to for N saved checkpoints, so that both worlds can
be compared. The command line does not offer these schemes yet; they stand beside those of `schemes` that do
have both forms. What is wanted from the newest k models without a memory of k models is `RestartedMean`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol, Self

from swatool.averaging.schemes import Ema, Steps, Swa
from swatool.errors import UsageError

__all__ = [
    "ONLINE_SCHEMES",
    "CrowsonEma",
    "OnlineScheme",
    "Polynomial",
    "PowerEma",
    "RestartedMean",
    "WarmupEma",
    "unrolled",
]

WIDEST_SIGMA = 12**-0.5  # the relative width of a uniform profile, which is that of the mean


class OnlineScheme(Protocol):
    """A scheme that needs nothing but the average so far and the number of models in it."""

    name: ClassVar[str]
    formula: ClassVar[str]
    source: ClassVar[str]

    def coefficients(self, steps: Steps) -> tuple[float, ...]:
        """Return one coefficient per checkpoint, oldest first."""

    def weight(self, n: int) -> float:
        """Return the weight, in [0, 1], of the next model when n are in the average; 1 for n = 0."""


def unrolled(weights: Iterable[float]) -> tuple[float, ...]:
    """Return the coefficients that updates with these weights, oldest first, amount to.

    c_i = w_i (1-w_{i+1}) ... (1-w_N); the first weight counts as 1, because the first model is copied.
    """
    coefficients: list[float] = []
    left = 1.0  # what the updates after this one leave of it
    for weight in reversed([1.0, *list(weights)[1:]]):
        coefficients.append(weight * left)
        left *= 1 - weight
    return tuple(reversed(coefficients))


@dataclass(frozen=True)
class WarmupEma:
    """An exponential moving average that starts with short memory, so that the first weights are forgotten.

    Attributes:
        decay: that is approached, in [0, 1].
    """

    decay: float = 0.9999

    name: ClassVar[str] = "ema-warmup"
    formula: ClassVar[str] = "d_n = min(decay, (1+n)/(10+n)), w_n = 1 - d_n, w_0 = 1"
    source: ClassVar[str] = "tf.train.ExponentialMovingAverage(num_updates=...); diffusers' EMAModel"

    def __post_init__(self) -> None:
        _check_decay(self.decay)

    def weight(self, n: int) -> float:
        """Return 1 - min(decay, (1+n)/(10+n)); 1 for n = 0."""
        return 1 - min(self.decay, (1 + n) / (10 + n)) if n else 1.0

    def coefficients(self, steps: Steps) -> tuple[float, ...]:
        """Return what the updates amount to."""
        return unrolled(map(self.weight, range(len(steps))))


@dataclass(frozen=True)
class CrowsonEma:
    """An exponential moving average whose memory grows as a power of the number of updates.

    Attributes:
        decay: that is approached, in [0, 1].
        inv_gamma: after how many updates the memory begins to grow, above 0.
        power: how fast it grows, above 0; 1 with inv_gamma 1 is the mean until the decay is reached.
        min_decay: that is never gone below, except by the first model, in [0, decay].
    """

    decay: float = 0.9999
    inv_gamma: float = 1.0
    power: float = 2 / 3
    min_decay: float = 0.0

    name: ClassVar[str] = "ema-crowson"
    formula: ClassVar[str] = (
        "d_n = clip(1 - (1 + n/inv_gamma)^(-power), min_decay, decay), w_n = 1 - d_n, w_0 = 1"
    )
    source: ClassVar[str] = "Crowson's k-diffusion, EMAWarmup"

    def __post_init__(self) -> None:
        _check_decay(self.decay)
        if not 0 <= self.min_decay <= self.decay:
            raise UsageError(f"min_decay must lie in [0, decay], not {self.min_decay}")
        if not (0 < self.inv_gamma < math.inf and 0 < self.power < math.inf):
            raise UsageError(
                f"inv_gamma and power must be finite and above 0, not {self.inv_gamma} and {self.power}"
            )

    def weight(self, n: int) -> float:
        """Return (1 + n/inv_gamma)^(-power), held between 1 - decay and 1 - min_decay; 1 for n = 0."""
        if n == 0:
            return 1.0
        weight = math.pow(1 + n / self.inv_gamma, -self.power)
        return min(max(weight, 1 - self.decay), 1 - self.min_decay)

    def coefficients(self, steps: Steps) -> tuple[float, ...]:
        """Return what the updates amount to."""
        return unrolled(map(self.weight, range(len(steps))))


@dataclass(frozen=True)
class PowerEma:
    """The average whose profile over the training so far is a power of the time; its memory scales with it.

    Attributes:
        gamma: the exponent of the profile t^gamma, at least 0; 0 is the mean.
    """

    gamma: float

    name: ClassVar[str] = "power-ema"
    formula: ClassVar[str] = "w_n = 1 - (1 - 1/(n+1))^(gamma+1); c_i = (i/N)^(gamma+1) - ((i-1)/N)^(gamma+1)"
    source: ClassVar[str] = (
        "Karras et al. 2024, Analyzing and Improving the Training Dynamics of Diffusion Models"
    )

    def __post_init__(self) -> None:
        if not 0 <= self.gamma < math.inf:
            raise UsageError(f"gamma must be a number of at least 0, not {self.gamma}")

    @classmethod
    def from_width(cls, sigma_rel: float) -> Self:
        """Return the scheme whose profile has this standard deviation, as a part of the whole training.

        sigma_rel^2 = (gamma+1) / ((gamma+2)^2 (gamma+3)), which falls as gamma grows.

        Args:
            sigma_rel: in (0, 12^-1/2], which is about 0.2887.
        """
        if not 0 < sigma_rel <= WIDEST_SIGMA:
            raise UsageError(f"sigma_rel must lie in (0, {WIDEST_SIGMA:.4f}], not {sigma_rel}")
        low, high = 0.0, 1 / sigma_rel  # sigma_rel < 1/(gamma+2) for every gamma
        while low < (middle := (low + high) / 2) < high:
            if math.sqrt((middle + 1) / (middle + 3)) / (middle + 2) > sigma_rel:
                low = middle
            else:
                high = middle
        return cls(low)

    def weight(self, n: int) -> float:
        """Return 1 - (n/(n+1))^(gamma+1)."""
        return 1 - math.pow(n / (n + 1), self.gamma + 1)

    def coefficients(self, steps: Steps) -> tuple[float, ...]:
        """Return the profile's share of each of N equal stretches of time."""
        shares = [(i / len(steps)) ** (self.gamma + 1) for i in range(len(steps) + 1)]
        return tuple(later - earlier for earlier, later in itertools.pairwise(shares))


@dataclass(frozen=True)
class Polynomial:
    """Polynomial-decay averaging, which weighs the i-th model by about i^eta.

    Attributes:
        eta: at least 0; 0 is the mean.
    """

    eta: float = 3.0

    name: ClassVar[str] = "polynomial"
    formula: ClassVar[str] = "w_n = (eta+1)/(n+1+eta)"
    source: ClassVar[str] = "Shamir & Zhang 2013, Stochastic Gradient Descent for Non-smooth Optimization"

    def __post_init__(self) -> None:
        if not 0 <= self.eta < math.inf:
            raise UsageError(f"eta must be a number of at least 0, not {self.eta}")

    def weight(self, n: int) -> float:
        """Return (eta+1)/(n+1+eta)."""
        return (self.eta + 1) / (n + 1 + self.eta)

    def coefficients(self, steps: Steps) -> tuple[float, ...]:
        """Return what the updates amount to."""
        return unrolled(map(self.weight, range(len(steps))))


@dataclass(frozen=True)
class RestartedMean:
    """The mean of the newest models, begun anew every k updates: of exactly k after each k-th update.

    Attributes:
        k: after how many models the mean is begun anew, at least 1.
    """

    k: int

    name: ClassVar[str] = "restarted-mean"
    formula: ClassVar[str] = "w_n = 1/(1 + n mod k); c_i = 1/m for the last m = 1 + (N-1) mod k, else 0"
    source: ClassVar[str] = "Kaddour 2022, Stop Wasting My Time! (LAWA), without its memory of k models"

    def __post_init__(self) -> None:
        if not isinstance(self.k, int) or self.k < 1:
            raise UsageError(f"k must be a whole number of at least 1, not {self.k}")

    def weight(self, n: int) -> float:
        """Return 1/(1 + n mod k)."""
        return 1 / (1 + n % self.k)

    def coefficients(self, steps: Steps) -> tuple[float, ...]:
        """Return 1/m for each checkpoint since the last restart, and 0 for those before."""
        count = 1 + (len(steps) - 1) % self.k
        return (0.0,) * (len(steps) - count) + (1 / count,) * count


def _check_decay(decay: float) -> None:
    if not 0 <= decay <= 1:
        raise UsageError(f"decay must lie in [0, 1], not {decay}")


Online = Swa | Ema | WarmupEma | CrowsonEma | PowerEma | Polynomial | RestartedMean
ONLINE_SCHEMES: Mapping[str, type[Online]] = {
    scheme.name: scheme for scheme in (Swa, Ema, WarmupEma, CrowsonEma, PowerEma, Polynomial, RestartedMean)
}
