import itertools
import math
from dataclasses import dataclass, field
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim.swa_utils import get_swa_avg_fn

from swatool.averaging.mean_schemes import LrWeighted, Polynomial, RestartedMean, Swa, Tail, Wma, Wsm
from swatool.errors import UsageError

few = settings(max_examples=40, deadline=None)


@dataclass(frozen=True)
class Saved:
    path: str = "run/ckpt.pt"
    fields: dict = field(default_factory=dict)
    metadata: dict = field(default_factory=dict)


@few
@given(n=st.integers(1, 40))
def test_swa_is_torchs_running_average(n):
    average, update = [1.0] + [0.0] * (n - 1), get_swa_avg_fn()
    for seen in range(1, n):
        average = [update(a, float(index == seen), seen) for index, a in enumerate(average)]
    assert Swa().coefficients([None] * n) == pytest.approx(average, rel=1e-12)


def test_wma_weighs_by_the_place():
    assert Wma().coefficients([None] * 3) == (1 / 6, 2 / 6, 3 / 6)


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


def test_tail_is_the_mean_of_what_came_later():
    third = 1 / 3
    assert Tail(0.5).coefficients([None] * 6) == (0, 0, 0, third, third, third)
    assert Tail(0.5).coefficients([10, 20, 40, 50, 100]) == (0, 0, 0, 0, 1)  # 50 is not after a half of 100
    assert Tail(0.5).coefficients([10, 20, 40, 51, 100]) == (0, 0, 0, 0.5, 0.5)
    assert Tail(0.5, "index").coefficients([10, 20, 40, 51, 100]) == (0, 0, third, third, third)
    assert Tail(0.999).coefficients([1, 2, 3]) == (0, 0, 1)
    assert Tail(0).coefficients([0, 5]) == (0.5, 0.5)  # all means all
    assert Tail().alpha == 0.5


@pytest.mark.parametrize("n", [5, 10, 20, 29])
@pytest.mark.parametrize("tenths", range(10))
def test_a_part_of_the_training_is_the_decimal_that_was_written(tenths, n):
    """0.3 of 10 is 3, although 0.3 as a binary number is less."""
    found = Tail(float(f"0.{tenths}")).coefficients([10**18 * i for i in range(1, n + 1)])
    assert [c > 0 for c in found] == [Fraction(i) > Fraction(tenths * n, 10) for i in range(1, n + 1)]


def decayed(schedule, n):
    """Megatron-LM's way: values of the schedule at i/n, their differences, and the rest for the first."""
    f = {
        "linear": lambda x: 1 - x,
        "minus-sqrt": lambda x: 1 - math.sqrt(x),
        "cosine": lambda x: 0.5 * (1 + math.cos(math.pi * x)),
    }[schedule]
    d = [f(i / n) for i in range(n)]
    rest = [*(d[i] - d[i + 1] for i in range(1, n - 1)), d[-1]]
    return [1 - sum(rest), *rest]


@pytest.mark.parametrize("schedule", ["linear", "minus-sqrt", "cosine"])
@pytest.mark.parametrize("n", [2, 3, 4, 10, 97])
def test_wsm_with_index_spacing_is_megatrons(schedule, n):
    assert Wsm(schedule).coefficients([None] * n) == pytest.approx(decayed(schedule, n), abs=1e-14)


def test_wsm_by_numbers():
    assert Wsm().coefficients([5, 6, 900, 901]) == (0.25, 0.25, 0.25, 0.25)
    root, square = Wsm("minus-sqrt").coefficients([None] * 4), [0.5, 0.20710678, 0.15891862, 0.13397460]
    assert root == pytest.approx(square, abs=1e-8)
    half = math.sqrt(0.5) / 2
    assert Wsm("cosine").coefficients([None] * 4) == pytest.approx([0.5 - half, half, half, 0.5 - half])


@pytest.mark.parametrize("spacing", ["index", "steps"])
@pytest.mark.parametrize("n", [2, 5, 50])
def test_minus_sqrt_weighs_the_oldest_most(spacing, n):
    coefficients = Wsm("minus-sqrt", spacing).coefficients(range(100, 100 * n + 100, 100))
    assert list(coefficients) == sorted(coefficients, reverse=True)
    assert coefficients[0] > coefficients[-1] > 0


def test_linear_wsm_over_steps_is_the_mean_over_time_of_the_straight_path():
    # The trapezoids of unequal stretches: 100 steps, then 300.
    assert Wsm("linear", "steps").coefficients([1000, 1100, 1400]) == pytest.approx((1 / 8, 4 / 8, 3 / 8))


@pytest.mark.parametrize("schedule", ["linear", "minus-sqrt", "cosine"])
@few
@given(gaps=st.lists(st.integers(1, 1000), min_size=1, max_size=12))
def test_each_change_counts_as_the_schedules_mean_over_it(schedule, gaps):
    f = {
        "linear": lambda x: 1 - x,
        "minus-sqrt": lambda x: 1 - math.sqrt(x),
        "cosine": lambda x: 0.5 * (1 + math.cos(math.pi * x)),
    }[schedule]
    times = list(itertools.accumulate(gaps, initial=17))
    factors = []
    for a, b in itertools.pairwise((t - times[0]) / (times[-1] - times[0]) for t in times):
        points = [a + (b - a) * (i + 0.5) / 2000 for i in range(2000)]
        factors.append(math.fsum(map(f, points)) / 2000)
    coefficients = Wsm(schedule, "steps").coefficients(times)
    # The change from checkpoint i to i+1 counts as often as all that come after it.
    remaining = [1 - total for total in itertools.accumulate(coefficients[:-1])]
    assert remaining == pytest.approx(factors, abs=2e-5)


def test_wsm_over_steps_of_nearly_nothing_does_not_cancel():
    steps = [0, 1, 10**18]
    for schedule in ("linear", "minus-sqrt", "cosine"):
        first, second, third = Wsm(schedule, "steps").coefficients(steps)
        assert 0 <= first < 1e-8
        assert 0 < second < 1
        assert 0 < third < 1


def test_learning_rates_are_the_largest_so_far():
    assert LrWeighted(1, (1, 2, 4)).coefficients([None] * 3) == pytest.approx((1 / 7, 2 / 7, 4 / 7))
    assert LrWeighted(2, (1, 2, 1)).coefficients([None] * 3) == pytest.approx((1 / 9, 4 / 9, 4 / 9))
    assert LrWeighted(2, (0, 3e-5)).coefficients([None] * 2) == (0, 1)
    assert LrWeighted(1000, (1e-300, 1e300)).coefficients([None] * 2) == (0, 1)
    assert LrWeighted().power == 2


def test_learning_rates_are_taken_from_the_checkpoints():
    saved = [Saved(fields={"epoch": 1, "lr": 0.1}), Saved(fields={"lr": 0.2})]
    assert LrWeighted().informed([1, 2], saved) == LrWeighted(2, (0.1, 0.2))
    assert LrWeighted(2, (3.0, 4.0)).informed([1, 2], saved) == LrWeighted(2, (3.0, 4.0))
    named = [Saved(fields={"learning_rate": 1})] * 2
    assert LrWeighted().informed([1, 2], named).coefficients([1, 2]) == (0.5, 0.5)
    with pytest.raises(UsageError, match=r"store none beside the weights .*give --lrs"):
        LrWeighted().informed([1, 2], [Saved(), Saved()])
    with pytest.raises(UsageError, match=r"'b\.pt' store no lr, which others do: give --lrs"):
        LrWeighted().informed([1, 2], [saved[0], Saved("b.pt")])
    with pytest.raises(UsageError, match="gives 0 numbers for 2"):
        LrWeighted().coefficients([1, 2])
    with pytest.raises(UsageError, match="--lrs must be finite numbers of at least 0"):
        LrWeighted().informed([1], [Saved(fields={"lr": math.nan})])


@pytest.mark.parametrize("scheme", [Tail, Wsm])
def test_being_informed_decides_the_spacing(scheme):
    auto = scheme(spacing="auto")
    assert auto.informed([1, 2], []).spacing == "steps"
    assert auto.informed([1, None], []).spacing == "index"
    assert scheme(spacing="index").informed([1, 2], []).spacing == "index"
    assert auto.coefficients([1, None]) == scheme(spacing="index").coefficients([1, 2])


@pytest.mark.parametrize(
    ("scheme", "arguments", "told"),
    [
        (Tail, (1.0,), r"--alpha must lie in \[0, 1\), not 1.0"),
        (Tail, (-0.1,), "--alpha"),
        (Tail, (math.nan,), "--alpha"),
        (Tail, (0.5, "step"), "--spacing must be one of auto, index, steps, not 'step'"),
        (Polynomial, (-1.0,), "--eta must be a finite number of at least 0, not -1.0"),
        (Polynomial, (math.inf,), "--eta"),
        (Polynomial, ("many",), "--eta must be a finite number of at least 0, not 'many'"),
        (Polynomial, (True,), "--eta"),
        (Polynomial, (10**400,), "--eta"),
        (RestartedMean, (0,), "--k must be a whole number of at least 1, not 0"),
        (RestartedMean, (2.5,), "--k must"),
        (LrWeighted, (-1.0,), "--power"),
        (LrWeighted, (2.0, (0.1, -0.1)), "--lrs must be finite numbers of at least 0, one per checkpoint"),
        (LrWeighted, (2.0, (0.1, math.nan)), "--lrs"),
        (LrWeighted, (2.0, 0.1), "--lrs"),
        (LrWeighted, (2.0, (0.0, 0.0)), "--lrs are all zero"),
        (Wsm, ("sqrt",), "--schedule must be one of linear, minus-sqrt, cosine, not 'sqrt'"),
        (Wsm, ("linear", 3), "--spacing"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(scheme, arguments, told):
    with pytest.raises(UsageError, match=told):
        scheme(*arguments)
