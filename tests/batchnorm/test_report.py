import dataclasses
import json
import math

import pytest
import torch

from swatool.batchnorm.report import BatchNormReport, Change, LayerReport, compare


def change(old, new, eps=0.0):
    return compare(*(tuple(torch.tensor(part) for part in pair) for pair in (old, new)), eps)


def test_the_largest_changes_are_told_with_their_channels():
    found = change(([0.0, 0.0, 1.0], [1.0, 1.0, 1.0]), ([1.0, -4.0, 1.0], [1.0, 4.0, 0.1]))
    assert found.mean_shift == pytest.approx(2)
    assert found.mean_shift_channel == 1
    assert found.variance_ratio == pytest.approx(0.1)
    assert found.variance_ratio_channel == 2


def test_eps_is_part_of_what_the_layer_divides_by():
    found = change(([0.0], [0.0]), ([1.0], [3.0]), eps=1.0)
    assert found == Change(pytest.approx(0.5), 0, pytest.approx(4), 0)


@pytest.mark.parametrize("eps", [0.0, 1e-5])
@pytest.mark.parametrize(
    ("old", "new"),
    [
        (([1.0], [0.0]), ([1.0], [0.0])),
        (([1.0], [0.0]), ([3e38], [0.0])),
        (([0.0], [-5.0]), ([1.0], [3e38])),
        (([0.0], [3e38]), ([1.0], [0.0])),
    ],
)
def test_dead_channels_have_finite_figures(old, new, eps):
    found = change(old, new, eps)
    assert all(math.isfinite(figure) for figure in found)
    if old == new:
        assert (found.mean_shift, found.variance_ratio) == (0, 1)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_old_statistics_that_are_not_finite_give_no_figures(bad):
    none = Change(None, None, None, None)
    assert change(([bad], [1.0]), ([1.0], [1.0])) == none
    assert change(([1.0], [bad]), ([1.0], [1.0])) == none


def test_the_report_is_plain_data():
    layer = LayerReport("bn", "BatchNorm2d", 2, 9, 1, 1, *change(([1.0], [math.nan]), ([1.0], [1.0])))
    report = BatchNormReport("batch", 1, 1, 1, layers=(layer,), untouched={"ln": "none"})
    assert json.loads(json.dumps(dataclasses.asdict(report), allow_nan=False))["layers"][0]["name"] == "bn"
