"""The nouns of the data sources: what a data set offers, and what may be asked of it. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Protocol

from swatool.errors import SettingError, UsageError, printable

if TYPE_CHECKING:
    from swatool.batchnorm.batches import Batch

__all__ = ["Data", "DataOptions", "refuse_unused"]

DEFAULT_BATCH_SIZE = 256
DEFAULT_SEED = 0
DEFAULT_MAX_BAD = 0
MAX_BATCH = 8 << 30  # bytes of one batch
MAX_SEED = 2**63 - 1
MAX_SIDE = 16_384  # pixels; with the longest side allowed, an image still fits into memory
FLAGS: Mapping[str, str] = {
    "batch_size": "--batch-size",
    "samples": "--samples",
    "shuffle": "--shuffle/--no-shuffle",
    "seed": "--seed",
    "size": "--size",
    "mean": "--mean",
    "std": "--std",
    "max_bad": "--max-bad",
}


class Data(Protocol):
    """A data set, cut into batches; iterating again gives the same batches in the same order."""

    @property
    def name(self) -> str:
        """What was given, for messages and provenance."""

    @property
    def samples(self) -> int | None:
        """How many samples a pass gives, those that turn out to be unreadable included; None if unknown."""

    @property
    def bad(self) -> Mapping[str, str]:
        """The samples that were left out as unreadable, by name, and why; grows while batches are read."""

    @property
    def notes(self) -> Sequence[str]:
        """What else the user should know of what was read, one sentence each."""

    def __iter__(self) -> Iterator[Batch]:
        """Give all batches."""

    def share(self, rank: int, size: int) -> Iterator[Batch]:
        """Give the batches number rank, rank + size, ...; the others are not read where that can be."""

    def close(self) -> None:
        """Close the files that are held; more than once is harmless."""


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """How a data set is read. None: not asked for, so the source takes its default.

    Attributes:
        batch_size: samples in a batch; by default 256.
        samples: how many are used, the first ones in the order of reading; by default all.
        shuffle: whether the order is drawn at random; by default where samples can be read in any order.
        seed: of that order; by default 0.
        size: of images: the shorter side is resized to it and the centre cut out, or (height, width) exactly.
        mean: per channel, subtracted from pixels that were brought to 0..1.
        std: per channel, which the difference is divided by.
        max_bad: how many unreadable images are left out before it is an error; by default 0.

    Raises:
        UsageError: a value makes no sense.
    """

    batch_size: int | None = None
    samples: int | None = None
    shuffle: bool | None = None
    seed: int | None = None
    size: int | tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    max_bad: int | None = None

    def __post_init__(self) -> None:
        self._check_range("batch_size", 1)
        self._check_range("samples", 1)
        self._check_range("seed", 0, MAX_SEED)
        self._check_range("max_bad", 0)
        if self.shuffle is False and self.seed is not None:
            raise UsageError("--seed has no use with --no-shuffle: leave one of them out")
        self._check_size()
        self._check_channels()

    def _check_range(self, field: str, least: int, most: int | None = None) -> None:
        value = getattr(self, field)
        if value is None:
            return
        if type(value) is not int or value < least or (most is not None and value > most):
            bound = f"at least {least}" if most is None else f"{least} to {most}"
            raise SettingError(field, f"must be a whole number, {bound}, not {printable(value)}")

    def _check_size(self) -> None:
        if self.size is None:
            return
        sides = self.size if isinstance(self.size, tuple) else (self.size,)
        if len(sides) not in (1, 2) or not all(type(side) is int and 1 <= side <= MAX_SIDE for side in sides):
            raise SettingError(
                "size",
                f"must be one side or a height and a width, 1 to {MAX_SIDE} pixels, "
                f"not {printable(self.size)}",
            )

    def _check_channels(self) -> None:
        for field, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and (not values or not all(math.isfinite(value) for value in values)):
                raise SettingError(field, f"must be finite numbers, one per channel, not {printable(values)}")
        if self.std is not None and min(self.std) <= 0:
            raise SettingError("std", f"must be greater than 0, not {printable(self.std)}")
        if self.mean is not None and self.std is not None and len(self.mean) != len(self.std):
            raise UsageError(
                f"--mean has {len(self.mean)} numbers and --std {len(self.std)}: give one per channel"
            )


def refuse_unused(options: DataOptions, name: str, used: Collection[str], why: str) -> None:
    """Raise UsageError if something was asked for that a source of this name cannot do."""
    given = [field.name for field in fields(options) if getattr(options, field.name) is not None]
    unused = [FLAGS[field] for field in given if field not in used]
    if unused:
        raise UsageError(f"{' and '.join(unused)} cannot be used with --data {printable(name)}: {why}")
