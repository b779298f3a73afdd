"""Runs that are killed: at each call that changes something, and at random moments."""

import random
import signal
import time
from pathlib import Path

from faults.finding import Finding
from faults.ordering import Order
from faults.scenarios import SCENARIOS, SUFFIX, Scene, average, changing_calls
from faults.tracing import Tracer
from faults.trials import Warm

TIMES = 200
SHORT = 11  # of so many calls, one is tried


def measure_kills(full: bool, folder: Path) -> Finding:
    """Kill every scenario before each call that changes something."""
    wrong, tried = [], 0
    with Warm() as warm:
        scene, tracer = Scene(warm, folder), Tracer(warm, folder)
        for point in changing_calls(scene, tracer):
            tried += 1
            if full or tried % SHORT == 0:
                said = killed_at(point, scene, tracer)
                wrong += [f"{scene.scenario.name}, killed at {point}: {one}" for one in said]
    return Finding(
        "killed at any call that writes, a run leaves the old, the new or nothing",
        tried if full else tried // SHORT,
        tuple(wrong),
        f"{len(SCENARIOS)} runs",
    )


def killed_at(point, scene, tracer):
    """Kill a run before a call; return what is wrong with what it leaves, and with the next run."""
    scene.begin()
    scenario = scene.scenario
    inject = f"{point.name}:signal=KILL:when={point.number}"
    ended, calls = tracer.run(scenario.command(), scene.folder, prelude=scenario.prelude, inject=inject)
    last = [str(call) for call in calls if call.result is None]
    if ended.code != -signal.SIGKILL or str(point) not in last:
        return [f"ended with {ended.code} at {last or 'its end'}"]
    wrong = Order(calls, str(scene.out), scenario.outputs).wrong(finished=False)
    return wrong + wrong_after_a_kill(scene)


def wrong_after_a_kill(scene):
    """Return what is wrong with what stands there, and with the next run."""
    found = scene.found()
    strangers = scene.strangers(found)
    wrong = []
    for output in scene.scenario.outputs:
        # Where names cannot be exchanged, there is a moment in which the older one is aside.
        moved = scene.scenario.plain and output not in found and scene.before.get(output) in found.values()
        if not (found.get(output) == scene.new[output] or scene.is_old(output, found, killed=True) or moved):
            wrong.append(f"{output} is neither as before nor whole")
    hidden = [name for name in strangers if ".swatool-" in name]
    # An older checksum is aside until the new one has its name.
    aside = sum(f"{SUFFIX}." in name and name.endswith(".old") for name in hidden)
    if (
        hidden != strangers
        or len(hidden) - min(aside, 1) > len(scene.scenario.outputs) + scene.scenario.plain
    ):
        wrong.append(f"left {strangers}")
    return wrong + scene.wrong_checksums(found) + scene.wrong_again()


def measure_random_kills(full: bool, folder: Path) -> Finding:
    """Kill a run at random moments between its beginning and its end."""
    wrong, killed = [], 0
    times = TIMES if full else TIMES // 10
    moments = random.Random(0)
    with Warm() as warm:
        scene = Scene(warm, folder)
        scenario = average("a-{last}", "--sweep", "last=2,3", *SHARDED, outputs=("a-2", "a-3"), old=True)
        scene.choose(scenario)
        _, seconds = warm.seconds(scenario.command(threads=2), scene.folder)
        for _ in range(times):
            scene.begin()
            run = warm.start(scenario.command(threads=2), scene.folder)
            moment = moments.uniform(0, seconds)
            time.sleep(moment)
            run.send(signal.SIGKILL)
            killed += run.wait().code == -signal.SIGKILL
            wrong += [f"killed after {moment:.4f} s: {one}" for one in wrong_after_a_kill(scene)]
    return Finding("killed at any moment, the same", times, tuple(wrong), f"{killed} killed before their end")


SHARDED = ("--max-shard-size", "40000")
