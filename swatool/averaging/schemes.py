"""Averaging schemes: from the steps of the checkpoints to one float64 coefficient for each.

A scheme is a frozen dataclass whose fields are its parameters; it checks itself, and `coefficients` is a pure
function. The command line, the tests and the documentation all read the one table `SCHEMES`.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import ClassVar, Protocol

from swatool.errors import UsageError, printable

__all__ = ["SCHEMES", "Ema", "Scheme", "Swa", "Weights", "make_scheme"]

Steps = Sequence[int | None]

LARGEST_WEIGHT = 1e30  # beyond it the sums, in float32, cannot be finite


class Scheme(Protocol):
    """The rule that gives each checkpoint its coefficient."""

    name: ClassVar[str]
    formula: ClassVar[str]
    source: ClassVar[str]

    def coefficients(self, steps: Steps) -> tuple[float, ...]:
        """Return one coefficient per checkpoint, oldest first; a step is None where none is known."""


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
class Ema:
    """The exponential moving average over the checkpoints, started from the first as torch does.

    Attributes:
        decay: how much of the average each further checkpoint leaves, in [0, 1].
        debias: divide by the weight seen so far instead of giving the rest of it to the first checkpoint.
    """

    decay: float
    debias: bool = False

    name: ClassVar[str] = "ema"
    formula: ClassVar[str] = "c_1 = d^(N-1), c_i = (1-d) d^(N-i); debiased: c_i = (1-d) d^(N-i) / (1-d^N)"
    source: ClassVar[str] = "torch.optim.swa_utils.get_ema_avg_fn; debiasing as in Kingma & Ba 2015"

    def __post_init__(self) -> None:
        if not 0 <= self.decay <= 1:
            raise UsageError(f"--decay must lie in [0, 1], not {self.decay}")

    def coefficients(self, steps: Steps) -> tuple[float, ...]:
        """Return the coefficients that updating a running average N-1 times amounts to."""
        powers = [self.decay**age for age in range(len(steps) - 1, -1, -1)]
        if self.debias:
            # Dividing by the sum is (1-d)/(1-d^N), and is right in the limit d = 1, too.
            total = math.fsum(powers)
            return tuple(power / total for power in powers)
        return (powers[0], *((1 - self.decay) * power for power in powers[1:]))

    def weight(self, n: int) -> float:
        """Return the weight of the next model in the running average of n; 1 for n = 0."""
        if n == 0:
            return 1.0
        if not self.debias or self.decay == 0:
            return 1 - self.decay
        if self.decay == 1:
            return 1 / (n + 1)
        # 1 - d^(n+1), without the cancellation that a decay near 1 would bring.
        return (self.decay - 1) / math.expm1((n + 1) * math.log(self.decay))


@dataclass(frozen=True)
class Weights:
    """Any linear combination, by coefficients that the user gives.

    Attributes:
        weights: one per checkpoint, oldest first.
        normalize: divide them by their sum.
    """

    weights: tuple[float, ...]
    normalize: bool = True

    name: ClassVar[str] = "weights"
    formula: ClassVar[str] = "c_i = w_i / sum(w); not normalized: c_i = w_i"
    source: ClassVar[str] = "given by the user"

    def __post_init__(self) -> None:
        if not self.weights or not all(map(math.isfinite, self.weights)):
            raise UsageError("--weights must be finite numbers, one per checkpoint")
        if max(map(abs, self.weights)) > LARGEST_WEIGHT:
            raise UsageError(f"--weights must not exceed {LARGEST_WEIGHT:g}")
        total = math.fsum(self.weights)
        # Weights that cancel leave a sum of rounding errors, which must not become a divisor.
        if self.normalize and abs(total) <= 1e-12 * math.fsum(map(abs, self.weights)):
            raise UsageError("--weights sum to zero, so they cannot be normalized; pass --no-normalize")

    def coefficients(self, steps: Steps) -> tuple[float, ...]:
        """Return the weights, normalized if so asked; UsageError if their number is wrong."""
        if len(self.weights) != len(steps):
            raise UsageError(
                f"--weights gives {len(self.weights)} numbers for {len(steps)} checkpoints; "
                "give one per checkpoint, oldest first"
            )
        total = math.fsum(self.weights) if self.normalize else 1.0
        return tuple(weight / total for weight in self.weights)


SCHEMES: Mapping[str, type[Swa] | type[Ema] | type[Weights]] = {
    scheme.name: scheme for scheme in (Swa, Ema, Weights)
}


def make_scheme(method: str, parameters: Mapping[str, object]) -> Scheme:
    """Build the scheme called `method`; parameters that are None count as not given.

    Raises:
        UsageError: no such scheme, a parameter that it does not take, or one that it needs and lacks.
    """
    if method not in SCHEMES:
        near = difflib.get_close_matches(method, SCHEMES, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UsageError(f"--method must be one of {', '.join(SCHEMES)}, not {printable(method)}{hint}")
    scheme = SCHEMES[method]
    given = {name: value for name, value in parameters.items() if value is not None}
    known = {field.name: field for field in fields(scheme)}
    for name in given:
        if name not in known:
            raise UsageError(f"--{name} does not belong to --method {method}")
    for name, field in known.items():
        if field.default is MISSING and name not in given:
            raise UsageError(f"--method {method} needs --{name}")
    return scheme(**given)  # type: ignore[arg-type]
