import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swatool.averaging.power_profiles import WIDEST, exponent, width
from swatool.errors import UsageError

np = pytest.importorskip("numpy")


@pytest.mark.parametrize(("sigma_rel", "gamma"), [(0.05, 16.97), (0.1, 6.94), (WIDEST, 0)])
def test_exponents_of_the_paper(sigma_rel, gamma):
    assert exponent(sigma_rel) == pytest.approx(gamma, abs=0.01)


@given(sigma_rel=st.floats(0.001, WIDEST))
def test_the_exponent_is_the_largest_root_of_the_cubic(sigma_rel):
    inverse = sigma_rel**-2
    roots = np.roots([1, 7, 16 - inverse, 12 - inverse])
    assert exponent(sigma_rel) == pytest.approx(max(roots.real), rel=1e-7, abs=1e-6)
    assert width(exponent(sigma_rel)) == pytest.approx(sigma_rel, rel=1e-14)


@given(gamma=st.floats(0, 1e6))
def test_width_and_exponent_undo_each_other(gamma):
    assert exponent(width(gamma)) == pytest.approx(gamma, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("gamma", [0, 1, 6.94, 50])
def test_the_width_is_the_standard_deviation_of_the_profile(gamma):
    times = (np.arange(200_000) + 0.5) / 200_000
    density = (gamma + 1) * times**gamma / len(times)
    mean = density @ times
    assert math.sqrt(density @ (times - mean) ** 2) == pytest.approx(width(gamma), rel=1e-6)


@pytest.mark.parametrize("sigma_rel", [0.0, -0.1, 0.2887, math.nan, math.inf, "0.1", None, True, 1e-300])
def test_widths_that_no_profile_has_are_refused(sigma_rel):
    with pytest.raises(UsageError, match="--target must lie in"):
        exponent(sigma_rel, "target")
