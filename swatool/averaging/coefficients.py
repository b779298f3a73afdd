"""What is said of coefficients: how many checkpoints they amount to, how old, and where they are fragile."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from swatool.averaging.scheme import Scheme, Steps
from swatool.errors import printable

__all__ = [
    "LARGE_L1",
    "CoefficientFigures",
    "coefficient_warnings",
    "figures",
    "l1",
    "needs_float64",
]

LARGE_L1 = 20.0  # float32 sums would lose one digit more than their rounding
DOMINANT = 0.5
# What gives one checkpoint most of the weight because the user says so.
AS_TOLD = ("weights", "interpolate", "posthoc-ema", "difference", "extrapolate", "bema")


@dataclass(frozen=True)
class CoefficientFigures:
    """What coefficients amount to.

    Attributes:
        effective: N_eff = (sum c)^2 / sum c^2, the number of checkpoints in a plain mean of the same noise.
        lag: sum c_i (T - t_i), the mean age.
        lag_unit: of the lag: training steps where all are known, else checkpoints.
        l1: sum |c|, by how much rounding of the inputs is amplified.
    """

    effective: float
    lag: float
    lag_unit: Literal["steps", "checkpoints"]
    l1: float


def figures(coefficients: Sequence[float], steps: Steps) -> CoefficientFigures:
    """Return what the coefficients amount to; the checkpoints are in the order of their age, oldest first."""
    known = [step for step in steps if step is not None]
    in_steps = len(known) == len(steps)
    times = known if in_steps else list(range(len(steps)))
    last = max(times)
    squares = math.fsum(c * c for c in coefficients)
    return CoefficientFigures(
        effective=math.fsum(coefficients) ** 2 / squares if squares else 0.0,
        lag=math.fsum(c * (last - time) for c, time in zip(coefficients, times, strict=True)),
        lag_unit="steps" if in_steps else "checkpoints",
        l1=l1(coefficients),
    )


def l1(coefficients: Sequence[float]) -> float:
    """Return sum |c|."""
    return math.fsum(map(abs, coefficients))


def needs_float64(coefficients: Sequence[float]) -> bool:
    """Tell whether sums in float32 would lose too much."""
    return l1(coefficients) > LARGE_L1


def coefficient_warnings(
    scheme: Scheme, coefficients: Sequence[float], steps: Steps, paths: Sequence[str]
) -> Iterator[str]:
    """Yield what deserves attention about the coefficients.

    Args:
        scheme: that gave them.
        coefficients: one per checkpoint, oldest first.
        steps: of the checkpoints.
        paths: of the checkpoints.
    """
    amplified = l1(coefficients)
    if scheme.name not in AS_TOLD:
        yield from _dominance(scheme, coefficients, paths, amplified)
    if amplified > LARGE_L1:
        yield (
            f"the coefficients' absolute values sum to {amplified:.3g}, so rounding errors of the "
            "checkpoints are amplified as much: they should be stored in float32"
        )
    elif min(coefficients) < 0 and scheme.name != "weights":
        negative = sum(c < 0 for c in coefficients)
        yield (
            f"{negative} of the {len(coefficients)} coefficients are negative, so the result lies outside of "
            f"what the checkpoints span (rounding errors are amplified {amplified:.4g} times)"
        )
    remarks = getattr(scheme, "remarks", None)
    if remarks is not None:
        yield from remarks(steps)


def _dominance(
    scheme: Scheme, coefficients: Sequence[float], paths: Sequence[str], total: float
) -> Iterator[str]:
    share, heaviest = max((abs(c) / total if total else 0.0, i) for i, c in enumerate(coefficients))
    if share <= DOMINANT or len(coefficients) == 1:
        return
    advice = "choose the parameters for so few, or give more checkpoints"
    if hasattr(scheme, "decay"):
        advice = f"take a {'smaller' if heaviest == 0 else 'larger'} decay"
    elif scheme.name == "power-ema" and heaviest == 0:
        advice = "give checkpoints from further back, as the first stands for all the training before it"
    yield (
        f"{printable(paths[heaviest])} alone has {share:.0%} of the weight; a sequence of saved checkpoints "
        f"is short, so {advice}"
    )
