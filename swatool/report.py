"""What was done, as data: the same report for a plan and for a finished run, for people and for machines."""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field

__all__ = [
    "CheckpointReport",
    "Estimate",
    "FiguresReport",
    "OutputReport",
    "Report",
    "Seconds",
    "SweepReport",
    "SweptReport",
    "TensorsReport",
    "peak_rss_bytes",
]

SCHEMA = 1


@dataclass(frozen=True)
class CheckpointReport:
    """A checkpoint that was averaged.

    Attributes:
        path: the file.
        step: its training step; None if unknown.
        bytes: size of the file.
        coefficient: its factor in the average.
        key: where in the file the state dict was found; empty for the whole file.
        sha256: of the file, or of the lines of `sha256sum` about the files of a folder; None if it was not
            asked for.
    """

    path: str
    step: int | None
    bytes: int
    coefficient: float
    key: str = ""
    sha256: str | None = None


@dataclass(frozen=True)
class OutputReport:
    """What was written.

    Attributes:
        path: the file, or the folder.
        bytes: size of all files.
        files: of a folder, the files in it and their sizes in bytes; empty for a single file.
        format: `safetensors`, `pt`, `hf` or `dcp`.
        sha256: of each file by its name; empty if it was not asked for.
    """

    path: str
    bytes: int
    files: Mapping[str, int] = field(default_factory=dict)
    format: str = "safetensors"
    sha256: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TensorsReport:
    """Names of tensors by what was done with them.

    Attributes:
        averaged: averaged.
        copied: copied unchanged: integer, bool and excluded ones.
        dropped: left out, and entries that are no tensors.
        tied: written, or noted, as another name of an averaged or copied one.
        differing: copied ones that are not equal in all checkpoints.
    """

    averaged: tuple[str, ...]
    copied: tuple[str, ...]
    dropped: tuple[str, ...]
    tied: tuple[str, ...]
    differing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Seconds:
    """Where the time went.

    Attributes:
        plan: opening the checkpoints and planning.
        stream: reading, arithmetic and writing.
        fsync: waiting until the output is on the disk.
        total: the whole call, importing torch included.
        checksum: reading the checkpoints and the output for their checksums.
    """

    plan: float = 0.0
    stream: float = 0.0
    fsync: float = 0.0
    total: float = 0.0
    checksum: float = 0.0


@dataclass(frozen=True)
class Estimate:
    """What a run that was only planned would take.

    Attributes:
        seconds: the whole call; not the fsync, which takes as long as the disk does.
        memory_bytes: the process's peak resident memory.
        bytes_per_second: at which the inputs were read in a sample; the seconds rest on it.
    """

    seconds: float
    memory_bytes: int
    bytes_per_second: float


@dataclass(frozen=True)
class FiguresReport:
    """What the coefficients amount to.

    Attributes:
        effective: number of checkpoints in a plain mean with as little noise.
        lag: mean age of what is averaged, before the newest.
        lag_unit: of the lag: `steps` of training, or `checkpoints` where steps are not known.
        l1: sum of the absolute coefficients, by which rounding of the inputs is amplified.
    """

    effective: float
    lag: float
    lag_unit: str
    l1: float


@dataclass(frozen=True)
class Report:
    """What `average` did, or would do if `dry_run`.

    Attributes:
        version: of swatool.
        command: always `average`.
        dry_run: whether nothing was written.
        method: name of the scheme.
        parameters: of the scheme.
        checkpoints: what is averaged, oldest first.
        figures: what the coefficients amount to.
        output: what is written.
        tensors: what is done with each tensor.
        dtype: types of the averaged tensors in the output, and how many bytes are of each.
        device: where the arithmetic is done; in a dry run as it was asked for.
        threads: number of workers.
        seconds: where the time went.
        bytes_read: from the checkpoints; in a dry run, what would be read.
        bytes_written: to the output, header included; in a dry run, what would be written.
        peak_rss_bytes: the process's peak resident memory so far.
        merge_signal_kept: where the output is narrower than float32, the share of what averaging changed that
            rounding left, measured on an evenly spaced sample; else None.
        warnings: sentences that deserve attention.
        estimate: in a dry run, what it would take; else None.
        checksum: whether SHA-256 of the checkpoints and the output is recorded.
    """

    version: str
    command: str
    dry_run: bool
    method: str
    parameters: Mapping[str, object]
    checkpoints: tuple[CheckpointReport, ...]
    figures: FiguresReport
    output: OutputReport
    tensors: TensorsReport
    dtype: Mapping[str, int]
    device: str
    threads: int
    seconds: Seconds
    bytes_read: int
    bytes_written: int
    peak_rss_bytes: int
    merge_signal_kept: float | None
    warnings: tuple[str, ...]
    estimate: Estimate | None = None
    checksum: bool = False

    def as_json(self, *, names: bool = False) -> dict[str, object]:
        """Return the report as plain data for JSON; tensors are counted, or listed by name if `names`."""
        data: dict[str, object] = {"schema": SCHEMA, **asdict(self)}
        tensors = asdict(self.tensors)
        data["tensors"] = {kind: list(some) if names else len(some) for kind, some in tensors.items()}
        return data


@dataclass(frozen=True)
class SweptReport:
    """One average of a sweep.

    Attributes:
        values: the settings in which it differs from the others, as they were written.
        report: what was done.
        value: the number by which it is ranked; None if nothing was evaluated.
        metrics: all numbers of the evaluation.
        kept: whether the output is still there.
    """

    values: Mapping[str, str]
    report: Report
    value: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    kept: bool = True


@dataclass(frozen=True)
class SweepReport:
    """What a sweep did, or would do if `dry_run`.

    Attributes:
        version: of swatool.
        command: always `average`.
        dry_run: whether nothing was written.
        outputs: the averages; after an evaluation, the best first.
        metric: which number of the evaluation counted, if it gave several.
        mode: whether the largest (`max`) or the smallest (`min`) is best; None if nothing was evaluated.
        failures: sentences about an evaluation that failed.
    """

    version: str
    command: str
    dry_run: bool
    outputs: tuple[SweptReport, ...]
    metric: str | None
    mode: str | None
    failures: tuple[str, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences that deserve attention, of all averages, each once."""
        return tuple(dict.fromkeys(warning for one in self.outputs for warning in one.report.warnings))

    def as_json(self, *, names: bool = False) -> dict[str, object]:
        """Return the report as plain data for JSON, as `Report.as_json` does."""
        outputs = [
            {**_without(asdict(one), "report"), "report": one.report.as_json(names=names)}
            for one in self.outputs
        ]
        return {"schema": SCHEMA, **_without(asdict(self), "outputs"), "outputs": outputs}


def _without(data: dict[str, object], name: str) -> dict[str, object]:
    return {key: value for key, value in data.items() if key != name}


def peak_rss_bytes() -> int:
    """Return the peak resident memory of this process in bytes."""
    with suppress(OSError), open("/proc/self/status") as status:
        # The system's own figure also counts what the parent process used before it started this one.
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
