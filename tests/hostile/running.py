"""Runs commands on hostile inputs in one process, under watch; a script, whose lines are read by tests.

Given the names of cases, it prints a line of JSON before each command, so that a command that kills the
process is known, and one after it.
"""

import contextlib
import functools
import gc
import json
import os
import re
import resource
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
import typer.testing
from typer.testing import CliRunner

from hostile import models
from hostile.corpus import CASES
from hostile.watching import OUTPUT, Watch
from swatool.cli import COMMANDS, app

# Made once rather than for each run: that takes longer than most commands.
typer.testing._get_command = functools.cache(typer.testing._get_command)
MAX_BYTES_OF_OUTPUT = 20_000
RECIPE = "recipe.yaml"  # JSON, which is YAML, too


def commands_of(case):
    """The arguments of each command that reads what the case is given as."""
    good = "good.safetensors" if case.target.endswith(".safetensors") else "good.pt"
    recalibrate = ["--model", f"hostile.models:{case.model}", "-o", OUTPUT, "--no-shuffle"]
    if case.kind == "data":
        options = [] if case.spec.startswith("wds") else recalibrate[-1:]
        yield (
            "recalibrate-bn",
            ["recalibrate-bn", good, "--data", case.spec.format(case.target), *recalibrate[:4], *options],
        )
        return
    if case.kind == "recipe":
        yield (
            "metrics",
            [
                "average",
                good,
                good,
                "-o",
                OUTPUT,
                "--metrics",
                case.target,
                "--best",
                "1",
                "--mode",
                "max",
                "--metric",
                "a",
            ],
        )
        if "run" in COMMANDS:
            yield "run", ["run", case.target]
        return
    average = ["average", good, case.target, "-o", OUTPUT]
    yield "average", average
    yield "dry-run", [*average, "--dry-run"]
    yield "recipe", ["run", RECIPE]
    yield "inspect", ["inspect", case.target]
    yield "stats", ["inspect", "--stats", case.target]
    yield "verify", ["verify", case.target]
    yield "diff", ["diff", case.target, good]
    yield "reversed", ["diff", good, case.target]
    yield "recalibrate-bn", ["recalibrate-bn", case.target, "--data", "rows.npy", *recalibrate]


def prepare(case):
    """Make the case and its good partner in the current folder."""
    made = models.state(getattr(models, case.model))
    torch.save(made, "good.pt")
    from hostile.hf import save_safetensors

    save_safetensors(made, Path("good.safetensors"))
    from hostile.arrays import npy

    Path("rows.npy").write_bytes(npy((2, 2), bytes(range(16))))
    if case.kind == "checkpoint":
        inputs = ["good.safetensors" if case.target.endswith(".safetensors") else "good.pt", case.target]
        Path(RECIPE).write_text(json.dumps({"inputs": inputs, "outputs": OUTPUT}))
    case.make(Path(case.target))


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
    if (
        command in ("average", "recipe", "recalibrate-bn")
        and result.exit_code == 0
        and os.path.exists(OUTPUT)
    ):
        os.unlink(OUTPUT)
    now = listing()
    told["left"] = sorted(set(now) - set(before) - {f"./{case.target}"})
    told["gone"] = sorted(set(before) - set(now))
    return told


def tell(**line):
    print(json.dumps(line), flush=True)


def in_folder_of(case, watch):
    """Run all commands of a case in a folder of its own, made anew for each if one changes its input."""
    for command, arguments in commands_of(case):
        if case.code(command) < 0:
            continue
        with tempfile.TemporaryDirectory(prefix="case-") as folder, contextlib.chdir(folder):
            prepare(case)
            tell(case=case.name, command=command)
            told = run(case, command, arguments, watch)
            tell(case=case.name, command=command, **told)


def warm_up(watch):
    """Import and compile everything that the commands need, with sound inputs."""
    from hostile import warming

    for case in warming.CASES:
        for command, arguments in commands_of(case):
            with tempfile.TemporaryDirectory(prefix="case-") as folder, contextlib.chdir(folder):
                prepare(case)
                told = run(case, command, arguments, watch)
                assert told["code"] == case.code(command), (case.name, command, told)


def main(names):
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    watch = Watch()
    warm_up(watch)
    gc.collect()
    gc.freeze()  # what is there stays, and would be looked through after every command
    idle = memory("VmRSS")
    for name in names:
        in_folder_of(CASES[name], watch)
    gc.collect()
    tell(idle=idle, finally_idle=memory("VmRSS"))


if __name__ == "__main__":
    main(json.load(sys.stdin))
