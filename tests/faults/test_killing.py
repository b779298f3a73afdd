"""The short form of what `tests/bench/reliability.py` does at length."""

import pytest

from faults import killing, tracing

MISSING = tracing.missing()
pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)


def test_a_run_that_is_killed_at_a_call_leaves_what_was_there_or_all_of_the_new(tmp_path):
    finding = killing.measure_kills(False, tmp_path)
    assert finding.tried > 20
    assert finding.wrong == ()


def test_a_run_that_is_killed_at_any_moment_does_so(tmp_path):
    finding = killing.measure_random_kills(False, tmp_path)
    assert finding.tried > 10
    assert finding.wrong == ()
