"""The short form of what `tests/bench/reliability.py` does at length."""

import pytest

from faults import failing, filling, tracing

MISSING = tracing.missing()


@pytest.mark.skipif(bool(MISSING), reason=MISSING)
def test_a_call_that_fails_fails_the_run_and_changes_nothing(tmp_path):
    finding = failing.measure_failures(False, tmp_path)
    assert finding.tried > 50
    assert finding.wrong == ()


def test_a_full_disk_fails_the_run_and_changes_nothing(tmp_path):
    if reason := filling.missing(tmp_path):
        pytest.skip(reason)
    finding = filling.measure_full_disks(False, tmp_path)
    assert finding.tried > 20
    assert finding.wrong == ()
