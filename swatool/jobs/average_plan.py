"""From open checkpoints and what is asked for to the plan of one average, or of several from one read."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from swatool.averaging.coefficients import coefficient_warnings, needs_float64
from swatool.averaging.plan import Plan, make_plan
from swatool.averaging.schemes import Scheme, informed
from swatool.checkpoints.frozen_statistics import frozen_layers
from swatool.checkpoints.opening import Checkpoint
from swatool.checkpoints.selection import DatedCheckpoint, Selection, select
from swatool.checkpoints.state_dicts import names_an_average
from swatool.errors import MismatchError, OutputError, UsageError, printable
from swatool.jobs.average_output import choose_format, lay_out_average
from swatool.jobs.average_report import AverageJob, scheme_parameters, selection_warnings
from swatool.jobs.average_settings import AverageSettings, choose
from swatool.jobs.hashing import UNKNOWN
from swatool.jobs.provenance import provenance_text
from swatool.jobs.running import METADATA_KEY
from swatool.output.checksums import with_sums
from swatool.output.writing import check_output, check_room_for_all

__all__ = ["Request", "plan_averages"]

OF_AVERAGES = ("posthoc-ema",)  # methods whose checkpoints are averages, which swatool may have made


@dataclass(frozen=True)
class Request:
    """One average that is asked for.

    Attributes:
        output: where it goes.
        settings: what is chosen about it.
        fewest: of how few checkpoints it may be; that of one is a copy in the output's type and format.
    """

    output: str
    settings: AverageSettings
    fewest: int = 2


@dataclass(frozen=True)
class _Chosen:
    """A request, the checkpoints that it is about, and their coefficients."""

    request: Request
    scheme: Scheme
    dated: tuple[DatedCheckpoint, ...]
    coefficients: tuple[float, ...]

    @property
    def wide(self) -> bool:
        """Whether the sums are in float64 because of the coefficients."""
        return self.request.settings.accumulate == "auto" and needs_float64(self.coefficients)


def plan_averages(
    opened: Sequence[Checkpoint],
    requests: Sequence[Request],
    warnings: Sequence[str],
    digests: Mapping[int, str] | None = None,
) -> list[list[AverageJob]]:
    """Decide everything about some averages; each list of jobs shares one plan, and one read.

    Args:
        opened: the checkpoints.
        requests: what is asked for; the requests differ in their selections and schemes only.
        warnings: what deserves attention about the inputs.
        digests: where checksums are asked for, SHA-256 of the checkpoints by their identity; None: they are
            not known yet, and their room is kept.

    Raises:
        UsageError: a request cannot be carried out.
        MismatchError: the checkpoints do not match each other.
        OutputError: an output could not be written.
    """
    chosen = [_choose(opened, request) for request in requests]
    inputs = {key for checkpoint in opened for key in checkpoint.files.keys}
    inputs |= {key for request in requests for key in _named_beside(request.settings)}
    if digests is None:
        digests = {id(one): UNKNOWN for one in opened if requests[0].settings.checksum}
    # What needs wider sums is computed apart, so that it changes nothing of the others.
    groups = [[one for one in chosen if one.wide is wide] for wide in (False, True)]
    found = [_plan_group(opened, group, inputs, warnings, digests) for group in groups if group]
    if len(requests) > 1:
        found = _with_room(found, dry_run=requests[0].settings.dry_run)
    return found


def _with_room(found: list[list[AverageJob]], *, dry_run: bool) -> list[list[AverageJob]]:
    """Refuse averages that do not fit on their disks together; what a dry run would lack is a warning."""
    try:
        check_room_for_all({job.output: job.layout.size for jobs in found for job in jobs})
    except OutputError as error:
        if not dry_run:
            raise
        first, *rest = found[0]
        told = dataclasses.replace(first, warnings=(*first.warnings, f"all together: {error}"))
        return [[told, *rest], *found[1:]]
    return found


def _named_beside(settings: AverageSettings) -> Iterator[tuple[int, int]]:
    """Yield device and inode of what is read besides the checkpoints."""
    for path in (settings.metrics, settings.like):
        if path is not None and os.path.isfile(path):
            status = os.stat(path)
            yield status.st_dev, status.st_ino


def _choose(opened: Sequence[Checkpoint], request: Request) -> _Chosen:
    settings = request.settings
    dated = choose(opened, settings)
    if not settings.allow_duplicates:
        _refuse_duplicates(dated, averages=settings.method in OF_AVERAGES)
    _refuse_mixed_averages(dated)
    if len(dated) < request.fewest:
        raise UsageError(
            f"averaging needs at least two checkpoints, and {len(dated)} is left of {len(opened)} given"
        )
    steps = [one.step for one in dated]
    scheme = informed(settings.scheme(), steps, [one.checkpoint for one in dated])
    return _Chosen(request, scheme, dated, scheme.coefficients(steps))


def _plan_group(
    opened: Sequence[Checkpoint],
    group: Sequence[_Chosen],
    inputs: set[tuple[int, int]],
    warnings: Sequence[str],
    digests: Mapping[int, str],
) -> list[AverageJob]:
    first = group[0].request.settings
    policies = dataclasses.replace(first, accumulate="float64") if group[0].wide else first
    # All of them, in the order that every request has its own in.
    ordered = select(opened, Selection(sort=first.sort))
    used = {id(one.checkpoint) for chosen in group for one in chosen.dated}
    checkpoints = [one.checkpoint for one in ordered if id(one.checkpoint) in used]
    plan = make_plan(checkpoints, [_row(chosen, checkpoints) for chosen in group], policies)
    jobs = []
    for index, chosen in enumerate(group):
        job = _job(chosen, plan, index, opened, warnings, digests)
        jobs.append(_checked(job, chosen.request.settings, inputs))
    return jobs


def _checked(job: AverageJob, settings: AverageSettings, inputs: set[tuple[int, int]]) -> AverageJob:
    """Refuse an output that could not be written; what a dry run would lack room for is a warning."""
    for one in job.plan.checkpoints:
        folder = os.path.dirname(os.path.abspath(job.output.rstrip("/")))
        if os.path.isdir(one.path) and os.path.exists(folder) and os.path.samefile(folder, one.path):
            inside = f"{printable(job.output)} would lie inside of {printable(one.path)}"
            raise UsageError(f"{inside}, which is averaged: choose another -o")
    check_output(
        job.layout,
        job.output,
        overwrite=settings.overwrite,
        inputs=inputs,
        room=not settings.dry_run,
        checksum=settings.checksum,
    )
    if not settings.dry_run:
        return job
    try:
        check_room_for_all({job.output: job.layout.size})
    except OutputError as error:
        return dataclasses.replace(job, warnings=(*job.warnings, str(error)))
    return job


def _row(chosen: _Chosen, checkpoints: Sequence[Checkpoint]) -> list[float | None]:
    """Return the coefficient of each checkpoint; None for those that are not chosen."""
    by_checkpoint: dict[int, float] = {
        id(one.checkpoint): coefficient
        for one, coefficient in zip(chosen.dated, chosen.coefficients, strict=True)
    }
    return [by_checkpoint.get(id(checkpoint)) for checkpoint in checkpoints]


def _job(
    chosen: _Chosen,
    plan: Plan,
    index: int,
    opened: Sequence[Checkpoint],
    warnings: Sequence[str],
    digests: Mapping[int, str],
) -> AverageJob:
    settings, output = chosen.request.settings, chosen.request.output
    dated, scheme, coefficients = chosen.dated, chosen.scheme, chosen.coefficients
    checkpoints = [one.checkpoint for one in dated]
    provenance = provenance_text(
        scheme,
        scheme_parameters(scheme),
        settings,
        list(zip(dated, coefficients, strict=True)),
        digests=digests,
        frozen=frozen_layers(checkpoints),
    )
    steps, paths = [one.step for one in dated], [checkpoint.path for checkpoint in checkpoints]
    notes: Mapping[str, str] = scheme.notes(steps) if hasattr(scheme, "notes") else {}
    layout, layout_warnings = lay_out_average(
        plan, settings, output, checkpoints[-1], {METADATA_KEY: provenance, **notes}
    )
    return AverageJob(
        scheme=scheme,
        dated=dated,
        coefficients=coefficients,
        plan=plan,
        index=index,
        layout=with_sums(layout) if settings.checksum else layout,
        format=choose_format(output, settings),
        output=output,
        device=settings.device,
        threads=settings.workers(),
        digests=digests,
        warnings=(
            *warnings,
            *(warning for checkpoint in checkpoints for warning in checkpoint.warnings),
            *selection_warnings(dated, settings, len(opened)),
            *coefficient_warnings(scheme, coefficients, steps, paths),
            *plan.warnings,
            *layout_warnings,
        ),
    )


def _refuse_mixed_averages(dated: Sequence[DatedCheckpoint]) -> None:
    """Averages of weights that training made, and the weights themselves, are not of one sequence."""
    kinds = {names_an_average(one.checkpoint.key): one.checkpoint for one in dated}
    if len(kinds) > 1:
        found = " and ".join(f"{printable(c.key)} in {printable(c.path)}" for c in kinds.values())
        raise MismatchError(f"weights and averages of weights would be mixed: {found}; choose with --key")


def _refuse_duplicates(dated: Sequence[DatedCheckpoint], *, averages: bool) -> None:
    """Refuse a file that is given twice and, unless they are wanted, averages by swatool."""
    seen: dict[frozenset[tuple[int, int]], str] = {}
    for checkpoint, _ in dated:
        path = printable(checkpoint.path)
        if METADATA_KEY in checkpoint.metadata and not averages:
            raise UsageError(
                f"{path} is itself an average by swatool: leave it out (a pattern such as 'ckpt*' does), or "
                "pass --allow-duplicates"
            )
        if checkpoint.files.keys in seen:
            raise UsageError(
                f"{path} and {seen[checkpoint.files.keys]} are the same file: give it once, or pass "
                "--allow-duplicates to count it twice"
            )
        seen[checkpoint.files.keys] = path
