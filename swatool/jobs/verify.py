"""`verify`: whether an output is whole, finite, as its checksum says, and the average that it claims."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from swatool.averaging.measures import Measuring, plan_measuring
from swatool.checkpoints.opening import Checkpoint, Reading, open_checkpoint
from swatool.errors import CheckFailedError, printable
from swatool.jobs.provenance import Provenance, read_provenance
from swatool.jobs.running import Workers, uncollected
from swatool.jobs.verify_checksums import Checksums, check_files, find_checksums
from swatool.jobs.verify_report import ComparedSources, VerifyReport
from swatool.jobs.verify_sources import Candidates, compare_with_sources, open_candidates
from swatool.report import peak_rss_bytes
from swatool.version import __version__

if TYPE_CHECKING:
    from swatool.averaging.measures import Statistics

__all__ = ["VerifySettings", "check", "verify"]

SHOWN = 5
Paths = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]
Progress = Callable[[int], None]


@dataclass(frozen=True, kw_only=True)
class VerifySettings(Workers):
    """Everything that can be chosen about a verification; the command line's options are these fields.

    Attributes:
        key: which state dict of the output, as `Reading` has it.
        variant: which model of a Hugging Face folder, as `Reading` has it.
        allow_nonfinite: accept NaN and Inf.
        require_checksum: do not accept an output without recorded checksums.
    """

    key: str | None = None
    variant: str | None = None
    allow_nonfinite: bool = False
    require_checksum: bool = False

    def reading(self) -> Reading:
        """Return how the output is read: with all of its names as they are."""
        return Reading(key=self.key, variant=self.variant, keep_prefix=True)


def verify(
    output: str | os.PathLike[str],
    sources: Paths | None = None,
    *,
    settings: VerifySettings | None = None,
    on_plan: Callable[[int], None] | None = None,
    on_progress: Progress | None = None,
    **options: object,
) -> VerifyReport:
    """Read an output again, and compare it with what is known of it.

    >>> report = verify("averaged.safetensors", "run/")
    >>> report.passed, report.failures

    Args:
        output: a file, or a folder that holds one checkpoint.
        sources: checkpoints, patterns and folders, in any order, among which are those that it is said to be
            the average of; None: that is not asked.
        settings: what is chosen; or give its fields as keywords.
        on_plan: is told about how many bytes will be read.
        on_progress: is told, ten times a second, how many bytes have been read.
        options: fields of `VerifySettings`.

    Returns:
        What was found. A check that does not hold is no error: see `passed` and `failures`.

    Raises:
        UsageError: the request is refused.
        CheckpointError: the output, its checksum file or a source is damaged.
    """
    started = time.perf_counter()
    if settings is None:
        settings = VerifySettings(**options)  # type: ignore[arg-type]
    elif options:
        raise TypeError("give either settings or single options, not both")
    with ExitStack() as stack, uncollected():
        job = _open(os.fspath(output), _as_list(sources), settings, stack)
        if on_plan is not None:
            on_plan(job.nbytes)
        return _carry_out(job, settings, _Counter(on_progress), started)


def check(report: VerifyReport) -> None:
    """Raise CheckFailedError if a report says that a check does not hold."""
    if report.failures:
        raise CheckFailedError(f"{printable(report.path)} fails: {'; '.join(report.failures)}")


def _as_list(sources: Paths | None) -> list[str | os.PathLike[str]] | None:
    if sources is None or isinstance(sources, str | os.PathLike):
        return None if sources is None else [sources]
    return list(sources)


@dataclass(frozen=True)
class _Job:
    """Everything that is open, and what will be read.

    Attributes:
        output: what is verified.
        bytes: of its files.
        checksums: recorded ones.
        measuring: of which tensors values are looked at.
        claim: what it says that it is the average of.
        candidates: the sources that were given; None: none were, or nothing is claimed.
        asked: whether any were given.
    """

    output: Checkpoint
    bytes: int
    checksums: Checksums
    measuring: Measuring
    claim: Provenance | None
    candidates: Candidates | None
    asked: bool

    @property
    def nbytes(self) -> int:
        return (
            self.checksums.nbytes + self.measuring.nbytes + (self.candidates.nbytes if self.candidates else 0)
        )


class _Counter:
    """Tells of the bytes of one part of the work after another."""

    def __init__(self, tell: Progress | None) -> None:
        self._tell = tell
        self.before = 0

    def part(self, done: int) -> None:
        if self._tell is not None:
            self._tell(self.before + done)


def _open(
    path: str, sources: list[str | os.PathLike[str]] | None, settings: VerifySettings, stack: ExitStack
) -> _Job:
    output = stack.enter_context(closing(open_checkpoint(path, settings.reading())))
    floats = [name for name, tensor in output.tensors.items() if tensor.dtype.averageable]
    claim = read_provenance(output.metadata, path)
    candidates = None
    if claim is not None and sources is not None:
        candidates = open_candidates(claim, sources, stack)
    return _Job(
        output=output,
        bytes=output.files.size,
        checksums=find_checksums(output),
        measuring=plan_measuring((output,), floats),
        claim=claim,
        candidates=candidates,
        asked=sources is not None,
    )


def _carry_out(job: _Job, settings: VerifySettings, counter: _Counter, started: float) -> VerifyReport:
    threads = settings.workers()
    files = check_files(job.output, job.checksums, threads, counter.part)
    counter.before += job.checksums.nbytes
    nonfinite = _nonfinite(job.measuring, threads, counter.part)
    counter.before += job.measuring.nbytes
    failures = list(files.failures)
    if settings.require_checksum and not job.checksums.path:
        failures.append("no checksum is recorded")
    if nonfinite and not settings.allow_nonfinite:
        names = ", ".join(map(printable, nonfinite[:SHOWN])) + (", ..." if len(nonfinite) > SHOWN else "")
        failures.append(f"there is NaN or Inf in {len(nonfinite):,} tensors, {names}")
    sources: ComparedSources | None = None
    if job.claim is not None and job.candidates is not None:
        sources, found = compare_with_sources(
            job.output, job.claim, job.candidates, threads=threads, progress=counter.part
        )
        failures += found
    elif job.asked:
        failures.append("it does not say which checkpoints it is the average of")
    job.output.files.check_unchanged()
    return VerifyReport(
        version=__version__,
        command="verify",
        path=job.output.path,
        format=job.output.format,
        bytes=job.bytes,
        key=job.output.key,
        tensors=len(job.output.tensors),
        checksum=job.checksums.path or None,
        records=files.records,
        nonfinite=nonfinite,
        sources=sources,
        failures=tuple(failures),
        threads=threads,
        seconds=time.perf_counter() - started,
        bytes_read=job.nbytes,
        peak_rss_bytes=peak_rss_bytes(),
        warnings=(*job.output.warnings, *job.measuring.plan.warnings, *_unlisted(job), *_other_models(job)),
    )


def _unlisted(job: _Job) -> Iterator[str]:
    """Warn of files in the folder of an output that its checksums say nothing of."""
    if job.checksums.others:
        names = ", ".join(map(printable, job.checksums.others[:SHOWN]))
        more = ", ..." if len(job.checksums.others) > SHOWN else ""
        yield f"{printable(job.checksums.path)} does not list {names}{more}"


def _other_models(job: _Job) -> Iterator[str]:
    """Warn of models beside the one that was looked at."""
    if job.output.others:
        names = ", ".join(map(printable, job.output.others[:SHOWN]))
        more = ", ..." if len(job.output.others) > SHOWN else ""
        yield f"values under {names}{more} are not looked at: name such a model with --key"


def _nonfinite(measuring: Measuring, threads: int, progress: Progress) -> tuple[str, ...]:
    """Return the names of tensors in which there is NaN or Inf."""
    with warnings.catch_warnings():
        # Without NumPy, torch says so when it is imported; swatool does not need it.
        warnings.filterwarnings("ignore", message="Failed to initialize NumPy")
        from swatool.averaging.measuring import measure_statistics

    found: dict[str, Statistics] = measure_statistics(measuring, threads=threads, progress=progress)
    return tuple(sorted(name for name, one in found.items() if one.nan or one.inf))
