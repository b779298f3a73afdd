"""Recomputing the running statistics of a model's BatchNorm layers; all else stays as it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from swatool.batchnorm.batches import Batch, Forward
from swatool.batchnorm.borrowed import BorrowedModel
from swatool.batchnorm.exact import recalibrate_exactly
from swatool.batchnorm.layers import Layer, Layers, find_layers
from swatool.batchnorm.passes import Outcome, Run, hooked, run_pass
from swatool.batchnorm.ranks import SINGLE, Ranks
from swatool.batchnorm.report import BatchNormReport, LayerReport, Progress, compare
from swatool.batchnorm.taking import Taker
from swatool.batchnorm.torch_mode import recalibrate_like_torch
from swatool.errors import DataError, UsageError, listed, printable

__all__ = ["MODES", "recalibrate_bn"]

MODES = ("batch", "exact", "torch")


def recalibrate_bn(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    mode: str = "batch",
    forward: Forward | None = None,
    skip: Sequence[str] = (),
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    tolerance: float | None = None,
    ranks: Ranks = SINGLE,
    on_passes: Callable[[int], object] | None = None,
    on_progress: Callable[[Progress], object] | None = None,
) -> BatchNormReport:
    """Recompute the running statistics of BatchNorm and InstanceNorm layers in place.

    After success only they have changed, and after an exception nothing: buffers, modes, momenta, hooks and
    the state of torch's random numbers are as before.

        report = swatool.recalibrate_bn(model, loader, mode="exact")

    Args:
        model: is changed in place.
        batches: tensors, tuples or lists whose first item is the input, or mappings of keyword arguments,
            with samples along dimension 0. Iterated over once per pass.
        mode: how the inputs of the layers come about.
            `batch`: one pass; each layer normalises by the moments of the batch, as in training. The larger
            the batches, the closer to `exact`.
            `exact`: each layer is final before those that depend on it are looked at; a pass for each level
            of them. Does not depend on the sizes of the batches.
            `torch`: bit for bit what `torch.optim.swa_utils.update_bn` gives. All batches weigh the same,
            and what differs between them is not seen.
        forward: called with model and batch in place of the model.
        skip: patterns, as of file names, of the names of layers that are left alone.
        device: where the model is run; by default where it is.
        dtype: what the model is run in; by default float32 for narrower parameters, except in mode `torch`,
            and otherwise as it is. Moments are float64, and rounded once to the type of the buffers.
        tolerance: end a pass early when the standard errors of all its means, in units of sigma, and of all
            its variances, relative, are at most this. Not in mode `torch`, and in a single process only.
        ranks: this process among several that share the batches.
        on_passes: is told the number of passes before the first.
        on_progress: is told of every batch.

    Returns:
        What was done, with the change of every layer.

    Raises:
        UsageError: the request makes no sense.
        DataError: there are no data, or they or the activations are not finite, or of a single value.
        MismatchError: the model raises on the data.
    """
    _check_request(model, mode, dtype, tolerance, ranks, skip)
    where = _checked_device(device)
    layers = find_layers(model, skip)
    if not layers.found:
        note = "every layer with running statistics is skipped" if layers.skipped else "the model has none"
        note = f"nothing to recalibrate: {note.replace('has none', 'has no layers with running statistics')}"
        return BatchNormReport(mode, 0, 0, 0, untouched=dict(layers.untouched), warnings=(note,))
    with BorrowedModel(model, device=where, dtype=dtype, widen=mode != "torch") as borrowed:
        run = Run(
            model=model,
            batches=batches,
            forward=forward,
            layers=layers.found,
            skipped=layers.skipped,
            device=where,
            dtype=borrowed.dtype if mode != "torch" or dtype is not None else None,
            tolerance=tolerance,
            ranks=ranks,
            on_passes=on_passes or _ignore,
            on_progress=on_progress or _ignore,
        )
        outcomes, passes, counts, warnings = RECALIBRATE[mode](run)
    # The model has its own buffers again, which still hold the old statistics.
    report = _report(mode, layers, outcomes, passes, counts, warnings)
    _write(outcomes)
    return report


def _ignore(_: object) -> None:
    """Tell nobody."""


Result = tuple[list[Outcome], int, tuple[int, int], list[str]]


def _by_batch(run: Run) -> Result:
    """One pass in which each layer normalises by the moments of the batch."""
    run.on_passes(1)
    run.model.eval()
    for layer in run.layers:
        # Only the statistics of its own input make it behave as in training.
        layer.module.training = layer.per_instance
    taker = Taker(run.layers, normalise=True, tolerance=run.tolerance)
    with hooked(run.layers, taker.take):
        counts = run_pass(run, taker, run.ranks.share(run.batches))
    return taker.outcomes(run.ranks, counts[0]), 1, counts, []


def _exactly(run: Run) -> Result:
    """As many passes as there are levels of layers."""
    run.model.eval()
    outcomes, plan, batches, samples = recalibrate_exactly(run)
    circular = [layer.name for layer in run.layers if layer.index in plan.circular]
    warnings = []
    if circular:
        warnings.append(
            f"layers that are used again on what depends on their own output have no exact statistics: "
            f"{listed(circular)}; pooled over all uses"
        )
    return outcomes, plan.passes, (batches, samples), warnings


def _like_torch(run: Run) -> Result:
    """What update_bn does."""
    outcomes, passes, batches, samples = recalibrate_like_torch(run)
    return outcomes, passes, (batches, samples), []


RECALIBRATE: dict[str, Callable[[Run], Result]] = {
    "batch": _by_batch,
    "exact": _exactly,
    "torch": _like_torch,
}


def _check_request(
    model: nn.Module,
    mode: str,
    dtype: torch.dtype | None,
    tolerance: float | None,
    ranks: Ranks,
    skip: Sequence[str],
) -> None:
    """Raise UsageError for what makes no sense."""
    if isinstance(skip, str):
        raise UsageError("skip must be a sequence of patterns, not one text")
    if mode not in MODES:
        raise UsageError(f"unknown mode {printable(mode)}: choose one of {', '.join(MODES)}")
    if tolerance is not None and not (math.isfinite(tolerance) and tolerance > 0):
        raise UsageError(f"the tolerance must be a number greater than 0, not {printable(tolerance)}")
    if mode == "torch" and tolerance is not None:
        raise UsageError("mode torch uses all data: leave the tolerance out, or choose another mode")
    if mode == "torch" and ranks.size > 1:
        raise UsageError("mode torch takes the batches in order: run it in a single process")
    if tolerance is not None and ranks.size > 1:
        raise UsageError("a tolerance is for a single process: leave it out, or run one process")
    if dtype is not None and not dtype.is_floating_point:
        raise UsageError(f"the dtype must be a floating one, not {printable(dtype)}")
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise UsageError("the model is TorchScript, whose layers cannot be watched: give the original model")
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise UsageError(f"the model is wrapped in {type(model).__name__}: give its .module")


def _checked_device(device: torch.device | str | None) -> torch.device | None:
    if device is None:
        return None
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        first = str(error).partition("\n")[0]
        raise UsageError(f"the device {printable(device)} cannot be used: {first}") from error


def _report(
    mode: str,
    layers: Layers,
    outcomes: Sequence[Outcome],
    passes: int,
    counts: tuple[int, int],
    warnings: list[str],
) -> BatchNormReport:
    """Describe the outcomes against the buffers, which still hold the old statistics."""
    by_layer = {outcome.layer: outcome for outcome in outcomes}
    unreached = tuple(layer.name for layer in layers.found if layer not in by_layer)
    if unreached:
        shown = ", ".join(map(printable, unreached[:5])) + (", ..." if len(unreached) > 5 else "")
        warnings.append(f"layers that no batch reached keep their statistics: {shown}")
    batches, samples = counts
    return BatchNormReport(
        mode=mode,
        samples=samples,
        batches=batches,
        passes=passes,
        layers=tuple(_describe(by_layer[layer]) for layer in layers.found if layer in by_layer),
        unreached=unreached,
        untouched=dict(layers.untouched),
        warnings=tuple(warnings),
    )


def _describe(outcome: Outcome) -> LayerReport:
    layer = outcome.layer
    change = compare(layer.running, (outcome.mean, outcome.variance), layer.module.eps)
    mean_error, variance_error = outcome.errors or (None, None)
    return LayerReport(
        name=layer.name,
        kind=layer.kind,
        channels=len(outcome.mean),
        values=outcome.values,
        uses=outcome.uses,
        batches=outcome.batches,
        **change._asdict(),
        mean_error=mean_error,
        variance_error=variance_error,
    )


def _write(outcomes: Sequence[Outcome]) -> None:
    """Round the statistics to the types of the buffers and write them: all, or none."""
    written: list[tuple[Tensor, Any]] = []
    for outcome in outcomes:
        for buffer, values in zip(outcome.layer.running, (outcome.mean, outcome.variance), strict=True):
            rounded = values.to(device=buffer.device, dtype=buffer.dtype)
            if not bool(rounded.isfinite().all()):
                raise DataError(_does_not_fit(outcome.layer, buffer))
            written.append((buffer, rounded))
        if outcome.layer.module.num_batches_tracked is not None:
            written.append((outcome.layer.module.num_batches_tracked, torch.tensor(outcome.tracked)))
    old = [(buffer, buffer.clone()) for buffer, _ in written]
    try:
        _copy(written)
    except BaseException:
        _copy(old)
        raise


def _copy(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    for target, values in pairs:
        with torch.inference_mode(target.is_inference()), torch.no_grad():
            target.copy_(values)


def _does_not_fit(layer: Layer, buffer: Tensor) -> str:
    return (
        f"the new statistics of layer {printable(layer.name)} do not fit into {str(buffer.dtype)[6:]}: "
        "look for extreme values in the data or the weights, or keep its buffers in a wider type"
    )
