"""From what was asked for on a command line to the recipe that asks for the same."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields

from swatool.averaging.policies import Policies
from swatool.averaging.scheme_choice import scheme_options
from swatool.checkpoints.opening import Reading
from swatool.checkpoints.selection import expand
from swatool.errors import UsageError, printable
from swatool.jobs.average_output import OutputOptions
from swatool.jobs.average_settings import AverageSettings, Choosing
from swatool.jobs.named_files import files_named_in, refuse_evaluation_as_output
from swatool.jobs.recipe_model import Recipe
from swatool.jobs.recipe_parts import Evaluation, Machine, Output, Parameters
from swatool.jobs.scoring import Scoring
from swatool.jobs.sweep_average import SWEPT
from swatool.jobs.sweeps import fill, sweep
from swatool.output.publish import PendingFile, check_target
from swatool.recipe.building import dump
from swatool.recipe.yaml_writing import write_yaml

__all__ = ["AskedFor", "check_recipe_target", "save_recipe"]

HEADER = "# Written by `swatool average --save-recipe`; carry it out with `swatool run`.\n"


@dataclass(frozen=True, kw_only=True)
class AskedFor:
    """What a command line asks for.

    Attributes:
        checkpoints: files, glob patterns and folders.
        output: what to write.
        settings: what is chosen about the average.
        axes: of a sweep, `name=value,value,...` each.
        scoring: how the averages are evaluated; None: they are not.
        keep: of a sweep that is evaluated, `best` or `all`.
    """

    checkpoints: Sequence[str]
    output: str
    settings: AverageSettings
    axes: Sequence[str] = ()
    scoring: Scoring | None = None
    keep: str = "best"


def check_recipe_target(path: str, asked: AskedFor) -> None:
    """Refuse a recipe that could not be written, or would not say the same, before the work is done.

    Raises:
        UsageError: it exists, is an input or the output, or would lie where the evaluation would not find
            what it needs.
        OutputError: it cannot be written.
    """
    outputs = [asked.output]
    if asked.axes:
        outputs = fill(asked.output, [values for values, _ in sweep(asked.settings, asked.axes, SWEPT)])
    if os.path.normpath(path) in map(os.path.normpath, outputs):
        raise UsageError(f"--save-recipe {printable(path)} is the output, too: give it a name of its own")
    inputs = [os.stat(one) for one in expand(asked.checkpoints) if os.path.exists(one)]
    identities = {(status.st_dev, status.st_ino) for status in inputs}
    identities |= set(files_named_in(asked.settings.metrics, asked.settings.like))
    check_target(path, overwrite=asked.settings.overwrite, inputs=identities, nbytes=0)
    if asked.scoring is not None:
        refuse_evaluation_as_output([path], asked.scoring.evaluate)
    _recipe(path, asked)
    try:
        _text(path, asked)
    except UnicodeEncodeError as error:
        raise UsageError(
            f"--save-recipe {printable(path)}: a path that is not UTF-8 has no place in it"
        ) from error


def save_recipe(path: str, asked: AskedFor) -> None:
    """Write the recipe of a command line: what is not as it is by default, paths relative to its folder."""
    data = _text(path, asked)
    with PendingFile(path, len(data), overwrite=asked.settings.overwrite) as pending:
        pending.write(0, data)
        pending.publish()


def _text(path: str, asked: AskedFor) -> bytes:
    recipe = _recipe(path, asked)
    for one in (*recipe.inputs, *(output.path for output in recipe.wanted)):
        one.encode()  # YAML would write half a character as a name that nobody can read
    return f"{HEADER}{write_yaml(_escaped(dump(recipe)))}".encode()


def _recipe(path: str, asked: AskedFor) -> Recipe:
    folder = os.path.dirname(path) or os.curdir
    elsewhere = os.path.realpath(folder) != os.path.realpath(os.curdir)
    if elsewhere and asked.scoring is not None:
        raise UsageError(
            f"--save-recipe {printable(path)} lies in another folder, where --eval would run and not find "
            "what it needs: save the recipe in the current folder"
        )

    def moved(place: str, escaped: Callable[[str], str] = str) -> str:
        if not elsewhere or os.path.isabs(place):
            return place
        way = os.path.relpath(os.path.realpath(os.curdir), os.path.realpath(folder))
        return os.path.join(escaped(way), place)

    def braced(way: str) -> str:
        return way.replace("{", "{{").replace("}", "}}") if asked.axes else way

    settings = asked.settings
    parts = {cls: _part(cls, settings) for cls in (Reading, Choosing, Policies, OutputOptions)}
    for cls, name in ((Choosing, "metrics"), (OutputOptions, "like")):
        if parts[cls][name] is not None:
            parts[cls][name] = moved(str(parts[cls][name]))
    swept = dict(map(_axis, asked.axes))
    if settings.best is None and "best" not in swept:
        parts[Choosing] |= {"metric": None, "mode": None}  # those of the evaluation
    parameters = {name: getattr(settings, name) for name in scheme_options()}
    output = Output(
        path=moved(asked.output, braced),
        method=settings.method,
        parameters=Parameters(**parameters),
        sweep=swept,
        keep="all" if asked.keep == "all" and swept and asked.scoring else None,
        **parts[OutputOptions],  # type: ignore[arg-type]
    )
    return Recipe(
        inputs=tuple(moved(one, glob.escape if glob.has_magic(one) else str) for one in asked.checkpoints),
        read=Reading(**parts[Reading]),  # type: ignore[arg-type]
        select=Choosing(**parts[Choosing]),  # type: ignore[arg-type]
        policies=Policies(**parts[Policies]),  # type: ignore[arg-type]
        run=Machine(
            device=settings.device,
            threads=settings.threads,
            overwrite=settings.overwrite,
            checksum=settings.checksum,
        ),
        evaluate=_evaluation(asked.scoring),
        outputs=(output,),
    )


def _part(cls: type, settings: AverageSettings) -> dict[str, object]:
    return {one.name: getattr(settings, one.name) for one in fields(cls)}


def _evaluation(scoring: Scoring | None) -> Evaluation | None:
    if scoring is None:
        return None
    return Evaluation(command=scoring.evaluate, metric=scoring.metric, mode=scoring.mode)


def _axis(axis: str) -> tuple[str, tuple[str | int | float, ...]]:
    name, _, values = axis.partition("=")
    return name.replace("-", "_"), tuple(map(_value, values.split(",")))


def _value(text: str) -> str | int | float:
    """Return a number, if it is written as it would be written again: names of outputs are made of it."""
    for kind in (int, float):
        try:
            if str(kind(text)) == text:
                return kind(text)
        except ValueError:
            continue
    return text


def _escaped(said: object) -> object:
    """Write `${` so that it is not taken for a variable."""
    if isinstance(said, str):
        return said.replace("${", "$${")
    if isinstance(said, Mapping):
        return {name: _escaped(one) for name, one in said.items()}
    return [_escaped(one) for one in said] if isinstance(said, list) else said
