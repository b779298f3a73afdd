import math

import pytest

from swatool.averaging.scheme_checks import (
    check_number,
    increasing_steps,
    is_finite,
    known_steps,
    option,
    positions,
    resolved_spacing,
    tuple_of_numbers,
)
from swatool.errors import UsageError


def test_options_are_written_with_hyphens():
    assert option("sigma_rel") == "--sigma-rel"
    assert option("decay") == "--decay"


@pytest.mark.parametrize(
    ("arguments", "without", "told"),
    [
        ((-1, 0, 1), "", r"must lie in \[0, 1\], not -1"),
        ((1, 0, 1), "high", r"must lie in \[0, 1\), not 1"),
        ((0, 0, 1), "low", r"must lie in \(0, 1\], not 0"),
        ((0, 0), "low", "must be a finite number above 0, not 0"),
        ((-1, 0), "", "must be a finite number of at least 0, not -1"),
        ((math.inf,), "", "must be a finite number, not inf"),
        (("\x1b[1m",), "", r"must be a finite number, not '\\x1b\[1m'"),
    ],
)
def test_numbers_out_of_range_are_refused_with_the_range(arguments, without, told):
    with pytest.raises(UsageError, match=f"--the-field {told}"):
        check_number("the_field", *arguments, without=without)


def test_numbers_in_range_are_accepted():
    for value in (0, 1, 0.5):
        check_number("x", value, 0, 1)
    check_number("x", -(10**300))
    check_number("x", 0.5, 0, 1, without="low high")


def test_what_is_a_finite_number():
    assert all(map(is_finite, (0, -1.5, 10**308, 5e-324)))
    assert not any(map(is_finite, (math.nan, math.inf, -math.inf, 10**309, True, None, "1", [1])))


def test_lists_become_tuples():
    assert tuple_of_numbers("x", [1, 2.5]) == (1, 2.5)
    assert tuple_of_numbers("x", ()) == ()


def test_steps():
    assert known_steps([5, 3, 3], "x") == (5, 3, 3)
    assert increasing_steps([0, 3, 10**30], "x") == (0, 3, 10**30)
    assert positions([5, 7], "auto", "m") == positions([5, 7], "steps", "m") == (5, 7)
    assert positions([5, None], "auto", "m") == positions([5, 7], "index", "m") == (1, 2)
    assert [resolved_spacing("auto", s) for s in ([1], [None])] == ["steps", "index"]
    with pytest.raises(
        UsageError, match=r"^--method m with --spacing steps needs the training step of every"
    ):
        positions([5, None], "steps", "m")
