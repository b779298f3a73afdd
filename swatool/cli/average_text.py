"""What `swatool average` says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from swatool.cli.render import Telling, size
from swatool.errors import printable

if TYPE_CHECKING:
    from swatool.report import Report

__all__ = ["tell_plan", "tell_summary"]

KINDS = ("averaged", "copied", "dropped", "tied")


def tell_plan(telling: Telling, report: Report) -> None:
    """Say what will be done, and begin the progress bar."""
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
    telling.lines(_plan_lines(report, telling.verbose))
    telling.begin("averaging", report.bytes_read, in_bytes=True)


def tell_summary(telling: Telling, report: Report) -> None:
    """Say what was done."""
    telling.lines(_summary_lines(report))


def _plan_lines(report: Report, verbose: bool) -> list[str]:
    keys = sorted({checkpoint.key for checkpoint in report.checkpoints} - {""})
    parameters = "".join(f", {name} {value}" for name, value in report.parameters.items())
    lines = [
        f"method: {report.method}{parameters}",
        *(f"state dict: {printable(key)}" for key in keys),
        f"tensors: {_counts(report)}",
        f"reads {size(report.bytes_read)}, writes {size(report.bytes_written)} "
        f"to {printable(report.output.path)} on {report.device} with {report.threads} threads",
    ]
    if verbose:
        lines += [f"{kind}: {printable(name)}" for kind in KINDS for name in getattr(report.tensors, kind)]
    return lines


def _summary_lines(report: Report) -> list[str]:
    seconds = report.seconds
    rate = (report.bytes_read + report.bytes_written) / max(seconds.stream, 1e-9)
    lines = [
        f"wrote {printable(report.output.path)}: {_counts(report)}, {size(report.output.bytes)}",
        f"{seconds.stream:.2f} s reading, adding and writing ({size(rate)}/s), {seconds.fsync:.2f} s fsync, "
        f"{seconds.total:.2f} s in all; peak memory {size(report.peak_rss_bytes)}",
    ]
    if report.merge_signal_kept is not None:
        lines.append(f"merge signal kept: {report.merge_signal_kept:.1%} ({', '.join(report.dtype)})")
    return lines


def _counts(report: Report) -> str:
    return ", ".join(f"{len(getattr(report.tensors, kind))} {kind}" for kind in KINDS)
