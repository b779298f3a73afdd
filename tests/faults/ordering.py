"""Whether everything reaches the disk before it gets its name, and the name before the run says so.

What a power cut would leave cannot be tried here; what makes it harmless is an order of system calls, which
is read from their trace.
"""

import os
from pathlib import Path

from faults.finding import Finding
from faults.scenarios import SCENARIOS, Scene, average
from faults.tracing import Tracer
from faults.trials import Warm

NAMING = ("link", "linkat", "rename", "renameat", "renameat2")
WRITING = ("write", "pwrite64", "writev", "pwritev", "pwritev2", "sendfile", "copy_file_range")
WRITING += ("fallocate", "ftruncate")
SYNCING = ("fsync", "fdatasync")
REMOVING = ("unlink", "unlinkat", "rmdir")
MANY = average("shards", "--max-shard-size", "1")
# Then some of them are closed, and synced, before the end.
FEW_ARE_OPEN = "from swatool.output import open_files; open_files.MOST_OPEN = 2"


class Order:
    """What the calls of one run did in the folder of its outputs, and what was wrong with their order."""

    def __init__(self, calls, out, outputs):
        self._calls = [call for call in calls if call.changes and call.concerns(out)]
        self._out = out
        self._targets = {f"{out}/{output}" for output in outputs}

    def wrong(self, finished):
        """Return what was wrong; `finished`: the run said that it was done."""
        found = [f"{call} is about what is visible" for call in self._calls if self._in_place(call)]
        published = [call for call in self._calls if call.name in NAMING and self._publishes(call)]
        for call in published:
            found += self._before(call)
            if finished:
                found += self._after(call)
        if finished and {call.names[-1] for call in published} != self._targets:
            found.append("says that it is done, and has not given every output its name")
        return found

    def _in_place(self, call):
        about = [call.file] if call.name in WRITING else call.names if call.name == "openat" else []
        return any(_within(one, target) for one in about for target in self._targets)

    def _publishes(self, call):
        put_back = call.names[0].endswith(".old")
        return call.succeeded and not put_back and bool(self._targets & set(call.names[1:]))

    def _before(self, call):
        """Return what was not on the disk when a name was given."""
        source = self._source(call)
        files = {one.file for one in self._calls if one.name in WRITING and _within(one.file, source)}
        wrong = [f"{file} was not synced before {call}" for file in files if not self._synced(file, call)]
        made = [one for one in self._calls if one.name == "openat" and _inside(one.names[0], source)]
        if made and not self._synced(source, call, since=max(one.ended for one in made)):
            wrong.append(f"the folder was not synced before {call}")
        return wrong if files else [*wrong, f"{call} publishes what nobody has written"]

    def _source(self, call):
        """Return which file or folder was given a name; a file without one is named by its descriptor."""
        source = call.names[0]
        if source.startswith("/proc/"):
            prefix = os.path.basename(source) + "<"
            used = [one for one in self._calls if one.began < call.began and one.arguments.startswith(prefix)]
            return [one.file for one in used if one.file][-1]
        linked = [
            one
            for one in self._calls
            if one.name in ("link", "linkat") and one.succeeded and one.names[1] == source
        ]
        return self._source(linked[-1]) if linked else source

    def _synced(self, path, call, since=-1):
        """Whether something reached the disk after its last write, and before a call."""
        writes = [one.ended for one in self._calls if one.name in WRITING and one.file == path]
        last = max([since, *writes])
        return any(
            one.name in SYNCING and one.result == 0 and one.file == path and last < one.began
            for one in self._calls
            if one.ended < call.began
        )

    def _after(self, call):
        """Return whether the new name was not on the disk before the older output went, and at the end."""
        synced = [
            one.ended
            for one in self._calls
            if one.name in SYNCING and one.result == 0 and one.file == self._out and one.began > call.ended
        ]
        if not synced:
            return [f"the folder was not synced after {call}"]
        early = [
            one
            for one in self._calls
            if one.name in REMOVING and one.succeeded and call.ended < one.began < synced[0]
            if not (call.name in ("link", "linkat") and one.names[0] == call.names[0])
        ]
        return [f"{one} came before the new name was on the disk" for one in early]


def _within(path, folder):
    return path == folder or _inside(path, folder)


def _inside(path, folder):
    return path.startswith(folder + "/")


def measure_ordering(full: bool, folder: Path) -> Finding:
    """Run every scenario, and read from its calls whether their order survives a power cut."""
    wrong, tried = [], 0
    with Warm() as warm:
        scene, tracer = Scene(warm, folder), Tracer(warm, folder)
        ways = [(scenario, scenario.prelude) for scenario in SCENARIOS]
        for scenario, prelude in (*ways, (MANY, FEW_ARE_OPEN)):
            scene.choose(scenario)
            for threads in (1, 2, 3, 4) if full else (2,):
                scene.begin()
                command = scenario.command(threads)
                ended, calls = tracer.run(command, scene.folder, prelude=prelude)
                tried += 1
                said = Order(calls, str(scene.out), scenario.outputs).wrong(finished=ended.code == 0)
                if ended.code:
                    said.append(f"ended with {ended.code}: {ended.stderr}")
                wrong += [f"{scenario.name}, {threads} threads: {one}" for one in said]
    return Finding("data on the disk before its name, and the name before the end", tried, tuple(wrong))
