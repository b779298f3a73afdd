"""What is looked at before a recipe is carried out, so that nothing is begun that cannot be ended."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence

from swatool.checkpoints.selection import expand
from swatool.errors import (
    CheckpointError,
    MismatchError,
    OutputError,
    SwatoolError,
    UsageError,
    printable,
)
from swatool.jobs.average import Request, average_all
from swatool.jobs.named_files import files_named_in
from swatool.jobs.recalibrate import check_recalibration
from swatool.jobs.recipe_evaluation import find_evaluations
from swatool.jobs.recipe_model import Recipe
from swatool.jobs.recipe_parts import NUMPY_FILES
from swatool.jobs.recipe_reading import Mistakes
from swatool.jobs.recipe_report import RecipeReport
from swatool.output.checksummed import check_checksum_target
from swatool.output.publish import check_target
from swatool.output.writing import check_room_for_all
from swatool.recipe.building import Place
from swatool.user_code import find_module, names_code

__all__ = ["check_recipe", "dry", "refuse_misfits", "refuse_outputs", "with_room"]


def check_recipe(
    recipe: Recipe, own: str, mistakes: Mistakes, *, import_code: bool
) -> Mapping[int, Sequence[str]]:
    """Refuse a recipe with inputs, targets, programs, models or data that are none, all of them at once.

    Args:
        recipe: the recipe.
        own: its file.
        mistakes: gathers them.
        import_code: import the user's code, and build the models; else only look whether it is there.

    Returns:
        Names of the tensors of the models that were built, by the number of the output.

    Raises:
        SwatoolError: of the kind that all mistakes are of, or UsageError.
    """
    _check_inputs(recipe, mistakes)
    _check_targets(recipe, own, mistakes)
    find_evaluations(recipe, mistakes, import_code=import_code)
    models = _check_recalibrations(recipe, mistakes, import_code=import_code)
    mistakes.refuse()
    return models


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
    likes = [one.like for one in recipe.wanted if one.like is not None]
    kept = {*_files_of([own, *likes]), *files_named_in(*_specs(recipe))}
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
            folder = os.path.dirname(path.rstrip("/"))
            if folder and not os.path.isdir(folder):
                raise OutputError(f"cannot write {printable(path)}: there is no folder {printable(folder)}")
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


def _check_recalibrations(
    recipe: Recipe, mistakes: Mistakes, *, import_code: bool
) -> Mapping[int, Sequence[str]]:
    """Note models and data that are none, before the averages are made that are to be recalibrated.

    Returns:
        Names of the tensors of the models that were built, by the number of the output.
    """
    models: dict[int, Sequence[str]] = {}
    for index, wanted in enumerate(recipe.wanted):
        asked = wanted.recalibrate
        if asked is None:
            continue
        if import_code:
            with mistakes.at("outputs", index, "recalibrate"):
                models[index] = check_recalibration(asked.model, asked.data, asked.settings(recipe.run))
            continue
        for name in ("model", "data", "forward", "evaluate"):
            spec = getattr(asked, name)
            if spec is not None and names_code(spec) and not spec.rpartition(":")[0].endswith(NUMPY_FILES):
                with mistakes.at("outputs", index, "recalibrate", name):
                    find_module(spec, f"--{name}")
    return models


def refuse_misfits(recipe: Recipe, models: Mapping[int, Sequence[str]], planned: RecipeReport) -> None:
    """Refuse averages whose tensors are not those of the model they are to be recalibrated in."""
    if not models:
        return
    from swatool.models.weights import differing_names

    for one in planned.outputs:
        tensors = one.average.tensors
        found = {*tensors.averaged, *tensors.copied, *tensors.tied}
        differences = list(differing_names(models[one.index], found)) if one.index in models else []
        if differences:
            asked = recipe.wanted[one.index].recalibrate
            assert asked is not None
            raise MismatchError(
                f"{printable(one.average.output.path)} would not fit the model {printable(asked.model)} "
                f"({len(differences)} differences):",
                differences,
            )


def _specs(recipe: Recipe) -> Iterator[str | None]:
    """Yield what a recipe names that may be a file, besides its inputs."""
    yield recipe.select.metrics
    for wanted in recipe.wanted:
        asked = wanted.recalibrate
        if asked is not None:
            yield from (asked.model, asked.data, asked.forward, asked.evaluate)
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


def refuse_outputs(recipe: Recipe, mistakes: Mistakes, stopped: SwatoolError) -> None:
    """Refuse the outputs that cannot be planned, all at once, if that is what has stopped the planning."""
    if isinstance(stopped, CheckpointError):
        return  # of an input
    for index in range(len(recipe.wanted)):
        with mistakes.at("outputs", index):
            for one in recipe.products:
                if one.index == index:
                    average_all(recipe.inputs, [dry(one.request)])
    mistakes.refuse()


def dry(request: Request) -> Request:
    """Return a request for the plan alone."""
    return dataclasses.replace(request, settings=dataclasses.replace(request.settings, dry_run=True))


def with_room(planned: RecipeReport, *, dry_run: bool) -> RecipeReport:
    """Refuse outputs that do not fit on their disks together; what a dry run would lack is a warning."""
    sizes = {one.average.output.path: one.average.output.bytes for one in planned.outputs}
    sizes |= {one.recalibrated: one.average.output.bytes for one in planned.outputs if one.recalibrated}
    try:
        check_room_for_all(sizes)
    except OutputError as error:
        if not dry_run:
            raise
        first, *rest = planned.outputs
        warnings = (*first.average.warnings, f"all together: {error}")
        told = dataclasses.replace(first, average=dataclasses.replace(first.average, warnings=warnings))
        return dataclasses.replace(planned, outputs=(told, *rest))
    return planned
