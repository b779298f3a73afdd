import math
from dataclasses import fields
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from swatool.averaging.online_schemes import (
    ONLINE_SCHEMES,
    CrowsonEma,
    Polynomial,
    PowerEma,
    RestartedMean,
    WarmupEma,
    unrolled,
)
from swatool.averaging.schemes import SCHEMES, Ema, Swa
from swatool.errors import UsageError

COUNTS = st.integers(1, 60)
DECAYS = st.floats(0, 1) | st.sampled_from([0.0, 1.0, 0.9, 0.999, 0.9999999])
INSTANCES = {
    "swa": st.just(Swa()),
    "ema": st.builds(Ema, DECAYS, st.booleans()),
    "ema-warmup": st.builds(WarmupEma, DECAYS),
    "ema-crowson": st.builds(
        CrowsonEma, st.floats(0.5, 1), st.floats(0.1, 10), st.floats(0.1, 3), st.floats(0, 0.5)
    ),
    "power-ema": st.builds(PowerEma, st.floats(0, 100)),
    "polynomial": st.builds(Polynomial, st.floats(0, 100)),
    "restarted-mean": st.builds(RestartedMean, st.integers(1, 20)),
}
few = settings(max_examples=60, deadline=None)


def running(scheme, n):
    """Coefficients of n models, from updating vectors that tell them apart."""
    average = [0.0] * n
    for seen in range(n):
        weight = scheme.weight(seen)
        average = [a + weight * ((index == seen) - a) for index, a in enumerate(average)]
    return average


def test_every_scheme_has_instances_to_be_tested_with():
    assert set(INSTANCES) == set(ONLINE_SCHEMES)
    assert set(SCHEMES) & set(ONLINE_SCHEMES) == {"swa", "ema"}


@pytest.mark.parametrize("name", ONLINE_SCHEMES)
def test_each_scheme_knows_its_name_formula_and_source(name):
    scheme = ONLINE_SCHEMES[name]
    assert scheme.name == name
    assert scheme.formula
    assert scheme.source
    assert scheme.__doc__


@pytest.mark.parametrize("name", ONLINE_SCHEMES)
@few
@given(data=st.data(), n=COUNTS)
def test_the_online_form_is_the_offline_form(name, data, n):
    scheme = data.draw(INSTANCES[name])
    assert scheme.coefficients([None] * n) == pytest.approx(running(scheme, n), rel=1e-8, abs=1e-12)


@pytest.mark.parametrize("name", ONLINE_SCHEMES)
@few
@given(data=st.data(), n=COUNTS)
def test_coefficients_are_one_per_checkpoint_and_sum_to_one(name, data, n):
    coefficients = data.draw(INSTANCES[name]).coefficients([None] * n)
    assert len(coefficients) == n
    assert all(type(c) is float for c in coefficients)
    assert math.fsum(coefficients) == pytest.approx(1, abs=1e-9)
    assert min(coefficients) >= 0


@pytest.mark.parametrize("name", ONLINE_SCHEMES)
@few
@given(data=st.data(), n=st.integers(0, 10**6))
def test_weights_lie_between_nothing_and_all_and_the_first_is_all(name, data, n):
    scheme = data.draw(INSTANCES[name])
    assert scheme.weight(0) == 1
    assert type(scheme.weight(n)) is float
    assert 0 <= scheme.weight(n) <= 1


def test_unrolled_is_the_product_of_what_is_left():
    assert unrolled([0.3, 0.5, 0.25]) == (0.5 * 0.75, 0.5 * 0.75, 0.25)
    assert unrolled([0.0]) == (1,)
    assert unrolled([1.0, 1.0]) == (0, 1)


@pytest.mark.parametrize(
    "scheme",
    [
        PowerEma(0),
        Polynomial(0),
        CrowsonEma(decay=1, inv_gamma=1, power=1),
        RestartedMean(1000),
        Ema(1, True),
    ],
)
def test_the_mean_is_a_special_case(scheme):
    for n in range(30):
        assert scheme.weight(n) == pytest.approx(1 / (n + 1), rel=1e-12)


def test_debiased_ema_near_the_mean_is_not_cancelled_away():
    decay = 1 - 1.1e-9
    exact = (1 - Fraction(decay)) / (1 - Fraction(decay) ** 10)
    assert Ema(decay, debias=True).weight(9) == pytest.approx(float(exact), rel=1e-12)
    assert Ema(0.0, debias=True).weight(3) == 1
    assert Ema(0.5, debias=True).weight(1) == pytest.approx(0.5 / 0.75)
    assert Ema(0.75).weight(1) == 0.25
    assert Ema(0.75).weight(100) == 0.25


def test_warmup_follows_its_formula():
    scheme = WarmupEma(decay=0.75)
    assert [1 - scheme.weight(n) for n in (1, 2, 8)] == pytest.approx([2 / 11, 3 / 12, 9 / 18])
    assert 1 - scheme.weight(26) == pytest.approx(0.75)
    assert 1 - scheme.weight(10**6) == pytest.approx(0.75)
    assert WarmupEma().decay == 0.9999


def test_crowson_follows_its_formula():
    scheme = CrowsonEma(decay=0.9, inv_gamma=2, power=0.5)
    assert [1 - scheme.weight(n) for n in (1, 6)] == pytest.approx([1 - 1.5**-0.5, 0.5])
    assert 1 - scheme.weight(10**6) == pytest.approx(0.9)
    assert 1 - CrowsonEma(min_decay=0.7).weight(1) == pytest.approx(0.7)
    assert (CrowsonEma().decay, CrowsonEma().inv_gamma, CrowsonEma().power, CrowsonEma().min_decay) == (
        *(0.9999, 1, 2 / 3, 0),
    )


def test_power_ema_follows_its_profile():
    assert PowerEma(1).coefficients([None] * 3) == pytest.approx((1 / 9, 3 / 9, 5 / 9))
    # The discrete profile of many checkpoints has the width that was asked for.
    for sigma in (0.05, 0.1, 0.25):
        coefficients = torch.tensor(
            PowerEma.from_width(sigma).coefficients([None] * 4000), dtype=torch.float64
        )
        times = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
        mean = coefficients @ times
        assert math.sqrt(coefficients @ (times - mean) ** 2) == pytest.approx(sigma, rel=1e-4)


@pytest.mark.parametrize(("sigma", "gamma"), [(0.05, 16.97), (0.1, 6.94)])
def test_power_ema_has_the_exponents_of_the_paper(sigma, gamma):
    assert PowerEma.from_width(sigma).gamma == pytest.approx(gamma, abs=0.01)


@few
@given(sigma=st.floats(0.001, 12**-0.5))
def test_the_exponent_solves_the_papers_cubic(sigma):
    gamma, inverse = PowerEma.from_width(sigma).gamma, sigma**-2
    terms = (gamma**3, 7 * gamma**2, (16 - inverse) * gamma, 12 - inverse)
    assert math.fsum(terms) == pytest.approx(0, abs=1e-9 * max(inverse, *map(abs, terms)))


def test_polynomial_weighs_by_a_polynomial():
    # With eta = 3 the i-th of N has the weight i (i+1) (i+2), relatively.
    products = [i * (i + 1) * (i + 2) for i in range(1, 8)]
    expected = [product / sum(products) for product in products]
    assert Polynomial().coefficients([None] * 7) == pytest.approx(expected)


def test_restarted_mean_is_that_of_the_last():
    scheme = RestartedMean(3)
    assert scheme.coefficients([None] * 6) == pytest.approx((0, 0, 0, 1 / 3, 1 / 3, 1 / 3))
    assert scheme.coefficients([None] * 7) == (0, 0, 0, 0, 0, 0, 1)
    assert [scheme.weight(n) for n in range(5)] == [1, 1 / 2, 1 / 3, 1, 1 / 2]


@pytest.mark.parametrize(
    ("scheme", "arguments", "what"),
    [
        (WarmupEma, (1.1,), "decay"),
        (WarmupEma, (-0.1,), "decay"),
        (WarmupEma, (math.nan,), "decay"),
        (CrowsonEma, (1.1,), "decay"),
        (CrowsonEma, (0.9, 0), "inv_gamma"),
        (CrowsonEma, (0.9, math.inf), "inv_gamma"),
        (CrowsonEma, (0.9, 1, 0), "power"),
        (CrowsonEma, (0.9, 1, math.inf), "power"),
        (CrowsonEma, (0.9, 1, 1, 0.95), "min_decay"),
        (CrowsonEma, (0.9, 1, 1, -0.1), "min_decay"),
        (PowerEma, (-0.1,), "gamma"),
        (PowerEma, (math.inf,), "gamma"),
        (PowerEma.from_width, (0.0,), "sigma_rel"),
        (PowerEma.from_width, (0.29,), "sigma_rel"),
        (Polynomial, (-1.0,), "eta"),
        (Polynomial, (math.inf,), "eta"),
        (RestartedMean, (0,), "k must"),
        (RestartedMean, (2.5,), "k must"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(scheme, arguments, what):
    with pytest.raises(UsageError, match=what):
        scheme(*arguments)


@pytest.mark.parametrize("name", ONLINE_SCHEMES)
def test_schemes_are_values(name):
    cls = ONLINE_SCHEMES[name]
    needed = {"decay": 0.5, "gamma": 2.0, "k": 3}
    arguments = {f.name: needed[f.name] for f in fields(cls) if f.name in needed}
    assert cls(**arguments) == cls(**arguments)
    hash(cls(**arguments))
