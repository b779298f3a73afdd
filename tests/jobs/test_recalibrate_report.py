"""What is said of a recalibration's outcome."""

import math

import pytest

from swatool.jobs.recalibrate_report import verdict


@pytest.mark.parametrize(
    ("old", "new", "higher", "worse"),
    [
        (0.5, 0.4, True, True),
        (0.5, 0.5, True, False),
        (0.5, 0.6, True, False),
        (0.5, 0.6, False, True),
        (0.5, 0.4, False, False),
        (0.5, math.nan, True, True),
        (math.nan, 0.5, True, False),
        (math.nan, math.nan, False, False),
        (0.5, 0.1, None, False),
    ],
)
def test_says_if_the_number_got_worse(old, new, higher, worse):
    told = list(verdict({"score": old}, {"score": new}, higher_is_better=higher))
    assert bool(told) is worse
    assert all("made 'score' worse" in one for one in told)


def test_the_first_number_decides():
    before, after = {"accuracy": 0.5, "loss": 1.0}, {"accuracy": 0.6, "loss": 2.0}
    assert not list(verdict(before, after, higher_is_better=True))
    assert not list(verdict(None, None, higher_is_better=True))
