"""How things are shown: a table and a progress bar on a terminal, plain lines elsewhere.

The only file that uses rich. What is said stands in a file for each command (`average_text`, ...).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = ["Telling", "counted", "size"]

LARGEST_TABLE = 200  # rows that are drawn; more are plain lines, which takes a thousandth of the time


class Telling:
    """Tells about one run: results on stdout, progress and warnings on stderr.

    Attributes:
        verbose: whether everything is asked for.
    """

    def __init__(self, *, quiet: bool, verbose: bool) -> None:
        self.verbose = verbose
        self._quiet = quiet
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Show rows under a header; the first column is text, the others are numbers."""
        if self._quiet:
            return
        if len(rows) > LARGEST_TABLE or not sys.stdout.isatty():
            self.lines(_aligned([header, *rows]))
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

    def lines(self, lines: Iterable[str]) -> None:
        """Show lines at once."""
        if not self._quiet:
            for line in lines:
                print(line)
            sys.stdout.flush()

    def begin(self, what: str, total: int | None, *, in_bytes: bool) -> None:
        """Begin a progress bar on a terminal; in place of the one before, if there is one."""
        if self._quiet or not sys.stderr.isatty():
            return
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            MofNCompleteColumn,
            Progress,
            ProgressColumn,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        if self._bar is not None:
            self._bar.stop()
        columns: list[ProgressColumn] = [TextColumn("{task.description}"), BarColumn()]
        if in_bytes:
            columns += [DownloadColumn(), TransferSpeedColumn()]
        else:
            columns += [MofNCompleteColumn(), TextColumn("{task.fields[rate]}")]
        columns.append(TimeRemainingColumn())
        self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
        self._task = self._bar.add_task(what, total=total, rate="")
        self._bar.start()

    def progress(self, done: int) -> None:
        """Move the progress bar, if there is one."""
        if self._bar is not None and self._task is not None:
            speed = self._bar.tasks[0].speed
            rate = "" if speed is None else f"{speed:,.0f}/s"
            self._bar.update(self._task, completed=done, rate=rate)

    def warnings(self, warnings: Iterable[str], *, even_if_quiet: bool = False) -> None:
        """Show what deserves attention."""
        if self._quiet and not even_if_quiet:
            return
        sys.stdout.flush()
        for warning in warnings:
            print(f"warning: {warning}", file=sys.stderr)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]


def counted(number: int, what: str) -> str:
    """Write how many things there are."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def size(nbytes: float) -> str:
    """Write a number of bytes for people, in powers of ten."""
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 999.5:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.3g} {unit}"
        nbytes /= 1000
    return f"{nbytes:.3g} TB"
