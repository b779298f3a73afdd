"""`recalibrate-bn`: from a checkpoint, a model and data to a checkpoint with true BatchNorm statistics.

It only wires the wings together: the checkpoint is opened and loaded into the model, the data is run through
it, and the checkpoint is copied to the output with the new statistics in their places.
"""

from __future__ import annotations

import os
import random
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

from swatool.checkpoints.opening import open_checkpoint
from swatool.data.options import Data, DataOptions
from swatool.errors import MismatchError, printable
from swatool.jobs.average_output import OutputOptions, check_place, choose_format
from swatool.jobs.evaluation import evaluate, load_function
from swatool.jobs.named_files import files_named_in
from swatool.jobs.recalibrate_output import Written, new_statistics, write_recalibrated
from swatool.jobs.recalibrate_report import (
    DataReport,
    InputReport,
    RecalibrationReport,
    RecalibrationSeconds,
    data_warnings,
    frozen_warnings,
    verdict,
)
from swatool.jobs.recalibrate_settings import RecalibrateSettings, default_output
from swatool.report import OutputReport, peak_rss_bytes
from swatool.version import __version__

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from swatool.batchnorm.ranks import Ranks
    from swatool.batchnorm.report import BatchNormReport, Progress
    from swatool.checkpoints.opening import Checkpoint

__all__ = ["check_recalibration", "recalibrate_checkpoint"]


def recalibrate_checkpoint(
    checkpoint: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    model: str,
    data: str,
    settings: RecalibrateSettings | None = None,
    on_plan: Callable[[RecalibrationReport], None] | None = None,
    on_passes: Callable[[int], None] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    **options: object,
) -> RecalibrationReport:
    """Recompute the BatchNorm statistics of a checkpoint on data, and write it with them.

    >>> recalibrate_checkpoint("averaged.safetensors", model="my.models:build", data="train.npz:x")

    Args:
        checkpoint: a file that `average` reads.
        output: what to write, in the format that its name tells; it appears whole or not at all. None: see
            `default_output`.
        model: where the model comes from, such as `my.models:build`; its code is run.
        data: where the data comes from, such as `train.npz:x`.
        settings: what is chosen; or give its fields as keywords.
        on_plan: is given what will be done, as the report of a dry run.
        on_passes: is told how often the data will run through the model, before it does.
        on_progress: is told after each batch how far it is.
        options: fields of `RecalibrateSettings`.

    Returns:
        What was done.

    Raises:
        UsageError: the request is refused, or the user's own code failed.
        CheckpointError: the checkpoint is bad.
        DataError: the data is bad, or gives no finite statistics.
        MismatchError: the checkpoint does not fit the model, or the data does not.
        OutputError: the output cannot be written.
    """
    if settings is None:
        settings = RecalibrateSettings(**options)  # type: ignore[arg-type]
    elif options:
        raise TypeError("give either settings or single options, not both")
    target = default_output(checkpoint) if output is None else os.fspath(output)
    hooks = _Hooks(on_passes, on_progress)
    clock = _Clock()
    with ExitStack() as stack:
        device = stack.enter_context(_torch_set_up(settings))
        opened = stack.enter_context(closing(open_checkpoint(checkpoint, settings)))
        inputs = {*opened.files.keys, *files_named_in(model, data, settings.forward, settings.evaluate)}
        nbytes = sum(stored.nbytes for stored in opened.tensors.values())
        chosen = choose_format(target, OutputOptions())
        check_place(target, chosen, settings.overwrite, inputs, nbytes, checksum=settings.checksum)
        from swatool.batchnorm.ranks import ranks_from_environment

        source = stack.enter_context(closing(_open_data(data, settings)))
        _find_functions(settings)  # now rather than after a pass over the data
        ranks = stack.enter_context(ranks_from_environment(device))
        if ranks.size > 1:
            _draw_alike(settings.seed or 0)
        job = _Job(settings, opened, source, _load(model, opened, settings, device), device, ranks)
        report = _planned(job, model, target, clock)
        if on_plan is not None:
            on_plan(report)
        return report if settings.dry_run else _carry_out(job, report, hooks, clock)


def check_recalibration(model: str, data: str, settings: RecalibrateSettings) -> tuple[str, ...]:
    """Build the model, open the data, and find the functions that are named: before there is a checkpoint.

    Returns:
        The names of the model's tensors.

    Raises:
        UsageError: the user's own code failed, or is not there.
        DataError: the data is bad.
    """
    with _torch_set_up(settings), closing(_open_data(data, settings)):
        _find_functions(settings)
        from swatool.models.building import build_model

        return tuple(build_model(model, settings.model_arguments).state_dict())


def _find_functions(settings: RecalibrateSettings) -> None:
    for function, option in ((settings.forward, "--forward"), (settings.evaluate, "--eval")):
        if function is not None:
            load_function(function, option)


def _output_report(output: str, written: Written) -> OutputReport:
    chosen = choose_format(output, OutputOptions())
    return OutputReport(output, written.nbytes, format=chosen, sha256=written.sha256)


@dataclass(frozen=True)
class _Hooks:
    """What the caller wants to be told."""

    on_passes: Callable[[int], None] | None
    on_progress: Callable[[Progress], None] | None


@dataclass(frozen=True)
class _Job:
    """Everything that is open and loaded."""

    settings: RecalibrateSettings
    checkpoint: Checkpoint
    data: Data
    model: nn.Module
    device: torch.device
    ranks: Ranks


class _Clock:
    """Adds up where the time goes."""

    def __init__(self) -> None:
        self._started = self._last = time.perf_counter()

    def lap(self) -> float:
        """Return the seconds since the last lap."""
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        return seconds

    def total(self) -> float:
        """Return the seconds since the beginning."""
        return time.perf_counter() - self._started


@contextmanager
def _torch_set_up(settings: RecalibrateSettings) -> Iterator[torch.device]:
    """Import torch without its noise, and let it use the threads that were asked for."""
    with warnings.catch_warnings():
        # Without NumPy, torch says so when it is imported; swatool does not need it.
        warnings.filterwarnings("ignore", message="Failed to initialize NumPy")
        import torch

        from swatool.averaging.stream import choose_device

    device = choose_device(settings.device)
    threads = torch.get_num_threads()
    torch.set_num_threads(settings.threads or threads)
    try:
        yield device
    finally:
        torch.set_num_threads(threads)


def _draw_alike(seed: int) -> None:
    """Let loaders that shuffle give all processes the same batches, of which each takes its part."""
    import torch

    torch.manual_seed(seed)
    random.seed(seed)


def _open_data(spec: str, settings: RecalibrateSettings) -> Data:
    from swatool.data.opening import open_data

    return open_data(
        spec, DataOptions(**{one.name: getattr(settings, one.name) for one in fields(DataOptions)})
    )


def _load(
    spec: str, checkpoint: Checkpoint, settings: RecalibrateSettings, device: torch.device
) -> nn.Module:
    from swatool.models.building import build_model
    from swatool.models.weights import load_weights

    model = build_model(spec, settings.model_arguments)
    load_weights(model, checkpoint)
    return model.to(device).eval()


def _planned(job: _Job, model: str, output: str, clock: _Clock) -> RecalibrationReport:
    """Return what will be done, as the report of a dry run."""
    from swatool.batchnorm.layers import find_layers

    checkpoint, settings = job.checkpoint, job.settings
    layers = tuple(layer.name for layer in find_layers(job.model, settings.skip).found)
    if settings.strict and not layers:
        raise MismatchError(f"{printable(model)} has no layer to recalibrate, and --strict asks for one")
    return RecalibrationReport(
        version=__version__,
        command="recalibrate-bn",
        dry_run=True,
        checkpoint=InputReport(checkpoint.path, checkpoint.files.size, checkpoint.key),
        output=_output_report(
            output, Written(sum(stored.nbytes for stored in checkpoint.tensors.values()), {})
        ),
        model=model,
        data=DataReport(job.data.name, job.data.samples, {}),
        mode=settings.mode,
        layers=layers,
        batchnorm=None,
        before=None,
        after=None,
        device=str(job.device),
        processes=job.ranks.size,
        seconds=RecalibrationSeconds(load=clock.lap(), total=clock.total()),
        peak_rss_bytes=peak_rss_bytes(),
        warnings=(),
    )


def _carry_out(job: _Job, report: RecalibrationReport, hooks: _Hooks, clock: _Clock) -> RecalibrationReport:
    settings = job.settings
    before = _evaluate(job)
    evaluating = clock.lap()
    found = _recalibrate(job, hooks)
    statistics = new_statistics(job.model, tuple(layer.name for layer in found.layers), job.checkpoint)
    recalibrating = clock.lap()
    if settings.strict and found.unreached:
        raise MismatchError(
            f"the data does not reach {len(found.unreached)} layers, and --strict asks for all:",
            [printable(name) for name in found.unreached],
        )
    after = _evaluate(job)
    evaluating += clock.lap()
    written = Written(report.output.bytes, {})
    if job.ranks.rank == 0:
        written = _write(job, report, found, statistics)
    writing = clock.lap()
    seconds = replace(
        report.seconds,
        evaluate=evaluating,
        recalibrate=recalibrating,
        write=writing,
        total=clock.total(),
    )
    return replace(
        report,
        dry_run=False,
        output=_output_report(report.output.path, written),
        data=replace(report.data, bad=dict(job.data.bad)),
        batchnorm=found,
        before=before,
        after=after,
        seconds=seconds,
        peak_rss_bytes=peak_rss_bytes(),
        warnings=(
            *job.checkpoint.warnings,
            *found.warnings,
            *frozen_warnings(job.checkpoint, report.layers),
            *data_warnings(job.data),
            *verdict(before, after, higher_is_better=settings.higher_is_better),
        ),
    )


def _recalibrate(job: _Job, hooks: _Hooks) -> BatchNormReport:
    import torch

    from swatool.batchnorm.recalibrate import recalibrate_bn

    settings = job.settings
    return recalibrate_bn(
        job.model,
        job.data,
        mode=settings.mode,
        forward=None if settings.forward is None else load_function(settings.forward, "--forward"),
        skip=settings.skip,
        dtype=None if settings.dtype is None else getattr(torch, settings.dtype),
        tolerance=settings.tolerance,
        ranks=job.ranks,
        on_passes=hooks.on_passes,
        on_progress=hooks.on_progress,
    )


def _evaluate(job: _Job) -> Mapping[str, float] | None:
    if job.settings.evaluate is None or job.ranks.rank != 0:
        return None
    return evaluate(job.model, job.settings.evaluate)


def _write(
    job: _Job, report: RecalibrationReport, found: BatchNormReport, statistics: Mapping[str, Tensor]
) -> Written:
    provenance = {
        "model": report.model,
        "data": report.data.name,
        "mode": found.mode,
        "samples": found.samples,
        "batches": found.batches,
        "layers": [layer.name for layer in found.layers],
    }
    return write_recalibrated(
        job.checkpoint,
        statistics,
        provenance,
        report.output.path,
        overwrite=job.settings.overwrite,
        checksum=job.settings.checksum,
        threads=job.settings.workers(),
    )
