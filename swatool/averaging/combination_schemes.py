"""Linear combinations of checkpoints in which the user says what is weighed against what."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from swatool.averaging.scheme import Described, Steps
from swatool.averaging.scheme_checks import (
    LARGEST_WEIGHT,
    check_flag,
    check_number,
    check_whole,
    increasing_steps,
    tuple_of_numbers,
)
from swatool.errors import SettingError, UsageError

__all__ = ["Difference", "Extrapolate", "Interpolate", "Weights"]


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
        check_flag("normalize", self.normalize)
        object.__setattr__(self, "weights", tuple_of_numbers("weights", self.weights or None))
        if max(map(abs, self.weights)) > LARGEST_WEIGHT:
            raise SettingError("weights", f"must not exceed {LARGEST_WEIGHT:g}")
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


@dataclass(frozen=True)
class Difference:
    """The exact mean over a stretch of training, from the running means that were saved at its two ends.

    Attributes:
        counts: how many models are in each of the two, such as 1000,3000; by default the steps that they were
            saved at, which is right for a mean of all steps.
    """

    counts: tuple[float, ...] = ()

    name: ClassVar[str] = "difference"
    formula: ClassVar[str] = "c_1 = -a/(b-a), c_2 = b/(b-a); a and b are the counts"
    source: ClassVar[str] = "icefall, average_checkpoints_with_averaged_model"

    def __post_init__(self) -> None:
        object.__setattr__(self, "counts", tuple_of_numbers("counts", self.counts, 0, per="running mean"))
        if not self.counts:
            return
        if len(self.counts) != 2:
            raise SettingError("counts", f"must be two numbers, as in 1000,3000, not {len(self.counts)}")
        if not 0 <= self.counts[0] < self.counts[1] <= LARGEST_WEIGHT:
            raise SettingError(
                "counts", f"must be at least 0 and increase, not {self.counts[0]:g} and {self.counts[1]:g}"
            )

    def informed(self, steps: Steps, checkpoints: Sequence[Described]) -> Self:  # noqa: ARG002
        """Return the scheme with the counts that the steps are."""
        if len(steps) != 2:
            return self  # which `coefficients` refuses
        return self if self.counts else replace(self, counts=self._counts(steps))

    def _counts(self, steps: Steps) -> tuple[float, ...]:
        return self.counts or increasing_steps(steps, "--method difference without --counts")

    def coefficients(self, steps: Steps) -> tuple[float, ...]:
        """Return what takes the earlier mean out of the later one; UsageError unless there are two."""
        if len(steps) != 2:
            raise UsageError(f"--method difference takes two running means, not {len(steps)}")
        a, b = self._counts(steps)
        return (0.0 - a / (b - a), b / (b - a))


@dataclass(frozen=True)
class Extrapolate:
    """Goes on in the direction from the mean of the oldest to the mean of the newest checkpoints.

    Attributes:
        factor: how far, as a part of the way between the two means, at least 0; 0 is the newer mean.
        window: how many checkpoints are in each mean; by default each half, where of an odd number the one in
            the middle is in the newer.
    """

    factor: float
    window: int | None = None

    name: ClassVar[str] = "extrapolate"
    formula: ClassVar[str] = (
        "(1+l) mean(newest) - l mean(oldest): c_i = -l/m_1 of the oldest, (1+l)/m_2 of the newest"
    )
    source: ClassVar[str] = "the secant through two averages; no single source"

    def __post_init__(self) -> None:
        check_number("factor", self.factor, 0, LARGEST_WEIGHT)
        if self.window is not None:
            check_whole("window", self.window, 1)

    def coefficients(self, steps: Steps) -> tuple[float, ...]:
        """Return those of the two means; UsageError if they would overlap."""
        count = len(steps)
        oldest = self.window or count // 2
        newest = self.window or count - oldest
        if not oldest or oldest + newest > count:
            raise UsageError(
                f"--method extrapolate compares {oldest or 1} of the oldest with {newest} of the newest, and "
                f"there are {count} checkpoints"
            )
        between = count - oldest - newest
        old, new = 0.0 - self.factor / oldest, (1 + self.factor) / newest
        return (old,) * oldest + (0.0,) * between + (new,) * newest


@dataclass(frozen=True)
class Interpolate:
    """Goes from the first checkpoint, such as the model before fine-tuning, towards the mean of the others.

    Attributes:
        alpha: how far, at least 0; 0 is the first, 1 the mean of the others, which with two is the second.
    """

    alpha: float = 0.5

    name: ClassVar[str] = "interpolate"
    formula: ClassVar[str] = "c_1 = 1 - a, c_i = a/(N-1)"
    source: ClassVar[str] = "Wortsman et al. 2022, Robust Fine-Tuning of Zero-Shot Models (WiSE-FT)"

    def __post_init__(self) -> None:
        check_number("alpha", self.alpha, 0, LARGEST_WEIGHT)

    def coefficients(self, steps: Steps) -> tuple[float, ...]:
        """Return 1 - alpha for the first and the same share of alpha for each other."""
        others = len(steps) - 1
        if others < 1:
            raise UsageError("--method interpolate needs at least two checkpoints")
        return (1 - self.alpha,) + (self.alpha / others,) * others
