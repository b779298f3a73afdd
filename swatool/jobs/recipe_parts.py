"""The parts of a recipe, as frozen dataclasses; their fields and docstrings are what a file may say.

What the jobs already have as settings is taken from there: a part adds what only a file says, and leaves out
what a recipe decides once for all.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Literal

from swatool.averaging.policies import DTYPES
from swatool.averaging.scheme_choice import SchemeChoice
from swatool.averaging.schemes import OTHER_NAMES, SCHEMES
from swatool.choices import KEYS, choice
from swatool.errors import SettingError, UsageError, printable
from swatool.jobs.average_output import OutputOptions
from swatool.jobs.average_settings import Choosing
from swatool.jobs.recalibrate_settings import RecalibrateSettings
from swatool.jobs.running import Running
from swatool.jobs.scoring import Scoring
from swatool.jobs.sweep_average import SWEPT
from swatool.jobs.sweeps import as_axes

__all__ = ["LAST", "NUMPY_FILES", "Check", "Evaluation", "Machine", "Output", "Parameters", "Recalibration"]

LAST = "last"  # what a check calls the last checkpoint
NUMPY_FILES = (".npy", ".npz", ".safetensors")


@dataclass(frozen=True, kw_only=True)
class Machine(Running):
    """Where and how a recipe runs."""

    dry_run: bool = field(default=False, init=False)


@dataclass(frozen=True, kw_only=True)
class Parameters(SchemeChoice):
    """The parameters of a scheme, by name."""

    method: str | None = field(default=None, init=False)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The user's own evaluation of a file.

    Attributes:
        command: a command with `{path}` in it, whose last number or JSON object on stdout counts; or a
            function, as `module:function`, that is called with the path.
        metric: which of several numbers counts; left out: the only one.
        mode: whether the largest (`max`) or the smallest (`min`) is best.
    """

    command: str
    metric: str | None = None
    mode: Literal["max", "min"]

    def __post_init__(self) -> None:
        self.scoring()
        _refuse_missing("command", self.command, (".py",))

    def scoring(self) -> Scoring:
        """Return it as the settings of an evaluation."""
        return Scoring(evaluate=self.command, metric=self.metric, mode=self.mode)


@dataclass(frozen=True, kw_only=True)
class Check:
    """What must hold of an output after its evaluation, or the run ends with exit code 6.

    Attributes:
        worse_than: it must not be worse than this: `last`, the newest of its checkpoints as it lies there; or
            another output, by its path.
        by: by more than this.
    """

    worse_than: str
    by: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.by < math.inf:
            raise SettingError("by", f"must be a finite number of at least 0, not {self.by}")

    def holds(self, value: float, reference: float, mode: str) -> bool:
        """Tell whether a value is good enough beside what it must not be worse than."""
        worse = reference - value if mode == "max" else value - reference
        # Numbers that people write with a few decimals differ by a little more or less than they say.
        slack = 4 * sys.float_info.epsilon * max(abs(reference), abs(value))
        return worse <= self.by + slack


@dataclass(frozen=True, kw_only=True)
class Recalibration(RecalibrateSettings):
    """The average again, with BatchNorm statistics recomputed on data.

    Attributes:
        path: the safetensors file to write; of a sweep, with the same `{name}` as the average's.
        model: where the model comes from, such as `my.models:build`; its code is run.
        data: where the data comes from, such as `train.npz:x`.
    """

    path: str
    model: str
    data: str
    device: str = field(default="cpu", init=False)
    threads: int | None = field(default=None, init=False)
    overwrite: bool = field(default=False, init=False)
    dry_run: bool = field(default=False, init=False)
    checksum: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        RecalibrateSettings.__post_init__(self)
        for field_name, suffixes in (
            ("model", (".py",)),
            ("data", (".py", *NUMPY_FILES)),
            ("forward", (".py",)),
            ("evaluate", (".py",)),
        ):
            _refuse_missing(field_name, getattr(self, field_name) or "", suffixes)

    def settings(self, run: Running) -> RecalibrateSettings:
        """Return it as settings, run where and how the recipe is."""
        given = {one.name: getattr(self, one.name) for one in fields(RecalibrateSettings)}
        given |= {one.name: getattr(run, one.name) for one in fields(Running)}
        return RecalibrateSettings(**given)


@dataclass(frozen=True, kw_only=True)
class Output(Choosing, OutputOptions):
    """One average, or a sweep of several, and what is done with it.

    Attributes:
        path: the file to write; or a folder, if it ends in a slash.
        method: the scheme; left out: `weights` if weights are given, else `swa`.
        parameters: of the scheme.
        dtype: type in which this average is written, if it is not that of the policies.
        sweep: lists of values by setting, such as `last: [2, 4]`: one average for each, from one read; the
            path has `{name}`.
        keep: after the evaluation of a sweep, the `best` average, or `all`; left out: `best`.
        recalibrate: recompute the BatchNorm statistics of the average.
        evaluate: how this output is evaluated, if not as the others.
        check: what must hold; one or several.
    """

    sort: str = field(default="step", init=False)
    allow_duplicates: bool = field(default=False, init=False)
    path: str
    method: str | None = choice(SCHEMES, default=None, other_names=OTHER_NAMES)
    parameters: Parameters = field(default_factory=Parameters)
    dtype: str | None = choice(DTYPES, default=None)
    sweep: Mapping[str, tuple[str | bool | int | float, ...]] = field(
        default_factory=dict, metadata={KEYS: SWEPT}
    )
    keep: Literal["best", "all"] | None = None
    recalibrate: Recalibration | None = None
    evaluate: Evaluation | None = None
    check: tuple[Check, ...] = ()

    def __post_init__(self) -> None:
        # Which checkpoints it takes is checked together with what the recipe says of all of them.
        OutputOptions.__post_init__(self)
        if not self.path:
            raise UsageError("path is empty: name the file to write")
        if self.keep is not None and not self.sweep:
            raise UsageError("keep has no use without a sweep")
        for name in self.sweep:
            if getattr(self, name, None) is not None or getattr(self.parameters, name, None) is not None:
                raise UsageError(f"{name} is swept, and has a value of its own: leave one of them out")

    def chosen(self) -> dict[str, object]:
        """Return what is said here of settings that the recipe has for all: which checkpoints, which type."""
        shared = {*(one.name for one in fields(Choosing)), "dtype"}
        said = {one.name: getattr(self, one.name) for one in fields(self) if one.init and one.name in shared}
        return {name: value for name, value in said.items() if value is not None}

    def axes(self) -> list[str]:
        """Return the sweep as the command line writes it."""
        return as_axes(self.sweep)

    def template(self, path: str) -> str:
        """Return a path with the names of the swept settings as the command line writes them."""
        for name in self.sweep:
            path = path.replace(f"{{{name}}}", f"{{{name.replace('_', '-')}}}")
        return path


def _refuse_missing(field: str, spec: str, suffixes: tuple[str, ...]) -> None:
    """Refuse a file that is named by its suffix, alone or before a colon, and is not there."""
    for place in (spec, spec.rpartition(":")[0]):
        if place.endswith(suffixes) and " " not in place and not os.path.isfile(place):
            raise SettingError(field, f"names {printable(place)}, and there is no such file")
