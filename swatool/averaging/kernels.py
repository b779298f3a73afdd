"""The arithmetic on whole blocks, the same on every device: all that swatool asks of torch's operators.

The result of averaging is defined as one chain per element, `sum = fma(c_k, x_k, sum)` in the order of the
checkpoints, whatever the block size, the thread and the device. Where the matrix-vector product of the
installed BLAS is proved to compute exactly that chain, it is used, because it reads and writes the sums once
for several checkpoints; else the checkpoints are added one by one.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from swatool.averaging.blocks import ROWS
from swatool.tensors import DType

__all__ = [
    "accumulate",
    "accumulate_together",
    "can_lerp",
    "complex_view",
    "copy_together",
    "fits",
    "lerp_together",
    "most_together",
    "real_view",
    "torch_dtype",
]

# As many as a worker reads before it adds. From eight on, MKL's product adds in another order.
MOST_TOGETHER = ROWS
PROBE_LENGTHS = (1, 15, 64, 1000, 4099)


def torch_dtype(dtype: DType) -> torch.dtype:
    """Return torch's own object for an element type."""
    found = getattr(torch, dtype.name)
    assert isinstance(found, torch.dtype)
    return found


def accumulate(sums: Tensor, values: Tensor, coefficient: float, *, first: bool) -> None:
    """Add one checkpoint's values, [n], times its coefficient to the sums, [n]; `first` overwrites them."""
    if first:
        torch.mul(values, coefficient, out=sums)
    else:
        sums.add_(values, alpha=coefficient)


def accumulate_together(sums: Tensor, columns: Tensor, coefficients: Tensor, *, first: bool) -> None:
    """Do what `accumulate` does for one column after the other, in one pass over the sums.

    Args:
        sums: [n], float32 or float64; overwritten if `first`.
        columns: [n, r], of the same type and device, a checkpoint in each column; each column's elements lie
            next to each other, and r is at most what `most_together` returns.
        coefficients: [r], of the same type and device.
        first: whether these are the first checkpoints, so that the sums hold nothing yet.
    """
    if first:
        torch.mv(columns, coefficients, out=sums)
    else:
        sums.addmv_(columns, coefficients)


@functools.cache
def most_together(device: torch.device, dtype: torch.dtype) -> int:
    """Return for how many checkpoints `accumulate_together` is proved to be the chain; 1 if for none.

    The proof is by trial, over lengths around those of vector registers and at an address that fits none.
    """
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(MOST_TOGETHER + 2, max(PROBE_LENGTHS) + 3, generator=generator, dtype=dtype).to(
        device
    )
    factors = values[-1, :MOST_TOGETHER]
    for length in PROBE_LENGTHS:
        for count in range(1, MOST_TOGETHER + 1):
            columns = values[:count, 3 : 3 + length].t()
            for first in (True, False):
                chain, together = values[-2, :length].clone(), values[-2, :length].clone()
                for index, factor in enumerate(factors[:count].tolist()):
                    accumulate(chain, columns[:, index], factor, first=first and index == 0)
                accumulate_together(together, columns, factors[:count], first=first)
                if not torch.equal(chain, together):
                    return 1
    return MOST_TOGETHER


def complex_view(reals: Tensor) -> Tensor:
    """See pairs of real numbers, [..., 2n], as complex ones, [..., n], without copying."""
    return torch.view_as_complex(reals.view(*reals.shape[:-1], -1, 2))


def real_view(values: Tensor) -> Tensor:
    """See complex numbers, [..., n], as real ones, [..., 2n], without copying; real ones as they are."""
    return torch.view_as_real(values).flatten(-2) if values.is_complex() else values


def fits(sums: Tensor, dtype: torch.dtype) -> bool:
    """Tell whether every sum, [n], is finite and has a finite value of `dtype` to be rounded to."""
    limits = torch.finfo(dtype)
    signed = limits.min < 0
    if signed and math.sqrt(torch.dot(sums, sums).item()) <= limits.max / 2:
        # No element exceeds the norm, which is one fast pass; half is a margin for its own rounding.
        return True
    extremes = torch.stack(torch.aminmax(sums))
    rounded = extremes.to(dtype).to(torch.complex128).abs()
    if not bool(rounded.isfinite().all()) or not (signed or extremes[0].item() >= limits.min):
        return False
    # Types without Inf may be given the largest value for anything beyond it, which is no rounding.
    half_step = 2.0 ** (math.frexp(limits.max)[1] - 2) * limits.eps
    return float(extremes.to(torch.float64).abs().max()) <= limits.max + half_step


def copy_together(
    targets: Sequence[Tensor], sources: Sequence[Tensor], *, non_blocking: bool = False
) -> None:
    """Copy many tensors in one call; types and devices may differ.

    With `non_blocking`, copies from CUDA to pinned memory may still be under way when this returns.
    """
    if targets:
        with torch.no_grad():
            torch._foreach_copy_(list(targets), list(sources), non_blocking)


@functools.cache
def can_lerp(device: torch.device, dtype: torch.dtype) -> bool:
    """Tell, by trial, whether `lerp_together` works there on that type; on types of 8 bits it does not."""
    try:
        one = torch.zeros(1, dtype=dtype, device=device)
        torch._foreach_lerp_([one], [one], 0.5)
    except (NotImplementedError, RuntimeError):
        return False
    return True


def lerp_together(averages: Sequence[Tensor], models: Sequence[Tensor], weight: float) -> None:
    """Move many averages in place towards as many models: average += weight (model - average), one pass.

    Args:
        averages: of one device and one floating or complex type.
        models: of the same device, type and shapes.
        weight: in [0, 1]. From 1/2 on, torch goes from the model's end back; so 1 gives the model.
    """
    if averages:
        with torch.no_grad():
            torch._foreach_lerp_(list(averages), list(models), weight)
