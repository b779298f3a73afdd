"""What `swatool run` says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from swatool.cli.average_text import tell_plan, tell_summary
from swatool.cli.recalibrate_text import RecalibrationTelling
from swatool.cli.render import Telling, counted
from swatool.errors import printable
from swatool.jobs.recalibrate_report import RecalibrationReport
from swatool.jobs.recipe_report import CheckReport, EvaluationReport, RecipeReport

if TYPE_CHECKING:
    from collections.abc import Mapping

    from swatool.jobs.recipe_report import ProductReport

__all__ = ["RecipeTelling"]


class RecipeTelling:
    """Says what is done about one recipe, part by part."""

    def __init__(self, telling: Telling) -> None:
        self._telling = telling

    def plan(self, report: RecipeReport) -> None:
        """Say what will be done, and begin the progress bar."""
        self._telling.lines([f"recipe: {printable(report.path)}; paths are those of its folder"])
        self._telling.lines(f"set: {printable(one)[1:-1]}" for one in report.overrides)
        tell_plan(self._telling, report.as_sweep())
        self._telling.lines(_afterwards(report))

    def part(self, part: object) -> None:
        """Say that something is done."""
        if isinstance(part, RecipeReport):
            tell_summary(self._telling, part.as_sweep())
        elif isinstance(part, RecalibrationReport):
            RecalibrationTelling(self._telling).summary(part)
        elif isinstance(part, EvaluationReport):
            numbers = ", ".join(
                f"{printable(name)[1:-1]} {value:.6g}" for name, value in part.metrics.items()
            )
            self._telling.lines([f"evaluated {printable(part.path)}: {numbers}"])
        elif isinstance(part, CheckReport):
            self._telling.lines([_checked(part)])

    def summary(self, report: RecipeReport) -> None:
        """Show what the outputs are worth, and say where the report is."""
        rows = [
            (
                printable(one.recalibrated or one.average.output.path)[1:-1],
                "-" if one.evaluation is None else f"{one.evaluation.value:.6g}",
                "kept" if one.kept else "removed",
            )
            for one in report.outputs
        ]
        rows += [(printable(one.path)[1:-1], f"{one.value:.6g}", "checkpoint") for one in report.references]
        if any(one.evaluation for one in report.outputs):
            self._telling.table(("output", "value", ""), rows)
        written = report.recipe.get("report")
        where = f"; report in {printable(written)}" if written else ""
        self._telling.lines([f"{counted(len(report.outputs), 'average')} in {report.seconds:.2f} s{where}"])


def _afterwards(report: RecipeReport) -> Iterator[str]:
    """Say what will be done with the averages once they are made."""
    said = [_said_of(report, one) for one in report.outputs]
    for one, output in zip(report.outputs, said, strict=True):
        recalibrate = _mapping(output.get("recalibrate"))
        if one.recalibrated:
            model, data = printable(recalibrate.get("model")), printable(recalibrate.get("data"))
            mode = recalibrate.get("mode", "batch")
            yield f"recalibrates {printable(one.recalibrated)}: mode {mode}, model {model}, data {data}"
    for one, output in zip(report.outputs, said, strict=True):
        evaluate = _mapping(output.get("evaluate") or report.recipe.get("evaluate"))
        if evaluate:
            path = printable(one.recalibrated or one.average.output.path)
            yield f"evaluates {path}: {printable(evaluate['command'])}, the {evaluate['mode']} is best"
    for index, output in dict(zip((one.index for one in report.outputs), said, strict=True)).items():
        for check in map(_mapping, _list(output.get("check"))):
            name = printable(_mapping(_list(report.recipe["outputs"])[index]).get("path"))
            by = f" by more than {check['by']}" if "by" in check else ""
            yield f"checks that {name} is not worse than {printable(check['worse_than'])}{by}"
    if report.recipe.get("report"):
        yield f"reports to {printable(report.recipe['report'])}"


def _said_of(report: RecipeReport, one: ProductReport) -> Mapping[str, object]:
    return _mapping(_list(report.recipe["outputs"])[one.index])


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _checked(check: CheckReport) -> str:
    sign = "not worse" if check.passed else "WORSE"
    by = f" by more than {check.by:g}" if check.by else ""
    return (
        f"checked {printable(check.path)}: {check.value:.6g} is {sign} than the {check.reference:.6g} of "
        f"{printable(check.worse_than)}{by}"
    )
