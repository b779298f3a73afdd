"""What a recipe's outputs are worth: evaluations, the best of each sweep, and the checks."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from swatool.errors import CheckFailedError, printable
from swatool.jobs.recipe_model import Recipe
from swatool.jobs.recipe_parts import LAST, Check, Evaluation
from swatool.jobs.recipe_reading import Mistakes
from swatool.jobs.recipe_report import CheckReport, EvaluationReport, ProductReport, RecipeReport
from swatool.jobs.scoring import check_comparable, check_evaluation, score
from swatool.output.old_checksum import remove_checksum

__all__ = ["Told", "evaluated", "find_evaluations"]

Told = Callable[[object], None]


def find_evaluations(recipe: Recipe, mistakes: Mistakes, *, import_code: bool) -> None:
    """Note evaluations that cannot be run, before the work that they are to judge.

    Args:
        recipe: the recipe.
        mistakes: notes that there is no such program, or no such function.
        import_code: import the functions among them, which runs the user's code; else look for the module.
    """
    for index, wanted in enumerate(recipe.wanted):
        evaluation = recipe.evaluation(wanted)
        if evaluation is None:
            continue
        place = ("evaluate",) if wanted.evaluate is None else ("outputs", index, "evaluate")
        with mistakes.at(*place, "command"):
            check_evaluation(evaluation.command, "--command", import_code=import_code)


def evaluated(recipe: Recipe, report: RecipeReport, told: Told) -> RecipeReport:
    """Evaluate the outputs, keep the best of each sweep, and check what is to be checked.

    An evaluation that fails ends all of this, removes nothing, and is told in the report.
    """
    run = _Run(recipe, report, told)
    try:
        run.evaluate()
        run.keep_the_best()
        run.check()
    except CheckFailedError as error:
        run.failures.append(f"{error}; all that was written is kept")
    return replace(
        report,
        outputs=tuple(run.outputs),
        references=tuple(run.references.values()),
        checks=tuple(run.checks),
        failures=tuple(run.failures),
    )


@dataclass
class _Run:
    """The evaluation of one run, as far as it is."""

    recipe: Recipe
    report: RecipeReport
    told: Told
    references: dict[tuple[str, Evaluation], EvaluationReport] = field(default_factory=dict)
    checks: list[CheckReport] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.outputs = list(self.report.outputs)

    def evaluate(self) -> None:
        """Evaluate what each output is in the end."""
        for index, one in enumerate(self.outputs):
            evaluation = self.recipe.evaluation(self.recipe.wanted[one.index])
            if evaluation is not None:
                found = self._score(one.recalibrated or one.average.output.path, evaluation)
                self.outputs[index] = replace(one, evaluation=found)
                first = next(other.evaluation for other in self.outputs if other.index == one.index)
                assert first is not None
                check_comparable(evaluation.scoring(), *_numbers(first, found))

    def keep_the_best(self) -> None:
        """Put the best of each sweep first, and remove the others if that is asked for."""
        found: list[ProductReport] = []
        for index, wanted in enumerate(self.recipe.wanted):
            group = [one for one in self.outputs if one.index == index]
            evaluation = self.recipe.evaluation(wanted)
            if evaluation is not None and wanted.sweep:
                sign = -1 if evaluation.mode == "max" else 1
                group.sort(key=lambda one: sign * _value(one))
                if wanted.keep != "all":
                    group[1:] = [_removed(one) for one in group[1:]]
            found += group
        self.outputs = found

    def check(self) -> None:
        """Compare the outputs, of each sweep the best, with what they must not be worse than."""
        for index, wanted in enumerate(self.recipe.wanted):
            evaluation = self.recipe.evaluation(wanted)
            if evaluation is None:
                continue
            best = next(one for one in self.outputs if one.index == index)
            for check in wanted.check:
                self._check(best, check, evaluation)

    def _check(self, one: ProductReport, check: Check, evaluation: Evaluation) -> None:
        assert one.evaluation is not None
        reference = self._reference(one, check, evaluation)
        check_comparable(evaluation.scoring(), *_numbers(one.evaluation, reference))
        value = one.evaluation.value
        holds = check.holds(value, reference.value, evaluation.mode)
        found = CheckReport(one.evaluation.path, value, reference.path, reference.value, check.by, holds)
        self.checks.append(found)
        self.told(found)
        if not holds:
            less = f"is {value:.6g}, and must not be worse than the {reference.value:.6g}"
            by = f" by more than {check.by:g}" if check.by else ""
            self.failures.append(f"{printable(found.path)} {less} of {printable(reference.path)}{by}")

    def _reference(self, one: ProductReport, check: Check, evaluation: Evaluation) -> EvaluationReport:
        if check.worse_than != LAST:
            return next(
                other.evaluation
                for other in self.outputs
                if self.recipe.wanted[other.index].path == check.worse_than and other.evaluation
            )
        last = (one.average.checkpoints[-1].path, evaluation)
        if last not in self.references:
            self.references[last] = self._score(*last)
        return self.references[last]

    def _score(self, path: str, evaluation: Evaluation) -> EvaluationReport:
        written = [one.recalibrated or one.average.output.path for one in self.outputs]
        value, metrics = score(path, evaluation.scoring(), written)
        found = EvaluationReport(path, value, metrics)
        self.told(found)
        return found


def _numbers(
    first: EvaluationReport, second: EvaluationReport
) -> tuple[tuple[str, Mapping[str, float]], tuple[str, Mapping[str, float]]]:
    return (first.path, first.metrics), (second.path, second.metrics)


def _value(one: ProductReport) -> float:
    assert one.evaluation is not None
    return one.evaluation.value


def _removed(one: ProductReport) -> ProductReport:
    for path in filter(None, (one.average.output.path, one.recalibrated)):
        if os.path.isdir(path):
            shutil.rmtree(path)
        else:
            remove_checksum(path)
            os.unlink(path)
    return replace(one, kept=False)
