"""What `recalibrate-bn` did, as data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from swatool.checkpoints.opening import Checkpoint
from swatool.data.options import Data
from swatool.errors import printable
from swatool.jobs.recalibrate_output import own_metadata
from swatool.report import SCHEMA, OutputReport

if TYPE_CHECKING:
    from swatool.batchnorm.report import BatchNormReport

__all__ = [
    "DataReport",
    "InputReport",
    "RecalibrationReport",
    "RecalibrationSeconds",
    "data_warnings",
    "frozen_warnings",
    "verdict",
]


@dataclass(frozen=True)
class InputReport:
    """The checkpoint: its file, its size in bytes, and where in it the state dict was found."""

    path: str
    bytes: int
    key: str


@dataclass(frozen=True)
class DataReport:
    """The data set.

    Attributes:
        name: as it was given.
        samples: how many it has to give; None if that is unknown.
        bad: samples that could not be read and were left out, and why.
    """

    name: str
    samples: int | None
    bad: Mapping[str, str]


@dataclass(frozen=True)
class RecalibrationSeconds:
    """Where the time went.

    Attributes:
        load: opening everything, making the model, and loading the weights.
        evaluate: in `--eval`, before and after.
        recalibrate: running the data through the model.
        write: copying the checkpoint to the output, and bringing it to the disk.
        total: the whole call.
    """

    load: float = 0.0
    evaluate: float = 0.0
    recalibrate: float = 0.0
    write: float = 0.0
    total: float = 0.0


@dataclass(frozen=True)
class RecalibrationReport:
    """What `recalibrate_checkpoint` did, or would do if `dry_run`.

    Attributes:
        version: of swatool.
        command: always `recalibrate-bn`.
        dry_run: whether nothing was run and written.
        checkpoint: what was read.
        output: what was written.
        model: where the model came from, as it was given.
        data: where the data came from.
        mode: which activations are pooled: `batch`, `exact` or `torch`.
        layers: names of the layers that are recalibrated.
        batchnorm: what was found and changed; None in a dry run.
        before: what `--eval` said of the model before; None if it was not asked.
        after: and after.
        device: where the model ran; in a dry run as it was asked for.
        processes: among which the data was divided.
        seconds: where the time went.
        peak_rss_bytes: the process's peak resident memory so far.
        warnings: sentences that deserve attention.
    """

    version: str
    command: str
    dry_run: bool
    checkpoint: InputReport
    output: OutputReport
    model: str
    data: DataReport
    mode: str
    layers: tuple[str, ...]
    batchnorm: BatchNormReport | None
    before: Mapping[str, float] | None
    after: Mapping[str, float] | None
    device: str
    processes: int
    seconds: RecalibrationSeconds
    peak_rss_bytes: int
    warnings: tuple[str, ...]

    def as_json(self) -> dict[str, object]:
        """Return the report as plain data for JSON; a number that is not finite becomes null."""
        plain = _finite({"schema": SCHEMA, **asdict(self)})
        assert isinstance(plain, dict)
        return plain


def _finite(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(name): _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def frozen_warnings(checkpoint: Checkpoint, layers: Sequence[str]) -> Iterator[str]:
    """Point out layers that training seems to have left frozen, as `average` noted in the checkpoint."""
    known = own_metadata(checkpoint).get("frozen_statistics")
    frozen = [name for name in layers if isinstance(known, list) and name in known]
    if frozen:
        yield (
            f"{len(frozen)} layers had the same statistics in all averaged checkpoints, as frozen ones do, "
            f"such as {printable(frozen[0])}: --skip them if those should stay"
        )


def data_warnings(data: Data) -> Iterator[str]:
    """Yield what deserves attention about the data."""
    yield from data.notes
    if data.bad:
        name, why = next(iter(data.bad.items()))
        yield f"{len(data.bad)} unreadable samples were left out, such as {printable(name)}: {why}"


def verdict(
    before: Mapping[str, float] | None, after: Mapping[str, float] | None, *, higher_is_better: bool | None
) -> Iterator[str]:
    """Say so if the first number got worse: recalibration usually helps, and now and then does not."""
    if before is None or after is None or higher_is_better is None:
        return
    name, old = next(iter(before.items()))
    new = after.get(name, math.nan)
    better_or_equal = new >= old if higher_is_better else new <= old
    if not better_or_equal and not math.isnan(old):
        yield f"recalibration made {printable(name)} worse: {old:.6g} before, {new:.6g} after"
