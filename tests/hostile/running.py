"""Runs commands on hostile inputs in one process, under watch; a script, whose lines are read by tests.

Given the names of cases, and whether each goes through every command, it prints a line of JSON before each
command, so that a command that kills the process is known, and one after it.
"""

import contextlib
import functools
import gc
import json
import os
import re
import resource
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path

import typer.testing
from typer.testing import CliRunner

from hostile.commands import commands_of, prepare
from hostile.corpus import CASES
from hostile.watching import OUTPUTS, WORKS, Watch
from swatool.cli import app

# Made once rather than for each run: that takes longer than most commands.
typer.testing._get_command = functools.cache(typer.testing._get_command)
MAX_BYTES_OF_OUTPUT = 20_000


def listing():
    return sorted(
        os.path.join(folder, name) for folder, inner, names in os.walk(".") for name in (*inner, *names)
    )


@contextlib.contextmanager
def happening(during, target, watch):
    """Let something happen to the file when its values are first read."""
    original = os.preadv
    if not during:
        yield
        return
    inode = os.stat(target).st_ino
    once = threading.Lock()  # several threads read

    def preadv(descriptor, *arguments):
        if os.fstat(descriptor).st_ino == inode and once.acquire(blocking=False):
            os.preadv = original
            watch.armed = False
            meddle(during, target)
            watch.armed = True
        return original(descriptor, *arguments)

    os.preadv = preadv
    try:
        yield
    finally:
        os.preadv = original


def meddle(during, target):
    if during == "fail":
        raise OSError(5, "Input/output error")
    if during == "truncate":
        os.truncate(target, 100)
    elif during == "rewrite":
        time.sleep(0.01)  # a tick of the clock of files
        data = Path(target).read_bytes()
        Path(target).write_bytes(data)
    else:
        Path("new").write_bytes(Path(target).read_bytes())
        os.replace("new", target)


def memory(field):
    text = Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+) kB", text)[1]) << 10


def run(case, command, arguments, watch):
    """Run one command; return what is to be judged."""
    before = listing()
    Path("/proc/self/clear_refs").write_text("5")  # the peak of memory begins here
    idle = memory("VmRSS")
    with happening(case.during, case.target, watch):
        watch.events.clear()
        begun = time.process_time()
        watch.armed = True
        try:
            result = CliRunner().invoke(app, arguments)
        finally:
            watch.armed = False
        seconds = time.process_time() - begun
    told = {
        "code": result.exit_code,
        "stdout": result.stdout[:MAX_BYTES_OF_OUTPUT],
        "stderr": result.stderr[:MAX_BYTES_OF_OUTPUT],
        "exception": "" if isinstance(result.exception, SystemExit | None) else repr(result.exception),
        "seconds": seconds,
        "growth": memory("VmHWM") - idle,
        "events": watch.events[:5],
    }
    clear_outputs(case, command, result.exit_code)
    now = listing()
    told["left"] = sorted(set(now) - set(before) - {f"./{case.target}"})
    told["gone"] = sorted(set(before) - set(now))
    return told


def clear_outputs(case, command, code):
    """Remove what a command has rightly written.

    A recipe's averages stay where a recalibration that comes after them is refused, and so does what a soup
    has found before a member cannot be averaged.
    """
    made_before = command == "recipe" and case.kind == "data"
    for name in OUTPUTS if code == 0 or made_before else ():
        remove(name)
    if command == "soup" and case.kind != "work":
        for name in WORKS:
            remove(name)


def remove(name):
    if os.path.isdir(name) and not os.path.islink(name):
        shutil.rmtree(name)
    elif os.path.lexists(name):
        os.unlink(name)


def tell(**line):
    print(json.dumps(line), flush=True)


def in_folder_of(case, watch, widely=False):
    """Run all commands of a case in a folder of its own, made anew for each if one changes its input."""
    for command, arguments in commands_of(case, widely=widely):
        if case.code(command) < 0:
            continue
        with tempfile.TemporaryDirectory(prefix="case-") as folder, contextlib.chdir(folder):
            prepare(case, claims=command == "source")
            tell(case=case.name, command=command)
            told = run(case, command, arguments, watch)
            tell(case=case.name, command=command, **told)


def warm_up(watch):
    """Import and compile everything that the commands need, with sound inputs."""
    from hostile import warming

    for case in warming.CASES:
        for command, arguments in commands_of(case, widely=True):
            with tempfile.TemporaryDirectory(prefix="case-") as folder, contextlib.chdir(folder):
                prepare(case, claims=command == "source")
                told = run(case, command, arguments, watch)
                assert told["code"] == case.code(command), (case.name, command, told)


def main(names, widely):
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    watch = Watch()
    warm_up(watch)
    gc.collect()
    gc.freeze()  # what is there stays, and would be looked through after every command
    idle = memory("VmRSS")
    for name in names:
        in_folder_of(CASES[name], watch, widely)
    gc.collect()
    tell(idle=idle, finally_idle=memory("VmRSS"))


if __name__ == "__main__":
    main(**json.load(sys.stdin))
