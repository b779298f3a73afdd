"""What `swatool recalibrate-bn` says."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from swatool.cli.render import Telling, size
from swatool.errors import printable

if TYPE_CHECKING:
    from swatool.batchnorm.report import LayerReport, Progress
    from swatool.jobs.recalibrate_report import RecalibrationReport

__all__ = ["RecalibrationTelling"]

SHOWN_LAYERS = 10


class RecalibrationTelling:
    """Says what is done about one recalibration."""

    def __init__(self, telling: Telling) -> None:
        self._telling = telling
        self._samples: int | None = None

    def plan(self, report: RecalibrationReport) -> None:
        """Say what will be done."""
        self._samples = report.data.samples
        samples = "" if self._samples is None else f", {self._samples:,} samples"
        processes = "" if report.processes == 1 else f" in {report.processes} processes"
        lines = [
            f"checkpoint: {printable(report.checkpoint.path)}, {size(report.checkpoint.bytes)}",
            *([f"state dict: {printable(report.checkpoint.key)}"] if report.checkpoint.key else []),
            f"model: {printable(report.model)}, {len(report.layers)} layers to recalibrate",
            f"data: {printable(report.data.name)}{samples}",
            f"mode: {report.mode} on {report.device}{processes}",
        ]
        if self._telling.verbose:
            lines += [f"layer: {printable(name)}" for name in report.layers]
        self._telling.lines(lines)

    def passes(self, number: int) -> None:
        """Say how often the data runs through the model, and begin the progress bar."""
        self._telling.lines([f"passes over the data: {number}"])
        total = None if self._samples is None else self._samples * number
        self._telling.begin("recalibrating", total, in_bytes=False)

    def progress(self, progress: Progress) -> None:
        """Move the progress bar, which counts the samples of all passes."""
        before = (progress.turn - 1) * (self._samples or 0)
        self._telling.progress(before + progress.samples)

    def summary(self, report: RecalibrationReport) -> None:
        """Say what was done: the layers that changed most first, and what the user's own numbers say."""
        found = report.batchnorm
        assert found is not None
        layers = sorted(found.layers, key=_change, reverse=True)
        shown = layers if self._telling.verbose else layers[:SHOWN_LAYERS]
        if shown:
            header = ("layer", "channels", "values", "mean shift", "channel", "variance ratio", "channel")
            self._telling.table(header, [_row(layer) for layer in shown])
        lines = []
        if self._telling.verbose:
            lines += [f"left alone: {printable(name)}: {why}" for name, why in found.untouched.items()]
        if len(shown) < len(layers):
            lines.append(f"... and {len(layers) - len(shown)} more layers, which changed less; -v shows all")
        for name in report.before or {}:
            after = (report.after or {}).get(name, math.nan)
            lines.append(f"{printable(name)}: {(report.before or {})[name]:.6g} before, {after:.6g} after")
        seconds = report.seconds
        lines += [
            f"wrote {printable(report.output.path)}: {len(layers)} layers recalibrated on {found.samples:,} "
            f"samples, {size(report.output.bytes)}",
            f"{seconds.recalibrate:.2f} s in {found.passes} passes, {seconds.total:.2f} s in all; "
            f"peak memory {size(report.peak_rss_bytes)}",
        ]
        self._telling.lines(lines)


def _change(layer: LayerReport) -> float:
    if layer.mean_shift is None or layer.variance_ratio is None:
        return math.inf
    # A mean that moved by a standard deviation and a variance that doubled count alike.
    return max(layer.mean_shift, abs(math.log2(layer.variance_ratio)))


def _row(layer: LayerReport) -> tuple[str, ...]:
    shift, ratio = layer.mean_shift, layer.variance_ratio
    return (
        printable(layer.name)[1:-1],
        str(layer.channels),
        f"{layer.values:,}",
        "-" if shift is None else f"{shift:.3g} sd",
        "-" if shift is None else str(layer.mean_shift_channel),
        "-" if ratio is None else f"{ratio:.3g}",
        "-" if ratio is None else str(layer.variance_ratio_channel),
    )
