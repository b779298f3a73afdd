"""What the user sees: a table and a progress bar on a terminal, plain lines elsewhere.

The only file that uses rich.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from swatool.errors import printable

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from swatool.report import Report

__all__ = ["Telling"]

KINDS = ("averaged", "copied", "dropped", "tied")


class Telling:
    """Tells about one run: results on stdout, progress and warnings on stderr."""

    def __init__(self, *, quiet: bool, verbose: bool) -> None:
        self._quiet, self._verbose = quiet, verbose
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def plan(self, report: Report) -> None:
        """Show what will be done; on a terminal, begin the progress bar."""
        if not self._quiet:
            self._show_checkpoints(report)
            for line in _plan_lines(report, self._verbose):
                print(line)
            sys.stdout.flush()
        if not self._quiet and sys.stderr.isatty():
            self._begin_bar(report.bytes_read)

    def progress(self, bytes_read: int) -> None:
        """Move the progress bar, if there is one."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=bytes_read)

    def summary(self, report: Report) -> None:
        """Show what was done."""
        if self._quiet:
            return
        for line in _summary_lines(report):
            print(line)

    def warnings(self, report: Report, *, even_if_quiet: bool = False) -> None:
        """Show what deserves attention."""
        if self._quiet and not even_if_quiet:
            return
        sys.stdout.flush()
        for warning in report.warnings:
            print(f"warning: {warning}", file=sys.stderr)

    def _show_checkpoints(self, report: Report) -> None:
        header = ("checkpoint", "step", "size", "coefficient")
        rows = [
            (
                printable(c.path)[1:-1],
                "-" if c.step is None else str(c.step),
                size(c.bytes),
                f"{c.coefficient:.6g}",
            )
            for c in report.checkpoints
        ]
        if not sys.stdout.isatty():
            for row in _aligned([header, *rows]):
                print(row)
            return
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(*header[:1], header_style="bold")
        for name in header[1:]:
            table.add_column(name, justify="right")
        for cells in rows:
            table.add_row(*map(Text, cells))
        Console().print(table)

    def _begin_bar(self, total: int) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
        self._task = self._bar.add_task("averaging", total=total)
        self._bar.start()


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


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]


def size(nbytes: float) -> str:
    """Write a number of bytes for people, in powers of ten."""
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 999.5:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.3g} {unit}"
        nbytes /= 1000
    return f"{nbytes:.3g} TB"
