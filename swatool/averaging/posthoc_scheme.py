"""`posthoc-ema` as a scheme: the mathematics is in `posthoc_ema`, here is where the numbers come from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from swatool.averaging.posthoc_ema import (
    NORMALIZATIONS,
    NamedProfile,
    PowerProfile,
    Reconstruction,
    profile_in_name,
    reconstruct,
)
from swatool.averaging.power_profiles import exponent, width
from swatool.averaging.scheme import Described, Steps
from swatool.averaging.scheme_checks import (
    check_choice,
    check_whole,
    is_finite,
    known_steps,
    tuple_of_numbers,
)
from swatool.checkpoints.files import last_name
from swatool.errors import UsageError, printable

__all__ = ["PosthocEma"]

NOTABLE_ERROR = 0.05


@dataclass(frozen=True)
class PosthocEma:
    """An average of any width, from the averages of a few widths that training stored along its way.

    Attributes:
        sigma_rel: the width that is wanted, as a part of the training, at most 0.2887.
        target_step: the step that the average is wanted for; by default that of the newest snapshot.
        normalize: constrained (least squares under sum 1) or nvlabs (least squares divided by the sum).
        profile: how the snapshots' names tell step and width, as 'phema-{step}-{sigma_rel}'; or {gamma}.
        sigma_rels: the widths, one per snapshot, oldest first; by default as names or files tell them.
        snapshot_steps: the steps, one per snapshot; by default as names or files tell them.
    """

    sigma_rel: float
    target_step: int | None = None
    normalize: str = "constrained"
    profile: str | None = None
    sigma_rels: tuple[float, ...] = ()
    snapshot_steps: tuple[int, ...] = ()

    name: ClassVar[str] = "posthoc-ema"
    formula: ClassVar[str] = (
        "c_i minimise the integral of (sum c_i p_i - p)^2 under sum c_i = 1, p_i(t) = (g_i+1)/t_i "
        "(t/t_i)^g_i; nvlabs: c_i = x_i / sum(x) of the free minimum x"
    )
    source: ClassVar[str] = (
        "Karras et al. 2024, Analyzing and Improving the Training Dynamics of Diffusion Models (EDM2)"
    )

    def __post_init__(self) -> None:
        exponent(self.sigma_rel)
        check_choice("normalize", self.normalize, NORMALIZATIONS)
        if self.target_step is not None:
            check_whole("target_step", self.target_step, 1)
        object.__setattr__(
            self, "sigma_rels", tuple_of_numbers("sigma_rels", self.sigma_rels, per="snapshot")
        )
        for sigma_rel in self.sigma_rels:
            exponent(sigma_rel, "sigma_rels")
        steps = tuple_of_numbers("snapshot_steps", self.snapshot_steps, 0, per="snapshot")
        for step in steps:
            check_whole("snapshot_steps", step, 0)
        object.__setattr__(self, "snapshot_steps", steps)
        if self.profile is not None and self.sigma_rels:
            raise UsageError("--profile and --sigma-rels tell the same: give one of them")

    def informed(self, steps: Steps, checkpoints: Sequence[Described]) -> Self:  # noqa: ARG002
        """Return the scheme with the widths of the snapshots, and their steps if the names tell them."""
        if self.sigma_rels:
            return self
        if self.profile is None:
            return replace(self, sigma_rels=tuple(map(_stored_width, checkpoints)))
        found = [profile_in_name(self.profile, last_name(c.path)) for c in checkpoints]
        widths = tuple(one.sigma_rel for one in found)
        return replace(
            self, profile=None, sigma_rels=widths, snapshot_steps=self.snapshot_steps or _steps(found)
        )

    def coefficients(self, steps: Steps) -> tuple[float, ...]:
        """Return the combination of the snapshots that is nearest to the average that is wanted."""
        return self.reconstruction(steps).coefficients

    def reconstruction(self, steps: Steps) -> Reconstruction:
        """Return the coefficients, and how well they meet the profile that is wanted."""
        if not self.sigma_rels:
            raise UsageError(
                "--method posthoc-ema needs the width of each snapshot: give --profile, as "
                "'phema-{step}-{sigma_rel}', if the names tell it, else --sigma-rels"
            )
        for field, values in (("sigma-rels", self.sigma_rels), ("snapshot-steps", self.snapshot_steps)):
            if values and len(values) != len(steps):
                raise UsageError(
                    f"--{field} gives {len(values)} numbers for {len(steps)} snapshots; give one per "
                    "snapshot, oldest first"
                )
        known = known_steps(self.snapshot_steps or steps, "--method posthoc-ema")
        snapshots = [
            PowerProfile(step, exponent(sigma_rel))
            for step, sigma_rel in zip(known, self.sigma_rels, strict=True)
        ]
        target = PowerProfile(self.target_step or max(known), exponent(self.sigma_rel))
        return reconstruct(snapshots, target, self.normalize)

    def remarks(self, steps: Steps) -> Iterator[str]:
        """Yield what deserves attention about the fit."""
        low, high = min(self.sigma_rels), max(self.sigma_rels)
        if not low <= self.sigma_rel <= high:
            yield (
                f"--sigma-rel {self.sigma_rel:g} lies outside of what was tracked, {low:.4g} to {high:.4g}, "
                "so that errors of the snapshots are amplified"
            )
        error = self.reconstruction(steps).error
        if error > NOTABLE_ERROR:
            yield (
                f"the average that is wanted is met only within {error:.0%}: give snapshots of more steps, "
                "in particular those nearest to the step that is wanted"
            )


def _stored_width(checkpoint: Described) -> float:
    """Return the width that a file stores beside the weights, or the one of the exponent that it stores."""
    for field in ("sigma_rel", "gamma"):
        value: object = checkpoint.fields.get(field, checkpoint.metadata.get(field))
        if isinstance(value, str):
            try:
                value = float(value)
            except ValueError:
                raise UsageError(f"{printable(checkpoint.path)} has a {field} that is no number") from None
        if value is None:
            continue
        if not is_finite(value) or (field == "gamma" and value < 0):
            raise UsageError(f"{printable(checkpoint.path)} has a {field} out of range: {value}")
        return float(value) if field == "sigma_rel" else width(value)
    raise UsageError(
        f"{printable(checkpoint.path)} stores no sigma_rel: give --profile 'phema-{{step}}-{{sigma_rel}}' if "
        "the names tell it, else --sigma-rels"
    )


def _steps(found: Sequence[NamedProfile]) -> tuple[int, ...]:
    return tuple(one.step for one in found if one.step is not None)
