"""`average`: the main job, from the checkpoints of a run to one averaged safetensors file.

It only wires the wings together: checkpoints are opened and chosen, planned, streamed and published.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from swatool.averaging.plan import Plan, Policies, make_plan
from swatool.averaging.schemes import Scheme, make_scheme
from swatool.checkpoints.frozen_statistics import frozen_layers
from swatool.checkpoints.opening import Checkpoint, Reading, open_checkpoint
from swatool.checkpoints.selection import DatedCheckpoint, Selection, expand, select
from swatool.checkpoints.state_dicts import names_an_average
from swatool.errors import MismatchError, UsageError, printable
from swatool.jobs.average_report import (
    AverageJob,
    finished_report,
    planned_report,
    selection_warnings,
    weight_warnings,
)
from swatool.jobs.running import METADATA_KEY, Running
from swatool.output.layout import Layout, OutputTensor
from swatool.output.publish import check_target
from swatool.output.safetensors_file import lay_out
from swatool.output.writing import writing
from swatool.report import Report, Seconds
from swatool.version import __version__

if TYPE_CHECKING:
    from swatool.averaging.stream import StreamResult

__all__ = ["DEFAULT_OUTPUT", "AverageSettings", "average"]

DEFAULT_OUTPUT = "averaged.safetensors"


@dataclass(frozen=True, kw_only=True)
class AverageSettings(Reading, Selection, Policies, Running):
    """Everything that can be chosen about an average; the command line's options are these fields.

    Attributes:
        method: the scheme; None is `weights` if weights are given, else `swa`.
        decay: of `ema`.
        debias: of `ema`.
        weights: of `weights`.
        normalize: of `weights`.
        allow_duplicates: accept the same file twice and earlier outputs of swatool.
    """

    method: str | None = None
    decay: float | None = None
    debias: bool | None = None
    weights: tuple[float, ...] | None = None
    normalize: bool | None = None
    allow_duplicates: bool = False

    def __post_init__(self) -> None:
        for group in (Reading, Selection, Policies, Running):
            group.__post_init__(self)

    def scheme(self) -> Scheme:
        """Return the scheme that is asked for; UsageError if its parameters do not fit it."""
        method = self.method or ("swa" if self.weights is None else "weights")
        names = ("decay", "debias", "weights", "normalize")
        return make_scheme(method, {name: getattr(self, name) for name in names})


def average(
    checkpoints: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    output: str | os.PathLike[str] = DEFAULT_OUTPUT,
    *,
    settings: AverageSettings | None = None,
    on_plan: Callable[[Report], None] | None = None,
    on_progress: Callable[[int], None] | None = None,
    **options: object,
) -> Report:
    """Average checkpoints into one safetensors file.

    >>> average(["run/ckpt-100.pt", "run/ckpt-200.pt"], "averaged.safetensors", method="ema", decay=0.8)

    Args:
        checkpoints: files, glob patterns and folders, in any order.
        output: the file to write; it appears whole or not at all.
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
    started = time.perf_counter()
    if settings is None:
        settings = AverageSettings(**options)  # type: ignore[arg-type]
    elif options:
        raise TypeError("give either settings or single options, not both")
    scheme = settings.scheme()
    given = [checkpoints] if isinstance(checkpoints, str | os.PathLike) else checkpoints
    with _uncollected(), _opened(expand(given), settings) as opened:
        job = _prepare(opened, scheme, settings, os.fspath(output))
        planned = time.perf_counter()
        report = planned_report(job, Seconds(plan=planned - started, total=planned - started))
        if on_plan is not None:
            on_plan(report)
        if settings.dry_run:
            return report
        return _carry_out(job, settings, report, started, on_progress)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Stop the search for garbage cycles, which would walk the descriptions of all tensors in vain."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def _opened(paths: Sequence[str], settings: AverageSettings) -> Iterator[list[Checkpoint]]:
    opened: list[Checkpoint] = []
    try:
        for path in paths:
            opened.append(open_checkpoint(path, settings))
        yield opened
    finally:
        for checkpoint in opened:
            checkpoint.close()


def _prepare(
    opened: Sequence[Checkpoint], scheme: Scheme, settings: AverageSettings, output: str
) -> AverageJob:
    dated = select(opened, settings)
    if not settings.allow_duplicates:
        _refuse_duplicates(dated)
    _refuse_mixed_averages(dated)
    if len(dated) < 2:
        raise UsageError(
            f"averaging needs at least two checkpoints, and {len(dated)} is left of {len(opened)} given"
        )
    steps = [one.step for one in dated]
    coefficients = scheme.coefficients(steps)
    plan = make_plan([one.checkpoint for one in dated], coefficients, settings)
    frozen = frozen_layers(plan.checkpoints)
    layout = _lay_out(plan, dated, scheme, settings, frozen)
    check_target(
        output,
        overwrite=settings.overwrite,
        inputs={key for checkpoint in opened for key in checkpoint.files.keys},
        nbytes=layout.size,
    )
    warnings = (
        *selection_warnings(dated, settings.sort),
        *weight_warnings(dated, scheme, coefficients),
        *plan.warnings,
    )
    workers = settings.workers()
    return AverageJob(scheme, dated, plan, layout, output, settings.device, workers, warnings)


def _refuse_mixed_averages(dated: Sequence[DatedCheckpoint]) -> None:
    """Averages of weights that training made, and the weights themselves, are not of one sequence."""
    kinds = {names_an_average(one.checkpoint.key): one.checkpoint for one in dated}
    if len(kinds) > 1:
        found = " and ".join(f"{printable(c.key)} in {printable(c.path)}" for c in kinds.values())
        raise MismatchError(f"weights and averages of weights would be mixed: {found}; choose with --key")


def _refuse_duplicates(dated: Sequence[DatedCheckpoint]) -> None:
    seen: dict[frozenset[tuple[int, int]], str] = {}
    for checkpoint, _ in dated:
        path = printable(checkpoint.path)
        if METADATA_KEY in checkpoint.metadata:
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


def _lay_out(
    plan: Plan,
    dated: Sequence[DatedCheckpoint],
    scheme: Scheme,
    settings: AverageSettings,
    frozen: Sequence[str],
) -> Layout:
    tensors = {t.name: OutputTensor(t.name, t.treatment.dtype, t.shape) for t in plan.tensors}
    aliases: dict[str, str] = {}
    if settings.tied == "drop":
        aliases = dict(plan.ties)
    else:
        tensors |= {name: tensors[first]._replace(name=name) for name, first in plan.ties.items()}
    provenance: dict[str, object] = {
        "version": __version__,
        "method": scheme.name,
        "parameters": dataclasses.asdict(scheme),  # type: ignore[call-overload]
        "sources": [
            {
                "name": os.path.basename(checkpoint.path),
                "size": checkpoint.files.size,
                "step": step,
                "coefficient": coefficient,
            }
            for (checkpoint, step), coefficient in zip(dated, plan.coefficients, strict=True)
        ],
    }
    if frozen:
        provenance["frozen_statistics"] = frozen
    # A tensor may be called anything; what the file says of itself comes first.
    metadata = {**aliases, "format": "pt", METADATA_KEY: json.dumps(provenance)}
    return lay_out(tensors.values(), metadata)


def _carry_out(
    job: AverageJob,
    settings: AverageSettings,
    report: Report,
    started: float,
    on_progress: Callable[[int], None] | None,
) -> Report:
    with writing(job.layout, job.output, overwrite=settings.overwrite) as pending:
        result, device, seconds = _stream(job, settings, pending.write, on_progress)
        for checkpoint, _ in job.dated:
            checkpoint.files.check_unchanged()
        fsync = pending.publish()
    done = Seconds(report.seconds.plan, seconds, fsync, time.perf_counter() - started)
    return finished_report(job, report, result, device, done)


def _stream(
    job: AverageJob,
    settings: AverageSettings,
    write: Callable[[int, memoryview], None],
    on_progress: Callable[[int], None] | None,
) -> tuple[StreamResult, str, float]:
    with warnings.catch_warnings():
        # Without NumPy, torch says so when it is imported; swatool does not need it.
        warnings.filterwarnings("ignore", message="Failed to initialize NumPy")
        from swatool.averaging.stream import choose_device, stream

    device = choose_device(settings.device)
    started = time.perf_counter()
    result = stream(
        job.plan,
        job.layout,
        write,
        device=device,
        threads=job.threads,
        allow_nonfinite=settings.allow_nonfinite,
        progress=on_progress,
    )
    return result, str(device), time.perf_counter() - started
