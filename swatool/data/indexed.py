"""A data set whose samples can be read in any order: the one place that decides the order and the batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from swatool.data.options import DEFAULT_BATCH_SIZE, DEFAULT_SEED, DataOptions
from swatool.errors import UsageError, printable

__all__ = ["IndexedData"]

MAX_SHUFFLED = 2**27  # samples; the order is held in memory, four bytes for each


class IndexedData:
    """Batches of samples that are read by their positions; shuffled unless asked otherwise. A Data."""

    def __init__(
        self,
        name: str,
        count: int,
        read: Callable[[Sequence[int]], Tensor | None],
        options: DataOptions,
        *,
        close: Callable[[], None] = lambda: None,
        bad: Mapping[str, str] | None = None,
    ) -> None:
        """Decide the order of the samples.

        Args:
            name: what the user gave.
            count: how many samples there are.
            read: gives the samples at some positions, [n, ...] in the order of the positions and without the
                unreadable ones; None if none of them was readable.
            options: how they are read.
            close: closes what `read` reads from.
            bad: what `read` found unreadable.
        """
        self.name = name
        self.notes: Sequence[str] = ()
        self.bad: Mapping[str, str] = {} if bad is None else bad
        self._read = read
        self._close = close
        self._batch_size = options.batch_size or DEFAULT_BATCH_SIZE
        self._order = _order(name, count, options)
        self.samples = len(self._order)

    def __iter__(self) -> Iterator[Tensor]:
        """Give all batches, always in the same order."""
        return self.share(0, 1)

    def share(self, rank: int, size: int) -> Iterator[Tensor]:
        """Give the batches number rank, rank + size, ...; the others are not read."""
        for start in range(rank * self._batch_size, self.samples, size * self._batch_size):
            positions = self._order[start : start + self._batch_size]
            batch = self._read(positions if isinstance(positions, range) else positions.tolist())
            if batch is not None:
                yield batch

    def close(self) -> None:
        """Close the files that are held."""
        self._close()


def _order(name: str, count: int, options: DataOptions) -> range | Tensor:
    """Return the positions in the order of reading, as many as are used."""
    used = count if options.samples is None else min(count, options.samples)
    if options.shuffle is False:
        return range(used)
    if count > MAX_SHUFFLED:
        raise UsageError(
            f"{printable(name)} holds {count:,} samples, and at most {MAX_SHUFFLED:,} are shuffled: "
            "give --no-shuffle"
        )
    # A generator of its own: the user's random state is left alone.
    generator = torch.Generator().manual_seed(DEFAULT_SEED if options.seed is None else options.seed)
    return torch.randperm(count, generator=generator, dtype=torch.int32)[:used].clone()
