"""`run`: a recipe is carried out, from its inputs to its checks.

Everything is planned first. Then come the averages, all from one read where their types allow it, the
recalibrations, the evaluations, the checks, and the report.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from swatool.errors import SwatoolError, printable
from swatool.jobs.average import average_all
from swatool.jobs.recalibrate import recalibrate_checkpoint
from swatool.jobs.recipe_checks import check_recipe, dry, refuse_misfits, refuse_outputs, with_room
from swatool.jobs.recipe_evaluation import Told, evaluated
from swatool.jobs.recipe_model import Product, Recipe
from swatool.jobs.recipe_reading import in_folder_of, read_written_recipe
from swatool.jobs.recipe_report import ProductReport, RecipeReport
from swatool.output.publish import PendingFile
from swatool.recipe.building import dump
from swatool.report import Report
from swatool.version import __version__

__all__ = ["run_recipe"]


def run_recipe(
    path: str | os.PathLike[str],
    *,
    overrides: Sequence[str] = (),
    dry_run: bool = False,
    on_plan: Callable[[RecipeReport], None] | None = None,
    on_progress: Callable[[int], None] | None = None,
    on_part: Told | None = None,
) -> RecipeReport:
    """Carry out a recipe.

    The current folder is that of the recipe meanwhile: its paths are relative to it, and the user's own
    commands and code run there.

    >>> run_recipe("recipe.yaml", overrides=["select.last=5"])

    Args:
        path: the recipe's file.
        overrides: what is changed of it, as `key=value` with a dotted key.
        dry_run: plan and check everything; run and write nothing.
        on_plan: is given what will be done, as the report of a dry run, before the first weight is read.
        on_progress: is told, ten times a second, how many bytes of the checkpoints have been read.
        on_part: is given the report of each thing that was done: `RecipeReport` of all averages,
            `RecalibrationReport`, `EvaluationReport`, `CheckReport`.

    Returns:
        What was done. A check that does not hold, and an evaluation that failed, are told in its `failures`
        and are no exceptions: everything else is done and written then.

    Raises:
        UsageError: the recipe is refused, before anything is read.
        and as `average` and `recalibrate_checkpoint`; what was published before that stays, is told in the
        recipe's report, and in that of the error.
    """
    started = time.perf_counter()
    recipe, mistakes = read_written_recipe(path, overrides)
    report = RecipeReport(
        version=__version__,
        command="run",
        dry_run=True,
        path=os.fspath(path),
        overrides=tuple(overrides),
        recipe=dump(recipe),  # type: ignore[arg-type]
        outputs=(),
    )
    told = on_part or _ignore
    with in_folder_of(path), _noting_what_was_written(recipe):
        models = check_recipe(recipe, os.path.basename(path), mistakes, import_code=not dry_run)
        is_planned = False

        def planned(report: RecipeReport) -> RecipeReport:
            nonlocal is_planned
            is_planned = True
            refuse_misfits(recipe, models, report)
            report = with_room(report, dry_run=dry_run)
            (on_plan or _ignore)(report)
            return report

        try:
            report, stopped = _averaged(recipe, report, dry_run, planned, on_progress or _ignore)
        except SwatoolError as error:
            if not is_planned:
                refuse_outputs(recipe, mistakes, error)
            raise
        if not dry_run and stopped is None:
            told(report)
            report, stopped = _recalibrated(recipe, report, told)
        if not dry_run and stopped is None:
            report = evaluated(recipe, report, told)
        report = dataclasses.replace(report, seconds=time.perf_counter() - started)
        if recipe.report is not None and not dry_run:
            _write(report, recipe.report, overwrite=recipe.run.overwrite)
    if stopped is not None:
        stopped.report = report
        raise stopped
    return report


def _ignore(_: object) -> None:
    pass


def _groups(products: Sequence[Product]) -> list[list[Product]]:
    """Return the products by what they can be read together with: averages of one type."""
    found: dict[str, list[Product]] = {}
    for one in products:
        found.setdefault(one.request.settings.dtype, []).append(one)
    return list(found.values())


def _averaged(
    recipe: Recipe,
    report: RecipeReport,
    dry_run: bool,
    on_plan: Callable[[RecipeReport], RecipeReport],
    on_progress: Callable[[int], None],
) -> tuple[RecipeReport, SwatoolError | None]:
    """Plan all averages, and make them unless it is a dry run.

    Returns:
        What was done, and what has stopped it when some averages had been made.
    """

    def told(reports: dict[str, Report], dry: bool) -> RecipeReport:
        made = [
            ProductReport(one.index, one.values, reports[one.request.output], one.recalibrated)
            for one in recipe.products
        ]
        return dataclasses.replace(report, dry_run=dry, outputs=tuple(made))

    def plan_alone(planned: Sequence[Report]) -> None:
        on_plan(told({one.output.path: one for one in planned}, True))

    groups = _groups(recipe.products)
    reports: dict[str, Report] = {}
    if dry_run or len(groups) > 1:
        # Nothing is made until all of it is known to fit; a single group does so by itself.
        for group in groups:
            planned = average_all(recipe.inputs, [dry(one.request) for one in group])
            reports |= {one.output.path: one for one in planned}
        found = on_plan(told(reports, True))
        if dry_run:
            return found, None
    before = 0
    for group in groups:
        try:
            done = average_all(
                recipe.inputs,
                [one.request for one in group],
                on_plan=plan_alone if len(groups) == 1 else None,
                on_progress=lambda nbytes, before=before: on_progress(before + nbytes),  # type: ignore[misc]
            )
        except SwatoolError as error:
            if not before:
                raise
            return dataclasses.replace(told(reports, False), failures=(str(error),)), error
        before += done[0].bytes_read
        reports |= {one.output.path: one for one in done}
    return told(reports, False), None


def _recalibrated(
    recipe: Recipe, report: RecipeReport, told: Told
) -> tuple[RecipeReport, SwatoolError | None]:
    """Recompute the BatchNorm statistics of the averages for which that is asked.

    Returns:
        What was done, and what has stopped it.
    """
    outputs = list(report.outputs)
    stopped: SwatoolError | None = None
    for index, one in enumerate(outputs):
        wanted = recipe.wanted[one.index].recalibrate
        if wanted is None:
            continue
        try:
            found = recalibrate_checkpoint(
                one.average.output.path,
                one.recalibrated,
                model=wanted.model,
                data=wanted.data,
                settings=wanted.settings(recipe.run),
            )
        except SwatoolError as error:
            stopped = error
            break
        told(found)
        outputs[index] = dataclasses.replace(one, recalibration=found)
    failures = () if stopped is None else (str(stopped),)
    return dataclasses.replace(report, outputs=tuple(outputs), failures=failures), stopped


def _write(report: RecipeReport, path: str, *, overwrite: bool) -> None:
    data = f"{json.dumps(report.as_json(), indent=2)}\n".encode()
    with PendingFile(path, len(data), overwrite=overwrite) as pending:
        pending.write(0, data)
        pending.publish()


@contextmanager
def _noting_what_was_written(recipe: Recipe) -> Iterator[None]:
    """Note on whatever stops the run by force which outputs were written before that."""
    paths = [path for one in recipe.products for path in one.files]
    before = {path: _identity(path) for path in paths}
    try:
        yield
    except SwatoolError:
        raise
    except BaseException as error:
        written = [path for path in paths if _identity(path) not in (None, before[path])]
        names = ", ".join(map(printable, written[:5])) + (", ..." if len(written) > 5 else "")
        error.add_note(f"written before that: {names}" if written else "no output was written")
        raise


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
