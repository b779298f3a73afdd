"""Samples that are decoded one by one, by several threads, into batches; unreadable ones are counted."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

from swatool.data.options import DEFAULT_BATCH_SIZE, DEFAULT_MAX_BAD, MAX_BATCH, DataOptions
from swatool.data.pixels import Sample, check_alike, normalised
from swatool.errors import DataError, UsageError, printable

__all__ = ["Decoder", "Encoded"]

MAX_THREADS = 4  # each may hold an image of the largest size that is decoded
SHOWN_BAD = 20


class Encoded(NamedTuple):
    """A sample that is not decoded yet.

    Attributes:
        name: what to call it in messages.
        decode: gives its values; DataError, with the reason, if it is unreadable.
        image: whether --size applies to it.
    """

    name: str
    decode: Callable[[], Tensor]
    image: bool


class Decoder:
    """Makes batches of encoded samples."""

    def __init__(self, name: str, options: DataOptions) -> None:
        """Prepare for a data set of this name."""
        self.bad: dict[str, str] = {}
        self._name = name
        self._options = options
        self._first: Sample | None = None

    def batch(self, encoded: Sequence[Encoded]) -> Tensor | None:
        """Decode samples to a batch, [n, ...], in their order; None if all are left out as unreadable.

        Raises:
            UsageError: they are of several sizes.
            DataError: more were unreadable, in all batches so far, than are tolerated.
        """
        results: list[Tensor | str] = []
        for one in encoded:  # one by one until there is a first sample that the others are compared with
            if self._first is not None:
                break
            results.append(self._decode(one))
        rest = encoded[len(results) :]
        if rest:
            with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as pool:
                results += pool.map(self._decode, rest)
        self._note(
            {
                one.name: result
                for one, result in zip(encoded, results, strict=True)
                if isinstance(result, str)
            }
        )
        good = [result for result in results if not isinstance(result, str)]
        return normalised(torch.stack(good), self._options, self._name) if good else None

    def _decode(self, one: Encoded) -> Tensor | str:
        """Return a sample's values, or why it is unreadable."""
        try:
            sample = Sample(one.name, one.decode(), one.image)
        except DataError as error:
            return str(error)
        except UsageError as error:
            raise UsageError(f"{printable(one.name)}: {error}") from error
        if self._first is None:
            self._check_size(sample)
            # Its values are not needed again, and would be kept as long as the data set is.
            self._first = sample._replace(values=torch.empty_like(sample.values, device="meta"))
        check_alike(sample, self._first)
        return sample.values

    def _check_size(self, sample: Sample) -> None:
        count = self._options.batch_size or DEFAULT_BATCH_SIZE
        nbytes = count * sample.values.nbytes
        if nbytes > MAX_BATCH:
            raise UsageError(
                f"{count:,} samples like {printable(sample.name)} have {nbytes:,} bytes, more than "
                f"{MAX_BATCH:,}: give a smaller --batch-size" + (" or a --size" if sample.image else "")
            )

    def _note(self, found: Mapping[str, str]) -> None:
        """Take note of what a batch could not decode; DataError if it is more than is tolerated."""
        most = DEFAULT_MAX_BAD if self._options.max_bad is None else self._options.max_bad
        self.bad.update(found)
        count = len(self.bad)
        if count <= most:
            return
        shown = [f"  {printable(name)}: {reason}" for name, reason in self.bad.items()][:SHOWN_BAD]
        more = [f"  ... and {count - SHOWN_BAD} more"] if count > SHOWN_BAD else []
        what = "sample is unreadable" if count == 1 else "samples are unreadable"
        summary = (
            f"{count} {what} of {printable(self._name)}, and --max-bad tolerates {most}: repair or remove, "
            "or raise --max-bad"
        )
        raise DataError("\n".join([summary, *shown, *more]))
