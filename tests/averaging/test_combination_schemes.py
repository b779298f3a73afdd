import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swatool.averaging.combination_schemes import Difference, Extrapolate, Interpolate, Weights
from swatool.errors import UsageError


def test_weights_are_normalized_unless_that_is_declined():
    assert Weights((1.0, 3.0)).coefficients([1, 2]) == (0.25, 0.75)
    assert Weights((1.0, 3.0), normalize=False).coefficients([1, 2]) == (1.0, 3.0)
    assert Weights((2.0, -1.0)).coefficients([1, 2]) == (2.0, -1.0)
    assert Weights((1.0, -1.0), normalize=False).coefficients([1, 2]) == (1.0, -1.0)
    assert Weights([1, 3]) == Weights((1, 3))


@pytest.mark.parametrize(
    "weights", [(), (math.nan, 1.0), (math.inf, 1.0), (-math.inf, 1.0), ("1",), 1.0, None]
)
@pytest.mark.parametrize("normalize", [True, False])
def test_weights_must_be_finite_numbers(weights, normalize):
    with pytest.raises(UsageError, match="--weights must be finite"):
        Weights(weights, normalize)


@pytest.mark.parametrize("weights", [(0.0, 0.0), (1.0, -1.0), (0.1, 0.2, -0.3)])
def test_weights_that_cancel_cannot_be_normalized(weights):
    with pytest.raises(UsageError, match="--no-normalize"):
        Weights(weights)


def test_weights_too_large_to_be_summed_are_refused():
    with pytest.raises(UsageError, match=r"must not exceed 1e\+30"):
        Weights((1e308, 1e308))


@pytest.mark.parametrize("count", [1, 3])
def test_number_of_weights_must_be_right(count):
    with pytest.raises(UsageError, match=f"gives 2 numbers for {count} checkpoints"):
        Weights((1.0, 2.0)).coefficients([None] * count)


@given(a=st.integers(1, 1000), more=st.integers(1, 1000))
def test_the_difference_of_running_means_is_the_mean_between(a, more):
    b = a + more
    models = [(i * 37) % 101 for i in range(b)]
    means = [math.fsum(models[:a]) / a, math.fsum(models) / b]
    expected = math.fsum(models[a:]) / more
    for scheme, steps in ((Difference(), [a, b]), (Difference((a, b)), [None, None])):
        found = sum(c * m for c, m in zip(scheme.coefficients(steps), means, strict=True))
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-9 * b / more * 101)


def test_difference_says_which_counts_it_used():
    assert Difference().informed([100, 300], []) == Difference((100, 300))
    assert Difference((1, 2)).informed([100, 300], []) == Difference((1, 2))
    assert Difference().coefficients([100, 300]) == (-0.5, 1.5)
    assert Difference().informed([1, 2, 3], []) == Difference()


@pytest.mark.parametrize("steps", [[1], [1, 2, 3]])
def test_difference_takes_two(steps):
    with pytest.raises(UsageError, match=f"takes two running means, not {len(steps)}"):
        Difference().coefficients(steps)


def test_interpolation_goes_from_the_first_to_the_others():
    assert Interpolate().coefficients([1, 2]) == (0.5, 0.5)
    assert Interpolate(0.25).coefficients([1, 2]) == (0.75, 0.25)
    assert Interpolate(0).coefficients([1, 2, 3]) == (1, 0, 0)
    assert Interpolate(1).coefficients([1, 2, 3]) == (0, 0.5, 0.5)
    assert Interpolate(1.5).coefficients([1, 2]) == (-0.5, 1.5)
    with pytest.raises(UsageError, match="at least two"):
        Interpolate().coefficients([1])


def test_extrapolation_goes_on_from_the_older_to_the_newer_half():
    assert Extrapolate(0.5).coefficients([1, 2, 3, 4]) == (-0.25, -0.25, 0.75, 0.75)
    assert Extrapolate(1).coefficients([1, 2]) == (-1, 2)
    assert Extrapolate(0).coefficients([1, 2, 3]) == (0, 0.5, 0.5)
    assert Extrapolate(1, window=1).coefficients([1, 2, 3, 4]) == (-1, 0, 0, 2)
    for window, steps in ((2, [1, 2, 3]), (None, [1])):
        with pytest.raises(UsageError, match=f"there are {len(steps)} checkpoints"):
            Extrapolate(1, window).coefficients(steps)


@pytest.mark.parametrize(
    ("scheme", "arguments", "told"),
    [
        (Weights, ((1.0,), "nvlabs"), "--normalize must be true or false, not 'nvlabs'"),
        (Difference, ((1,),), "--counts must be two numbers, as in 1000,3000, not 1"),
        (Difference, ((3, 3),), "--counts must be at least 0 and increase, not 3 and 3"),
        (Difference, ((-1, 3),), "--counts must be finite numbers of at least 0, one per running mean"),
        (Difference, ((1, math.nan),), "--counts"),
        (Interpolate, (-0.1,), "--alpha"),
        (Interpolate, (math.inf,), "--alpha"),
        (Extrapolate, (-1,), "--factor"),
        (Extrapolate, (math.nan,), "--factor"),
        (Extrapolate, (1, 0), "--window must be a whole number of at least 1, not 0"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(scheme, arguments, told):
    with pytest.raises(UsageError, match=told):
        scheme(*arguments)
