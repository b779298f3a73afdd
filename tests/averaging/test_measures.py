import math
import random
from fractions import Fraction

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from swatool.averaging.measures import DifferenceSums, ExactSum, StatisticsSums, plan_measuring
from swatool.averaging.plan import Action
from swatool.checkpoints.opening import open_checkpoint

FINITE = st.floats(allow_nan=False, allow_infinity=False)


def total(values, exponent=0):
    found = ExactSum()
    for value in values:
        found.add(value, exponent)
    return found


@given(st.lists(FINITE, max_size=20), st.randoms(use_true_random=False))
def test_a_sum_is_exact_and_has_no_order(values, shuffle):
    found = total(values)
    shuffle.shuffle(values)
    assert total(values).total == found.total
    assert Fraction(found.total, 2**2300) == sum(map(Fraction, values))


@given(st.lists(FINITE, min_size=1, max_size=20))
def test_a_mean_is_rounded_once(values):
    exact = sum(map(Fraction, values)) / len(values)
    assert total(values).mean(len(values)) == float(exact)


@given(st.floats(1e-300, 1e300))
def test_a_root_is_that_of_the_sum(value):
    assert total([value]).root() == pytest.approx(math.sqrt(value), rel=4e-16)


def test_squares_that_float64_has_not():
    assert total([0.25], 2 * 1024).root() == 2.0**1023
    assert total([0.25], 2 * 1025).root() == math.inf
    assert total([0.5], -2147).root() == 5e-324
    assert total([0.5], -9999).total == 0


def test_statistics_of_parts_are_those_of_the_whole():
    whole, rest = StatisticsSums(), [StatisticsSums(seen=1) for _ in range(3)]
    for number, part in zip((3.0, -2.0), rest, strict=False):
        part.finite, part.minimum, part.maximum = 1, number, number
        part.total.add(number)
        part.squares.add(number**2)
    rest[2].nan = 1
    random.Random(1).shuffle(rest)
    for part in rest:
        whole.merge(part)
    assert (whole.seen, whole.finite) == (3, 2)
    assert whole.finish() == (-2.0, 3.0, 0.5, math.sqrt(13), 1, 0)


def sums(**fields):
    found = DifferenceSums()
    for name, value in fields.items():
        if isinstance(value, float) and name in ("dd", "aa", "bb", "ab"):
            getattr(found, name).add(value)
        else:
            setattr(found, name, value)
    return found


@pytest.mark.parametrize(
    ("fields", "rel_l2", "cosine"),
    [
        ({}, 0.0, None),
        ({"aa": 4.0, "bb": 9.0, "ab": 3.0, "dd": 1.0}, 0.5, 0.5),
        ({"bb": 9.0, "dd": 9.0}, math.inf, None),
        ({"aa": 4.0, "dd": 4.0}, 1.0, None),
        ({"aa": 4.0, "bb": 4.0, "ab": 4.5}, 0.0, 1.0),
        ({"aa": 4.0, "bb": 4.0, "ab": -4.5, "dd": 16.0}, 2.0, -1.0),
        ({"aa": 4.0, "bb": 4.0, "ab": 4.0, "unbounded": True}, math.inf, None),
    ],
)
def test_relative_difference_and_cosine(fields, rel_l2, cosine):
    found = sums(**fields).finish()
    assert (found.rel_l2, found.cosine) == (rel_l2, cosine)
    assert found.max_abs == (math.inf if "unbounded" in fields else 0.0)


def test_differences_of_parts_are_added():
    a = sums(seen=5, differing=1, max_abs=2.0, dd=4.0, aa=1.0, nan=(1, 0), same_bits=False)
    a.merge(sums(seen=3, max_abs=1.0, aa=3.0, unbounded=True, nan=(1, 2), inf=(0, 4)))
    found = a.finish()
    assert (found.elements, found.differing, found.same_bits) == (8, 1, False)
    assert (found.nan, found.inf, found.max_abs) == ((2, 2), (0, 4), math.inf)
    assert a.aa.root() == 2.0


@pytest.fixture
def opened(tmp_path):
    shared = torch.ones(3)
    torch.save({"b": torch.ones(5), "e": torch.ones(0, 2), "t": shared, "a": shared}, tmp_path / "a.pt")
    safetensors.torch.save_file(
        {
            "b": torch.ones(5).half(),
            "e": torch.ones(0, 2),
            "t": shared,
            "a": shared.clone(),
            "z": torch.ones(1),
        },
        tmp_path / "b.safetensors",
    )
    both = open_checkpoint(tmp_path / "a.pt"), open_checkpoint(tmp_path / "b.safetensors")
    yield both
    for one in both:
        one.close()


def test_tensors_are_read_once_in_the_order_of_the_file(opened):
    measuring = plan_measuring(opened[:1], ["a", "t", "e", "b"])
    assert list(measuring.offsets.items()) == [("b", 0), ("a", 20)]
    assert measuring.names == {"b": ("b",), "a": ("a", "t")}
    assert measuring.empty == ("e",)
    assert measuring.nbytes == 20 + 12
    assert {one.treatment.action for one in measuring.plan.tensors} == {Action.MEASURE}


def test_tied_in_one_only_is_read_twice_and_each_type_is_known(opened):
    measuring = plan_measuring(opened, ["a", "t", "e", "b"])
    assert measuring.names == {"b": ("b",), "a": ("a",), "t": ("t",)}
    assert measuring.nbytes == 20 + 10 + 4 * 12
    types = {t.name: [one.dtype.name for one in t.treatment.inputs] for t in measuring.plan.tensors}
    assert types == {"a": ["float32"] * 2, "t": ["float32"] * 2, "b": ["float32", "float16"]}
    a, t = (one.treatment for one in measuring.plan.tensors if one.name != "b")
    assert a is t
