"""What `swatool soup` says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from swatool.cli.render import Telling, counted, size
from swatool.errors import printable

if TYPE_CHECKING:
    from swatool.jobs.soup_report import SoupMember, SoupReport, SoupStep

__all__ = ["tell_soup", "tell_soup_plan", "tell_step"]


def tell_soup_plan(telling: Telling, report: SoupReport) -> None:
    """Say what will be done, and begin the progress bar."""
    if report.dry_run and any(one.own is not None for one in report.members):
        _tell_members(telling, report)
    how = f"by {printable(report.order_by)}" if report.order_by else "by their own evaluations"
    lines = [
        f"{counted(len(report.members), 'member')} in order {how}; at most "
        f"{counted(report.evaluations, 'evaluation')}",
        f"writes {size(report.average.output.bytes)} to {printable(report.average.output.path)}; until then "
        f"at most {size(report.work_bytes)} beside it",
    ]
    if report.resumed:
        lines.append("going on where an earlier run was stopped")
    telling.lines(lines)
    telling.begin("evaluating", report.evaluations, in_bytes=False)


def tell_step(telling: Telling, step: SoupStep) -> None:
    """Say what an evaluation said."""
    one = step.member
    numbers = ", ".join(f"{printable(name)[1:-1]} {value:.6g}" for name, value in one.metrics.items())
    what = "evaluated" if one.accepted is None else f"{_verdict(one)}, the average with"
    telling.lines([f"{step.done}/{step.most} {what} {printable(one.path)}: {numbers}"])
    telling.progress(step.done)


def tell_soup(telling: Telling, report: SoupReport) -> None:
    """Say what came of it."""
    _tell_members(telling, report)
    accepted = sum(one.accepted is True for one in report.members)
    telling.lines(
        [
            f"soup of {accepted} of {counted(len(report.members), 'member')}: {report.metric or 'value'} "
            f"{_number(report.value)}; its first member alone: {_number(report.best)}",
            f"wrote {printable(report.average.output.path)}: {size(report.average.output.bytes)}, "
            f"after {counted(report.evaluations, 'evaluation')}, {report.seconds:.1f} s in all",
        ]
    )


def _tell_members(telling: Telling, report: SoupReport) -> None:
    rows = [
        (printable(one.path)[1:-1], _number(one.own), _number(one.value), _verdict(one))
        for one in report.members
    ]
    own = report.order_by or "own"
    telling.table(("member, in the order tried", own, f"{report.metric or 'value'} with it", ""), rows)


def _verdict(one: SoupMember) -> str:
    return {True: "accepted", False: "rejected", None: "not tried"}[one.accepted]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}"
