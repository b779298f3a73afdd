"""From stored values to what a model is given: pixels to 0..1, then less the mean, over the deviation."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from swatool.data.options import DataOptions
from swatool.errors import DataError, UsageError, printable

__all__ = ["Sample", "check_alike", "normalised"]

BYTE = 255  # the value of a white pixel


class Sample(NamedTuple):
    """One sample that was read on its own: its name, its values, and whether it was an image."""

    name: str
    values: Tensor
    image: bool


def normalised(batch: Tensor, options: DataOptions, name: str) -> Tensor:
    """Return (x - mean) / std per channel, dimension 1, as float32 or wider; unchanged if neither was given.

    Raises:
        UsageError: the numbers given are not as many as the channels, or the values are no pixels.
    """
    if options.mean is None and options.std is None:
        return batch
    count = len(options.mean or options.std or ())
    if batch.dim() < 2 or count not in (1, batch.shape[1]):
        raise UsageError(
            f"--mean and --std have {count} numbers, but the samples of {printable(name)} have the shape "
            f"{list(batch.shape[1:])}: give one number per channel, which is the first dimension"
        )
    if batch.dtype is torch.uint8:
        batch = batch.to(torch.float32).div_(BYTE)
    elif not batch.is_floating_point():
        kind = str(batch.dtype).removeprefix("torch.")
        raise UsageError(f"--mean and --std are for floats and uint8 pixels; {printable(name)} holds {kind}")
    wide = batch.dtype if batch.dtype is torch.float64 else torch.float32
    per_channel = (1, -1) + (1,) * (batch.dim() - 2)
    batch = batch.to(wide)
    if options.mean is not None:
        batch = batch - torch.tensor(options.mean, dtype=wide).view(per_channel)
    if options.std is not None:
        batch = batch / torch.tensor(options.std, dtype=wide).view(per_channel)
    return batch


def check_alike(sample: Sample, first: Sample) -> None:
    """Raise UsageError or DataError if a sample has not the shape and dtype of the first one."""
    if sample.values.shape == first.values.shape and sample.values.dtype is first.values.dtype:
        return
    if sample.image and first.image:
        raise UsageError(
            f"the images are of several sizes, {_size(first)} for {printable(first.name)} and "
            f"{_size(sample)} for {printable(sample.name)}: give --size"
        )
    raise DataError(
        f"{printable(sample.name)} is {_kind(sample)}, unlike {printable(first.name)}, which is "
        f"{_kind(first)}: samples of one shape and type are needed"
    )


def _size(sample: Sample) -> str:
    return "x".join(map(str, sample.values.shape[1:]))


def _kind(sample: Sample) -> str:
    return f"{str(sample.values.dtype).removeprefix('torch.')} {list(sample.values.shape)}"
