"""Everything that can be chosen about an average."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from swatool.averaging.scheme_choice import SchemeChoice
from swatool.checkpoints.opening import Checkpoint
from swatool.checkpoints.selection import DatedCheckpoint, Selection, select
from swatool.choices import choice
from swatool.errors import SettingError, UsageError
from swatool.jobs.average_output import LayoutSettings
from swatool.jobs.metrics import MODES, best, metric_values
from swatool.jobs.running import Running

__all__ = ["DEFAULT_OUTPUT", "AverageSettings", "Choosing", "choose"]

DEFAULT_OUTPUT = "averaged.safetensors"


@dataclass(frozen=True, kw_only=True)
class Choosing(Selection):
    """Which of the given checkpoints are averaged, by age and by a metric.

    Attributes:
        best: of the checkpoints that are left, average only so many with the best metric.
        metric: which metric: a number that every checkpoint stores, has in its name as `metric=value`, or in
            the table of metrics.
        mode: whether the largest (`max`) or the smallest (`min`) value is the best; never guessed.
        metrics: the table: a CSV, TSV, JSON, JSON lines or YAML file.
        allow_duplicates: accept the same file twice and earlier outputs of swatool.
    """

    best: int | None = None
    metric: str | None = None
    mode: str | None = choice(MODES, default=None)
    metrics: str | None = None
    allow_duplicates: bool = False

    def __post_init__(self) -> None:
        Selection.__post_init__(self)
        if self.best is None:
            if self.metrics is not None:
                raise UsageError("--metrics has no use without --best N")
            return
        if type(self.best) is not int or self.best < 1:
            raise SettingError("best", f"must be a whole number of at least 1, not {self.best}")
        for name in ("metric", "mode"):
            if getattr(self, name) is None:
                raise UsageError(
                    f"--best needs --{name}: which number counts, and whether max or min is best"
                )


@dataclass(frozen=True, kw_only=True)
class AverageSettings(LayoutSettings, Choosing, SchemeChoice, Running):
    """Everything that can be chosen about an average; the command line's options are these fields."""

    def __post_init__(self) -> None:
        for group in (LayoutSettings, Choosing, Running):
            group.__post_init__(self)


def choose(opened: Sequence[Checkpoint], settings: AverageSettings) -> tuple[DatedCheckpoint, ...]:
    """Return which of the checkpoints are averaged, oldest first.

    Raises:
        UsageError: steps are asked for and not known, or the table of metrics is none.
        MismatchError: a metric is not known of every checkpoint.
    """
    dated = select(opened, settings)
    if settings.best is None or settings.metric is None or settings.mode is None:
        return dated
    values = metric_values(dated, settings.metric, settings.metrics)
    return best(dated, settings.best, values, settings.mode, settings.metrics)
