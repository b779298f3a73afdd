"""Exponential moving averages and their kin: what came long ago counts less and less."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from swatool.averaging.power_profiles import exponent
from swatool.averaging.scheme import Described, Steps, unrolled
from swatool.averaging.scheme_checks import (
    SPACINGS,
    check_choice,
    check_flag,
    check_number,
    check_whole,
    increasing_steps,
    positions,
    resolved_spacing,
)
from swatool.errors import UsageError

__all__ = ["Bema", "CrowsonEma", "Ema", "PowerEma", "WarmupEma"]


@dataclass(frozen=True)
class Ema:
    """The exponential moving average over the checkpoints, started from the first as torch does.

    Attributes:
        decay: how much of the average each further checkpoint leaves, in [0, 1].
        debias: divide by the weight seen so far instead of giving the rest of it to the first checkpoint.
        per_step: the decay is that of so many training steps, so that gaps count: decay^(steps between / N).
    """

    decay: float
    debias: bool = False
    per_step: int | None = None

    name: ClassVar[str] = "ema"
    formula: ClassVar[str] = (
        "c_1 = d^(N-1), c_i = (1-d) d^(N-i); debiased: c_i = (1-d) d^(N-i) / (1-d^N); per n steps: d^(dt/n) "
        "for d between neighbours, debiased: c_i proportional to d^((T-t_i)/n)"
    )
    source: ClassVar[str] = "torch.optim.swa_utils.get_ema_avg_fn; debiasing as in Kingma & Ba 2015"

    def __post_init__(self) -> None:
        check_number("decay", self.decay, 0, 1)
        check_flag("debias", self.debias)
        if self.per_step is not None:
            check_whole("per_step", self.per_step, 1)

    def coefficients(self, steps: Steps) -> tuple[float, ...]:
        """Return the coefficients that updating a running average N-1 times amounts to."""
        if self.per_step is None:
            ages = [float(age) for age in range(len(steps) - 1, -1, -1)]
        else:
            times = increasing_steps(steps, "--per-step")
            ages = [(times[-1] - time) / self.per_step for time in times]
        powers = [self.decay**age for age in ages]
        if self.debias:
            # Dividing by the sum is (1-d)/(1-d^N), and is right in the limit d = 1, too.
            total = math.fsum(powers)
            return tuple(power / total for power in powers)
        gaps = [earlier - later for earlier, later in itertools.pairwise(ages)]
        shares = [self._share(gap) for gap in gaps]
        return (powers[0], *(share * power for share, power in zip(shares, powers[1:], strict=True)))

    def _share(self, gap: float) -> float:
        """Return 1 - d^gap."""
        if gap == 1 or self.decay in (0, 1):
            return 1 - self.decay
        # Without the cancellation that a decay near 1 would bring.
        return -math.expm1(gap * math.log(self.decay))

    def weight(self, n: int) -> float:
        """Return the weight of the next model in the running average of n; 1 for n = 0."""
        if self.per_step is not None:
            raise UsageError("--per-step is for saved checkpoints: in training each update counts as one")
        if n == 0:
            return 1.0
        if not self.debias or self.decay == 0:
            return 1 - self.decay
        if self.decay == 1:
            return 1 / (n + 1)
        return (1 - self.decay) / self._share(n + 1)


@dataclass(frozen=True)
class WarmupEma:
    """An exponential moving average that starts with short memory, so that the first weights are forgotten.

    With `inv_gamma` or `power` the memory grows as a power of the number of updates, as in k-diffusion; else
    as in TensorFlow and diffusers.

    Attributes:
        decay: that is approached, in [0, 1].
        inv_gamma: after how many updates the memory begins to grow, above 0; 1 if only the power is given.
        power: how fast it grows, above 0; 2/3 if only inv_gamma is given; 1 with inv_gamma 1 is the mean
            until the decay is reached.
        min_decay: that is never gone below, except by the first model, in [0, decay].
    """

    decay: float = 0.9999
    inv_gamma: float | None = None
    power: float | None = None
    min_decay: float = 0.0

    name: ClassVar[str] = "ema-warmup"
    formula: ClassVar[str] = (
        "d_n = clip(r_n, min_decay, decay), w_n = 1 - d_n, w_0 = 1; r_n = (1+n)/(10+n), or with inv_gamma or "
        "power 1 - (1 + n/inv_gamma)^(-power); c_i = w_{i-1} d_i ... d_{N-1}"
    )
    source: ClassVar[str] = "tf.train.ExponentialMovingAverage, diffusers' EMAModel; k-diffusion's EMAWarmup"

    def __post_init__(self) -> None:
        check_number("decay", self.decay, 0, 1)
        check_number("min_decay", self.min_decay, 0)
        if self.min_decay > self.decay:
            raise UsageError(f"--min-decay must lie in [0, decay], not {self.min_decay}")
        for field in ("inv_gamma", "power"):
            if getattr(self, field) is not None:
                check_number(field, getattr(self, field), 0, without="low")

    def weight(self, n: int) -> float:
        """Return 1 - r_n, held between 1 - decay and 1 - min_decay; 1 for n = 0."""
        if n == 0:
            return 1.0
        if self.inv_gamma is None and self.power is None:
            weight = 1 - (1 + n) / (10 + n)
        else:
            inv_gamma = 1.0 if self.inv_gamma is None else self.inv_gamma
            power = 2 / 3 if self.power is None else self.power
            weight = math.pow(1 + n / inv_gamma, -power)
        return min(max(weight, 1 - self.decay), 1 - self.min_decay)

    def coefficients(self, steps: Steps) -> tuple[float, ...]:
        """Return what the updates amount to."""
        return unrolled(map(self.weight, range(len(steps))))


@dataclass(frozen=True)
class CrowsonEma(WarmupEma):
    """`WarmupEma` whose memory grows as a power of the number of updates, without having to ask for it.

    Attributes:
        inv_gamma: after how many updates the memory begins to grow, above 0.
        power: how fast it grows, above 0.
    """

    inv_gamma: float | None = 1.0
    power: float | None = 2 / 3


@dataclass(frozen=True)
class PowerEma:
    """The average whose profile over the training so far is a power of the time; its memory scales with it.

    Attributes:
        gamma: the exponent of the profile t^gamma, at least 0; 0 is the mean.
        sigma_rel: in its place the profile's width, as a part of the training, at most 0.2887.
        spacing: what time is: steps, index, or auto (steps where all are known).
    """

    gamma: float | None = None
    sigma_rel: float | None = None
    spacing: str = "auto"

    name: ClassVar[str] = "power-ema"
    formula: ClassVar[str] = (
        "c_i = (t_i/T)^(gamma+1) - (t_{i-1}/T)^(gamma+1), t_0 = 0; online w_n = 1 - (1 - 1/(n+1))^(gamma+1)"
    )
    source: ClassVar[str] = (
        "Karras et al. 2024, Analyzing and Improving the Training Dynamics of Diffusion Models (EDM2)"
    )

    def __post_init__(self) -> None:
        if (self.gamma is None) == (self.sigma_rel is None):
            raise UsageError("--method power-ema needs either --sigma-rel or --gamma")
        if self.gamma is not None:
            check_number("gamma", self.gamma, 0)
        check_choice("spacing", self.spacing, SPACINGS)
        self.exponent  # noqa: B018  # checks the width

    @classmethod
    def from_width(cls, sigma_rel: float) -> Self:
        """Return the scheme whose profile has this standard deviation, as a part of the whole training."""
        return cls(exponent(sigma_rel))

    @property
    def exponent(self) -> float:
        """Gamma, however it was given."""
        return exponent(self.sigma_rel) if self.sigma_rel is not None else self.gamma or 0.0

    def informed(self, steps: Steps, checkpoints: Sequence[Described]) -> Self:  # noqa: ARG002
        """Return the scheme with its spacing decided."""
        return replace(self, spacing=resolved_spacing(self.spacing, steps))

    def weight(self, n: int) -> float:
        """Return 1 - (n/(n+1))^(gamma+1)."""
        return 1 - math.pow(n / (n + 1), self.exponent + 1)

    def coefficients(self, steps: Steps) -> tuple[float, ...]:
        """Return the profile's share of the time up to each checkpoint, from the one before."""
        times = positions(steps, self.spacing, self.name)
        power = self.exponent + 1
        shares = [0.0, *((time / times[-1]) ** power for time in times[:-1]), 1.0]
        return tuple(later - earlier for earlier, later in itertools.pairwise(shares))

    def notes(self, steps: Steps) -> Mapping[str, str]:
        """Return what an average says of itself, so that post-hoc EMA can take it as a snapshot."""
        if None in steps or resolved_spacing(self.spacing, steps) != "steps":
            return {}
        width = {"gamma": self.gamma} if self.sigma_rel is None else {"sigma_rel": self.sigma_rel}
        return {name: repr(value) for name, value in {"step": steps[-1], **width}.items()}


@dataclass(frozen=True)
class Bema:
    """An exponential moving average that is moved on by a part of the whole way, to make up for its lag.

    The n-th checkpoint after the first counts as the n-th update.

    Attributes:
        kappa: the power with which the average's weight of the newest falls, at least 0.
        eta: the power with which the correction falls, at least 0; large is no correction.
        rho: the lag that delays both, at least 1.
        gamma: by how much each checkpoint counts in both, at least 0.
    """

    kappa: float = 0.5
    eta: float = 0.2
    rho: float = 10.0
    gamma: float = 1.0

    name: ClassVar[str] = "bema"
    formula: ClassVar[str] = (
        "sum c_i x_i = EMA + a (x_N - x_1), a = (rho + gamma (N-1))^-eta; EMA: w_n = (rho + gamma n)^-kappa, "
        "w_0 = 1"
    )
    source: ClassVar[str] = (
        "Block & Zhang 2025, EMA Without the Lag: Bias-Corrected Iterate Averaging Schemes"
    )

    def __post_init__(self) -> None:
        for field, low in (("kappa", 0), ("eta", 0), ("rho", 1), ("gamma", 0)):
            check_number(field, getattr(self, field), low)

    def coefficients(self, steps: Steps) -> tuple[float, ...]:
        """Return those of the moving average, plus the correction at both ends."""
        updates = range(1, len(steps))
        coefficients = list(unrolled([1.0, *(self._power(n, self.kappa) for n in updates)]))
        correction = self._power(len(steps) - 1, self.eta)
        coefficients[-1] += correction
        coefficients[0] -= correction
        return tuple(coefficients)

    def _power(self, n: int, power: float) -> float:
        return math.pow(self.rho + self.gamma * n, -power)
