"""What several tests of this folder need."""

import signal

import pytest


@pytest.fixture
def interrupts():
    """Let SIGINT raise KeyboardInterrupt, also where it is ignored from outside."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
