import math
import re
from dataclasses import MISSING, fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim.swa_utils import get_ema_avg_fn, get_swa_avg_fn

from swatool.averaging.schemes import SCHEMES, Ema, Swa, Weights, make_scheme
from swatool.errors import UsageError

COUNTS = st.integers(1, 40)
DECAYS = st.floats(0, 1) | st.sampled_from([0.0, 1.0, 0.9, 0.999])
# For every scheme of the table: the number of checkpoints, and an instance that fits it.
INSTANCES = {
    "swa": COUNTS.map(lambda n: (n, Swa())),
    "ema": st.tuples(COUNTS, st.builds(Ema, DECAYS, st.booleans())),
    "weights": st.lists(st.floats(0.01, 100), min_size=1, max_size=40).map(
        lambda weights: (len(weights), Weights(tuple(weights)))
    ),
}
few = settings(max_examples=60, deadline=None)


def running(update, n):
    """Coefficients of n checkpoints, as torch's own running average treats them, oldest first."""
    vectors = torch.eye(n, dtype=torch.float64)
    average = vectors[0]
    for seen in range(1, n):
        average = update(average, vectors[seen], seen)
    return average.tolist()


def test_every_scheme_has_instances_to_be_tested_with():
    assert set(INSTANCES) == set(SCHEMES)


@pytest.mark.parametrize("name", SCHEMES)
@few
@given(data=st.data())
def test_coefficients_are_one_per_checkpoint_and_sum_to_one(name, data):
    n, scheme = data.draw(INSTANCES[name])
    coefficients = scheme.coefficients([None] * n)
    assert len(coefficients) == n
    assert all(type(c) is float for c in coefficients)
    assert math.fsum(coefficients) == pytest.approx(1, abs=1e-12)
    assert min(coefficients) >= 0


@pytest.mark.parametrize("name", SCHEMES)
@few
@given(data=st.data())
def test_steps_do_not_matter_to_schemes_of_the_order_alone(name, data):
    n, scheme = data.draw(INSTANCES[name])
    assert scheme.coefficients(range(0, 7 * n, 7)) == scheme.coefficients([None] * n)


@pytest.mark.parametrize("name", SCHEMES)
def test_each_scheme_knows_its_name_formula_and_source(name):
    scheme = SCHEMES[name]
    assert scheme.name == name
    assert "c_i" in scheme.formula
    assert scheme.source
    assert scheme.__doc__


@few
@given(n=COUNTS, decay=DECAYS)
def test_ema_is_torchs_running_average(n, decay):
    expected = running(get_ema_avg_fn(decay), n)
    assert Ema(decay).coefficients([None] * n) == pytest.approx(expected, rel=1e-12, abs=1e-15)


@few
@given(n=COUNTS)
def test_swa_is_torchs_running_average(n):
    assert Swa().coefficients([None] * n) == pytest.approx(running(get_swa_avg_fn(), n), rel=1e-12)


@few
@given(n=COUNTS, decay=st.floats(0, 0.999))
def test_debiased_ema_is_its_formula(n, decay):
    expected = [(1 - decay) * decay ** (n - i) / (1 - decay**n) for i in range(1, n + 1)]
    assert Ema(decay, debias=True).coefficients([None] * n) == pytest.approx(expected, rel=1e-9, abs=1e-300)


def test_ema_at_the_ends_of_its_range():
    steps = [None] * 3
    assert Ema(0.0).coefficients(steps) == (0, 0, 1)
    assert Ema(1.0).coefficients(steps) == (1, 0, 0)
    assert Ema(0.0, debias=True).coefficients(steps) == (0, 0, 1)
    assert Ema(1.0, debias=True).coefficients(steps) == (1 / 3, 1 / 3, 1 / 3)
    assert Ema(0.5).coefficients(steps) == (0.25, 0.25, 0.5)


@pytest.mark.parametrize("decay", [-0.1, 1.0001, math.nan, math.inf, -math.inf])
def test_decay_outside_its_range_is_refused(decay):
    with pytest.raises(UsageError, match=r"--decay must lie in \[0, 1\]"):
        Ema(decay)


def test_weights_are_normalized_unless_that_is_declined():
    assert Weights((1.0, 3.0)).coefficients([1, 2]) == (0.25, 0.75)
    assert Weights((1.0, 3.0), normalize=False).coefficients([1, 2]) == (1.0, 3.0)
    assert Weights((2.0, -1.0)).coefficients([1, 2]) == (2.0, -1.0)
    assert Weights((1.0, -1.0), normalize=False).coefficients([1, 2]) == (1.0, -1.0)


@pytest.mark.parametrize("weights", [(), (math.nan, 1.0), (math.inf, 1.0), (-math.inf, 1.0)])
@pytest.mark.parametrize("normalize", [True, False])
def test_weights_must_be_finite_numbers(weights, normalize):
    with pytest.raises(UsageError, match="--weights must be finite"):
        Weights(weights, normalize)


@pytest.mark.parametrize("weights", [(0.0, 0.0), (1.0, -1.0), (0.1, 0.2, -0.3)])
def test_weights_that_cancel_cannot_be_normalized(weights):
    with pytest.raises(UsageError, match="--no-normalize"):
        Weights(weights)


def test_weights_too_large_to_be_summed_are_refused_or_normalized():
    try:
        coefficients = Weights((1e308, 1e308)).coefficients([1, 2])
    except UsageError:
        return
    assert coefficients == (0.5, 0.5)


@pytest.mark.parametrize("count", [1, 3])
def test_number_of_weights_must_be_right(count):
    with pytest.raises(UsageError, match=f"gives 2 numbers for {count} checkpoints"):
        Weights((1.0, 2.0)).coefficients([None] * count)


def test_make_scheme_builds_what_is_asked_for():
    assert make_scheme("swa", {"decay": None, "weights": None}) == Swa()
    assert make_scheme("ema", {"decay": 0.5, "debias": True}) == Ema(0.5, debias=True)
    assert make_scheme("ema", {"decay": 0.0}) == Ema(0.0)
    assert make_scheme("weights", {"weights": (1.0,), "normalize": False}) == Weights((1.0,), normalize=False)


@pytest.mark.parametrize(("method", "hint"), [("emma", "; did you mean ema?"), ("quux", "not 'quux'")])
def test_unknown_method_is_refused_with_a_suggestion(method, hint):
    with pytest.raises(UsageError) as caught:
        make_scheme(method, {})
    assert str(caught.value).endswith(hint)
    assert all(name in str(caught.value) for name in SCHEMES)


@pytest.mark.parametrize("method", SCHEMES)
def test_every_parameter_belongs_to_a_scheme_or_is_refused(method):
    own = {field.name for field in fields(SCHEMES[method])}
    every = {field.name for scheme in SCHEMES.values() for field in fields(scheme)}
    for name in every - own:
        with pytest.raises(UsageError, match=f"--{name} does not belong to --method {method}"):
            make_scheme(method, {name: 1})


@pytest.mark.parametrize("method", SCHEMES)
def test_needed_parameters_are_asked_for(method):
    needed = [field.name for field in fields(SCHEMES[method]) if field.default is MISSING]
    for name in needed:
        with pytest.raises(UsageError, match=re.escape(f"--method {method} needs --{name}")):
            make_scheme(method, {})
    assert needed == {"swa": [], "ema": ["decay"], "weights": ["weights"]}[method]
