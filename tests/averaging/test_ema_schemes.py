import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim.swa_utils import get_ema_avg_fn

from swatool.averaging.ema_schemes import Bema, CrowsonEma, Ema, PowerEma, WarmupEma
from swatool.errors import UsageError

COUNTS = st.integers(1, 40)
DECAYS = st.floats(0, 1) | st.sampled_from([0.0, 1.0, 0.9, 0.999])
few = settings(max_examples=40, deadline=None)


@few
@given(n=COUNTS, decay=DECAYS)
def test_ema_is_torchs_running_average(n, decay):
    average, update = [1.0] + [0.0] * (n - 1), get_ema_avg_fn(decay)
    for seen in range(1, n):
        average = [update(a, float(index == seen), seen) for index, a in enumerate(average)]
    assert Ema(decay).coefficients([None] * n) == pytest.approx(average, rel=1e-12, abs=1e-15)


@few
@given(n=COUNTS, decay=st.floats(0, 0.999))
def test_debiased_ema_is_its_formula(n, decay):
    expected = [(1 - decay) * decay ** (n - i) / (1 - decay**n) for i in range(1, n + 1)]
    assert Ema(decay, debias=True).coefficients([None] * n) == pytest.approx(expected, rel=1e-9, abs=1e-300)


@pytest.mark.parametrize("per_step", [None, 1])
def test_ema_at_the_ends_of_its_range(per_step):
    steps = [1, 2, 3]
    assert Ema(0.0, per_step=per_step).coefficients(steps) == (0, 0, 1)
    assert Ema(1.0, per_step=per_step).coefficients(steps) == (1, 0, 0)
    assert Ema(0.0, debias=True, per_step=per_step).coefficients(steps) == (0, 0, 1)
    assert Ema(1.0, debias=True, per_step=per_step).coefficients(steps) == (1 / 3, 1 / 3, 1 / 3)
    assert Ema(0.5, per_step=per_step).coefficients(steps) == (0.25, 0.25, 0.5)


@few
@given(gaps=st.lists(st.integers(1, 30), min_size=1, max_size=8), decay=st.floats(0.5, 0.999))
def test_ema_per_step_is_the_ema_that_repeats_the_newest_at_every_step(gaps, decay):
    """What `ema` gives for a sequence in which each checkpoint fills the steps since the one before."""
    steps = [sum(gaps[:i]) for i in range(len(gaps) + 1)]
    all_steps = Ema(decay).coefficients([None] * (steps[-1] + 1))
    expected = [all_steps[0]]
    expected += [math.fsum(all_steps[a + 1 : a + gap + 1]) for a, gap in zip(steps, gaps, strict=False)]
    assert Ema(decay, per_step=1).coefficients(steps) == pytest.approx(expected, rel=1e-9)
    debiased = [decay ** (steps[-1] - step) for step in steps]
    expected = [weight / sum(debiased) for weight in debiased]
    assert Ema(decay, True, 1).coefficients(steps) == pytest.approx(expected, rel=1e-9)


def test_ema_per_step_near_1_is_not_cancelled_away():
    decay = 1 - 2.0**-50
    exact = 1 - Fraction(decay) ** 3
    assert Ema(decay, per_step=1).coefficients([0, 3])[1] == pytest.approx(float(exact), rel=1e-12)


def test_ema_per_step_has_no_form_for_training():
    with pytest.raises(UsageError, match="--per-step is for saved checkpoints"):
        Ema(0.9, per_step=10).weight(0)


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
    assert 1 - WarmupEma(min_decay=0.4).weight(1) == pytest.approx(0.4)  # as diffusers' min_decay
    assert WarmupEma().decay == 0.9999


def test_warmup_by_a_power_follows_its_formula():
    scheme = WarmupEma(decay=0.9, inv_gamma=2, power=0.5)
    assert [1 - scheme.weight(n) for n in (1, 6)] == pytest.approx([1 - 1.5**-0.5, 0.5])
    assert 1 - scheme.weight(10**6) == pytest.approx(0.9)
    assert 1 - CrowsonEma(min_decay=0.7).weight(1) == pytest.approx(0.7)
    assert 1 - WarmupEma(power=1).weight(3) == pytest.approx(0.75)
    assert 1 - WarmupEma(inv_gamma=7).weight(7) == pytest.approx(1 - 2 ** (-2 / 3))
    assert (CrowsonEma().decay, CrowsonEma().inv_gamma, CrowsonEma().power, CrowsonEma().min_decay) == (
        *(0.9999, 1, 2 / 3, 0),
    )
    assert CrowsonEma.name == "ema-warmup"


def test_power_ema_follows_its_profile():
    assert PowerEma(1).coefficients([None] * 3) == pytest.approx((1 / 9, 3 / 9, 5 / 9))
    assert PowerEma(1).coefficients([10, 20, 40]) == (1 / 16, 3 / 16, 12 / 16)
    assert PowerEma(1).coefficients([0, 20, 40]) == (0, 1 / 4, 3 / 4)
    # The discrete profile of many checkpoints has the width that was asked for.
    for sigma in (0.05, 0.1, 0.25):
        coefficients = torch.tensor(
            PowerEma(sigma_rel=sigma).coefficients([None] * 4000), dtype=torch.float64
        )
        times = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
        mean = coefficients @ times
        assert math.sqrt(coefficients @ (times - mean) ** 2) == pytest.approx(sigma, rel=1e-4)


def test_power_ema_of_uneven_steps_is_that_of_every_step_filled_up():
    """Each checkpoint stands for the steps since the one before it."""
    steps = [3, 4, 11, 20]
    all_steps = PowerEma(4).coefficients([None] * 20)
    expected = [math.fsum(all_steps[a:b]) for a, b in zip([0, *steps], steps, strict=False)]
    assert PowerEma(4).coefficients(steps) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("sigma", "gamma"), [(0.05, 16.97), (0.1, 6.94)])
def test_power_ema_has_the_exponents_of_the_paper(sigma, gamma):
    assert PowerEma(sigma_rel=sigma).exponent == pytest.approx(gamma, abs=0.01)
    assert PowerEma.from_width(sigma).gamma == pytest.approx(gamma, abs=0.01)
    assert PowerEma.from_width(sigma).coefficients([1, 5]) == PowerEma(sigma_rel=sigma).coefficients([1, 5])
    assert PowerEma(gamma).exponent == gamma


def test_being_informed_decides_the_spacing():
    assert PowerEma(2).informed([1, 2], []) == PowerEma(2, spacing="steps")
    assert PowerEma(2).informed([1, None], []) == PowerEma(2, spacing="index")
    assert PowerEma(2).coefficients([5, None]) == PowerEma(2).coefficients([1, 2])


def test_bema_by_hand():
    scheme = Bema()
    assert (scheme.kappa, scheme.eta, scheme.rho, scheme.gamma) == (0.5, 0.2, 10, 1)
    average, models = 1.0, [1.0, 3.0, -2.0]
    for n, model in enumerate(models[1:], 1):
        beta = (10 + n) ** -0.5
        average = (1 - beta) * average + beta * model
    expected = average + 12**-0.2 * (models[-1] - models[0])
    found = sum(c * x for c, x in zip(scheme.coefficients([None] * 3), models, strict=True))
    assert found == pytest.approx(expected, rel=1e-12)


def test_bema_without_correction_is_its_moving_average_and_without_memory_the_last():
    weights = [1.0] + [(10 + n) ** -0.5 for n in range(1, 9)]
    plain = [w * math.prod(1 - later for later in weights[i + 1 :]) for i, w in enumerate(weights)]
    assert Bema(eta=1e6).coefficients([None] * 9) == pytest.approx(plain, rel=1e-12)
    a = 18**-0.2
    assert Bema(kappa=0).coefficients([None] * 9) == pytest.approx([-a, *[0] * 7, 1 + a])
    assert Bema(kappa=0, gamma=0, rho=1, eta=0).coefficients([None] * 2) == (-1, 2)


@pytest.mark.parametrize(
    ("scheme", "arguments", "told"),
    [
        (Ema, (0.5, "yes"), "--debias must be true or false, not 'yes'"),
        (Ema, (0.5, False, 0), "--per-step must be a whole number of at least 1, not 0"),
        (Ema, (0.5, False, 1.5), "--per-step"),
        (WarmupEma, (1.1,), r"--decay must lie in \[0, 1\], not 1.1"),
        (WarmupEma, (-0.1,), "--decay"),
        (WarmupEma, (math.nan,), "--decay"),
        (CrowsonEma, (1.1,), "--decay"),
        (CrowsonEma, (0.9, 0), "--inv-gamma must be a finite number above 0, not 0"),
        (CrowsonEma, (0.9, math.inf), "--inv-gamma"),
        (CrowsonEma, (0.9, 1, 0), "--power"),
        (CrowsonEma, (0.9, 1, math.inf), "--power"),
        (CrowsonEma, (0.9, 1, 1, 0.95), r"--min-decay must lie in \[0, decay\], not 0.95"),
        (CrowsonEma, (0.9, 1, 1, -0.1), "--min-decay"),
        (PowerEma, (-0.1,), "--gamma"),
        (PowerEma, (math.inf,), "--gamma"),
        (PowerEma, (), "--method power-ema needs either --sigma-rel or --gamma"),
        (PowerEma, (1, 0.1), "either --sigma-rel or --gamma"),
        (PowerEma, (None, 0.3), r"--sigma-rel must lie in \[1e-09, 0.288675\], not 0.3"),
        (PowerEma, (None, 0.0), "--sigma-rel"),
        (PowerEma, (None, [0.1]), "--sigma-rel"),
        (PowerEma, (1, None, "time"), "--spacing"),
        (PowerEma.from_width, (0.0,), "--sigma-rel"),
        (PowerEma.from_width, (0.29,), "--sigma-rel"),
        (Bema, (-1,), "--kappa"),
        (Bema, (1, -1), "--eta"),
        (Bema, (1, 1, 0.9), "--rho must be a finite number of at least 1, not 0.9"),
        (Bema, (1, 1, 1, -1), "--gamma"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(scheme, arguments, told):
    with pytest.raises(UsageError, match=told):
        scheme(*arguments)


@pytest.mark.parametrize("decay", [-0.1, 1.0001, math.nan, math.inf, -math.inf])
def test_decay_outside_its_range_is_refused(decay):
    with pytest.raises(UsageError, match=r"--decay must lie in \[0, 1\]"):
        Ema(decay)
