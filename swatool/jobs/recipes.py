"""`run`: a recipe is carried out, from its inputs to its checks.

Everything is planned first. Then come the averages, all from one read where their types allow it, the
recalibrations, the evaluations, the checks, and the report.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from swatool.checkpoints.selection import expand
from swatool.errors import CheckpointError, SwatoolError, UsageError, printable
from swatool.jobs.average import Request, average_all
from swatool.jobs.recalibrate import check_recalibration, files_named_in, recalibrate_checkpoint
from swatool.jobs.recipe_evaluation import Told, evaluated, find_evaluations
from swatool.jobs.recipe_model import Product, Recipe
from swatool.jobs.recipe_parts import NUMPY_FILES
from swatool.jobs.recipe_reading import Mistakes, in_folder_of, read_written_recipe
from swatool.jobs.recipe_report import ProductReport, RecipeReport
from swatool.output.checksummed import check_checksum_target
from swatool.output.publish import PendingFile, check_target
from swatool.recipe.building import Place, dump
from swatool.report import Report
from swatool.user_code import find_module, names_code
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
        _check_inputs(recipe, mistakes)
        _check_targets(recipe, os.path.basename(path), mistakes)
        find_evaluations(recipe, mistakes, import_code=not dry_run)
        _check_recalibrations(recipe, mistakes, import_code=not dry_run)
        mistakes.refuse()
        report = _averaged(recipe, report, dry_run, on_plan or _ignore, on_progress or _ignore)
        stopped = None
        if not dry_run:
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


def _check_inputs(recipe: Recipe, mistakes: Mistakes) -> None:
    """Note inputs that are not there, and what else is read and is not."""
    for index, one in enumerate(recipe.inputs):
        with mistakes.at("inputs", index):
            for path in expand([one]):
                _refuse_missing(path)
    if recipe.select.metrics is not None:
        with mistakes.at("select", "metrics"):
            _refuse_missing(recipe.select.metrics)
    for index, wanted in enumerate(recipe.wanted):
        if wanted.like is not None:
            with mistakes.at("outputs", index, "like"):
                _refuse_missing(wanted.like)


def _refuse_missing(path: str) -> None:
    if not os.path.lexists(path):
        raise CheckpointError(f"there is no {printable(path)}")


def _check_targets(recipe: Recipe, own: str, mistakes: Mistakes) -> None:
    """Note outputs that cannot be written, before anything is read; `own` is the recipe itself."""
    written: list[tuple[Place, str]] = [
        (("outputs", one.index), path) for one in recipe.products for path in one.files
    ]
    written += [(("report",), recipe.report)] if recipe.report else []
    inputs = set(_files_of(path for one in recipe.inputs for path in _expanded(one)))
    kept = {*_files_of([own]), *files_named_in(*_specs(recipe))}
    recalibrated = {one.recalibrated for one in recipe.products}
    for place, path in written:
        with mistakes.at(*place):
            if kept.intersection(_files_of([path])):
                raise UsageError(f"{printable(path)} is the recipe, or what it names: choose another path")
            if os.path.lexists(path) and not recipe.run.overwrite:
                raise UsageError(
                    f"{printable(path)} exists: set run.overwrite to true to replace what is there, or "
                    "choose another path"
                )
            # Averages are checked when they are planned, and their sizes are known.
            overwrite, checksum = recipe.run.overwrite, recipe.run.checksum
            if path == recipe.report or path in recalibrated:
                check_target(path, overwrite=overwrite, inputs=inputs, nbytes=0)
            if path in recalibrated:
                check_checksum_target(path, overwrite=overwrite, wanted=checksum, inputs=inputs)


def _expanded(one: str) -> list[str]:
    """Return the checkpoints that an input stands for; none if it is noted as a mistake."""
    try:
        return expand([one])
    except SwatoolError:
        return []


def _check_recalibrations(recipe: Recipe, mistakes: Mistakes, *, import_code: bool) -> None:
    """Note models and data that are none, before the averages are made that are to be recalibrated."""
    for index, wanted in enumerate(recipe.wanted):
        asked = wanted.recalibrate
        if asked is None:
            continue
        if import_code:
            with mistakes.at("outputs", index, "recalibrate"):
                check_recalibration(asked.model, asked.data, asked.settings(recipe.run))
            continue
        for name in ("model", "data", "forward", "evaluate"):
            spec = getattr(asked, name)
            if spec is not None and names_code(spec) and not spec.rpartition(":")[0].endswith(NUMPY_FILES):
                with mistakes.at("outputs", index, "recalibrate", name):
                    find_module(spec, f"--{name}")


def _specs(recipe: Recipe) -> Iterator[str | None]:
    """Yield what a recipe names that may be a file, besides its inputs."""
    yield recipe.select.metrics
    for wanted in recipe.wanted:
        if wanted.recalibrate is not None:
            yield from (wanted.recalibrate.model, wanted.recalibrate.data)
        evaluation = recipe.evaluation(wanted)
        if evaluation is not None:
            yield from (evaluation.command, *evaluation.command.split())


def _files_of(checkpoints: Iterable[str]) -> Iterator[tuple[int, int]]:
    """Yield device and inode of the checkpoints' files; of a folder, of those that lie in it."""
    for path in checkpoints:
        inside = [entry.path for entry in os.scandir(path)] if os.path.isdir(path) else []
        for one in (path, *inside):
            if os.path.exists(one):
                status = os.stat(one)
                yield status.st_dev, status.st_ino


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
    on_plan: Callable[[RecipeReport], None],
    on_progress: Callable[[int], None],
) -> RecipeReport:
    """Plan all averages, and make them unless it is a dry run."""

    def told(reports: dict[str, Report], dry: bool) -> RecipeReport:
        made = [
            ProductReport(one.index, one.values, reports[one.request.output], one.recalibrated)
            for one in recipe.products
        ]
        return dataclasses.replace(report, dry_run=dry, outputs=tuple(made))

    groups = _groups(recipe.products)
    reports: dict[str, Report] = {}
    if dry_run or len(groups) > 1:
        # Nothing is made until all of it is known to fit; a single group does so by itself.
        for group in groups:
            planned = average_all(recipe.inputs, [_dry(one.request) for one in group])
            reports |= {one.output.path: one for one in planned}
        on_plan(told(reports, True))
        if dry_run:
            return told(reports, True)
    before = 0
    for group in groups:
        done = average_all(
            recipe.inputs,
            [one.request for one in group],
            on_plan=(
                (lambda planned: on_plan(told({one.output.path: one for one in planned}, True)))
                if len(groups) == 1
                else None
            ),
            on_progress=lambda nbytes, before=before: on_progress(before + nbytes),  # type: ignore[misc]
        )
        before += done[0].bytes_read
        reports |= {one.output.path: one for one in done}
    return told(reports, False)


def _dry(request: Request) -> Request:
    return dataclasses.replace(request, settings=dataclasses.replace(request.settings, dry_run=True))


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
