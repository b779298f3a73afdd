"""A sweep: several averages from one read, and the best of them by the user's own evaluation."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence

from swatool.averaging.scheme_choice import scheme_options
from swatool.errors import CheckFailedError, UsageError, printable
from swatool.jobs.average import Request, average_all
from swatool.jobs.average_settings import AverageSettings
from swatool.jobs.named_files import refuse_evaluation_as_output
from swatool.jobs.scoring import Scoring, check_comparable, check_evaluation, score
from swatool.jobs.sweeps import Variant, as_axes, fill, fill_none, sweep
from swatool.output.old_checksum import remove_checksum
from swatool.report import Report, SweepReport, SweptReport
from swatool.version import __version__

__all__ = ["KEEPS", "SWEPT", "average_sweep", "outputs_of_sweep"]

KEEPS = ("best", "all")
# What may differ between the averages of a sweep: which checkpoints, and with which coefficients.
SWEPT = (
    *("last", "first", "every", "min_step", "max_step", "best", "method"),
    *(name for name, option in scheme_options().items() if not option.many),
)


def average_sweep(
    checkpoints: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    axes: Sequence[str] | Mapping[str, Iterable[object]] = (),
    *,
    settings: AverageSettings,
    scoring: Scoring | None = None,
    keep: str = "best",
    on_plan: Callable[[SweepReport], None] | None = None,
    on_progress: Callable[[int], None] | None = None,
    on_score: Callable[[SweptReport], None] | None = None,
) -> SweepReport:
    """Make several averages that differ in a few settings, from one read, and tell which is the best.

    >>> average_sweep("run/", "avg-{last}.pt", {"last": [2, 4, 8]}, settings=AverageSettings())

    Args:
        checkpoints: files, glob patterns and folders, in any order.
        output: what to write; `{name}` stands for the value of a swept setting.
        axes: values by the name of a setting, or `name=value,value,...` each; several are crossed.
        settings: what all averages have in common.
        scoring: how they are evaluated; None: they are not.
        keep: after an evaluation, `best` removes all but the best, `all` leaves them.
        on_plan: is given the plans before the first weight is read.
        on_progress: is told, ten times a second, how many bytes have been read.
        on_score: is told of every average that was evaluated.

    Returns:
        What was done; after an evaluation, the best first.

    Raises:
        CheckFailedError: the evaluation failed; all averages are kept, and its report has what was found.
        and as `average`.
    """
    if keep not in KEEPS:
        raise UsageError(f"--keep must be one of {', '.join(KEEPS)}, not {printable(keep)}")
    if scoring is not None and not settings.dry_run:
        check_evaluation(scoring.evaluate)
    written = as_axes(axes) if isinstance(axes, Mapping) else axes
    variants, requests = _requests(os.fspath(output), written, settings)
    if scoring is not None:
        refuse_evaluation_as_output([one.output for one in requests], scoring.evaluate)

    def told(reports: Sequence[Report]) -> SweepReport:
        swept = [SweptReport(dict(v), report) for v, report in zip(variants, reports, strict=True)]
        return SweepReport(
            version=__version__,
            command="average",
            dry_run=settings.dry_run,
            outputs=tuple(swept),
            metric=scoring.metric if scoring else None,
            mode=scoring.mode if scoring else None,
        )

    report = told(
        average_all(
            checkpoints,
            requests,
            on_plan=None if on_plan is None else lambda reports: on_plan(told(reports)),
            on_progress=on_progress,
        )
    )
    if scoring is None or settings.dry_run:
        return report
    return _ranked(report, scoring, keep, on_score)


def outputs_of_sweep(output: str, axes: Sequence[str], settings: AverageSettings) -> list[str]:
    """Return what `average_sweep` writes, before any of it is kept or removed.

    Raises:
        UsageError: the axes are none, contradict the settings, or are not told apart by the output's name.
    """
    return [one.output for one in _requests(output, axes, settings)[1]]


def _requests(
    output: str, axes: Sequence[str], settings: AverageSettings
) -> tuple[list[Variant], list[Request]]:
    if not axes:
        return [{}], [Request(fill_none(output, SWEPT), settings)]
    found = sweep(settings, axes, SWEPT)
    variants = [variant for variant, _ in found]
    for name in variants[0]:
        if getattr(settings, name.replace("-", "_")) is not None:
            raise UsageError(f"--{name} and --sweep {name} contradict each other: leave one of them out")
    paths = fill(output, variants)
    return variants, [Request(path, one) for path, (_, one) in zip(paths, found, strict=True)]


def _ranked(
    report: SweepReport, scoring: Scoring, keep: str, on_score: Callable[[SweptReport], None] | None
) -> SweepReport:
    """Evaluate each average, put the best first, and remove the others if that is asked for."""
    scored: list[SweptReport] = []
    paths = [one.report.output.path for one in report.outputs]
    for one in report.outputs:
        path = one.report.output.path
        try:
            value, metrics = score(path, scoring, paths)
            first = scored[0] if scored else None
            if first is not None:
                check_comparable(scoring, (first.report.output.path, first.metrics), (path, metrics))
        except CheckFailedError as error:
            kept = f"all {len(report.outputs)} averages are kept" if len(report.outputs) > 1 else "it is kept"
            failed = CheckFailedError(f"{error}; {kept}")
            failed.report = dataclasses.replace(
                report, outputs=(*scored, *report.outputs[len(scored) :]), failures=(str(failed),)
            )
            raise failed from error
        scored.append(dataclasses.replace(one, value=value, metrics=metrics))
        if on_score is not None:
            on_score(scored[-1])
    sign = -1 if scoring.mode == "max" else 1
    scored.sort(key=lambda one: sign * (one.value or 0.0))
    if keep == "best":
        for index, one in enumerate(scored[1:], 1):
            _remove(one.report.output.path)
            scored[index] = dataclasses.replace(one, kept=False)
    return dataclasses.replace(report, outputs=tuple(scored))


def _remove(path: str) -> None:
    if os.path.isdir(path):
        shutil.rmtree(path)
    else:
        remove_checksum(path)
        os.unlink(path)
