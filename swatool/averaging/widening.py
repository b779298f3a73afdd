"""Parts of stored tensors of any type as float64 numbers, exactly, to be measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from swatool.averaging import kernels
from swatool.averaging.memory import Memory

__all__ = ["Values", "extremes", "largest", "part_of", "scaled", "widen"]

LIMB = 32  # bits of a 64-bit integer that are taken at a time
LOW_LIMB = 2**LIMB - 1
LONG = (torch.int64, torch.uint64)  # not every value of these is one of float64
MIDDLE = 2.0**460  # squares of numbers between this and its inverse are far from the limits of float64


class Values(NamedTuple):
    """A part of a tensor, [n] elements; a complex one is two numbers.

    Attributes:
        stored: as they are stored.
        high: as float64 numbers; 64-bit integers rounded to multiples of 2**32.
        low: what that leaves of them; None for other types.
        wide: both together, rounded to float64.
    """

    stored: Tensor
    high: Tensor
    low: Tensor | None
    wide: Tensor

    @property
    def width(self) -> int:
        """Numbers in an element."""
        return len(self.wide) // len(self.stored)

    def elements(self, flags: Tensor) -> int:
        """Count the elements for which a flag of one of their numbers is set."""
        if self.width > 1:
            flags = flags.view(-1, self.width).any(1)
        return int(torch.count_nonzero(flags))

    def nan(self) -> int:
        """Count the elements that are NaN."""
        return self.elements(self.wide.isnan())

    def infinite(self) -> int:
        """Count the elements that are infinite; a complex one with a NaN is NaN."""
        numbers = self.wide.view(-1, self.width)
        return int(torch.count_nonzero(numbers.isinf().any(1) & ~numbers.isnan().any(1)))


def part_of(values: Values, start: int, end: int) -> Values:
    """Take a run of the elements."""
    width = values.width
    numbers = slice(start * width, end * width)
    wide = values.wide[numbers]
    if values.low is None:
        return Values(values.stored[start:end], wide, None, wide)
    return Values(values.stored[start:end], values.high[numbers], values.low[numbers], wide)


def widen(stored: Sequence[Tensor], memory: Memory) -> list[Values]:
    """Turn a tile of each checkpoint, [n], into float64 numbers, exactly."""
    as_complex = any(values.is_complex() for values in stored)
    found = []
    for place, values in enumerate(stored):
        wide = memory.take(f"wide {place}", torch.float64, len(values) * (2 if as_complex else 1))
        high, low = wide, None
        if values.dtype in LONG and not as_complex:
            high = memory.take(f"high {place}", torch.float64, len(values))
            low = memory.take(f"low {place}", torch.float64, len(values))
            _split_long(values, high, low)
            torch.add(high, low, out=wide)
        elif as_complex and not values.is_complex():
            kernels.complex_view(wide).copy_(values.to(torch.float64))
        elif as_complex:
            kernels.complex_view(wide).copy_(values)
        else:
            wide.copy_(values)
        found.append(Values(values, high, low, wide))
    return found


def _split_long(values: Tensor, high: Tensor, low: Tensor) -> None:
    """Write 64-bit integers, [n], as two exact float64 numbers each: x = high + low, -2**31 <= low < 2**31.

    So a difference from a number near by, high - y + low, is exact, whatever type y is of.
    """
    bits = values.view(torch.int64)
    upper = bits >> LIMB
    if values.dtype is torch.uint64:
        upper &= LOW_LIMB
    carry = (bits >> (LIMB - 1)) & 1
    high.copy_(upper + carry).mul_(2.0**LIMB)
    low.copy_((bits & LOW_LIMB) - (carry << LIMB))


def extremes(stored: Tensor, numbers: Tensor) -> tuple[float | int, float | int]:
    """Return the smallest and the largest of numbers, [n], which are exact unless they are 64 bits long."""
    if stored.dtype not in LONG:
        low, high = (float(one) for one in torch.aminmax(numbers))
        exact = stored.is_floating_point() or stored.is_complex()
        return (low, high) if exact else (int(low), int(high))
    # Without its sign, an integer of 64 bits is ordered as the signed one that is 2**63 less.
    shift = 2**63 if stored.dtype is torch.uint64 else 0
    bits = stored.view(torch.int64)
    lowest, highest = torch.aminmax(bits ^ torch.iinfo(torch.int64).min if shift else bits)
    return int(lowest) + shift, int(highest) + shift


def largest(numbers: Tensor) -> float:
    """Return the largest absolute value."""
    low, high = torch.aminmax(numbers)
    return max(0.0, -float(low), float(high))


def scaled(numbers: Tensor) -> tuple[Tensor, int]:
    """Return numbers that are safe to be squared, and the exponent of the power of two taken out of them."""
    top = largest(numbers)
    if not top or 1 / MIDDLE < top < MIDDLE:
        return numbers, 0
    _, exponent = math.frexp(top)
    half = exponent // 2  # the whole power may not be a number
    return numbers * 2.0**-half * 2.0 ** (half - exponent), exponent
