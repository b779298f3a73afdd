"""Laws that hold for every scheme of the table, or for all but those that are named here."""

import dataclasses
import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swatool.averaging.schemes import (
    ONLINE_SCHEMES,
    SCHEMES,
    Bema,
    CrowsonEma,
    Difference,
    Ema,
    Extrapolate,
    Interpolate,
    LrWeighted,
    Polynomial,
    PosthocEma,
    PowerEma,
    RestartedMean,
    Swa,
    Tail,
    WarmupEma,
    Weights,
    Wma,
    Wsm,
    make_scheme,
)
from swatool.errors import UsageError

COUNTS = st.integers(1, 40)
DECAYS = st.floats(0, 1) | st.sampled_from([0.0, 1.0, 0.9, 0.999, 0.9999999])
SPACINGS = st.sampled_from(["auto", "index", "steps"])
WIDTHS = st.floats(0.01, 12**-0.5)


def of(*schemes):
    """Strategy of pairs: how many checkpoints, and a scheme."""
    return st.tuples(COUNTS, st.one_of(*schemes))


def per_checkpoint(values, make):
    return st.lists(values, min_size=1, max_size=40).map(lambda found: (len(found), make(tuple(found))))


def snapshots(target, widths, normalize):
    return len(widths), PosthocEma(target, normalize=normalize, sigma_rels=tuple(widths))


# For every scheme: the number of checkpoints, and an instance that fits it.
INSTANCES = {
    "swa": of(st.just(Swa())),
    "ema": of(st.builds(Ema, DECAYS, st.booleans(), st.none() | st.integers(1, 10**4))),
    "ema-warmup": of(
        st.builds(WarmupEma, DECAYS),
        st.builds(WarmupEma, st.floats(0.5, 1), st.floats(0.1, 10), st.none(), st.floats(0, 0.5)),
        st.builds(CrowsonEma, st.floats(0.5, 1), st.floats(0.1, 10), st.floats(0.1, 3), st.floats(0, 0.5)),
    ),
    "power-ema": of(
        st.builds(PowerEma, st.floats(0, 100), st.none(), SPACINGS),
        st.builds(PowerEma, st.none(), WIDTHS, SPACINGS),
    ),
    "posthoc-ema": st.builds(
        snapshots,
        st.floats(0.05, 0.25),
        st.lists(st.sampled_from([0.05, 0.1, 0.2]), min_size=1, max_size=6),
        st.sampled_from(["constrained", "nvlabs"]),
    ),
    "wma": of(st.just(Wma())),
    "wsm": of(st.builds(Wsm, st.sampled_from(["linear", "minus-sqrt", "cosine"]), SPACINGS)),
    "tail": of(st.builds(Tail, st.floats(0, 1, exclude_max=True), SPACINGS)),
    "polynomial": of(st.builds(Polynomial, st.floats(0, 100))),
    "lr-weighted": st.builds(
        lambda power, pair: (pair[0], LrWeighted(power, pair[1])),
        st.floats(0, 20),
        per_checkpoint(st.floats(1e-12, 10), lambda rates: rates),
    ),
    "bema": of(
        st.builds(Bema, st.floats(0, 2), st.floats(0, 5), st.floats(1, 100), st.floats(0, 10)),
    ),
    "interpolate": st.tuples(st.integers(2, 40), st.builds(Interpolate, st.floats(0, 3))),
    "extrapolate": st.tuples(
        st.integers(2, 40), st.builds(Extrapolate, st.floats(0, 5), st.none() | st.just(1))
    ),
    "difference": st.tuples(st.just(2), st.sampled_from([Difference(), Difference((10, 25))])),
    "weights": per_checkpoint(st.floats(0.01, 100), Weights),
}
ONLINE_INSTANCES = {
    **{name: INSTANCES[name].map(lambda pair: pair[1]) for name in ONLINE_SCHEMES if name in INSTANCES},
    "restarted-mean": st.builds(RestartedMean, st.integers(1, 20)),
}
ALLOWS_NEGATIVE = {"bema", "interpolate", "extrapolate", "difference", "posthoc-ema"}
TAKES_ORDER_ALONE = {
    *("swa", "ema-warmup", "wma", "polynomial", "lr-weighted", "bema", "interpolate", "extrapolate"),
    "weights",
}
# What measures time from the beginning of the training, or from the step that the average is of.
FROM_THE_BEGINNING = {"power-ema", "tail", "difference", "posthoc-ema"}
few = settings(max_examples=25, deadline=None)


def without_steps(scheme):
    """The scheme as it is where no steps are known."""
    if getattr(scheme, "spacing", None) == "steps":
        return dataclasses.replace(scheme, spacing="index")
    return dataclasses.replace(scheme, per_step=None) if getattr(scheme, "per_step", None) else scheme


def increasing(data, n, first=1):
    gaps = data.draw(st.lists(st.integers(1, 5000), min_size=n, max_size=n))
    return [first - 1 + sum(gaps[: i + 1]) for i in range(n)]


def running(scheme, n):
    """Coefficients of n models, from updating vectors that tell them apart."""
    average = [0.0] * n
    for seen in range(n):
        weight = scheme.weight(seen)
        average = [a + weight * ((index == seen) - a) for index, a in enumerate(average)]
    return average


def test_every_scheme_has_instances_to_be_tested_with():
    assert set(INSTANCES) == set(SCHEMES)
    assert set(ONLINE_INSTANCES) == set(ONLINE_SCHEMES)
    assert set(ONLINE_SCHEMES) - set(SCHEMES) == {"restarted-mean"}
    assert all(ONLINE_SCHEMES[name] is SCHEMES[name] for name in set(ONLINE_SCHEMES) & set(SCHEMES))
    online = {name for name, scheme in SCHEMES.items() if hasattr(scheme, "weight")}
    assert online == set(ONLINE_SCHEMES) - {"restarted-mean"}


@pytest.mark.parametrize("scheme", [*SCHEMES.values(), RestartedMean], ids=lambda one: one.name)
def test_each_scheme_knows_its_name_formula_and_source(scheme):
    assert {**SCHEMES, **ONLINE_SCHEMES}[scheme.name] is scheme
    assert re.search(r"\bc_[i1]", scheme.formula)
    assert scheme.source
    assert scheme.__doc__


@pytest.mark.parametrize("name", SCHEMES)
@few
@given(data=st.data())
def test_coefficients_are_one_per_checkpoint_and_sum_to_one(name, data):
    n, scheme = data.draw(INSTANCES[name])
    coefficients = scheme.coefficients(increasing(data, n))
    assert len(coefficients) == n
    assert all(type(c) is float for c in coefficients)
    size = math.fsum(map(abs, coefficients))
    assert math.fsum(coefficients) == pytest.approx(1, abs=1e-12 * max(size, 1))
    assert min(coefficients) >= 0 or name in ALLOWS_NEGATIVE


@pytest.mark.parametrize("name", SCHEMES)
@few
@given(data=st.data())
def test_the_same_holds_where_no_steps_are_known(name, data):
    n, scheme = data.draw(INSTANCES[name])
    if name in ("posthoc-ema", "difference"):
        if name == "difference" and scheme.counts:
            return
        with pytest.raises(UsageError, match=f"needs the training step of every .* checkpoint 1 of {n} has"):
            scheme.coefficients([None] * n)
        return
    coefficients = without_steps(scheme).coefficients([None] * n)
    assert len(coefficients) == n
    assert math.fsum(coefficients) == pytest.approx(1, abs=1e-12 * max(math.fsum(map(abs, coefficients)), 1))


@pytest.mark.parametrize("name", sorted(TAKES_ORDER_ALONE))
@few
@given(data=st.data())
def test_steps_do_not_matter_to_schemes_of_the_order_alone(name, data):
    n, scheme = data.draw(INSTANCES[name])
    assert scheme.coefficients(increasing(data, n)) == scheme.coefficients([None] * n)


def stretched(scheme, times):
    """The scheme with its own steps stretched as those of the checkpoints are."""
    if getattr(scheme, "per_step", None):
        return dataclasses.replace(scheme, per_step=scheme.per_step * times)
    if getattr(scheme, "target_step", None):
        return dataclasses.replace(scheme, target_step=scheme.target_step * times)
    return scheme


@pytest.mark.parametrize("name", SCHEMES)
@few
@given(data=st.data(), times=st.sampled_from([2, 1000, 10**15]))
def test_the_unit_of_the_steps_does_not_matter_to_the_last_bit(name, data, times):
    n, scheme = data.draw(INSTANCES[name])
    steps = increasing(data, n)
    found = stretched(scheme, times).coefficients([step * times for step in steps])
    expected = scheme.coefficients(steps)
    assert found == (pytest.approx(expected, rel=1e-12) if name == "posthoc-ema" else expected)


@pytest.mark.parametrize("name", sorted(set(SCHEMES) - FROM_THE_BEGINNING))
@few
@given(data=st.data(), shift=st.sampled_from([1, 10**6, 10**17]))
def test_the_first_step_does_not_matter(name, data, shift):
    n, scheme = data.draw(INSTANCES[name])
    steps = increasing(data, n, first=0)
    assert scheme.coefficients([step + shift for step in steps]) == scheme.coefficients(steps)


@pytest.mark.parametrize(
    "scheme",
    [PowerEma(6), Tail(0.5), Difference(), PosthocEma(0.1, sigma_rels=(0.05, 0.2))],
    ids=lambda scheme: scheme.name,
)
def test_the_first_step_matters_to_what_counts_from_the_beginning(scheme):
    assert scheme.name in FROM_THE_BEGINNING
    near, far = scheme.coefficients([100, 200]), scheme.coefficients([1100, 1200])
    assert abs(near[0] - far[0]) > 0.01


@pytest.mark.parametrize("name", ONLINE_SCHEMES)
@few
@given(data=st.data(), n=COUNTS)
def test_the_online_form_is_the_offline_form(name, data, n):
    scheme = without_steps(data.draw(ONLINE_INSTANCES[name]))
    assert scheme.coefficients([None] * n) == pytest.approx(running(scheme, n), rel=1e-8, abs=1e-12)


@pytest.mark.parametrize("name", ONLINE_SCHEMES)
@few
@given(data=st.data(), n=st.integers(0, 10**6))
def test_weights_lie_between_nothing_and_all_and_the_first_is_all(name, data, n):
    scheme = without_steps(data.draw(ONLINE_INSTANCES[name]))
    assert scheme.weight(0) == 1
    assert type(scheme.weight(n)) is float
    assert 0 <= scheme.weight(n) <= 1


@pytest.mark.parametrize(
    "scheme",
    [
        *(
            Wsm("linear"),
            Tail(0),
            Tail(0.0, "steps"),
            Polynomial(0),
            PowerEma(0),
            PowerEma(0, spacing="index"),
        ),
        *(PowerEma(sigma_rel=12**-0.5), LrWeighted(0, tuple(range(1, 13))), LrWeighted(3, (0.1,) * 12)),
        *(WarmupEma(1, 1, 1), CrowsonEma(1, 1, 1), Ema(1, debias=True), Ema(1, debias=True, per_step=7)),
        *(RestartedMean(1000), Weights((2,) * 12), Interpolate(11 / 12)),
    ],
    ids=str,
)
def test_the_mean_is_a_special_case(scheme):
    """With equal spacing; for a tail and an EMA without forgetting, with any."""
    steps = range(50, 50 * 13, 50)
    assert scheme.coefficients(steps) == pytest.approx([1 / 12] * 12, rel=1e-9)
    if getattr(scheme, "weight", None) and not getattr(scheme, "per_step", None):
        for n in range(30):
            assert scheme.weight(n) == pytest.approx(1 / (n + 1), rel=1e-12)


@pytest.mark.parametrize(
    ("scheme", "same"),
    [
        (Wma(), Polynomial(1)),
        (Ema(0.9, per_step=50), Ema(0.9)),
        (Ema(0.9, debias=True, per_step=50), Ema(0.9, debias=True)),
        (Ema(0.81, per_step=100), Ema(0.9)),
        (PowerEma(3, spacing="steps"), PowerEma(3, spacing="index")),
        (CrowsonEma(), WarmupEma(power=2 / 3)),
        (CrowsonEma(), WarmupEma(inv_gamma=1)),
        (Interpolate(1), Weights((0, *(1,) * 11))),
        (Extrapolate(0), Tail(0.5)),
        (Tail(0.5, "steps"), Tail(0.5, "index")),
    ],
    ids=str,
)
def test_schemes_that_meet(scheme, same):
    steps = range(50, 50 * 13, 50)
    assert scheme.coefficients(steps) == pytest.approx(same.coefficients(steps), rel=1e-12, abs=1e-15)


ALONE = [
    *(
        Swa(),
        Ema(0.9),
        Ema(0.9, True),
        Ema(0.9, False, 10),
        Ema(0.0, True),
        WarmupEma(),
        CrowsonEma(),
        Wma(),
        Bema(),
    ),
    *(
        PowerEma(3),
        PowerEma(sigma_rel=0.1, spacing="index"),
        PosthocEma(0.1, sigma_rels=(0.1,)),
        Wsm("cosine"),
    ),
    *(
        Wsm("minus-sqrt", "steps"),
        Tail(0.9),
        Polynomial(),
        LrWeighted(2, (0.1,)),
        Weights((3,)),
        RestartedMean(2),
    ),
]


@pytest.mark.parametrize("scheme", ALONE, ids=str)
def test_one_checkpoint_is_itself(scheme):
    assert scheme.coefficients([7]) == (1,)


STEPPED = [
    Ema(0.9, per_step=1),
    PowerEma(2, spacing="steps"),
    Wsm("cosine", "steps"),
    Tail(0.3, "steps"),
    Difference(),
]


@pytest.mark.parametrize("scheme", STEPPED, ids=lambda scheme: scheme.name)
@pytest.mark.parametrize(
    ("steps", "told"),
    [
        ([3, None], "checkpoint 2 of 2 has none"),
        ([None, 3], "checkpoint 1 of 2 has none"),
        ([3, 3], "checkpoints 1 and 2 have the same step: 3 and 3"),
        ([4, 3], "checkpoints 1 and 2 have steps that fall: 4 and 3"),
        ([-1, 3], "checkpoint 1 has -1"),
    ],
)
def test_steps_that_are_of_no_use_are_refused(scheme, steps, told):
    with pytest.raises(UsageError, match=re.escape(told)) as caught:
        scheme.coefficients(steps)
    assert "\n" not in str(caught.value)
    assert "--" in str(caught.value)


@pytest.mark.parametrize("scheme", STEPPED, ids=lambda scheme: scheme.name)
def test_training_may_begin_with_step_0(scheme):
    coefficients = scheme.coefficients([0, 10])
    assert math.fsum(coefficients) == 1
    if scheme.name in ("power-ema", "difference", "tail"):
        assert coefficients == (0, 1)


@pytest.mark.parametrize("name", SCHEMES)
@few
@given(data=st.data())
def test_schemes_are_values_that_their_fields_make_anew(name, data):
    n, scheme = data.draw(INSTANCES[name])
    again = make_scheme(name, dataclasses.asdict(scheme))
    hash(scheme)
    steps = increasing(data, n)
    assert again.coefficients(steps) == scheme.coefficients(steps)
    lists = {key: list(v) if isinstance(v, tuple) else v for key, v in dataclasses.asdict(scheme).items()}
    assert make_scheme(name, lists) == again
    if type(scheme) is type(again):
        assert again == scheme
    with pytest.raises(dataclasses.FrozenInstanceError):
        scheme.name = "another"
