"""Runs of the program, begun in a moment, with whom something may be done before they end."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).parents[1]
HERE = f"{TESTS}:{TESTS.parent}"  # where tests and swatool lie
ENOUGH = 60.0  # seconds, after which a run hangs
# Code for a run that has no files without a name, and no folders that change places.
PLAIN = """
from swatool.output import publish, renaming, unfinished
import errno

def unsupported(*_):
    raise OSError(errno.EINVAL, "Invalid argument")

publish.UNNAMED = 0
renaming._renameat2 = unsupported
"""


@dataclass(frozen=True)
class Ended:
    """How a run ended.

    Attributes:
        code: the exit code; negative for the signal that killed it.
        hung: whether it had to be killed.
        stdout: what it printed.
        stderr: what it complained of.
        at: when it ended, by the monotonic clock.
        peak: most resident memory, in bytes.
    """

    code: int
    hung: bool
    stdout: str
    stderr: str
    at: float
    peak: int

    def wrong_words(self):
        """Return what is wrong with what it said, whatever has happened to it."""
        if self.hung:
            return ["hung"]
        wrong = [f"was killed by signal {-self.code}"] if self.code < 0 else []
        if self.code == 1 or "Traceback" in self.stdout + self.stderr:
            wrong.append(f"exit code {self.code} and a bug's words: {self.stderr[-300:]}")
        errors = self.stderr.count("error: ")
        if self.code > 0 and errors != 1:
            wrong.append(f"exit code {self.code} and {errors} errors: {self.stderr[-500:]!r}")
        return wrong


class Run:
    """A run that has begun."""

    def __init__(self, warm, pid, said):
        self._warm = warm
        self._said = said
        self.pid = pid
        self.ended = None

    def send(self, number):
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def wait(self, seconds=ENOUGH):
        """Return how it ended; more than once is harmless."""
        if self.ended is None:
            answer = self._warm.ask(wait={"pid": self.pid, "seconds": seconds})
            texts = []
            for name in ("out", "err"):
                file = Path(f"{self._said}.{name}")
                # A run that was killed at once has not opened them.
                texts.append(file.read_text(errors="replace") if file.exists() else "")
                file.unlink(missing_ok=True)
            code = os.waitstatus_to_exitcode(answer["status"])
            self.ended = Ended(code, answer["hung"], *texts, answer["at"], answer["peak"])
        return self.ended


class Warm:
    """A process that begins runs of the program in a moment; see `warm`."""

    def __init__(self, python=sys.executable, **environment):
        self._python = python
        self._environment = environment
        self._count = 0

    def __enter__(self):
        self._folder = tempfile.TemporaryDirectory(prefix="said-")
        self._process = subprocess.Popen(
            [self._python, "-m", "faults.warm"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": HERE, **self._environment},
        )
        return self

    def __exit__(self, *_):
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()
        self._folder.cleanup()

    def ask(self, **what):
        print(json.dumps(what), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def start(self, arguments, folder, prelude=""):
        """Begin a run in a folder; `prelude` is code that is executed in its process first."""
        self._count += 1
        said = f"{self._folder.name}/{self._count}"
        asked = {"arguments": [*map(str, arguments)], "folder": str(folder), "said": said, "prelude": prelude}
        return Run(self, self.ask(start=asked)["pid"], said)

    def run(self, arguments, folder, prelude=""):
        """Run from beginning to end."""
        return self.start(arguments, folder, prelude).wait()

    def seconds(self, arguments, folder, prelude=""):
        """Return how a run that nothing happens to ended, and how long it took."""
        begun = time.monotonic()
        ended = self.run(arguments, folder, prelude)
        return ended, ended.at - begun


def bytes_of(path):
    """Return all that lies at a path, of a file or of the files of a folder by name; None if nothing does."""
    path = Path(path)
    if path.is_dir():
        return {entry.name: entry.read_bytes() for entry in path.iterdir()}
    return path.read_bytes() if path.exists() else None


def remove(path):
    """Remove a file, or a folder of files, if it is there."""
    path = Path(path)
    if path.is_dir():
        for entry in path.iterdir():
            entry.unlink()
        path.rmdir()
    path.unlink(missing_ok=True)


def clear(folder, kept):
    """Remove all but some names from a folder, and return what was removed."""
    found = sorted(set(os.listdir(folder)) - set(kept))
    for name in found:
        remove(Path(folder, name))
    return found
