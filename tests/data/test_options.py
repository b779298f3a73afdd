"""What may be asked of a data set, and what makes no sense."""

import dataclasses
import math
import subprocess
import sys

import pytest

from swatool.data.options import FLAGS, DataOptions, refuse_unused
from swatool.errors import UsageError


def test_nothing_is_asked_for_by_default():
    assert set(dataclasses.asdict(DataOptions()).values()) == {None}
    assert set(FLAGS) == {field.name for field in dataclasses.fields(DataOptions)}


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 0},
        {"batch_size": -1},
        {"batch_size": 2.0},
        {"batch_size": True},
        {"samples": 0},
        {"seed": -1},
        {"seed": 2**63},
        {"max_bad": -1},
        {"size": 0},
        {"size": (1, 2, 3)},
        {"size": (10, 0)},
        {"size": 20_000},
        {"size": 1.5},
        {"mean": ()},
        {"mean": (math.nan,)},
        {"std": (math.inf,)},
        {"std": (0.0,)},
        {"std": (-1.0,)},
    ],
    ids=str,
)
def test_a_value_that_makes_no_sense_is_refused_by_its_flag(options):
    flag = FLAGS[next(iter(options))]
    with pytest.raises(UsageError, match=rf"^{flag} "):
        DataOptions(**options)


def test_options_that_exclude_each_other_are_refused():
    with pytest.raises(UsageError, match="--seed has no use with --no-shuffle"):
        DataOptions(seed=1, shuffle=False)
    with pytest.raises(UsageError, match="--mean has 3 numbers and --std 1"):
        DataOptions(mean=(0.0, 0.0, 0.0), std=(1.0,))


def test_what_makes_sense_is_accepted():
    DataOptions(batch_size=1, samples=1, seed=0, size=1, mean=(0.0,), std=(1e-9,), max_bad=0)
    DataOptions(size=(224, 200), shuffle=True, seed=2**63 - 1, mean=(1.0, 2.0, 3.0))


def test_what_cannot_be_used_is_refused_all_at_once():
    options = DataOptions(batch_size=3, shuffle=False, samples=2)
    refuse_unused(options, "x", ("batch_size", "shuffle", "samples"), "")
    with pytest.raises(
        UsageError, match=r"^--batch-size and --shuffle/--no-shuffle cannot be used with --data 'x': why$"
    ):
        refuse_unused(options, "x", ("samples",), "why")


def test_options_need_no_torch():
    code = (
        "import sys, swatool.data.opening as data; data.DataOptions(samples=3)\n"
        "assert not {'torch', 'PIL', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
