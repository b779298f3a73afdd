"""`diff`: how two checkpoints differ, by name, shape, type and value."""

from __future__ import annotations

import fnmatch
import math
import os
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from swatool.averaging.measures import Measuring, plan_measuring
from swatool.checkpoints.opening import Checkpoint, Reading, open_checkpoint
from swatool.errors import CheckFailedError, UsageError, printable
from swatool.jobs.diff_report import (
    ComparedCheckpoint,
    DiffReport,
    DtypeDifference,
    ShapeDifference,
    TensorDifference,
)
from swatool.jobs.running import Workers, uncollected
from swatool.report import peak_rss_bytes
from swatool.version import __version__

if TYPE_CHECKING:
    from swatool.averaging.measuring import Differences

__all__ = ["DiffSettings", "check", "diff"]


@dataclass(frozen=True, kw_only=True)
class DiffSettings(Reading, Workers):
    """Everything that can be chosen about a comparison; the command line's options are these fields.

    Attributes:
        key_b: as `key`, for the second checkpoint, if it is another one there.
        exclude: glob patterns of names that are left out.
        tolerance: largest relative L2 difference that a tensor may have; 0 is equal values.
    """

    key_b: str | None = None
    exclude: tuple[str, ...] = ()
    tolerance: float | None = None

    def __post_init__(self) -> None:
        for group in (Reading, Workers):
            group.__post_init__(self)
        if isinstance(self.exclude, str):
            raise UsageError("exclude must be a tuple of patterns, not one text")
        if self.tolerance is not None and not 0 <= self.tolerance < math.inf:
            raise UsageError(f"--tolerance must be a number from 0 on, not {self.tolerance}")


def diff(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    *,
    settings: DiffSettings | None = None,
    on_plan: Callable[[int], None] | None = None,
    on_progress: Callable[[int], None] | None = None,
    **options: object,
) -> DiffReport:
    """Compare two checkpoints.

    >>> report = diff("before.pt", "after.safetensors", tolerance=1e-6)
    >>> report.passed, report.total.rel_l2, [one.name for one in report.beyond]

    Args:
        a: a file, or a folder that holds one checkpoint.
        b: another one, of any format.
        settings: what is chosen; or give its fields as keywords, as in the example.
        on_plan: is told how many bytes will be read.
        on_progress: is told, ten times a second, how many bytes have been read.
        options: fields of `DiffSettings`.

    Returns:
        What was found. Differences are no errors, and neither is a tolerance that is exceeded: see `passed`.

    Raises:
        UsageError: the request is refused.
        CheckpointError: a checkpoint is bad.
        MismatchError: a prefix that should be taken off is not on every name.
    """
    started = time.perf_counter()
    if settings is None:
        settings = DiffSettings(**options)  # type: ignore[arg-type]
    elif options:
        raise TypeError("give either settings or single options, not both")
    reading_b = settings if settings.key_b is None else replace(settings, key=settings.key_b)
    with uncollected():
        opened_a = open_checkpoint(a, settings)
        try:
            opened_b = open_checkpoint(b, reading_b)
            try:
                report = _compare(opened_a, opened_b, settings, on_plan, on_progress)
            finally:
                opened_b.close()
        finally:
            opened_a.close()
    return replace(report, seconds=time.perf_counter() - started)


def check(report: DiffReport) -> None:
    """Raise CheckFailedError if a report says that a tolerance was exceeded."""
    if report.passed is not False:
        return
    worst = [
        f"{len(report.beyond):,} of {len(report.tensors):,} tensors, the worst {printable(one.name)} by "
        f"{one.difference.rel_l2:.6g}"
        for one in report.beyond[:1]
    ]
    counts = (
        ("names only in A", len(report.only_in_a)),
        ("names only in B", len(report.only_in_b)),
        ("shapes that differ", len(report.shapes)),
    )
    found = [*worst, *(f"{what}: {count:,}" for what, count in counts if count)]
    raise CheckFailedError(
        f"{printable(report.b.path)} differs from {printable(report.a.path)} by more than the tolerance of "
        f"{report.tolerance:g}: {'; '.join(found)}"
    )


def _compare(
    a: Checkpoint,
    b: Checkpoint,
    settings: DiffSettings,
    on_plan: Callable[[int], None] | None,
    on_progress: Callable[[int], None] | None,
) -> DiffReport:
    excluded = _excluded({**a.tensors, **b.tensors}, settings.exclude)
    left_out = set(excluded)
    common = [name for name in a.tensors if name in b.tensors and name not in left_out]
    shapes = [name for name in common if a.tensors[name].shape != b.tensors[name].shape]
    comparable = [name for name in common if a.tensors[name].shape == b.tensors[name].shape]
    measuring = plan_measuring((a, b), comparable)
    if on_plan is not None:
        on_plan(measuring.nbytes)
    found = _measure(measuring, settings, on_progress)
    for checkpoint in (a, b):
        checkpoint.files.check_unchanged()
    tensors = [TensorDifference(name, found.tensors[name]) for name in comparable]
    tensors.sort(key=lambda one: (-one.difference.rel_l2, -one.difference.max_abs))
    report = DiffReport(
        version=__version__,
        command="diff",
        a=_compared(a),
        b=_compared(b),
        only_in_a=tuple(name for name in a.tensors if name not in b.tensors and name not in left_out),
        only_in_b=tuple(name for name in b.tensors if name not in a.tensors and name not in left_out),
        shapes=tuple(ShapeDifference(n, a.tensors[n].shape, b.tensors[n].shape) for n in shapes),
        dtypes=tuple(
            DtypeDifference(n, a.tensors[n].dtype.name, b.tensors[n].dtype.name)
            for n in common
            if a.tensors[n].dtype is not b.tensors[n].dtype
        ),
        excluded=excluded,
        tensors=tuple(tensors),
        total=found.total,
        identical=sum(not one.difference.differing for one in tensors),
        bit_identical=False,
        tolerance=settings.tolerance,
        passed=None,
        threads=settings.workers(),
        seconds=0.0,
        bytes_read=measuring.nbytes,
        peak_rss_bytes=peak_rss_bytes(),
        warnings=(*a.warnings, *b.warnings, *measuring.plan.warnings),
    )
    return _judged(report)


def _excluded(names: Iterable[str], patterns: Sequence[str]) -> tuple[str, ...]:
    found: set[str] = set()
    names = list(names)
    for pattern in patterns:
        matches = fnmatch.filter(names, pattern)
        if not matches:
            raise UsageError(f"--exclude {printable(pattern)} matches no tensor")
        found.update(matches)
    return tuple(name for name in names if name in found)


def _measure(
    measuring: Measuring, settings: DiffSettings, on_progress: Callable[[int], None] | None
) -> Differences:
    with warnings.catch_warnings():
        # Without NumPy, torch says so when it is imported; swatool does not need it.
        warnings.filterwarnings("ignore", message="Failed to initialize NumPy")
        from swatool.averaging.measuring import measure_differences

    return measure_differences(measuring, threads=settings.workers(), progress=on_progress)


def _compared(checkpoint: Checkpoint) -> ComparedCheckpoint:
    return ComparedCheckpoint(
        path=checkpoint.path,
        format=checkpoint.format,
        bytes=checkpoint.files.size,
        key=checkpoint.key,
        prefix=checkpoint.prefix,
        tensors=len(checkpoint.tensors),
    )


def _judged(report: DiffReport) -> DiffReport:
    """Add to a report what follows from it."""
    alike = not (report.only_in_a or report.only_in_b or report.shapes)
    return replace(
        report,
        bit_identical=alike and not report.dtypes and all(one.difference.same_bits for one in report.tensors),
        passed=None if report.tolerance is None else alike and not report.beyond,
    )
