"""Make soups that are killed at every moment at which something changes on the disk, and go on with each.

Run as a script, so that one process imports torch for hundreds: each soup is made in a fork of it.
"""

import contextlib
import filecmp
import itertools
import os
import shutil
import signal
import sys

import pytest
import torch

from swatool.averaging import stream  # noqa: F401 - imported once for all forks
from swatool.errors import UsageError
from swatool.jobs.scoring import Scoring
from swatool.jobs.soup import soup
from swatool.jobs.soup_work import work_folder

EVALUATION = """
import os, signal
import torch
from safetensors.torch import load_file

def distance(path):
    with open("calls", "a") as log:
        log.write(path + "\\n")
    if os.path.exists("fatal") and len(open("calls").readlines()) == int(open("fatal").read()):
        os.unlink("fatal")
        os.kill(os.getpid(), signal.SIGKILL)
    if os.path.isdir(path):
        found = [os.path.join(path, n) for n in ("model.safetensors", "pytorch_model.bin")]
        path = next(filter(os.path.exists, found))
    load = load_file if path.endswith(".safetensors") else torch.load
    return float(load(path)["w"].square().mean())
"""
# All by which something appears or disappears under a name.
CHANGES = ("replace", "link", "unlink", "rmdir", "mkdir", "open")


def killed_before(change):
    """Arrange that this process is killed before it makes this change, counted from 1."""
    counter = itertools.count(1)

    def counted(function):
        def call(*args, **kwargs):
            # Opening counts where something is created, but not what has no name.
            creates = function is not original["open"] or (len(args) > 1 and args[1] & os.O_CREAT)
            if creates and next(counter) == change:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    original = {name: getattr(os, name) for name in CHANGES}
    for name, function in original.items():
        setattr(os, name, counted(function))


def in_fork(work):
    """Do some work in a fork, and return how it ended: 0, or the negative number of a signal."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:  # noqa: BLE001 - whatever it is, the parent goes on
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stderr.flush()
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def make(output, finished=False):
    """Make the soup; where nothing was left to do, that its name is taken is all there is to say."""
    scoring = Scoring(evaluate="evaluation.py:distance", mode="min")
    if not finished:
        soup("run", output, scoring=scoring)
        return
    with pytest.raises(UsageError, match="exists: give --overwrite"):
        soup("run", output, scoring=scoring)


def calls():
    with open("calls") as log:
        return log.read().split()


def forget():
    for name in ("calls", "fatal"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
    for name in os.listdir():
        if "soup" in name:
            shutil.rmtree(name) if os.path.isdir(name) else os.unlink(name)


def same(output):
    if os.path.isfile(output):
        return filecmp.cmp(output, "expected", shallow=False)
    return not filecmp.dircmp(output, "expected").diff_files and os.listdir(output) == os.listdir("expected")


def go_on(output, most, what):
    """Give the same command again, and check what comes of it."""
    finished = os.path.exists(output) and not os.path.exists(work_folder(output) + "/state.json")
    assert in_fork(lambda: make(output, finished)) == 0, what
    assert same(output), what
    left = [name for name in os.listdir() if "soup" in name]
    assert left == [output.rstrip("/")], (what, left)
    evaluated = len(calls())
    assert evaluated <= most, (what, calls())
    return evaluated


def main(output, every_nth):
    os.fsync = lambda _: None
    with open("evaluation.py", "w") as file:
        file.write(EVALUATION)
    forget()
    assert in_fork(lambda: make(output)) == 0
    every = calls()
    os.rename(output.rstrip("/"), "expected")
    states = 0
    for change in itertools.count(1, every_nth):
        forget()
        ended = in_fork(lambda number=change: (killed_before(number), make(output)))
        if ended == 0:
            break
        assert ended == -signal.SIGKILL
        # An evaluation that was not noted yet is the only one that may come again.
        go_on(output, len(every) + 1, f"killed before change {change}")
        states += 1
    for number in range(1, len(every) + 1, every_nth):
        forget()
        with open("fatal", "w") as file:
            file.write(str(number))
        assert in_fork(lambda: make(output)) == -signal.SIGKILL
        evaluated = go_on(output, len(every) + 1, f"killed in evaluation {number}")
        assert evaluated == len(every) + 1
        assert calls()[number - 1] == calls()[number] == every[number - 1]
    print(states, len(every))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], int(sys.argv[2]))
