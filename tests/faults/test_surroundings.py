"""The goals about what goes on around a run, each tried a few times."""

import sys

import pytest

if sys.platform != "linux":
    pytest.skip("what is done to runs here needs Linux", allow_module_level=True)

from faults.changing import measure_changes
from faults.changing_others import measure_other_changes
from faults.commands import measure_commands
from faults.limiting import measure_limits
from faults.misreading import measure_misreading
from faults.permissions import measure_permissions
from faults.racing import measure_races
from faults.signalling import measure_signals
from faults.sizes import measure_sizes
from faults.soaking import growth, measure_soak
from faults.trials import Ended, Warm

MEASURES = (
    *(measure_changes, measure_commands, measure_limits, measure_misreading, measure_permissions),
    *(measure_other_changes, measure_races, measure_signals, measure_sizes, measure_soak),
)


@pytest.mark.parametrize("measure", MEASURES)
def test_the_goal_is_met(measure, tmp_path):
    if measure is measure_permissions:
        pytest.importorskip("huggingface_hub")
    measured = measure(False, tmp_path)
    for found in measured if isinstance(measured, tuple) else (measured,):
        assert found.tried > 0
        assert not found.wrong, "\n".join(found.wrong)


# That the trials see what they should.


def test_a_run_that_hangs_is_seen(tmp_path):
    with Warm() as warm:
        ended = warm.start(["--help"], tmp_path, "import time\ntime.sleep(60)").wait(0.1)
        assert ended.wrong_words() == ["hung"]
        assert warm.run(["--version"], tmp_path).wrong_words() == []


@pytest.mark.parametrize(
    ("code", "stderr", "words"),
    [
        (-7, "", "killed by signal 7"),
        (1, "error: x", "a bug's words"),
        (3, "Traceback (most recent call last)\nerror: x", "a bug's words"),
        (3, "", "0 errors"),
        (3, "error: x\nerror: y", "2 errors"),
    ],
)
def test_wrong_words_are_seen(code, stderr, words):
    assert words in "".join(Ended(code, False, "", stderr, 0.0, 0).wrong_words())


def test_right_words_are_not_wrong():
    assert Ended(3, False, "", "error: x", 0.0, 0).wrong_words() == []


def test_growth_is_seen():
    runs = [(200_000_000 + 10_000 * turn, 5 + turn // 50, 1) for turn in range(100)]
    assert growth(runs) == (10_000, 1, 0)
