import decimal
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from swatool.averaging.posthoc_ema import (
    NORMALIZATIONS,
    NamedProfile,
    PowerProfile,
    overlap,
    profile_in_name,
    reconstruct,
)
from swatool.averaging.power_profiles import exponent, width
from swatool.errors import UsageError

few = settings(max_examples=30, deadline=None)
PROFILES = st.builds(PowerProfile, st.integers(1, 1000), st.floats(0, 30))
WIDTHS = (0.05, 0.1)

np = pytest.importorskip("numpy")


def tracked(steps, widths=WIDTHS):
    return [PowerProfile(step, exponent(sigma)) for step in steps for sigma in widths]


def matrix(snapshots, target):
    gram = np.array([[overlap(a, b) for b in snapshots] for a in snapshots])
    return gram, np.array([overlap(a, target) for a in snapshots])


def density(profile, times):
    inside = times <= profile.step
    return (
        inside * (profile.gamma + 1) / profile.step * (np.minimum(times / profile.step, 1)) ** profile.gamma
    )


@few
@given(a=PROFILES, b=PROFILES)
def test_overlap_is_the_integral_of_the_product(a, b):
    times = (np.arange(100_000) + 0.5) * min(a.step, b.step) / 100_000
    brute = float((density(a, times) * density(b, times)).mean() * min(a.step, b.step))
    assert overlap(a, b) == pytest.approx(brute, rel=1e-4, abs=1e-12)
    assert overlap(a, b) == overlap(b, a)


@few
@given(a=PROFILES, b=PROFILES)
def test_overlap_is_the_published_formula(a, b):
    ratio = a.step / b.step
    power = ratio**b.gamma if a.step < b.step else ratio**-a.gamma
    expected = (a.gamma + 1) * (b.gamma + 1) * power / ((a.gamma + b.gamma + 1) * max(a.step, b.step))
    assert overlap(a, b) == pytest.approx(expected, rel=1e-11, abs=1e-300)


@pytest.mark.parametrize("count", [1, 3, 10])
@pytest.mark.parametrize("sigma_rel", [0.06, 0.075, 0.15])
def test_nvlabs_is_the_solution_divided_by_its_sum(count, sigma_rel):
    snapshots = tracked(range(100, 100 * count + 1, 100))
    target = PowerProfile(100 * count, exponent(sigma_rel))
    gram, right = matrix(snapshots, target)
    for solved in (
        np.linalg.solve(gram, right),
        torch.linalg.solve(*map(torch.tensor, (gram, right))).numpy(),
    ):
        found = reconstruct(snapshots, target, "nvlabs").coefficients
        assert found == pytest.approx(solved / solved.sum(), rel=1e-9, abs=1e-10)


@pytest.mark.parametrize("count", [1, 3, 10])
@pytest.mark.parametrize("sigma_rel", [0.06, 0.075, 0.15])
def test_constrained_is_the_least_squares_of_sampled_profiles_under_the_constraint(count, sigma_rel):
    snapshots = tracked(range(100, 100 * count + 1, 100))
    target = PowerProfile(100 * count, exponent(sigma_rel))
    gram, right = matrix(snapshots, target)
    n = len(snapshots)
    bordered = np.block([[gram, np.ones((n, 1))], [np.ones((1, n)), np.zeros((1, 1))]])
    solved, *_ = np.linalg.lstsq(bordered, np.append(right, 1), rcond=None)
    result = reconstruct(snapshots, target)
    assert result.coefficients == pytest.approx(solved[:n], rel=1e-8, abs=1e-9)
    # Brute force, with no formula of the overlaps: the last coefficient is 1 minus the rest.
    times = (np.arange(200_000) + 0.5) * target.step / 200_000
    columns = np.stack([density(p, times) for p in snapshots], axis=1)
    wanted = density(target, times)
    rest, *_ = np.linalg.lstsq(columns[:, :-1] - columns[:, -1:], wanted - columns[:, -1], rcond=None)
    assert result.coefficients == pytest.approx([*rest, 1 - rest.sum()], abs=2e-3)
    difference = columns @ np.array(result.coefficients) - wanted
    error = math.sqrt((difference**2).sum() / (wanted**2).sum())
    assert result.error == pytest.approx(error, rel=1e-2, abs=1e-5)


def test_constrained_is_nearer_than_nvlabs():
    target = PowerProfile(300, exponent(0.2))
    errors = [reconstruct(tracked([100, 200, 300]), target, how).error for how in NORMALIZATIONS]
    assert 0 < errors[0] < errors[1]


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
@pytest.mark.parametrize("index", [4, 5, 0])
def test_a_tracked_average_is_its_own_snapshot(normalize, index):
    snapshots = tracked([50, 200, 1000])
    later = [one for one in snapshots if one.step <= snapshots[index].step]
    result = reconstruct(later, snapshots[index], normalize)
    assert result.coefficients == tuple(float(one == snapshots[index]) for one in later)
    assert result.error < 1e-15


@few
@given(data=st.data())
def test_coefficients_sum_to_one_and_do_not_depend_on_the_order_or_the_unit(data):
    steps = data.draw(st.lists(st.integers(1, 1000), min_size=1, max_size=6, unique=True))
    target = PowerProfile(max(steps), exponent(data.draw(st.floats(0.05, 0.25))))
    snapshots = tracked(steps)
    for normalize in NORMALIZATIONS:
        found = reconstruct(snapshots, target, normalize).coefficients
        assert math.fsum(found) == pytest.approx(1, abs=1e-12 * math.fsum(map(abs, found)))
        assert reconstruct(snapshots[::-1], target, normalize).coefficients == pytest.approx(
            found[::-1], rel=1e-9
        )
        scaled = [one._replace(step=one.step * 10**12) for one in snapshots]
        large = target._replace(step=target.step * 10**12)
        assert reconstruct(scaled, large, normalize).coefficients == pytest.approx(found, rel=1e-12)


def test_averages_of_a_training_become_one_of_another_width():
    """Weights that wander; true power EMAs of two widths, stored at some steps, give a third width's."""
    generator = torch.Generator().manual_seed(0)
    steps = 4000
    walk = torch.randn(steps, 5, generator=generator, dtype=torch.float64).cumsum(0)
    weights = walk + 0.1 * torch.arange(steps, dtype=torch.float64)[:, None]

    def average(profile):
        times = torch.arange(profile.step + 1, dtype=torch.float64) / profile.step
        return (times ** (profile.gamma + 1)).diff() @ weights[: profile.step]

    snapshots = tracked(range(250, steps + 1, 250))
    stored = torch.stack([average(one) for one in snapshots])
    spread = weights.std(0).max()
    for sigma_rel, tolerance in ((0.075, 2e-3), (0.06, 2e-3), (0.09, 2e-3), (0.13, 0.02)):
        target = PowerProfile(steps, exponent(sigma_rel))
        found = torch.tensor(reconstruct(snapshots, target).coefficients, dtype=torch.float64) @ stored
        assert (found - average(target)).abs().max() < tolerance * spread
    earlier = PowerProfile(2000, exponent(0.08))
    kept = [i for i, one in enumerate(snapshots) if one.step <= 2000]
    coefficients = reconstruct([snapshots[i] for i in kept], earlier).coefficients
    found = torch.tensor(coefficients, dtype=torch.float64) @ stored[kept]
    assert (found - average(earlier)).abs().max() < 5e-3 * spread


def test_a_linear_path_is_met_closely_by_two_widths():
    """Of weights that grow with time, an average is the profile's mean time."""
    target = PowerProfile(1000, exponent(0.1))
    coefficients = reconstruct(tracked([250, 500, 750, 1000], (0.05, 0.2)), target).coefficients
    means = [p.step * (p.gamma + 1) / (p.gamma + 2) for p in tracked([250, 500, 750, 1000], (0.05, 0.2))]
    wanted = 1000 * (target.gamma + 1) / (target.gamma + 2)
    assert math.fsum(c * m for c, m in zip(coefficients, means, strict=True)) == pytest.approx(
        wanted, rel=0.01
    )


def test_many_profiles_that_are_nearly_the_same_are_solved():
    widths = [0.05 + 0.001 * i for i in range(12)]
    target = PowerProfile(1000, exponent(0.0555))
    result = reconstruct(tracked([1000], widths), target)
    assert result.error < 1e-9
    assert math.fsum(result.coefficients) == pytest.approx(1, abs=1e-9)


def test_the_callers_decimal_settings_do_not_matter():
    target = PowerProfile(300, exponent(0.07))
    expected = reconstruct(tracked([100, 300]), target)
    with decimal.localcontext() as context:
        context.prec = 3
        context.traps[decimal.Inexact] = True
        fresh = reconstruct(tracked([101, 300]), target)
        assert overlap(target, target) > 0
    assert fresh.coefficients != expected.coefficients
    assert fresh.error < 0.1


@pytest.mark.parametrize(
    ("snapshots", "told"),
    [
        ([(0, 7.0)], "snapshot 1 is of step 0, and an average begins with step 1"),
        (
            [(100, 7.0), (101, 7.0)],
            "snapshot 2 is of step 101, after the step that is wanted, 100: leave it out",
        ),
        (
            [(100, 7.0), (50, 7.0), (100, 7.0)],
            "snapshots 1 and 3 have the same step, 100, and the same width",
        ),
    ],
)
def test_snapshots_that_do_not_belong_are_refused(snapshots, told):
    with pytest.raises(UsageError, match=told):
        reconstruct([PowerProfile(*one) for one in snapshots], PowerProfile(100, 5.0))


def test_coefficients_beyond_all_bounds_are_refused():
    """Profiles that differ by nearly nothing give sums and differences of nearly anything."""
    alike = [PowerProfile(1, 0.0), PowerProfile(1, 1e-12), PowerProfile(1, 3e-12)]
    with pytest.raises(UsageError, match=r"the profile of snapshot 3 is made up|would exceed 1e\+30"):
        reconstruct(alike, PowerProfile(1, 5.0))
    assert l1_of([PowerProfile(1, 0.0), PowerProfile(1, 1e-9)], PowerProfile(1, 5.0)) > 1e6


def l1_of(snapshots, target):
    return math.fsum(map(abs, reconstruct(snapshots, target).coefficients))


def test_a_way_to_normalize_that_does_not_exist_is_refused():
    with pytest.raises(UsageError, match="--normalize must be one of constrained, nvlabs, not 'sum'"):
        reconstruct([PowerProfile(1, 0.0)], PowerProfile(1, 0.0), "sum")


@pytest.mark.parametrize(
    ("pattern", "name", "step", "sigma_rel"),
    [
        ("phema-{step}-{sigma_rel}", "phema-0021474-0.050.pt", 21474, 0.05),
        ("phema-{step}-{sigma_rel}", "phema-21474-0.1", 21474, 0.1),
        ("*-{step}-{sigma_rel}", "edm2-img512-s-2147483-0.130.pkl", 2147483, 0.13),
        ("ema_{sigma_rel}_{step}.safetensors", "ema_0.05_7.safetensors", 7, 0.05),
        ("ema.{gamma}.{step}", "ema.6.94.100.ckpt", 100, width(6.94)),
        ("{sigma_rel}", "1e-1.pt", None, 0.1),
        ("a+b({sigma_rel})", "a+b(0.2).pth", None, 0.2),
    ],
)
def test_names_tell_profiles(pattern, name, step, sigma_rel):
    found = profile_in_name(pattern, name)
    assert found == NamedProfile(step, pytest.approx(sigma_rel, rel=1e-12))


@pytest.mark.parametrize(
    "name", ["phema-1-x.pt", "phema-1.pt", "xphema-1-0.1.pt", "phema-1-0.1.txt", "", "a\x1b[0m"]
)
def test_names_that_do_not_match_are_refused(name):
    with pytest.raises(UsageError, match=r"does not match --profile 'phema-{step}-{sigma_rel}'") as caught:
        profile_in_name("phema-{step}-{sigma_rel}", name)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    "pattern", ["{step}", "{sigma_rel}{gamma}", "{sigma_rel}-{std}", "{sigma_rel}{sigma_rel}", "", "{}"]
)
def test_patterns_that_cannot_tell_a_profile_are_refused(pattern):
    with pytest.raises(UsageError, match=r"--profile must have {sigma_rel} or {gamma} once"):
        profile_in_name(pattern, "0.1")


def test_an_exponent_in_a_name_must_be_finite():
    with pytest.raises(UsageError, match="out of range"):
        profile_in_name("{gamma}", "1e999")
