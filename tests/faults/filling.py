"""Runs whose disk is full: real ones, of every size between nothing and enough."""

import contextlib
import subprocess
from pathlib import Path

from faults.failing import wrong_failure
from faults.finding import Finding
from faults.scenarios import SCENARIOS, Scene
from faults.trials import Warm

PAGE = 4096
SHORT = 11  # of so many sizes, one is tried


@contextlib.contextmanager
def disk(folder: Path, pages: int, inodes: int):
    """Mount a disk of that size on a folder."""
    size = f"size={pages * PAGE},nr_inodes={inodes}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", folder], check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def missing(folder: Path):
    """Return why no disk can be mounted here; nothing if one can."""
    try:
        with disk(folder, 1, 2):
            return ""
    except FileNotFoundError:
        return "mount is not installed"
    except subprocess.CalledProcessError as error:
        return f"no small disk can be mounted: {error.stderr.decode().strip()}"


def sizes(scene: Scene):
    """Return pages and inodes of disks that hold what stands there before, and too little or enough more."""
    contents = [*scene.before.values()], [*scene.new.values()]
    pages = [sum(map(_pages, content)) for content in contents]
    inodes = [sum(1 if isinstance(one, bytes) else 1 + len(one) for one in content) for content in contents]
    first, enough = 2 + inodes[0], 2 + sum(inodes) + 2  # the folder itself, and what is hidden for a moment
    yield from ((number, enough + 8) for number in range(max(pages[0], 1), sum(pages) + 3))
    yield from ((sum(pages) + 8, number) for number in range(first, enough))


def _pages(content):
    files = [content] if isinstance(content, bytes) else content.values()
    return sum(-(-len(data) // PAGE) for data in files)


def measure_full_disks(full: bool, folder: Path) -> Finding:
    """Let the disk be too small for the output of each scenario, by every page and every inode."""
    wrong, considered, counts = [], 0, {0: 0, 5: 0}
    with Warm() as warm:
        scene = Scene(warm, folder)
        for scenario in SCENARIOS:
            scene.choose(scenario)
            for pages, inodes in sizes(scene):
                considered += 1
                if full or considered % SHORT == 0:
                    ended, said = _filled(scene, pages, inodes, warm)
                    counts[ended.code] = counts.get(ended.code, 0) + 1
                    wrong += [f"{scenario.name}, {pages} pages, {inodes} inodes: {one}" for one in said]
    tried = sum(counts.values())
    return Finding(
        "where the disk is full, the same", tried, tuple(wrong), f"{counts[5]} refused, {counts[0]} written"
    )


def _filled(scene, pages, inodes, warm):
    scenario = scene.scenario
    with disk(scene.out, pages, inodes):
        scene.begin()
        ended = warm.run(scenario.command(), scene.folder, scenario.prelude)
        found = scene.found()
        wrong = ended.wrong_words()
        if left := scene.strangers(found):
            wrong.append(f"left {left}")
        if ended.code:
            wrong += wrong_failure(ended, scene, found, [])
        elif found != scene.new:
            wrong.append("exit code 0 without a whole output")
    return ended, wrong
