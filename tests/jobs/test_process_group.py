"""Commands are ended with all that they started, whatever stops them."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest
from processes import is_gone

from swatool.jobs.process_group import GRACE, SIGNALS, run_in_group

# A command that tells the process that it starts, which can be deaf to what asks it to end.
WAITING = "{deaf} sleep 77 & echo $! > inner.new; mv inner.new inner; wait; echo 1"
DEAF = "trap '' TERM;"


def waiting(deaf=""):
    return ["sh", "-c", WAITING.format(deaf=deaf)]


def inner():
    """Return the process that a command started, once it has."""
    deadline = time.monotonic() + 30
    while not os.path.exists("inner"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with open("inner") as file:
        return int(file.read())


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


class Stop(BaseException):
    pass


def stop(*_):
    raise Stop


@pytest.fixture
def stopping():
    """Let a signal raise, as commands do."""
    before = signal.signal(signal.SIGTERM, stop)
    yield
    signal.signal(signal.SIGTERM, before)


def test_what_is_said_and_how_it_ends():
    done = run_in_group([sys.executable, "-c", "import sys; print(sys.stdin.read(), 5); sys.exit(3)"])
    assert (done.returncode, done.stdout) == (3, b" 5\n")


def test_a_command_that_is_not_there():
    with pytest.raises(FileNotFoundError):
        run_in_group(["./nothing"])


@pytest.mark.usefixtures("stopping")
@pytest.mark.parametrize("deaf", ["", DEAF], ids=["willing", "deaf"])
def test_what_a_stopped_command_started_is_ended_within_a_second(deaf):
    began = []

    def kill():
        inner()
        began.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=kill)
    thread.start()
    with pytest.raises(Stop):
        run_in_group(waiting(deaf))
    took = time.monotonic() - began[0]
    thread.join()
    assert is_gone(inner())
    assert took < 1


def test_the_grace_leaves_most_of_a_second_to_the_rest():
    """A run that is asked to end does so within a second, its own start to the end of Python included."""
    assert GRACE <= 0.3


def test_what_a_failed_command_started_is_ended():
    done = run_in_group(["sh", "-c", "sleep 77 > /dev/null & echo $! > inner; exit 3"])
    assert done.returncode == 3
    assert is_gone(inner())


def test_what_a_command_that_ended_well_leaves_goes_on():
    assert run_in_group(["sh", "-c", "sleep 77 > /dev/null & echo $! > inner"]).returncode == 0
    os.kill(inner(), signal.SIGKILL)


@pytest.mark.usefixtures("stopping")
def test_a_signal_while_a_command_is_begun_waits_for_it(monkeypatch):
    begin = subprocess.Popen

    def popen(*args, **options):
        process = begin(*args, **options)
        inner()
        os.kill(os.getpid(), signal.SIGTERM)
        return process

    monkeypatch.setattr(subprocess, "Popen", popen)
    with pytest.raises(Stop):
        run_in_group(waiting())
    assert is_gone(inner())


def test_handlers_are_as_they_were():
    before = [signal.getsignal(one) for one in SIGNALS]
    run_in_group(["true"])
    run_in_group(["false"])
    assert [signal.getsignal(one) for one in SIGNALS] == before


def test_commands_can_be_run_by_any_thread():
    found = []
    thread = threading.Thread(target=lambda: found.append(run_in_group(["false"]).returncode))
    thread.start()
    thread.join()
    assert found == [1]


SIGNALLED_TWICE = """
    import signal
    from swatool.jobs.process_group import run_in_group

    def once(number, _):
        signal.signal(number, signal.SIG_DFL)
        raise SystemExit(7)

    signal.signal(signal.SIGINT, once)
    run_in_group({words!r})
"""


def test_a_second_signal_spares_nothing():
    script = textwrap.dedent(SIGNALLED_TWICE).format(words=waiting(DEAF))
    process = subprocess.Popen([sys.executable, "-c", script])
    pid = inner()
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
    assert process.wait(10) == -signal.SIGINT
    assert is_gone(pid)
