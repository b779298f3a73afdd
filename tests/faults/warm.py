"""A process that has imported all of swatool, and runs each command line in a fork of itself; a script.

It is told what to do by lines of JSON, and answers each by one. It starts no thread, so that its forks are as
good as a process of their own, and begin at once.
"""

import gc
import importlib
import json
import os
import pkgutil
import signal
import sys
import time
import traceback
import warnings

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
POLL = 0.001  # seconds


def import_everything():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Failed to initialize NumPy")
        import torch

        torch.zeros(1).tolist()  # where torch says that NumPy is missing
    import swatool

    for module in pkgutil.walk_packages(swatool.__path__, "swatool."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    importlib.import_module("typer._adapters")  # which is imported when a command line is parsed


def run(arguments, folder, said, prelude):
    """Be the program, with its output in two files; return the exit code."""
    for number, name in ((1, "out"), (2, "err")):
        descriptor = os.open(f"{said}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(folder)
    sys.argv = ["swatool", *arguments]
    exec(prelude, {})
    from swatool.__main__ import main

    try:
        main()
    except SystemExit as ended:
        return ended.code or 0
    except BaseException:  # noqa: BLE001 - what Python itself would do
        traceback.print_exc()
        return 1
    return 0


def start(arguments, folder, said, prelude):
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = run(arguments, folder, said, prelude)
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)
    return {"pid": pid}


def wait(pid, seconds):
    """Wait for a fork to end; one that has not by then hangs, and is killed."""
    limit = time.monotonic() + seconds
    while True:
        found, status, usage = os.wait4(pid, os.WNOHANG)
        if found:
            return {"status": status, "at": time.monotonic(), "peak": usage.ru_maxrss << 10, "hung": False}
        if time.monotonic() > limit:
            os.kill(pid, signal.SIGKILL)
            os.wait4(pid, 0)
            return {"status": signal.SIGKILL, "at": time.monotonic(), "peak": 0, "hung": True}
        time.sleep(POLL)


def main():
    import_everything()
    for one in STOPPING:  # as they are from a shell, from the first moment of each fork on
        signal.signal(one, signal.SIG_DFL)
    gc.collect()
    gc.freeze()
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        asked = json.loads(line)
        answer = wait(**asked["wait"]) if "wait" in asked else start(**asked["start"])
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
