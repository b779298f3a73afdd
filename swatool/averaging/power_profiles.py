"""Averages whose profile over the training so far is a power of the time: their widths and their overlaps.

An average of exponent gamma at step T holds the model of step t with the density

    p(t) = (gamma+1)/T (t/T)^gamma  on [0, T]

whose standard deviation, as a part of T, is sigma_rel = ((gamma+1) / ((gamma+2)^2 (gamma+3)))^1/2. After
Karras et al. 2024, Analyzing and Improving the Training Dynamics of Diffusion Models, section 3.1.
"""

from __future__ import annotations

import functools
import math

from swatool.averaging.scheme_checks import check_number

__all__ = ["WIDEST", "exponent", "width"]

WIDEST = 12**-0.5  # the relative width of a uniform profile, which is that of the mean
NARROWEST = 1e-9  # less than one step of any training


def width(gamma: float) -> float:
    """Return sigma_rel of the profile of this exponent."""
    return min(math.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2), WIDEST)  # of 0 it rounds up


def exponent(sigma_rel: float, field: str = "sigma_rel") -> float:
    """Return gamma of the profile of this width: the largest real root of

        gamma^3 + 7 gamma^2 + (16 - sigma_rel^-2) gamma + (12 - sigma_rel^-2) = 0

    Args:
        sigma_rel: in [1e-9, 12^-1/2], which is about 0.2887; the width falls as the exponent grows.
        field: the parameter that it was given as, for the message.
    """  # noqa: D415  # the equation ends the sentence
    check_number(field, sigma_rel, NARROWEST, WIDEST)
    return _root(sigma_rel)


@functools.cache
def _root(sigma_rel: float) -> float:
    low, high = 0.0, 1 / sigma_rel  # sigma_rel < 1/(gamma+2) for every gamma
    while low < (middle := (low + high) / 2) < high:
        if width(middle) > sigma_rel:
            low = middle
        else:
            high = middle
    return low
