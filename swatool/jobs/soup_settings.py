"""Everything that can be chosen about a greedy soup, beside how it is evaluated."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

from swatool.checkpoints.selection import Selection
from swatool.errors import SettingError, UsageError
from swatool.jobs.average_output import LayoutSettings
from swatool.jobs.average_settings import AverageSettings
from swatool.jobs.running import Running

__all__ = ["SoupSettings", "average_settings", "bearing"]

# What changes nothing of the weights.
INDIFFERENT = ("threads", "overwrite", "dry_run", "checksum")


@dataclass(frozen=True, kw_only=True)
class SoupSettings(LayoutSettings, Selection, Running):
    """Everything that can be chosen about a greedy soup; the command line's options are these fields.

    Attributes:
        order_by: a number that is known of every member, by which they are tried in place of their own
            evaluations: one that each stores, has in its name as `metric=value`, or in the table of metrics.
        metrics: the table: a CSV, TSV, JSON, JSON lines or YAML file.
        max_members: stop when so many are accepted.
        min_gain: accept a member only if the average gets better by at least this; 0 is if it does not get
            worse.
        allow_duplicates: accept the same file twice and earlier outputs of swatool.
    """

    order_by: str | None = None
    metrics: str | None = None
    max_members: int | None = None
    min_gain: float = 0.0
    allow_duplicates: bool = False

    def __post_init__(self) -> None:
        for group in (LayoutSettings, Selection, Running):
            group.__post_init__(self)
        if self.metrics is not None and self.order_by is None:
            raise UsageError("--metrics needs --order-by: which of its numbers puts the members in order")
        if self.max_members is not None and self.max_members < 1:
            raise SettingError("max_members", f"must be at least 1, not {self.max_members}")
        if not (math.isfinite(self.min_gain) and self.min_gain >= 0):
            raise SettingError("min_gain", f"must be a number from 0, not {self.min_gain}")


def average_settings(settings: SoupSettings) -> AverageSettings:
    """Return the settings of the plain averages of members that a soup is made by."""
    groups = (LayoutSettings, Running)
    names = [field.name for group in groups for field in dataclasses.fields(group)]
    names += ["sort", "allow_duplicates"]
    return AverageSettings(**{name: getattr(settings, name) for name in names})


def bearing(settings: SoupSettings) -> Mapping[str, object]:
    """Return the settings that bear on the result, by name."""
    return {name: one for name, one in dataclasses.asdict(settings).items() if name not in INDIFFERENT}
