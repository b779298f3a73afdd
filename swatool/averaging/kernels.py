"""The arithmetic on whole blocks, the same on every device: all that swatool asks of torch's operators.

The result of averaging is defined as one chain per element, `sum = fma(c_k, x_k, sum)` in the order of the
checkpoints, whatever the block size, the thread and the device. Where the matrix-vector product of the
installed BLAS is proved to compute exactly that chain, it is used, because it reads and writes the sums once
for several checkpoints; else the checkpoints are added one by one.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from swatool.tensors import DType

__all__ = ["accumulate", "complex_view", "fits", "fused_rows", "torch_dtype"]

# From eight rows on, MKL's product adds in another order; four keep what is worked on in the cache.
MOST_FUSED_ROWS = 4
PROBE_LENGTHS = (1, 15, 64, 1000, 4099)


def torch_dtype(dtype: DType) -> torch.dtype:
    """Return torch's own object for an element type."""
    found = getattr(torch, dtype.name)
    assert isinstance(found, torch.dtype)
    return found


def accumulate(sums: Tensor, rows: Tensor, coefficients: Tensor, *, first: bool) -> None:
    """Add rows times their coefficients to the sums, in the order of the rows.

    Args:
        sums: [n], float32 or float64; overwritten if `first`.
        rows: [r, n], of the same type and device; r is at most what `fused_rows` returns.
        coefficients: [r], of the same type and device.
        first: whether these are the first rows, so that the sums hold nothing yet.
    """
    if len(rows) <= fused_rows(sums.device, sums.dtype):
        if first:
            torch.mv(rows.t(), coefficients, out=sums)
        else:
            sums.addmv_(rows.t(), coefficients)
    else:
        _chain(sums, rows, coefficients, first=first)


def _chain(sums: Tensor, rows: Tensor, coefficients: Tensor, *, first: bool) -> None:
    for index, coefficient in enumerate(coefficients.tolist()):
        if first and index == 0:
            torch.mul(rows[0], coefficient, out=sums)
        else:
            sums.add_(rows[index], alpha=coefficient)


@functools.cache
def fused_rows(device: torch.device, dtype: torch.dtype) -> int:
    """Return how many rows `accumulate` takes at once: as many as the product is proved right for, or 1."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(MOST_FUSED_ROWS + 2, max(PROBE_LENGTHS) + 3, generator=generator, dtype=dtype)
    values = values.to(device)
    rows, start, coefficients = values[:MOST_FUSED_ROWS], values[-2], values[-1, :MOST_FUSED_ROWS]
    for length in PROBE_LENGTHS:
        for count in range(1, MOST_FUSED_ROWS + 1):
            # An offset of three elements is no aligned address for any vector unit.
            part = rows[:count, 3 : 3 + length]
            for first in (True, False):
                expected, found = start[:length].clone(), start[:length].clone()
                _chain(expected, part, coefficients[:count], first=first)
                if first:
                    torch.mv(part.t(), coefficients[:count], out=found)
                else:
                    found.addmv_(part.t(), coefficients[:count])
                if not torch.equal(expected, found):
                    return 1
    return MOST_FUSED_ROWS


def complex_view(reals: Tensor) -> Tensor:
    """See pairs of real numbers, [..., 2n], as complex ones, [..., n], without copying."""
    return torch.view_as_complex(reals.view(*reals.shape[:-1], -1, 2))


def fits(sums: Tensor, dtype: torch.dtype) -> bool:
    """Tell whether every sum, [n], is finite and stays so as `dtype`."""
    largest = torch.finfo(dtype).max
    # No element exceeds the norm, which is one fast pass; half is a margin for its rounding.
    if math.sqrt(torch.dot(sums, sums).item()) <= largest / 2:
        return True
    low, high = torch.aminmax(sums)
    if max(-low.item(), high.item()) <= largest:
        return True
    # Slightly larger values still round down to the largest one. Rounding is monotone: the extremes decide.
    extremes = torch.stack((low, high)).to(dtype).to(torch.complex128).abs()
    return bool(extremes.isfinite().all())
