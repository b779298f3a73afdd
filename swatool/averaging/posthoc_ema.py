"""Post-hoc EMA: averages of any width and step from stored averages of a few, by least squares of profiles.

After Karras et al. 2024, Analyzing and Improving the Training Dynamics of Diffusion Models, section 3.2. The
profiles overlap nearly wholly, so the equations are solved in 50 decimal digits, without NumPy.
"""

from __future__ import annotations

import decimal
import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import NamedTuple

from swatool.averaging.power_profiles import width
from swatool.averaging.scheme_checks import LARGEST_WEIGHT, check_choice, is_finite
from swatool.errors import UsageError, printable

__all__ = [
    "NORMALIZATIONS",
    "NamedProfile",
    "PowerProfile",
    "Reconstruction",
    "overlap",
    "profile_in_name",
    "reconstruct",
]

NORMALIZATIONS = ("constrained", "nvlabs")
# As wide as it goes, so that (t/T)^gamma does not vanish; traps are ours, whatever the caller has set.
CONTEXT = decimal.Context(
    prec=50,
    Emin=decimal.MIN_EMIN,
    Emax=decimal.MAX_EMAX,
    traps=[decimal.InvalidOperation, decimal.DivisionByZero],
)
ALIKE = Decimal("1e-40")  # what is left, relatively, of a profile that others make up
NOTHING = Decimal("1e-25")  # what is left of a coefficient that is 0
PLACEHOLDER = re.compile(r"\{(.*?)\}")
NUMBER = r"\d+(?:\.\d+)?(?:[eE][-+]?\d+)?"
PLACEHOLDERS = {"step": r"\d{1,18}", "sigma_rel": NUMBER, "gamma": NUMBER}
SUFFIX = re.compile(r"(\.(safetensors|pt|pth|bin|ckpt|tar|pkl))+$", re.IGNORECASE)


class PowerProfile(NamedTuple):
    """The profile of a power EMA: at which step it ends, and its exponent."""

    step: int
    gamma: float


@dataclass(frozen=True)
class Reconstruction:
    """Coefficients of stored averages, and how well they meet the profile that is wanted.

    Attributes:
        coefficients: one for each stored average.
        error: the root of the squared difference of the profiles, as a part of that of the wanted profile.
    """

    coefficients: tuple[float, ...]
    error: float


def overlap(a: PowerProfile, b: PowerProfile) -> float:
    """Return the integral of the product of two profiles over time."""
    with decimal.localcontext(CONTEXT):
        return float(_overlap(a, b, 1))


def reconstruct(
    snapshots: Sequence[PowerProfile], target: PowerProfile, normalize: str = "constrained"
) -> Reconstruction:
    """Return the combination of the snapshots whose profile is nearest to the target's.

    It minimises the integral of (sum x_i p_i - p)^2: A x = b of the overlaps A_ij = <p_i, p_j> and
    b_i = <p_i, p>.

    Args:
        snapshots: the profiles of the stored averages, in any order.
        target: the profile that is wanted; no snapshot may be of a later step.
        normalize: how the coefficients come to sum to 1: `constrained` minimises among those that do,
            `nvlabs` divides the unconstrained ones by their sum, as the code that came with the paper.

    Raises:
        UsageError: a snapshot's step is below 1 or after the target's, two profiles are the same, or the
            coefficients leave all bounds.
    """
    check_choice("normalize", normalize, NORMALIZATIONS)
    seen: dict[PowerProfile, int] = {}
    for number, snapshot in enumerate(snapshots, 1):
        _check_step(number, snapshot.step, target.step)
        if snapshot in seen:
            raise UsageError(
                f"snapshots {seen[snapshot]} and {number} have the same step, {snapshot.step}, and the same "
                "width: give one of them"
            )
        seen[snapshot] = number
    return _reconstruct(tuple(snapshots), target, normalize)


@functools.lru_cache(maxsize=64)
def _reconstruct(snapshots: tuple[PowerProfile, ...], target: PowerProfile, normalize: str) -> Reconstruction:
    with decimal.localcontext(CONTEXT):
        scale = target.step
        rows = [
            [
                *(_overlap(a, b, scale) for b in snapshots[i:]),
                _overlap(a, target, scale),
                Decimal(1),
            ]
            for i, a in enumerate(snapshots)
        ]
        wanted = [row[-2] for row in rows]
        free, ones = _solve(rows)
        total = sum(free)
        if normalize == "nvlabs":
            if total <= 0:
                raise UsageError("the snapshots say nothing of the average that is wanted: give later ones")
            x = [value / total for value in free]
        else:
            # The multiplier of the constraint moves the solution along A^-1 1.
            x = [value + one * (1 - total) / sum(ones) for value, one in zip(free, ones, strict=True)]
        norm = _overlap(target, target, scale)
        gained = sum(value * b for value, b in zip(x, wanted, strict=True))
        error = ((_square(snapshots, x, scale) - 2 * gained + norm) / norm).max(Decimal(0)).sqrt()
        if sum(map(abs, x)) > LARGEST_WEIGHT:
            raise UsageError(
                f"the coefficients would exceed {LARGEST_WEIGHT:g}: give snapshots nearer to what is wanted"
            )
        return Reconstruction(tuple(float(v) if abs(v) > NOTHING else 0.0 for v in x), float(error))


def _check_step(number: int, step: int, last: int) -> None:
    if step < 1:
        raise UsageError(
            f"snapshot {number} is of step {step}, and an average begins with step 1: leave it out"
        )
    if step > last:
        raise UsageError(
            f"snapshot {number} is of step {step}, after the step that is wanted, {last}: leave it out, as "
            f"by --max-step {last}"
        )


def _overlap(a: PowerProfile, b: PowerProfile, scale: int) -> Decimal:
    """Return <a, b> with time in units of `scale` steps."""
    if a.step > b.step:
        a, b = b, a
    first, second = Decimal(a.gamma), Decimal(b.gamma)
    ratio = _power(a.step, scale, b.gamma) / _power(b.step, scale, b.gamma)
    return (first + 1) * (second + 1) / (first + second + 1) * ratio * scale / b.step


@functools.lru_cache(maxsize=10_000)
def _power(step: int, scale: int, gamma: float) -> Decimal:
    with decimal.localcontext(CONTEXT):
        return (Decimal(step) / scale) ** Decimal(gamma)


def _square(snapshots: Sequence[PowerProfile], x: Sequence[Decimal], scale: int) -> Decimal:
    """Return the squared norm of the combined profile."""
    total = Decimal(0)
    for i, a in enumerate(snapshots):
        others = sum(x[i + k] * _overlap(a, b, scale) for k, b in enumerate(snapshots[i:]) if k)
        total += x[i] * (x[i] * _overlap(a, a, scale) + 2 * others)
    return total


def _solve(rows: list[list[Decimal]]) -> tuple[list[Decimal], list[Decimal]]:
    """Solve A x = b and A y = c by elimination, which a positive definite A needs no pivots for.

    Args:
        rows: from the diagonal on, those of A, then b's and c's entry; it is overwritten.
    """
    diagonal = [row[0] for row in rows]
    for i, row in enumerate(rows):
        if row[0] <= diagonal[i] * ALIKE:
            raise UsageError(f"the profile of snapshot {i + 1} is made up of those before it: leave it out")
        for k in range(1, len(row) - 2):
            factor = row[k] / row[0]
            rows[i + k] = [value - factor * other for value, other in zip(rows[i + k], row[k:], strict=True)]
    first: list[Decimal] = []
    second: list[Decimal] = []
    for row in reversed(rows):
        for found, right in ((first, row[-2]), (second, row[-1])):
            known = sum(a * x for a, x in zip(row[1:-2], reversed(found), strict=True))
            found.append((right - known) / row[0])
    return first[::-1], second[::-1]


class NamedProfile(NamedTuple):
    """What a file's name tells of the average in it."""

    step: int | None
    sigma_rel: float


def profile_in_name(pattern: str, name: str) -> NamedProfile:
    """Return step and width of the average in a file, from its name.

    >>> profile_in_name("phema-{step}-{sigma_rel}", "phema-0021474-0.050.pt")
    NamedProfile(step=21474, sigma_rel=0.05)

    Args:
        pattern: with {sigma_rel} or {gamma}, and {step} if the name tells it; `*` stands for anything, and
            the suffixes of checkpoints may be left out.
        name: of the file, without its folder.

    Raises:
        UsageError: the pattern has another placeholder, or lacks one, or the name does not match it.
    """
    expression = _expression(pattern)
    found = expression.fullmatch(SUFFIX.sub("", name)) or expression.fullmatch(name)
    if found is None:
        raise UsageError(f"{printable(name)} does not match --profile {printable(pattern)}")
    values = found.groupdict()
    if "gamma" in values:
        gamma = float(values["gamma"])
        if not is_finite(gamma):
            raise UsageError(f"{printable(name)} has an exponent out of range: {printable(values['gamma'])}")
        sigma_rel = width(gamma)
    else:
        sigma_rel = float(values["sigma_rel"])
    return NamedProfile(int(values["step"]) if "step" in values else None, sigma_rel)


@functools.lru_cache
def _expression(pattern: str) -> re.Pattern[str]:
    parts = PLACEHOLDER.split(pattern)
    names = parts[1::2]
    unknown = [name for name in names if name not in PLACEHOLDERS]
    widths = [name for name in names if name in ("sigma_rel", "gamma")]
    if unknown or len(widths) != 1 or len(set(names)) < len(names):
        raise UsageError(
            "--profile must have {sigma_rel} or {gamma} once, may have {step} once, and nothing else in "
            f"braces, not {printable(pattern)}"
        )
    text = [
        f"(?P<{part}>{PLACEHOLDERS[part]})" if index % 2 else re.escape(part).replace(r"\*", ".*")
        for index, part in enumerate(parts)
    ]
    return re.compile("".join(text), re.DOTALL)
