"""Pure accumulators of moments: they know tensors, but no modules.

With n_b values per channel in batch b, mean m_b and M2_b = sum (x - m_b)^2 (Chan, Golub and LeVeque 1983):

    n = sum n_b;  mean = sum n_b m_b / n;  M2 = sum M2_b + sum n_b (m_b - mean)^2;  variance = M2 / (n - 1)

Everything is float64 and centred before it is squared; E[x^2] - E[x]^2 is nowhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor

__all__ = [
    "InstanceMoments",
    "Moments",
    "Pooled",
    "Samples",
    "Spread",
    "Workspace",
    "measure",
    "merge",
    "pool",
]

# Elements that are widened to float64 at a time: on a CPU what two cores' caches hold, elsewhere 128 MiB.
CPU_CHUNK = 2**18
DEVICE_CHUNK = 2**24


class Samples(NamedTuple):
    """The moments of every sample apart.

    Attributes:
        mean: per sample and channel, [N, C], float64.
        m2: sums of squared differences from that mean, [N, C], float64.
        values: per sample and channel.
    """

    mean: Tensor
    m2: Tensor
    values: int

    def grouped(self, number: int) -> Samples:
        """Return the moments of `number` groups of neighbours, as of the time steps of one sample."""
        rows = len(self.mean) // number
        if rows == 1:
            return self
        means = self.mean.view(number, rows, -1)
        mean = means.mean(1)
        between = (means - mean.unsqueeze(1)).square().sum(1)
        within = self.m2.view(number, rows, -1).sum(1)
        return Samples(mean, within + between * self.values, self.values * rows)


class Workspace:
    """Memory for chunks in float64 that is used again and again."""

    def __init__(self) -> None:
        self._buffers: dict[torch.device, Tensor] = {}

    def take(self, count: int, device: torch.device) -> Tensor:
        """Return memory of that many elements; what was taken before is overwritten."""
        buffer = self._buffers.get(device)
        if buffer is None or len(buffer) < count:
            buffer = self._buffers[device] = torch.empty(count, dtype=torch.float64, device=device)
        return buffer[:count]


def pool(values: Tensor, workspace: Workspace) -> Moments:
    """Return the moments of all values of each channel of [N, C, ...].

    What fits into a chunk is centred on its own mean; more is measured sample by sample. Each operation goes
    over the samples in the same order, so that every core finds in its cache what it left there.
    """
    samples, channels = values.shape[:2]
    size = values.numel()
    if size > _chunk(values.device):
        return Moments.of(measure(values, workspace))
    count = size // channels
    wide = workspace.take(size, values.device)
    if count == samples:
        wide = wide.view(samples, channels)
        wide.copy_(values.reshape(samples, channels))
        mean = wide.mean(0)
        return Moments(count, mean, wide.sub_(mean).square_().sum(0))
    if _channels_last(values):
        values = values.movedim(1, -1)
        wide.view(values.shape).copy_(values)
        wide = wide.view(samples, -1, channels)
        mean = wide.mean(1).mean(0)
        return Moments(count, mean, wide.sub_(mean).square_().sum(1).sum(0))
    wide.view(values.shape).copy_(values)
    wide = wide.view(samples, channels, -1)
    means = wide.mean(2)
    mean = means.mean(0)
    wide.sub_(mean.unsqueeze(1))
    return Moments(count, mean, torch.linalg.vector_norm(wide, dim=2, out=means).square_().sum(0))


def measure(values: Tensor, workspace: Workspace) -> Samples:
    """Return the moments of each sample of [N, C, ...], in two passes over a chunk that stays in the cache.

    A chunk is several samples or, where one is large, some channels of one.
    """
    samples, channels = values.shape[:2]
    length = values.shape[2:].numel()
    if values.dim() == 2:
        mean = values.to(torch.float64, copy=True)
        return Samples(mean, torch.zeros_like(mean), 1)
    last = _channels_last(values)
    means = torch.empty(samples, channels, dtype=torch.float64, device=values.device)
    m2s = torch.empty_like(means)
    chunk = _chunk(values.device)
    rows = max(1, chunk // max(1, channels * length))
    columns = channels if rows > 1 else min(channels, max(1, chunk // max(1, length)))
    if rows >= samples and columns == channels:
        _measure_chunk(values, means, m2s, workspace, channels_last=last)
        return Samples(means, m2s if last else m2s.square_(), length)
    for row in range(0, samples, rows):
        for column in range(0, channels, columns):
            place = slice(row, row + rows), slice(column, column + columns)
            _measure_chunk(values[place], means[place], m2s[place], workspace, channels_last=last)
    return Samples(means, m2s if last else m2s.square_(), length)


def _chunk(device: torch.device) -> int:
    return CPU_CHUNK if device.type == "cpu" else DEVICE_CHUNK


def _channels_last(values: Tensor) -> bool:
    """Tell whether channels lie innermost in memory."""
    return not values.is_contiguous() and values.movedim(1, -1).is_contiguous()


def _measure_chunk(
    values: Tensor, mean: Tensor, m2: Tensor, workspace: Workspace, *, channels_last: bool
) -> None:
    """Fill in the mean and M2 or, where channels are not innermost, its root, [n, c], of [n, c, ...]."""
    if channels_last:
        values = values.movedim(1, -1)
    wide = workspace.take(values.numel(), values.device).view(values.shape)
    wide.copy_(values)
    if channels_last:
        wide = wide.flatten(1, -2)
        torch.mean(wide, 1, out=mean)
        wide.sub_(mean.unsqueeze(1)).mul_(wide)
        torch.sum(wide, 1, out=m2)
    else:
        wide = wide.flatten(2)
        torch.mean(wide, 2, out=mean)
        wide.sub_(mean.unsqueeze(2))
        # Squares and sums in one go; here, not where channels are innermost, that is the faster way.
        torch.linalg.vector_norm(wide, dim=2, out=m2)


@dataclass(frozen=True, eq=False)
class Moments:
    """Count, mean and M2 of all values of each channel: what BatchNorm keeps.

    Attributes:
        count: values per channel.
        mean: [C], float64.
        m2: sum of squared differences from the mean, [C], float64.
    """

    count: int
    mean: Tensor
    m2: Tensor

    @classmethod
    def of(cls, samples: Samples) -> Self:
        """Pool the samples of a batch."""
        number, values = len(samples.mean), samples.values
        mean = samples.mean.mean(0)
        between = (samples.mean - mean).square_().sum(0)
        m2 = torch.add(samples.m2.sum(0), between, alpha=values) if values > 1 else between
        return cls(number * values, mean, m2)

    @classmethod
    def merge(cls, sets: Sequence[Self]) -> Self:
        """Return the moments of several sets of values together."""
        if len(sets) == 1:
            return sets[0]
        count, weights = _weights(sets)
        means = torch.stack([one.mean for one in sets])
        mean = torch.mv(means.t(), weights).div_(count)
        between = torch.mv((means - mean).square_().t(), weights)
        return cls(count, mean, between.add_(torch.stack([one.m2 for one in sets]).sum(0)))

    @property
    def parts(self) -> tuple[Tensor, Tensor]:
        """What there is besides the count."""
        return self.mean, self.m2

    def variance(self) -> Tensor:
        """Return the unbiased variance, [C]; NaN for a single value."""
        return self.m2 / (self.count - 1) if self.count > 1 else torch.full_like(self.m2, torch.nan)


@dataclass(frozen=True, eq=False)
class InstanceMoments:
    """Averages over instances of each one's own mean and unbiased variance: what InstanceNorm keeps.

    Attributes:
        count: instances.
        mean: [C], float64.
        average: of the variances, [C], float64; NaN where an instance has a single value.
    """

    count: int
    mean: Tensor
    average: Tensor

    @classmethod
    def of(cls, samples: Samples) -> Self:
        """Average over the instances of a batch."""
        variances = samples.m2 / (samples.values - 1)  # 0 / 0 for a single value
        return cls(len(samples.mean), samples.mean.mean(0), variances.mean(0))

    @classmethod
    def merge(cls, sets: Sequence[Self]) -> Self:
        """Return the averages over several sets of instances together."""
        if len(sets) == 1:
            return sets[0]
        count, weights = _weights(sets)
        mean = torch.mv(torch.stack([one.mean for one in sets]).t(), weights).div_(count)
        average = torch.mv(torch.stack([one.average for one in sets]).t(), weights).div_(count)
        return cls(count, mean, average)

    @property
    def parts(self) -> tuple[Tensor, Tensor]:
        """What there is besides the count."""
        return self.mean, self.average

    def variance(self) -> Tensor:
        """Return the average variance, [C]."""
        return self.average


Pooled = Moments | InstanceMoments


def merge(sets: Sequence[Pooled]) -> Pooled:
    """Return the moments of several sets of one kind together."""
    return type(sets[0]).merge(sets)  # type: ignore[arg-type]


def _weights(sets: Sequence[Moments] | Sequence[InstanceMoments]) -> tuple[int, Tensor]:
    """Return the sum of the counts, and the counts."""
    counts = [one.count for one in sets]
    return sum(counts), torch.tensor(counts, dtype=torch.float64, device=sets[0].mean.device)


@dataclass(frozen=True, eq=False)
class Spread:
    """How much the samples differ, from which the standard errors of their statistics follow.

    Positions within a sample are not independent, so the sample is the unit; all weigh the same. With sample
    i's mean a_i and biased variance b_i, r_i = a_i - origin and q_i = b_i + r_i^2, its squared distance from
    any mean m is q_i - 2 d r_i + d^2 where d = m - origin: so second moments of (r, q) suffice.

    Attributes:
        count: samples.
        origin: a fixed point near the mean, [C], float64, as all that follow.
        r, q: means.
        rr, rq, qq: sums of products of the differences from the means.
    """

    count: int
    origin: Tensor
    r: Tensor
    q: Tensor
    rr: Tensor
    rq: Tensor
    qq: Tensor

    @classmethod
    def of(cls, samples: Samples, origin: Tensor) -> Self:
        """Describe the samples of a batch."""
        r = samples.mean - origin
        q = samples.m2 / samples.values + r.square()
        return cls._around(origin, r, q)

    @classmethod
    def of_instances(cls, samples: Samples, origin: Tensor) -> Self:
        """Describe instances, whose variances are about their own means."""
        return cls._around(origin, samples.mean - origin, samples.m2 / (samples.values - 1))

    @classmethod
    def _around(cls, origin: Tensor, r: Tensor, q: Tensor) -> Self:
        r_mean, q_mean = r.mean(0), q.mean(0)
        r, q = r - r_mean, q - q_mean
        return cls(len(r), origin, r_mean, q_mean, (r * r).sum(0), (r * q).sum(0), (q * q).sum(0))

    def merged(self, other: Self) -> Self:
        """Return the spread of both sets of samples; their origins must be the same."""
        count = self.count + other.count
        share, weight = other.count / count, self.count * (other.count / count)
        r, q = other.r - self.r, other.q - self.q
        return type(self)(
            count,
            self.origin,
            self.r + r * share,
            self.q + q * share,
            self.rr + other.rr + r * r * weight,
            self.rq + other.rq + r * q * weight,
            self.qq + other.qq + q * q * weight,
        )

    def errors(self, variance: Tensor, *, instances: bool = False) -> tuple[float, float]:
        """Return SE(mean) / sigma and SE(variance) / variance, each of the channel where it is largest.

        A channel without variance has no error.
        """
        if self.count < 2:
            return float("inf"), float("inf")
        shift = torch.zeros_like(self.r) if instances else self.r
        squares = self.qq - 4 * shift * self.rq + 4 * shift.square() * self.rr
        scale = 1.0 / ((self.count - 1) * self.count)
        alive = variance > 0
        variance = torch.where(alive, variance, 1.0)
        mean_error = torch.where(alive, (self.rr * scale / variance).sqrt(), 0.0)
        variance_error = torch.where(alive, (squares.clamp(min=0) * scale).sqrt() / variance, 0.0)
        return float(mean_error.max()), float(variance_error.max())
