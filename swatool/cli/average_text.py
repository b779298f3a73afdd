"""What `swatool average` says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from swatool.averaging.coefficients import LARGE_L1
from swatool.averaging.schemes import SCHEMES
from swatool.cli.render import Telling, size
from swatool.errors import printable

if TYPE_CHECKING:
    from swatool.report import FiguresReport, Report, SweepReport, SweptReport

__all__ = ["tell_plan", "tell_ranking", "tell_score", "tell_summary"]

KINDS = ("averaged", "copied", "dropped", "tied")


def tell_plan(telling: Telling, sweep: SweepReport) -> None:
    """Say what will be done, and begin the progress bar."""
    reports = [one.report for one in sweep.outputs]
    if len(reports) == 1:
        _tell_checkpoints(telling, reports[0])
    else:
        _tell_outputs(telling, sweep)
        if telling.verbose:
            for report in reports:
                telling.lines([f"coefficients of {printable(report.output.path)}:"])
                _tell_checkpoints(telling, report)
    for report in reports:
        telling.lines(_plan_lines(report, telling.verbose))
    reading = {(report.bytes_read, _is_wide(report)) for report in reports}
    hashing = {one.path: one.bytes for report in reports if report.checksum for one in report.checkpoints}
    total = sum(nbytes for nbytes, _ in reading) + sum(hashing.values())
    telling.begin("averaging", total, in_bytes=True)


def tell_summary(telling: Telling, sweep: SweepReport) -> None:
    """Say what was done."""
    for one in sweep.outputs:
        telling.lines(_summary_lines(one.report))


def tell_score(telling: Telling, one: SweptReport) -> None:
    """Say what an average was worth."""
    numbers = ", ".join(f"{printable(name)[1:-1]} {value:.6g}" for name, value in one.metrics.items())
    telling.lines([f"evaluated {printable(one.report.output.path)}: {numbers}"])


def tell_ranking(telling: Telling, sweep: SweepReport) -> None:
    """Show the averages from the best to the worst, if they were evaluated."""
    if sweep.mode is None or len(sweep.outputs) == 1:
        return
    rows = [
        (
            printable(one.report.output.path)[1:-1],
            "-" if one.value is None else f"{one.value:.6g}",
            "kept" if one.kept else "removed",
        )
        for one in sweep.outputs
    ]
    telling.table(("average, best first", sweep.metric or "value", ""), rows)


def _tell_checkpoints(telling: Telling, report: Report) -> None:
    rows = [
        (
            printable(c.path)[1:-1],
            "-" if c.step is None else str(c.step),
            size(c.bytes),
            f"{c.coefficient:.6g}",
        )
        for c in report.checkpoints
    ]
    telling.table(("checkpoint", "step", "size", "coefficient"), rows)


def _tell_outputs(telling: Telling, sweep: SweepReport) -> None:
    """Show what each average of a sweep is of."""
    rows = [
        (
            printable(one.report.output.path)[1:-1],
            ", ".join(f"{name} {value}" for name, value in one.values.items()),
            str(len(one.report.checkpoints)),
            f"{one.report.figures.effective:.4g}",
            f"{one.report.figures.lag:.4g} {one.report.figures.lag_unit}",
        )
        for one in sweep.outputs
    ]
    telling.table(("average", "with", "checkpoints", "effective", "lag"), rows)


def _is_wide(report: Report) -> bool:
    """Whether the sums are in float64 because of the coefficients, so that it is read apart."""
    return report.figures.l1 > LARGE_L1


def _plan_lines(report: Report, verbose: bool) -> list[str]:
    keys = sorted({checkpoint.key for checkpoint in report.checkpoints} - {""})
    parameters = "".join(f", {name} {value}" for name, value in report.parameters.items())
    lines = [
        f"method: {report.method}{parameters}",
        _amounts_to(report.figures),
        *(f"state dict: {printable(key)}" for key in keys),
        f"tensors: {_counts(report)}",
        f"reads {size(report.bytes_read)}, writes {size(report.bytes_written)} "
        f"to {printable(report.output.path)} ({report.output.format}) on {report.device} with "
        f"{report.threads} threads",
    ]
    if report.estimate is not None:
        seconds, memory = report.estimate.seconds, report.estimate.memory_bytes
        lines.append(f"estimate: {_duration(seconds)}, {size(memory)} of memory")
    if verbose:
        lines[1:1] = [
            f"formula: {SCHEMES[report.method].formula}",
            f"source: {SCHEMES[report.method].source}",
        ]
        lines += [f"{kind}: {printable(name)}" for kind in KINDS for name in getattr(report.tensors, kind)]
    return lines


def _amounts_to(figures: FiguresReport) -> str:
    amplified = f"; rounding amplified {figures.l1:.4g} times" if figures.l1 > 1.001 else ""
    behind = f"{figures.lag:.4g} {figures.lag_unit} behind the last"
    return f"amounts to {figures.effective:.4g} checkpoints, {behind}{amplified}"


def _duration(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    return f"{seconds:.1f} s" if minutes < 2 else f"{minutes:.0f} min" if hours < 2 else f"{hours:.0f} h"


def _summary_lines(report: Report) -> list[str]:
    seconds = report.seconds
    files = f" in {len(report.output.files)} files" if report.output.files else ""
    rate = (report.bytes_read + report.bytes_written) / max(seconds.stream, 1e-9)
    lines = [
        f"wrote {printable(report.output.path)}: {_counts(report)}, {size(report.output.bytes)}{files}",
        f"{seconds.stream:.2f} s reading, adding and writing ({size(rate)}/s), {seconds.fsync:.2f} s fsync, "
        f"{seconds.total:.2f} s in all; peak memory {size(report.peak_rss_bytes)}",
    ]
    if report.checksum:
        lines.append(f"SHA-256 of the checkpoints and of the output recorded, in {seconds.checksum:.2f} s")
    if report.merge_signal_kept is not None:
        lines.append(f"merge signal kept: {report.merge_signal_kept:.1%} ({', '.join(report.dtype)})")
    return lines


def _counts(report: Report) -> str:
    return ", ".join(f"{len(getattr(report.tensors, kind))} {kind}" for kind in KINDS)
