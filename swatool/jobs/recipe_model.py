"""A recipe: a whole average, from its inputs to its checks, as one frozen dataclass that checks itself."""

from __future__ import annotations

import difflib
import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import ClassVar, cast

from swatool.averaging.policies import Policies
from swatool.averaging.scheme_choice import SchemeChoice, scheme_options
from swatool.checkpoints.opening import Reading
from swatool.choices import tried
from swatool.errors import SettingError, SwatoolError, UsageError, listed, printable
from swatool.jobs.average_output import OutputOptions, choose_format
from swatool.jobs.average_plan import Request
from swatool.jobs.average_settings import AverageSettings, Choosing
from swatool.jobs.recipe_parts import LAST, Evaluation, Machine, Output
from swatool.jobs.running import Running
from swatool.jobs.sweep_average import SWEPT
from swatool.jobs.sweeps import fill, fill_none, sweep
from swatool.recipe.building import WRONG, Place, PlacedError
from swatool.recipe.json_schema import json_schema
from swatool.recipe.variables import NAME

__all__ = ["Product", "Recipe", "recipe_schema"]


@dataclass(frozen=True)
class Product:
    """One average that a recipe makes: an output, or one of a sweep.

    Attributes:
        index: which of the recipe's outputs.
        wanted: that output.
        values: the settings in which it differs from the others of its sweep, as texts.
        request: the average.
        recalibrated: where it goes with new BatchNorm statistics; None: that is not asked for.
        evaluation: how it is evaluated, if it is.
    """

    index: int
    wanted: Output
    values: Mapping[str, str]
    request: Request
    recalibrated: str | None
    evaluation: Evaluation | None

    @property
    def final(self) -> str:
        """The file that is evaluated and kept in the end."""
        return self.recalibrated or self.request.output

    @property
    def files(self) -> tuple[str, ...]:
        """Everything that is written for it."""
        return (self.request.output, *([self.recalibrated] if self.recalibrated else []))


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A recipe of `swatool run`: paths are relative to its folder, where the user's own code runs, too.

    Attributes:
        environment: variables of the environment that `${NAME}` may stand for in the texts of this file.
        inputs: checkpoint files, glob patterns and folders, in any order.
        read: how the checkpoints are read.
        select: which of them are averaged; an output may say otherwise.
        policies: what is done where checkpoints, or the types of tensors, leave a choice.
        run: where and how it runs.
        evaluate: how outputs are evaluated.
        outputs: what is made: paths, or mappings with a path; one or several.
        report: a JSON file that is written about the whole run, the recipe included.
    """

    environment: tuple[str, ...] = ()
    inputs: tuple[str, ...]
    read: Reading = field(default_factory=Reading)
    select: Choosing = field(default_factory=Choosing)
    policies: Policies = field(default_factory=Policies)
    run: Machine = field(default_factory=Machine)
    evaluate: Evaluation | None = None
    outputs: tuple[str | Output, ...]
    report: str | None = None

    checks_the_rest: ClassVar[bool] = True  # a part that is `WRONG` hides no mistake in the others

    def __post_init__(self) -> None:
        mistakes: list[tuple[Place, str]] = [
            ((name,), "name at least one") for name in ("inputs", "outputs") if not getattr(self, name)
        ]
        if self.environment is not WRONG:
            mistakes += [
                (("environment", index), f"{printable(name)} is no name of a variable")
                for index, name in enumerate(self.environment)
                if name is not WRONG and not NAME.fullmatch(name)
            ]
        if self.outputs is not WRONG:
            sound = []
            for index, wanted in enumerate(self.wanted):
                refused = [] if wanted is WRONG else list(self._refused(wanted))
                mistakes += [(("outputs", index, *place), what) for place, what in refused]
                if wanted is not WRONG and not refused:
                    sound.append(index)
            mistakes += self._clashes(sound)
        if mistakes:
            raise PlacedError(mistakes)

    @cached_property
    def wanted(self) -> tuple[Output, ...]:
        """The outputs, those included of which only the path is said."""
        return tuple(Output(path=one) if isinstance(one, str) else one for one in self.outputs)

    @cached_property
    def products(self) -> tuple[Product, ...]:
        """Everything that is made, in the order of the outputs and of their sweeps."""
        return tuple(one for index, wanted in enumerate(self.wanted) for one in self._made(index, wanted))

    def evaluation(self, wanted: Output) -> Evaluation | None:
        """Return how an output is evaluated."""
        return wanted.evaluate or self.evaluate

    @property
    def _is_whole(self) -> bool:
        """Whether what it says of all outputs could be made."""
        return WRONG not in (self.read, self.select, self.policies, self.run, self.evaluate)

    def settings(self, wanted: Output) -> AverageSettings:
        """Return all that is chosen about the average of an output, what a sweep changes aside."""
        given: dict[str, object] = {"method": wanted.method}
        parts = (
            (Reading, self.read),
            (Choosing, self.select),
            (Policies, self.policies),
            (Running, self.run),
            (OutputOptions, wanted),
        )
        for cls, part in parts:
            if part is WRONG:
                continue  # as it is by default, to tell what else is wrong
            given |= {one.name: getattr(part, one.name) for one in fields(cls)}
        given |= {name: getattr(wanted.parameters, name) for name in scheme_options()}
        return AverageSettings(**{**given, **wanted.chosen()})  # type: ignore[arg-type]

    def _made(self, index: int, wanted: Output) -> Iterator[Product]:
        settings, recalibration = self.settings(wanted), wanted.recalibrate
        variants: list[tuple[Mapping[str, str], AverageSettings]] = [({}, settings)]
        paths, recalibrated = [wanted.path], [recalibration.path if recalibration else None]
        if not wanted.sweep:
            fill_none(wanted.path, SWEPT)
        if wanted.sweep:
            variants = list(sweep(settings, wanted.axes(), SWEPT))
            values = [one for one, _ in variants]
            paths = fill(wanted.template(wanted.path), values)
            recalibrated = [None] * len(paths)
            if recalibration:
                recalibrated = [*fill(wanted.template(recalibration.path), values)]
        for (values_of_it, one), path, again in zip(variants, paths, recalibrated, strict=True):
            request = Request(path, one)
            yield Product(index, wanted, values_of_it, request, again, self.evaluation(wanted))

    def _refused(self, wanted: Output) -> Iterator[tuple[Place, str]]:
        """Yield what is wrong about an output, and where in it."""
        yield from dict.fromkeys(self._refused_averages(wanted))
        if wanted.keep and self.evaluation(wanted) is None:
            yield ("keep",), "this has no use without evaluate"
        for number, check in enumerate(wanted.check):
            place = ("check", number)
            if self.evaluation(wanted) is None:
                yield place, "a check needs evaluate: how the output is evaluated"
            elif check.worse_than != LAST:
                yield from ((place, what) for what in self._bad_reference(wanted, check.worse_than))

    def _refused_averages(self, wanted: Output) -> Iterator[tuple[Place, str]]:
        """Yield what is wrong about the averages of an output, of each by itself."""
        try:
            self.settings(wanted)
        except UsageError:
            if not self._is_whole:
                return  # that may come of what else is wrong
        try:
            for product in self._made(0, wanted):
                choose_format(product.request.output, product.request.settings)
                for error in _refused_parameters(product.request.settings):
                    place = ("parameters", error.field) if isinstance(error, SettingError) else ()
                    yield place, str(error)
        except SettingError as error:
            yield (("sweep", error.field) if error.field in wanted.sweep else ()), str(error)
        except UsageError as error:
            yield (), str(error)

    def _bad_reference(self, wanted: Output, name: str) -> Iterator[str]:
        """Yield why an output cannot be compared with another one."""
        if WRONG in self.wanted:
            return  # it may be meant
        others = {one.path: one for one in self.wanted if one is not wanted}
        if name not in others:
            near = difflib.get_close_matches(name, [LAST, *others], n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {listed([LAST, *others])}"
            yield f"worse_than {printable(name)} is no other output's path; {hint}"
        elif self.evaluation(others[name]) != self.evaluation(wanted):
            yield f"worse_than {printable(name)} is evaluated in another way, and cannot be compared"

    def _clashes(self, sound: Collection[int]) -> Iterator[tuple[Place, str]]:
        """Yield which paths are written twice, by the outputs that can be made, and by the report."""
        made = [one for index in sound for one in self._made(index, self.wanted[index])]
        written = [(("outputs", one.index), path) for one in made for path in one.files]
        written += [(("report",), self.report)] if isinstance(self.report, str) else []  # type: ignore[list-item]
        counts = Counter(_real_name(path) for _, path in written)
        seen = set()
        for place, path in written:
            name = _real_name(path)
            if counts[name] > 1 and name in seen:
                yield place, f"{printable(path)} is written twice: give each output a path of its own"
            seen.add(name)


def _real_name(path: str) -> str:
    """Return what is the same for all paths of a file that is to be written, by whichever links they lead."""
    folder, name = os.path.split(os.path.normpath(path))
    return os.path.join(os.path.realpath(folder), name)


def _refused_parameters(settings: SchemeChoice) -> list[SwatoolError]:
    """Return what is wrong with the scheme that is asked for, and with each of its parameters."""
    given = {name: getattr(settings, name) for name in scheme_options()}
    return tried(lambda **left: SchemeChoice(method=settings.method, **left).scheme(), given)[1]


def recipe_schema() -> dict[str, object]:
    """Return the JSON schema of a recipe, the schemes' parameters described."""
    schema = json_schema(Recipe)
    definitions = cast(dict[str, dict[str, dict[str, dict[str, object]]]], schema["$defs"])
    for name, one in definitions["Parameters"]["properties"].items():
        option = scheme_options().get(name)
        if option is not None:
            one["description"] = option.help
    return schema
