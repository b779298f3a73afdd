"""System calls that change something on the disk: recorded by strace, and made to fail or to kill."""

import contextlib
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from faults.trials import Ended, Run, Warm

# Calls whose names follow the descriptors of their folders, calls that take names alone, and calls on a file.
AT = ("openat", "mkdirat", "unlinkat", "linkat", "symlinkat", "renameat", "renameat2", "fchmodat")
NAMED = ("open", "creat", "mkdir", "unlink", "rmdir", "link", "symlink", "rename", "chmod", "truncate")
OPENED = ("write", "pwrite64", "writev", "pwritev", "pwritev2", "sendfile", "copy_file_range")
OPENED += ("fallocate", "ftruncate", "fchmod", "fsync", "fdatasync")
# What a processor's Linux does not have is left out.
CHANGING = ",".join(f"?{name}" for name in (*AT, *NAMED, *OPENED))
CHANGING_FLAGS = re.compile(r"O_CREAT|O_TMPFILE|O_WRONLY|O_RDWR|O_TRUNC")

LINE = re.compile(r"(\d+) +(?:<\.\.\. (\w+) resumed>|(\w+)\()(.*)")
RETURNED = re.compile(
    r"(.*)\) += (-?\d+|\?)(?:<.*?>(?:\(deleted\))?)?(?: (E[A-Z]+) \(.*?\))?( \(INJECTED\))?", re.S
)
DESCRIPTOR = re.compile(r"(?:AT_FDCWD|\d+)<(.*?)(?: \(deleted\))?>")
NAMES = re.compile(r'(?:(?:AT_FDCWD|\d+)(?:<([^>]*)>)?(?:\(deleted\))?, )?"((?:[^"\\]|\\.)*)"')
OWN = re.compile(r"swatool-.*-\d+-[0-9a-f]{16}|#\d+")  # of a temporary name, what differs from run to run

# A run waits until strace has been attached. strace counts each thread's calls of a kind for itself, so
# workers write by a call of their own: then no number means a call of both.
WAIT = """
import ctypes, os, threading
ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(-1), 0, 0, 0)  # who is no ancestor may trace it, too

def pwrite(descriptor, data, offset, by_main=os.pwrite):
    if threading.current_thread() is threading.main_thread():
        return by_main(descriptor, data, offset)
    return os.pwritev(descriptor, [data], offset)

os.pwrite = pwrite
with open({gate!r}) as gate:
    gate.read()
"""


@dataclass(frozen=True)
class Call:
    """A system call, as it stands in the trace.

    Attributes:
        thread: who made it.
        number: which of this thread's calls of the same name it is, from 1.
        name: what it is called.
        arguments: the rest, as strace shows it.
        result: what it returned; None if it never did.
        error: the name of the error, or nothing.
        injected: whether strace did it rather than the system.
        began, ended: places in the trace; a call that never returned has ended at the end of it.
    """

    thread: int
    number: int
    name: str
    arguments: str
    result: int | None
    error: str
    injected: bool
    began: int
    ended: int

    @property
    def succeeded(self):
        return self.result is not None and self.result >= 0

    @property
    def file(self):
        """The file that a call on a descriptor is about, as long as it has that name."""
        found = DESCRIPTOR.match(self.arguments) if self.name in OPENED else None
        return found[1] if found else ""

    @property
    def names(self):
        """The paths that a call with names is about."""
        if self.name not in AT and self.name not in NAMED:
            return []
        return [os.path.normpath(os.path.join(*found)) for found in NAMES.findall(self.arguments)]

    @property
    def changes(self):
        """Whether the call is of a kind that changes something."""
        return not self.name.startswith("open") or bool(CHANGING_FLAGS.search(self.arguments))

    def concerns(self, folder):
        """Whether the call is about something in a folder, or about the folder itself."""
        return any(one == folder or one.startswith(folder + "/") for one in (self.file, *self.names))

    def __str__(self):
        about = [OWN.sub("*", os.path.basename(one)) for one in (self.file, *self.names) if one]
        return f"{self.name}({', '.join(about)})"


def parse(text):
    """Return the calls of a trace, in the order in which they began."""
    lines = text.splitlines()
    calls, unfinished, counts = [], {}, {}
    for place, line in enumerate(lines):
        found = LINE.match(line)
        if not found:
            continue
        thread, resumed, name, rest = int(found[1]), found[2], found[3], found[4]
        if resumed:
            number, name, begun, began = unfinished.pop(thread)
            rest = begun + rest
        else:
            number, began = counts.get((thread, name), 0) + 1, place
            counts[thread, name] = number
        if rest.endswith("<unfinished ...>"):
            unfinished[thread] = number, name, rest.removesuffix("<unfinished ...>"), began
            continue
        returned = RETURNED.fullmatch(rest)
        if returned is None:
            raise ValueError(f"what does strace mean by {line!r}?")
        result = None if returned[2] == "?" else int(returned[2])
        ended = len(lines) if result is None else place
        injected = bool(returned[4])
        calls.append(
            Call(thread, number, name, returned[1], result, returned[3] or "", injected, began, ended)
        )
    for thread, (number, name, rest, began) in unfinished.items():
        calls.append(Call(thread, number, name, rest, None, "", False, began, len(lines)))
    return sorted(calls, key=lambda call: call.began)


class Tracer:
    """Runs the program under strace."""

    def __init__(self, warm: Warm, folder: Path):
        self._warm = warm
        self._log = folder / "strace.log"
        self._gate = folder / "gate"
        os.mkfifo(self._gate)

    def run(self, arguments, folder, *, prelude="", inject="") -> tuple[Ended, list[Call]]:
        """Run in a folder, and return how it ended and what it did; `inject` is strace's option."""
        prelude = WAIT.format(gate=str(self._gate)) + prelude
        run = self._warm.start(arguments, folder, prelude)
        # The gate opens when the run waits there, so that strace counts all calls from there.
        with open(self._gate, "w") as gate, self._attached(run, inject):
            gate.close()
            ended = run.wait()
        return ended, parse(self._log.read_text(errors="replace"))

    @contextlib.contextmanager
    def _attached(self, run: Run, inject):
        command = ["strace", "-f", "-y", "-s", "0", "-o", self._log, "-p", str(run.pid)]
        command += ["-e", f"trace={CHANGING}"]
        if inject:
            command += ["-e", f"inject={inject}"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
            said = strace.stderr.readline()
            if "attached" not in said:
                run.send(9)
                run.wait()
                raise OSError(f"strace cannot be attached: {said}")
            yield
            strace.stderr.read()


def missing():
    """Return why nothing can be traced here; nothing if it can."""
    if not shutil.which("strace"):
        return "strace is not installed"
    tried = subprocess.run(["strace", "-o", os.devnull, "true"], check=False, capture_output=True, text=True)
    return f"nothing can be traced here: {tried.stderr.strip()}" if tried.returncode else ""


def points(calls, folder):
    """Return the calls that change something in a folder; each is met again under its name and number."""
    found = [call for call in calls if call.changes and call.concerns(folder)]
    makers = {}
    for call in found:
        makers.setdefault(call.name, set()).add(call.thread)
    ambiguous = [name for name, threads in makers.items() if len(threads) > 1]
    if ambiguous:
        raise ValueError(f"several threads make calls of {ambiguous[0]}, so that a number means one of each")
    return found
