"""What a greedy soup was made of, as data, for people and for machines."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from swatool.report import Report

__all__ = ["SoupMember", "SoupReport", "SoupStep"]

SCHEMA = 1


@dataclass(frozen=True)
class SoupMember:
    """One of the checkpoints that a soup could be made of.

    Attributes:
        path: the file or folder.
        own: the value by which it has its place in the order: of its own evaluation, or a number that was
            known of it; None in a dry run.
        value: of the average of those accepted before it and itself; of the first its own evaluation. None
            if it was not tried.
        metrics: all numbers of that evaluation.
        accepted: whether it is part of the soup; None if it was not tried.
    """

    path: str
    own: float | None
    value: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    accepted: bool | None = None


@dataclass(frozen=True)
class SoupStep:
    """An evaluation that was done.

    Attributes:
        member: the checkpoint that it is about.
        done: how many evaluations there are by now.
        most: how many there can be.
    """

    member: SoupMember
    done: int
    most: int


@dataclass(frozen=True)
class SoupReport:
    """What `soup` did, or would do if `dry_run`.

    Attributes:
        version: of swatool.
        command: always `soup`.
        dry_run: whether nothing was evaluated and written.
        evaluate: the evaluation.
        metric: which of its numbers counted, if it gave several.
        mode: whether the largest (`max`) or the smallest (`min`) is best.
        order_by: the known number that put the members in order; None: their own evaluations.
        members: in the order in which they were tried; in a dry run without `order_by` by age.
        best: value of the first member alone, which is the best single one unless `order_by` put it first.
        value: of the soup, when its last member was accepted.
        evaluations: how many there were, or can be; those of an earlier run that was stopped included.
        resumed: whether an earlier run was gone on with.
        work_bytes: the most that the work folder takes.
        average: what was written: the average of the accepted members; in a dry run that of all.
        seconds: the whole call.
        failures: sentences about an evaluation that failed.
    """

    version: str
    command: str
    dry_run: bool
    evaluate: str
    metric: str | None
    mode: str
    order_by: str | None
    members: tuple[SoupMember, ...]
    best: float | None
    value: float | None
    evaluations: int
    resumed: bool
    work_bytes: int
    average: Report
    seconds: float
    failures: tuple[str, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences that deserve attention."""
        return self.average.warnings

    def as_json(self, *, names: bool = False) -> dict[str, object]:
        """Return the report as plain data for JSON, which has no Inf: an infinite value is null."""
        data = {name: getattr(self, name) for name in self.__dataclass_fields__}
        members = [{name: _plain(value) for name, value in asdict(member).items()} for member in self.members]
        told = {"members": members, "best": _plain(self.best), "value": _plain(self.value)}
        return {"schema": SCHEMA, **data, **told, "average": self.average.as_json(names=names)}


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
