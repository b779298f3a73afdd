"""Ctrl-C waits, is not forgotten, and is handled by whoever handled it before."""

import signal
import threading

import pytest

from swatool.swa_utils.interrupts import interrupts_held


@pytest.fixture
def received():
    """Install a handler that notes what it is given."""
    seen = []
    before = signal.signal(signal.SIGINT, lambda *args: seen.append(args))
    yield seen
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_is_handled_at_the_end_and_once(received):
    handler = signal.getsignal(signal.SIGINT)
    with interrupts_held():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert not received
    assert [number for number, _ in received] == [signal.SIGINT]
    assert signal.getsignal(signal.SIGINT) is handler


def test_without_an_interrupt_nothing_is_handled(received):
    handler = signal.getsignal(signal.SIGINT)
    with interrupts_held():
        assert signal.getsignal(signal.SIGINT) is not handler
    assert not received
    assert signal.getsignal(signal.SIGINT) is handler


def fail(*, interrupted):
    with interrupts_held():
        if interrupted:
            signal.raise_signal(signal.SIGINT)
        raise LookupError


@pytest.mark.usefixtures("interrupts")
def test_an_interrupt_comes_after_an_exception():
    with pytest.raises(KeyboardInterrupt) as caught:
        fail(interrupted=True)
    assert isinstance(caught.value.__context__, LookupError)
    with pytest.raises(LookupError):
        fail(interrupted=False)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL])
def test_what_is_not_pythons_is_left_alone(handler):
    before = signal.signal(signal.SIGINT, handler)
    try:
        with interrupts_held():
            assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interrupts")
def test_other_threads_do_not_wait():
    seen = []

    def work():
        with interrupts_held():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]
