"""What all modes share: the request, one pass of the model over the data, and a layer's new statistics."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from swatool.batchnorm.batches import Batch, Forward, call, check_finite, describe, moved, size_of
from swatool.batchnorm.layers import Layer
from swatool.batchnorm.ranks import Ranks
from swatool.batchnorm.report import Progress
from swatool.errors import DataError, MismatchError, OutputError, SwatoolError

__all__ = ["Hook", "Outcome", "Run", "StopForward", "Watch", "failures_told", "hooked", "run_pass"]


@dataclass(frozen=True, eq=False)
class Run:
    """What is asked for; the model is on loan, and in evaluation mode unless the mode says otherwise.

    Attributes:
        model, batches, forward, tolerance, ranks: see `recalibrate_bn`.
        layers: that are recalibrated.
        skipped: that are not, as asked.
        device, dtype: that batches are brought to; None: they are not.
        on_passes: is told the number of passes before the first.
        on_progress: is told of every batch.
    """

    model: nn.Module
    batches: Iterable[Batch]
    forward: Forward | None
    layers: Sequence[Layer]
    skipped: Sequence[Layer]
    device: torch.device | None
    dtype: torch.dtype | None
    tolerance: float | None
    ranks: Ranks
    on_passes: Callable[[int], object]
    on_progress: Callable[[Progress], object]


class Outcome(NamedTuple):
    """The new statistics of a layer.

    Attributes:
        layer: whose they are.
        mean, variance: [C].
        tracked: the number of batches that it is to tell.
        values: per channel, or instances.
        uses: how often it was reached.
        batches: of its pass.
        errors: see `Spread.errors`; None if not asked for.
    """

    layer: Layer
    mean: Tensor
    variance: Tensor
    tracked: int
    values: int
    uses: int
    batches: int
    errors: tuple[float, float] | None = None


class StopForward(BaseException):  # not an Exception: models that catch those must not catch it
    """Nothing after this layer is needed."""


class Watch(Protocol):
    """What looks on while a pass runs."""

    def begin(self, batch: Batch, number: int) -> None:
        """Expect this batch."""

    def end(self) -> None:
        """Check what the batch gave; DataError if it is not finite."""

    def settled(self) -> bool:
        """Tell whether the rest of the data can be spared."""


Hook = Callable[[Layer, tuple[object, ...], Mapping[str, object]], None]


@contextlib.contextmanager
def hooked(layers: Iterable[Layer], hook: Hook) -> Iterator[None]:
    """Let `hook` see the arguments of the layers while the context lasts."""

    def bind(layer: Layer) -> Callable[..., None]:
        return lambda _, args, kwargs: hook(layer, args, kwargs)

    with contextlib.ExitStack() as stack:
        for layer in layers:
            handle = layer.module.register_forward_pre_hook(bind(layer), with_kwargs=True)
            stack.callback(handle.remove)
        yield


def run_pass(
    run: Run, watch: Watch, source: Iterable[Batch], *, turn: int = 1, passes: int = 1
) -> tuple[int, int]:
    """Run the model on the batches of this process; return the numbers of batches and samples of all."""
    batches = samples = 0
    try:
        for batch in source:
            number = batches * run.ranks.size + run.ranks.rank + 1
            size = size_of(batch)
            ready = moved(batch, run.device, run.dtype)
            check_finite(ready, number)
            watch.begin(ready, number)
            _forward(run, watch, ready, number)
            watch.end()
            batches, samples = batches + 1, samples + size
            run.on_progress(Progress(turn, passes, samples))
            if watch.settled():
                break
    except Exception as error:
        run.ranks.agree(error=error)
        raise
    counts = run.ranks.agree((batches, samples))
    batches, samples = (sum(column) for column in zip(*counts, strict=True))
    if not samples:
        raise DataError("the data set gives no samples: statistics need at least two")
    return batches, samples


def _forward(run: Run, watch: Watch, batch: Batch, number: int) -> None:
    """Run the model on a batch."""
    try:
        with failures_told(batch, number):
            call(run.model, batch, run.forward)
    except StopForward:
        return
    except MismatchError:
        watch.end()  # if something was not finite before, that is the reason
        raise


@contextlib.contextmanager
def failures_told(batch: Batch, number: int) -> Iterator[None]:
    """Turn what a model raises on a batch into a MismatchError."""
    try:
        yield
    except (SwatoolError, MemoryError):
        raise
    except torch.OutOfMemoryError as error:
        raise OutputError(
            f"the device has no memory left for batch {number} ({describe(batch)}): take smaller batches"
        ) from error
    except (Exception, SystemExit) as error:
        first = str(error).strip().partition("\n")[0] or "no message"
        raise MismatchError(
            f"the model does not take the data: batch {number} ({describe(batch)}) makes it raise "
            f"{type(error).__name__}: {first}"
        ) from error
