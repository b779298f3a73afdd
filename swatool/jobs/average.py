"""`average`: the main job, from the checkpoints of a run to one averaged checkpoint, or several.

It only wires the wings together: checkpoints are opened, planned, streamed and published.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from swatool.checkpoints.opening import Checkpoint, Reading, open_checkpoint
from swatool.checkpoints.selection import expand, passed_over
from swatool.jobs.average_estimate import estimated
from swatool.jobs.average_output import choose_format
from swatool.jobs.average_plan import Request, plan_averages
from swatool.jobs.average_report import AverageJob, finished_report, planned_report
from swatool.jobs.average_settings import DEFAULT_OUTPUT, AverageSettings
from swatool.jobs.hashing import hash_checkpoints
from swatool.jobs.running import uncollected
from swatool.output.writing import Pending, publish_all, writing
from swatool.report import Report, Seconds

if TYPE_CHECKING:
    from swatool.averaging.stream import StreamResult

__all__ = ["DEFAULT_OUTPUT", "AverageSettings", "Request", "average", "average_all"]

Paths = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]


def average(
    checkpoints: Paths,
    output: str | os.PathLike[str] = DEFAULT_OUTPUT,
    *,
    settings: AverageSettings | None = None,
    on_plan: Callable[[Report], None] | None = None,
    on_progress: Callable[[int], None] | None = None,
    **options: object,
) -> Report:
    """Average checkpoints into one file, or one folder.

    >>> average(["run/ckpt-100.pt", "run/ckpt-200.pt"], "averaged.safetensors", method="ema", decay=0.8)

    Args:
        checkpoints: files, glob patterns and folders, in any order.
        output: what to write; it appears whole or not at all.
        settings: what is chosen; or give its fields as keywords, as in the example.
        on_plan: is given the plan, as the report of a dry run, before the first weight is read.
        on_progress: is told, ten times a second, how many bytes have been read.
        options: fields of `AverageSettings`.

    Returns:
        What was done.

    Raises:
        UsageError: the request is refused, before anything is read.
        CheckpointError: an input is bad, or the result would hold NaN or Inf.
        MismatchError: the checkpoints do not match each other.
        OutputError: the output cannot be written.
    """
    if settings is None:
        settings = AverageSettings(**options)  # type: ignore[arg-type]
    elif options:
        raise TypeError("give either settings or single options, not both")
    (report,) = average_all(
        checkpoints,
        [Request(os.fspath(output), settings)],
        on_plan=None if on_plan is None else lambda reports: on_plan(reports[0]),
        on_progress=on_progress,
    )
    return report


def average_all(
    checkpoints: Paths,
    requests: Sequence[Request],
    *,
    on_plan: Callable[[Sequence[Report]], None] | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> list[Report]:
    """Make several averages of the same checkpoints, which are read once; all are published, or none.

    Args:
        checkpoints: files, glob patterns and folders, in any order.
        requests: what to make; the requests differ in their selections and schemes only.
        on_plan: is given the plans, as the reports of a dry run, before the first weight is read.
        on_progress: is told, ten times a second, how many bytes have been read.

    Returns:
        What was done for each request.

    Raises:
        as `average`.
    """
    started = time.perf_counter()
    settings = requests[0].settings
    for request in requests:  # what can be refused before anything is read
        request.settings.scheme()
        choose_format(request.output, request.settings)
    given = [checkpoints] if isinstance(checkpoints, str | os.PathLike) else list(checkpoints)
    with uncollected(), _opened(expand(given), settings) as opened:
        groups = plan_averages(opened, requests, tuple(passed_over(given)))
        planned = time.perf_counter() - started
        reports = {
            job.output: planned_report(
                job,
                Seconds(plan=planned, total=planned),
                estimated(job, planned) if settings.dry_run else None,
            )
            for jobs in groups
            for job in jobs
        }
        if on_plan is not None:
            on_plan([reports[request.output] for request in requests])
        if not settings.dry_run:
            hashed = _Hashed()
            if settings.checksum:
                hashed = _hash(groups, settings.workers(), on_progress)
                groups = plan_averages(opened, requests, tuple(passed_over(given)), hashed.digests)
            reports = _carry_out(groups, settings, reports, started, hashed, on_progress)
        return [reports[request.output] for request in requests]


@dataclass(frozen=True)
class _Hashed:
    """What came of reading the checkpoints for their checksums.

    Attributes:
        digests: by the checkpoint's identity.
        nbytes: that were read.
        seconds: that it took.
    """

    digests: Mapping[int, str] = field(default_factory=dict)
    nbytes: int = 0
    seconds: float = 0.0

    def continued(self, progress: Callable[[int], None] | None) -> Callable[[int], None] | None:
        """Return what tells of bytes that are read after these."""
        return None if progress is None else lambda done: progress(self.nbytes + done)


def _hash(
    groups: Sequence[Sequence[AverageJob]], threads: int, on_progress: Callable[[int], None] | None
) -> _Hashed:
    started = time.perf_counter()
    used = {id(one): one for jobs in groups for one in jobs[0].plan.checkpoints}
    found = hash_checkpoints(list(used.values()), threads, on_progress)
    nbytes = sum(one.files.size for one in used.values())
    return _Hashed(dict(zip(used, found, strict=True)), nbytes, time.perf_counter() - started)


@contextmanager
def _opened(paths: Sequence[str], reading: Reading) -> Iterator[list[Checkpoint]]:
    opened: list[Checkpoint] = []
    try:
        for path in paths:
            opened.append(open_checkpoint(path, reading))
        yield opened
    finally:
        for checkpoint in opened:
            checkpoint.close()


def _carry_out(
    groups: Sequence[Sequence[AverageJob]],
    settings: AverageSettings,
    reports: dict[str, Report],
    started: float,
    hashed: _Hashed,
    on_progress: Callable[[int], None] | None,
) -> dict[str, Report]:
    """Stream each group of jobs, and publish the outputs of all."""
    with ExitStack() as stack:
        pending: list[Pending] = []
        done = []
        for jobs in groups:
            begun = [
                stack.enter_context(
                    writing(
                        job.layout,
                        job.output,
                        overwrite=settings.overwrite,
                        checksum=settings.checksum,
                        threads=job.threads,
                    )
                )
                for job in jobs
            ]
            pending += begun
            done.append(_stream(jobs, begun, settings, hashed.continued(on_progress)))
        sealing = time.perf_counter()
        for one in pending:
            one.seal()
        checksum = hashed.seconds + time.perf_counter() - sealing if settings.checksum else 0.0
        for jobs in groups:
            for checkpoint in jobs[0].plan.checkpoints:
                checkpoint.files.check_unchanged()
        fsync = publish_all(pending)
    total = time.perf_counter() - started
    finished = {}
    made = iter(pending)
    for jobs, streamed in zip(groups, done, strict=True):
        for job, result in zip(jobs, streamed.results, strict=True):
            planned = reports[job.output]
            finished[job.output] = finished_report(
                job,
                planned,
                result,
                device=streamed.device,
                seconds=Seconds(planned.seconds.plan, streamed.seconds, fsync, total, checksum),
                digests=next(made).digests,
            )
    return finished


@dataclass(frozen=True)
class _Streamed:
    """What came of streaming one plan."""

    results: tuple[StreamResult, ...]
    device: str
    seconds: float


def _stream(
    jobs: Sequence[AverageJob],
    pending: Sequence[Pending],
    settings: AverageSettings,
    on_progress: Callable[[int], None] | None,
) -> _Streamed:
    with warnings.catch_warnings():
        # Without NumPy, torch says so when it is imported; swatool does not need it.
        warnings.filterwarnings("ignore", message="Failed to initialize NumPy")
        from swatool.averaging.stream import Target, choose_device, stream

    device = choose_device(settings.device)
    started = time.perf_counter()
    results = stream(
        jobs[0].plan,
        [Target(job.layout, one.write) for job, one in zip(jobs, pending, strict=True)],
        device=device,
        threads=jobs[0].threads,
        allow_nonfinite=settings.allow_nonfinite,
        progress=on_progress,
    )
    return _Streamed(results, str(device), time.perf_counter() - started)
