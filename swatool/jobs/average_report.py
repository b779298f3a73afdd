"""From an average that is planned, or done, to its report and its warnings."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from swatool.averaging.coefficients import figures
from swatool.averaging.plan import Plan
from swatool.averaging.schemes import Scheme
from swatool.checkpoints.opening import Checkpoint
from swatool.checkpoints.selection import STEP_FIELDS, DatedCheckpoint, Selection
from swatool.errors import listed, printable
from swatool.output.layout import Layout
from swatool.report import (
    CheckpointReport,
    Estimate,
    FiguresReport,
    OutputReport,
    Report,
    Seconds,
    TensorsReport,
    peak_rss_bytes,
)
from swatool.version import __version__

if TYPE_CHECKING:
    from swatool.averaging.stream import StreamResult

__all__ = [
    "AverageJob",
    "finished_report",
    "planned_report",
    "scheme_parameters",
    "selection_warnings",
]


@dataclass(frozen=True)
class AverageJob:
    """One output of a plan, together with what was decided around it.

    Attributes:
        scheme: that gave the coefficients.
        dated: the checkpoints that this output averages, oldest first.
        coefficients: their factors.
        plan: what is computed, perhaps for other outputs, too.
        index: which of the plan's outputs this is.
        layout, format, output, device, threads: how and where it is made.
        warnings: what deserves attention.
        digests: where checksums are asked for, SHA-256 of each checkpoint by its identity.
    """

    scheme: Scheme
    dated: tuple[DatedCheckpoint, ...]
    coefficients: tuple[float, ...]
    plan: Plan
    index: int
    layout: Layout
    format: str
    output: str
    device: str
    threads: int
    warnings: tuple[str, ...]
    digests: Mapping[int, str]

    @cached_property
    def bytes_read(self) -> int:
        """What is read of the checkpoints, their headers aside."""
        return sum(t.numel * one.dtype.itemsize for t in self.plan.tensors for one in t.treatment.inputs)


def planned_report(job: AverageJob, seconds: Seconds, estimate: Estimate | None = None) -> Report:
    """Return what will be done, as the report of a dry run."""
    tensors = job.plan.tensors
    averaged = [t for t in tensors if t.treatment.averages]
    dtypes: Counter[str] = Counter()
    for tensor in averaged:
        dtypes[tensor.treatment.dtype.name] += tensor.numel * tensor.treatment.dtype.itemsize
    return Report(
        version=__version__,
        command="average",
        dry_run=True,
        method=job.scheme.name,
        parameters=scheme_parameters(job.scheme),
        checkpoints=tuple(
            CheckpointReport(checkpoint.path, step, checkpoint.files.size, coefficient, checkpoint.key)
            for (checkpoint, step), coefficient in zip(job.dated, job.coefficients, strict=True)
        ),
        output=OutputReport(
            job.output,
            job.layout.size,
            {file.name: file.nbytes for file in job.layout.files if job.layout.is_folder},
            job.format,
        ),
        figures=FiguresReport(
            **dataclasses.asdict(figures(job.coefficients, [step for _, step in job.dated]))
        ),
        tensors=TensorsReport(
            averaged=tuple(t.name for t in averaged),
            copied=tuple(t.name for t in tensors if not t.treatment.averages),
            dropped=(*job.plan.dropped, *job.plan.skipped),
            tied=tuple(job.plan.ties),
        ),
        dtype=dict(dtypes),
        device=job.device,
        threads=job.threads,
        seconds=seconds,
        bytes_read=job.bytes_read,
        bytes_written=job.layout.size,
        peak_rss_bytes=peak_rss_bytes(),
        merge_signal_kept=None,
        warnings=job.warnings,
        estimate=estimate,
        checksum=bool(job.digests),
    )


def finished_report(
    job: AverageJob,
    planned: Report,
    result: StreamResult,
    *,
    device: str,
    seconds: Seconds,
    digests: Mapping[str, str],
) -> Report:
    """Return what was done, from the report of the plan and the outcome of carrying it out.

    Args:
        job: what was to be done.
        planned: the report of the plan.
        result: what happened to the blocks.
        device: where the arithmetic was done.
        seconds: where the time went.
        digests: SHA-256 of the output's files by name; nothing if that was not asked for.
    """
    checkpoints = [
        dataclasses.replace(one, sha256=job.digests.get(id(dated.checkpoint)))
        for one, dated in zip(planned.checkpoints, job.dated, strict=True)
    ]
    return dataclasses.replace(
        planned,
        dry_run=False,
        checkpoints=tuple(checkpoints),
        output=dataclasses.replace(planned.output, sha256=digests),
        tensors=dataclasses.replace(planned.tensors, differing=tuple(sorted(result.differing))),
        device=device,
        seconds=seconds,
        bytes_read=result.bytes_read,
        bytes_written=result.bytes_written + job.layout.fixed_nbytes,
        peak_rss_bytes=peak_rss_bytes(),
        merge_signal_kept=_signal_kept(result),
        warnings=(*planned.warnings, *_result_warnings(result)),
    )


def selection_warnings(dated: Sequence[DatedCheckpoint], selection: Selection, given: int) -> Iterator[str]:
    """Yield what deserves attention about the choice and the order of the checkpoints, of so many given."""
    for name in ("first", "last"):
        wanted = getattr(selection, name)
        if wanted is not None and wanted > given:
            yield f"--{name} {wanted} is more than the {given} checkpoints that there are"
    keys = sorted({one.checkpoint.key for one in dated})
    if len(keys) > 1:
        yield f"the state dicts were found under different keys: {listed(keys)}"
    opaque = [one.checkpoint for one in dated if not set(STEP_FIELDS).isdisjoint(one.checkpoint.opaque)]
    if opaque and not set(STEP_FIELDS) & set(opaque[0].fields):
        yield (
            f"{printable(opaque[0].path)} has a step that is no plain number (NumPy's? or pickled, as in a "
            "distributed checkpoint?) and is not read; the numbers in the files' names are used"
        )
    equal = _repeated_step([one.checkpoint for one in dated])
    if equal and len(dated) > 1 and any(one.step is not None for one in dated):
        yield f"{equal} is stored in all checkpoints alike, so the numbers in their names are their steps"
    if selection.sort != "step":
        return
    if any(one.step is None for one in dated):
        yield "no training step is known for some checkpoints, so they are ordered by name"
        return
    repeated = [step for step, count in Counter(one.step for one in dated).items() if count > 1]
    if repeated:
        yield f"several checkpoints have the same step ({repeated[0]}); those are ordered by name"


def _repeated_step(checkpoints: Sequence[Checkpoint]) -> str:
    """Return the stored step that all checkpoints have alike, while none tells them apart; empty if none."""
    alike = ""
    for field in STEP_FIELDS:
        stored = [one.fields.get(field) for one in checkpoints]
        if None not in stored and len(set(stored)) > 1:
            return ""
        if None not in stored and not alike:
            alike = f"{field} {stored[0]:g}"
    return alike


def scheme_parameters(scheme: Scheme) -> dict[str, object]:
    """Return the parameters of a scheme that play a part."""
    given: dict[str, object] = dataclasses.asdict(scheme)  # type: ignore[call-overload]
    return {name: value for name, value in given.items() if value is not None}


def _signal_kept(result: StreamResult) -> float | None:
    """Share of what averaging changed that the output's type keeps: 1 - |cast(avg) - avg| / |avg - last|."""
    rounding, change = result.signal.rounding, result.signal.change
    if not change or not math.isfinite(rounding + change):
        return None
    return 1 - math.sqrt(rounding / change)


def _result_warnings(result: StreamResult) -> Iterator[str]:
    # BatchNorm counts its batches, so that these differ always and matter to nobody.
    differing = sorted(name for name in result.differing if not name.endswith("num_batches_tracked"))
    if differing:
        names = ", ".join(map(printable, differing[:3]))
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        yield f"integer and bool tensors are not averaged, and differ between the checkpoints: {names}{more}"
    if result.nonfinite:
        names = ", ".join(map(printable, sorted(result.nonfinite)[:5]))
        yield f"there is NaN or Inf in {len(result.nonfinite)} tensors: {names}"
    kept = _signal_kept(result)
    if kept is not None and kept < 0.5:
        yield (
            f"rounding to the output's type keeps only {kept:.0%} of what averaging changed; pass "
            "--dtype float32"
        )
