"""Too little memory, and too few open files: the work is done, or one sentence says why it is not."""

import signal
from collections import Counter
from pathlib import Path

from faults import inputs
from faults.finding import Finding
from faults.trials import Ended, Warm, bytes_of, clear

OUTPUT = "out.safetensors"
NBYTES = 8 << 20
MIB = 1 << 20

# Lets the process have so much more address space than it has.
MEMORY = """
import re, resource
size = int(re.search(r"VmSize:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) << 10
resource.setrlimit(resource.RLIMIT_AS, (size + {0}, size + {0}))
"""
OPEN_FILES = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, ({0}, {1}))
"""
OF_A_LIBRARY = "Error in cpuinfo: "  # which torch brings along, and which complains by itself
FAILED = 5  # the exit code of a run that says that it was given too little
# The C library and its loader end a process themselves that cannot have a few bytes more.
ABORTED = (-signal.SIGABRT, 127)


def judge(folder: Path, ended: Ended, whole, kept) -> list[str]:
    """Return what is wrong with a run that was given little."""
    lines = [line for line in ended.stderr.splitlines() if not line.startswith(OF_A_LIBRARY)]
    aborted = ended.code in ABORTED and "Traceback" not in ended.stderr
    wrong = [] if aborted else ended.wrong_words()
    if ended.code not in (0, FAILED, *ABORTED):
        wrong.append(f"exit code {ended.code}: {ended.stderr[-300:]!r}")
    if ended.code == FAILED and len(lines) != 1:
        wrong.append(f"is no single sentence: {ended.stderr[-300:]!r}")
    there = bytes_of(folder / OUTPUT)
    if there != (whole if ended.code == 0 else None):
        wrong.append("the output is not what the exit code says")
    left = set(clear(folder, kept)) - {OUTPUT}
    return wrong + [f"left {name}" for name in sorted(left)]


def with_little_memory(warm: Warm, folder: Path, kind: str, sizes) -> tuple[int, list[str], Counter]:
    """Give runs so many bytes more than they have when they begin."""
    folder.mkdir()
    names = inputs.make(folder, kind, NBYTES)
    command = ["average", *names, "-o", OUTPUT, "-q"]
    assert warm.run(command, folder).code == 0
    whole = bytes_of(folder / OUTPUT)
    clear(folder, names)
    wrong, codes = [], Counter()
    for nbytes in sizes:
        ended = warm.run(command, folder, MEMORY.format(nbytes))
        codes[ended.code] += 1
        found = judge(folder, ended, whole, names)
        wrong += [f"{nbytes / MIB:.2f} MiB for {kind}: {one}" for one in found]
    return len(sizes), wrong, codes


def with_few_open_files(warm: Warm, folder: Path, kind: str, count: int, most) -> tuple[int, list[str]]:
    """Average many checkpoints with limits on open files: one that may be raised, and one that may not."""
    folder.mkdir()
    names = inputs.make(folder, kind, 1 << 12, count)
    command = ["average", *names, "-o", OUTPUT, "-q"]
    assert warm.run(command, folder, OPEN_FILES.format(1 << 14, 1 << 14)).code == 0
    whole = bytes_of(folder / OUTPUT)
    clear(folder, names)
    wrong = []
    for soft, hard in most:
        ended = warm.run(command, folder, OPEN_FILES.format(soft, hard))
        found = judge(folder, ended, whole, names)
        if hard > 1 << 12 and ended.code:
            found.append("the limit could have been raised")
        if ended.code and "too many files are open" not in ended.stderr:
            found.append(f"does not say so: {ended.stderr[-300:]!r}")
        wrong += [f"{count} of {kind} with {soft} open files of {hard}: {one}" for one in found]
    return len(most), wrong


def measure_limits(full: bool, folder: Path) -> Finding:
    """Give runs little of everything."""
    sizes = [0, MIB // 2, 17 * MIB // 2, 9 * MIB, 24 * MIB, 100 * MIB]
    if full:
        sizes = [*range(0, 48 * MIB, MIB // 2), *range(48 * MIB, 640 * MIB, 16 * MIB)]
    tried, wrong, codes = 0, [], Counter()
    with Warm() as warm:
        for kind in inputs.KINDS if full else inputs.KINDS[1:2]:
            count, found, seen = with_little_memory(warm, folder / f"memory-{kind}", kind, sizes)
            tried, wrong, codes = tried + count, wrong + found, codes + seen
        limits = [(64, 1 << 14), (64, 64), *(((40, 40), (128, 128), (255, 256)) if full else ())]
        for kind, many in (("file.safetensors", 256), ("shards", 64)):
            count, found = with_few_open_files(warm, folder / f"files-{kind}", kind, many, limits)
            tried, wrong = tried + count, wrong + found
    measured = f"with little memory {codes[0]} came to their end and {codes[FAILED]} said why not"
    aborted = sum(codes[code] for code in ABORTED)
    if aborted:
        measured += f", {aborted} were ended by the C library"
    return Finding("too little memory or too few open files is told", tried, tuple(wrong), measured)
