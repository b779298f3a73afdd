"""What a recipe's run did, or would do, as data."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

from swatool.jobs.recalibrate_report import RecalibrationReport
from swatool.report import SCHEMA, Report, SweepReport, SweptReport

__all__ = ["CheckReport", "EvaluationReport", "ProductReport", "RecipeReport"]


@dataclass(frozen=True)
class EvaluationReport:
    """What the user's evaluation said of a file.

    Attributes:
        path: the file.
        value: the number that counts.
        metrics: all its numbers, by name.
    """

    path: str
    value: float
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class CheckReport:
    """A check of an output.

    Attributes:
        path: the file that was checked.
        value: what it is worth.
        worse_than: the file that it must not be worse than.
        reference: what that is worth.
        by: by more than this.
        passed: whether it holds.
    """

    path: str
    value: float
    worse_than: str
    reference: float
    by: float
    passed: bool


@dataclass(frozen=True)
class ProductReport:
    """One average of a recipe.

    Attributes:
        index: which of the recipe's outputs it belongs to, counted from 0.
        values: the settings in which it differs from the others of its sweep, as texts.
        average: how it was made.
        recalibrated: where it is with new BatchNorm statistics; None if that is not asked for.
        recalibration: how those were made; None before they are.
        evaluation: what it is worth; None if that is not asked for, or not known yet.
        kept: whether its files are still there.
    """

    index: int
    values: Mapping[str, str]
    average: Report
    recalibrated: str | None
    recalibration: RecalibrationReport | None = None
    evaluation: EvaluationReport | None = None
    kept: bool = True


@dataclass(frozen=True)
class RecipeReport:
    """What `run_recipe` did, or would do if `dry_run`.

    Attributes:
        version: of swatool.
        command: always `run`.
        dry_run: whether nothing was run and written.
        path: the recipe's file, as it was given; all other paths are relative to its folder.
        overrides: what was changed of it, as `key=value`.
        recipe: what it says then, variables of the environment put in, defaults left out.
        outputs: the averages, in the order of the recipe; of a sweep that was evaluated, the best first.
        references: what the last checkpoints are worth, where a check asks for that.
        checks: what the checks found.
        failures: sentences about checks that do not hold, and about an evaluation that failed.
        seconds: of the whole run.
    """

    version: str
    command: str
    dry_run: bool
    path: str
    overrides: tuple[str, ...]
    recipe: Mapping[str, object]
    outputs: tuple[ProductReport, ...]
    references: tuple[EvaluationReport, ...] = ()
    checks: tuple[CheckReport, ...] = ()
    failures: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return not self.failures

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences that deserve attention, each once."""
        told = (
            warning
            for one in self.outputs
            for report in (one.average, one.recalibration)
            if report is not None
            for warning in report.warnings
        )
        return tuple(dict.fromkeys(told))

    def as_sweep(self) -> SweepReport:
        """Return the averages as those of a sweep."""
        swept = tuple(SweptReport(one.values, one.average) for one in self.outputs)
        return SweepReport(self.version, "average", self.dry_run, swept, None, None)

    def as_json(self, *, names: bool = False) -> dict[str, object]:
        """Return the report as plain data for JSON; tensors are counted, or listed by name if `names`."""
        found = {one.name: getattr(self, one.name) for one in dataclasses.fields(self)}
        found["outputs"] = [_product(one, names) for one in self.outputs]
        plain = _finite({"schema": SCHEMA, **found, "passed": self.passed, "warnings": self.warnings})
        assert isinstance(plain, dict)
        return plain


def _product(one: ProductReport, names: bool) -> dict[str, object]:
    found = {field.name: getattr(one, field.name) for field in dataclasses.fields(one)}
    found["average"] = one.average.as_json(names=names)
    found["recalibration"] = None if one.recalibration is None else one.recalibration.as_json()
    return found


def _finite(value: object) -> object:
    """Return plain data, in which a number that JSON does not have is null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {str(name): _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
