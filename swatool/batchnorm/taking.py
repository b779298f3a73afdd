"""Taking the moments of what arrives at layers, and making statistics of them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from swatool.batchnorm.batches import Batch, size_of
from swatool.batchnorm.layers import Layer
from swatool.batchnorm.passes import Outcome
from swatool.batchnorm.ranks import Ranks
from swatool.batchnorm.statistics import (
    InstanceMoments,
    Moments,
    Pooled,
    Samples,
    Spread,
    Workspace,
    measure,
    merge,
    pool,
)
from swatool.errors import DataError, printable

__all__ = ["Taker"]

# From fewer samples not even the error of a statistic can be told.
MIN_SAMPLES = 30
MERGED_TOGETHER = 32  # sets of moments, so that merging costs little


class Taker:
    """Takes and pools the moments of what arrives at some layers. A Watch.

    With `normalise`, each layer then normalises by the moments of just this batch, as in training: they stand
    in its running buffers when it runs in evaluation mode. That spares torch's own statistics, and what
    training mode brings with it.
    """

    def __init__(self, layers: Sequence[Layer], *, normalise: bool, tolerance: float | None) -> None:
        """Take nothing yet; with a `tolerance`, standard errors are computed."""
        self.layers = layers
        self.uses: Counter[Layer] = Counter()
        self._normalise = normalise
        self._tolerance = tolerance
        self._sets: dict[Layer, list[Pooled]] = {layer: [] for layer in layers}  # to be merged
        self._spreads: dict[Layer, Spread] = {}
        self._running = {layer: layer.running for layer in layers}
        self._workspace = Workspace()
        self._fresh: list[tuple[Layer, Pooled]] = []  # what the present batch gave
        self._size = self._number = self._batches = 0

    def begin(self, batch: Batch, number: int) -> None:
        """Expect this batch."""
        self._size, self._number = size_of(batch), number
        self._batches += 1
        self._fresh.clear()

    def take(self, layer: Layer, args: tuple[object, ...], kwargs: Mapping[str, object]) -> None:
        """Pool the moments of the arguments that a layer is about to see."""
        mean, variance = self._running[layer]
        values = _input_of(layer, len(mean), args, kwargs)
        if values is None:
            return  # the layer itself says best what is wrong
        self.uses[layer] += 1
        found = self._pooled(layer, values)
        if self._normalise and isinstance(found, Moments):
            self._refuse_single(layer, found.count, "channel in this batch")
            mean.copy_(found.mean)
            torch.div(found.m2, found.count, out=variance)
        self._fresh.append((layer, found))
        sets = self._sets[layer]
        sets.append(found)
        if len(sets) == MERGED_TOGETHER:
            sets[:] = [merge(sets)]

    def _pooled(self, layer: Layer, values: Tensor) -> Pooled:
        if not layer.per_instance and self._tolerance is None:
            return pool(values, self._workspace)
        samples = measure(values, self._workspace)
        found: Pooled
        if layer.per_instance:
            self._refuse_single(layer, samples.values, "instance")
            found = InstanceMoments.of(samples)
        else:
            found = Moments.of(samples)
        if self._tolerance is not None:
            self._spread(layer, samples, found)
        return found

    def _spread(self, layer: Layer, samples: Samples, found: Pooled) -> None:
        """Add to what is known of the differences between samples."""
        before = self._spreads.get(layer)
        origin = found.mean if before is None else before.origin
        if layer.per_instance:
            spread = Spread.of_instances(samples, origin)
        else:
            # Several rows for each sample of the batch, as time steps, are one sample all the same.
            many = len(samples.mean) > self._size and len(samples.mean) % self._size == 0
            spread = Spread.of(samples.grouped(self._size) if many else samples, origin)
        self._spreads[layer] = spread if before is None else before.merged(spread)

    def _refuse_single(self, layer: Layer, count: int, unit: str) -> None:
        if count == 1:
            raise DataError(
                f"layer {printable(layer.name)} sees a single value per {unit} (batch {self._number}), which "
                "has no variance: give "
                + ("larger inputs" if layer.per_instance else "more samples, in larger batches")
            )

    def end(self) -> None:
        """Check that what the batch gave is finite; DataError that names the first layer where it is not."""
        parts = [part for _, found in self._fresh for part in found.parts]
        if not parts or math.isfinite(torch.cat([part.to(parts[0].device) for part in parts]).sum().item()):
            return  # NaN and Inf make any sum so
        for layer, found in self._fresh:
            if not all(bool(part.isfinite().all()) for part in found.parts):
                raise DataError(
                    f"batch {self._number} makes the input of layer {printable(layer.name)} NaN or Inf: "
                    "look for extreme values in the data or the weights"
                )

    def settled(self) -> bool:
        """Tell whether all layers that were reached are known as well as the tolerance asks."""
        tolerance = self._tolerance
        if tolerance is None or not self._spreads:
            return False
        if any(self._samples(layer) < MIN_SAMPLES for layer in self._spreads):
            return False
        return all(max(self._errors(layer)) <= tolerance for layer in self._spreads)

    def _samples(self, layer: Layer) -> float:
        """Return how many samples a layer saw; uses of one sample are not independent."""
        return self._spreads[layer].count * self._batches / self.uses[layer]

    def _errors(self, layer: Layer) -> tuple[float, float]:
        spread, variance = self._spreads[layer], merge(self._sets[layer]).variance()
        mean_error, variance_error = spread.errors(variance, instances=layer.per_instance)
        factor = max(1.0, self.uses[layer] / self._batches) ** 0.5
        return mean_error * factor, variance_error * factor

    def outcomes(self, ranks: Ranks, batches: int) -> list[Outcome]:
        """Return the statistics of the layers that were reached, the same in all processes.

        Raises:
            DataError: a layer saw a single value per channel in all the data.
        """
        found = []
        for layer, moments, uses in self._merged(ranks):
            if moments.count == 1 and not layer.per_instance:
                raise DataError(
                    f"layer {printable(layer.name)} sees a single value per channel in all the data, which "
                    "has no variance: give more samples"
                )
            errors = self._errors(layer) if layer in self._spreads else None
            variance = moments.variance()
            found.append(
                Outcome(layer, moments.mean, variance, batches, moments.count, uses, batches, errors)
            )
        return found

    def _merged(self, ranks: Ranks) -> list[tuple[Layer, Pooled, int]]:
        """Return the moments and uses over all processes, merged in the order of their ranks."""
        if ranks.size == 1:
            return [
                (layer, merge(self._sets[layer]), self.uses[layer])
                for layer in self.layers
                if self.uses[layer]
            ]
        letters = ranks.gather(torch.cat([self._packed(layer) for layer in self.layers]))
        lengths = [2 + 2 * len(layer.running[0]) for layer in self.layers]
        found = []
        split = [torch.split(letter, lengths) for letter in letters]
        for layer, *parts in zip(self.layers, *split, strict=True):
            uses = sum(int(part[1]) for part in parts)
            if uses:
                kind = InstanceMoments if layer.per_instance else Moments
                sets = [kind(int(part[0]), *part[2:].chunk(2)) for part in parts if part[0]]
                found.append((layer, merge(sets), uses))
        return found

    def _packed(self, layer: Layer) -> Tensor:
        """Return count, uses, means and M2 or variances of a layer, [2 + 2C]."""
        letter = torch.zeros(2 + 2 * len(layer.running[0]), dtype=torch.float64)
        if self.uses[layer]:
            moments = merge(self._sets[layer])
            letter[0], letter[1] = moments.count, self.uses[layer]
            letter[2:] = torch.cat(moments.parts)
        return letter


def _input_of(
    layer: Layer, channels: int, args: tuple[object, ...], kwargs: Mapping[str, object]
) -> Tensor | None:
    """Return a layer's input as [N, C, ...]; None if the layer cannot take it, or it holds nothing."""
    given = args if args else tuple(kwargs.values())
    values = given[0] if given else None
    if not isinstance(values, Tensor) or not values.is_floating_point() or not values.numel():
        return None
    module = layer.module
    if layer.per_instance and values.dim() == module._get_no_batch_dim():  # type: ignore[operator]
        values = values.unsqueeze(0)
    if values.dim() < 2 or values.shape[1] != channels:
        return None
    return values
