import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swatool.averaging.coefficients import coefficient_warnings, figures, l1, needs_float64
from swatool.averaging.schemes import (
    Bema,
    Difference,
    Ema,
    Extrapolate,
    PosthocEma,
    PowerEma,
    Swa,
    Weights,
    Wsm,
)


def told(scheme, steps, coefficients=None):
    paths = [f"ckpt-{i}.pt" for i in range(len(steps))]
    return list(coefficient_warnings(scheme, coefficients or scheme.coefficients(steps), steps, paths))


def test_figures_of_the_mean():
    found = figures(Swa().coefficients([10, 20, 40]), [10, 20, 40])
    assert found.effective == pytest.approx(3)
    assert found.lag == pytest.approx(50 / 3)
    assert found.lag_unit == "steps"
    assert found.l1 == pytest.approx(1)


def test_figures_without_steps_count_checkpoints():
    found = figures((0.25, 0.25, 0.5), [10, None, 40])
    assert (found.lag, found.lag_unit) == (0.75, "checkpoints")
    assert found.effective == pytest.approx(8 / 3)


def test_figures_of_an_extrapolation():
    found = figures((-1.0, 2.0), [100, 300])
    assert (found.effective, found.lag, found.l1) == (0.2, -200, 3)


def test_figures_of_nothing():
    assert figures((0.0, 0.0), [1, 2]).effective == 0


@given(n=st.integers(1, 200), decay=st.floats(0.5, 0.99))
def test_the_debiased_ema_has_its_closed_forms(n, decay):
    found = figures(Ema(decay, debias=True).coefficients([None] * n), [None] * n)
    assert found.effective == pytest.approx(
        (1 - decay**n) * (1 + decay) / ((1 + decay**n) * (1 - decay)), rel=1e-9
    )
    assert found.lag == pytest.approx(decay / (1 - decay) - n * decay**n / (1 - decay**n), rel=1e-7, abs=1e-9)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30))
def test_l1_is_the_sum_of_magnitudes(coefficients):
    assert l1(coefficients) == math.fsum(map(abs, coefficients))


def test_large_coefficients_need_float64():
    assert not needs_float64((-9.5, 10.5))
    assert needs_float64((-10.0, 11.0))


def test_ordinary_averages_deserve_no_warning():
    for scheme in (Swa(), Wsm("minus-sqrt"), Ema(0.7), Weights((9, 1, 0, 0, 0)), PowerEma(1)):
        assert told(scheme, [10, 20, 30, 40, 50]) == []


@pytest.mark.parametrize(
    ("scheme", "who", "advice"),
    [
        (Ema(0.9), "'ckpt-0.pt' alone has 66%", "so take a smaller decay"),
        (Ema(0.1), "'ckpt-4.pt' alone has 90%", "so take a larger decay"),
        (PowerEma(7), "'ckpt-0.pt' alone has 72%", "give checkpoints from further back"),
        (PowerEma(70), "'ckpt-4.pt' alone has 51%", "choose the parameters for so few"),
    ],
    ids=str,
)
def test_one_that_outweighs_all_others_is_named(scheme, who, advice):
    (warning,) = told(scheme, [96, 97, 98, 99, 100])
    assert who in warning
    assert advice in warning


def test_what_lies_outside_is_told_with_its_amplification():
    for scheme in (Bema(rho=2), Extrapolate(1), Difference()):
        (warning,) = told(scheme, [100, 300])
        assert warning.startswith("1 of the 2 coefficients are negative")
        assert f"amplified {l1(scheme.coefficients([100, 300])):.3g} times" in warning
    assert told(Weights((2, -1)), [100, 300]) == []


def test_large_amplification_is_told():
    (warning,) = told(Difference(), [100, 105])
    assert warning.startswith("the coefficients' absolute values sum to 41")
    assert "float32" in warning
    (warning,) = told(Weights((30, -29)), [100, 105])
    assert "sum to 59" in warning


def test_remarks_of_the_scheme_are_told():
    warnings = told(PosthocEma(0.2, sigma_rels=(0.05, 0.1)), [100, 100])
    assert any("lies outside of what was tracked" in warning for warning in warnings)
