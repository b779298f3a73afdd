"""Runs of which one system call fails: the disk is full or broken, a quota is used up, access is denied."""

from pathlib import Path

from faults.finding import Finding
from faults.ordering import NAMING, REMOVING, Order
from faults.scenarios import SCENARIOS, Scene, changing_calls
from faults.tracing import Tracer
from faults.trials import Warm

ERRORS = ("ENOSPC", "EIO", "EDQUOT", "EACCES")
SHORT = 19  # of so many failures, one is tried; errors and calls do not repeat in step with it
OUTPUT_FAILED = 5


def measure_failures(full: bool, folder: Path) -> Finding:
    """Let each call that changes something fail in each way, in every scenario."""
    wrong, tried = [], 0
    with Warm() as warm:
        scene, tracer = Scene(warm, folder), Tracer(warm, folder)
        for point in changing_calls(scene, tracer):
            for error in ERRORS:
                tried += 1
                if full or tried % SHORT == 0:
                    said = failed_at(point, error, scene, tracer)
                    wrong += [f"{scene.scenario.name}, {error} at {point}: {one}" for one in said]
    return Finding(
        "where a call fails, the old stays, nothing is left, and it is told",
        tried if full else tried // SHORT,
        tuple(wrong),
        f"{len(SCENARIOS)} runs",
    )


def failed_at(point, error, scene, tracer):
    """Let a call fail in a run; return what is wrong with its end and with what it leaves."""
    scene.begin()
    scenario = scene.scenario
    inject = f"{point.name}:error={error}:when={point.number}"
    ended, calls = tracer.run(scenario.command(), scene.folder, prelude=scenario.prelude, inject=inject)
    hit = [str(call) for call in calls if call.injected]
    if hit != [str(point)]:
        return [f"{hit} failed, ended with {ended.code}"]
    wrong = Order(calls, str(scene.out), scenario.outputs).wrong(finished=ended.code == 0)
    wrong += ended.wrong_words()
    found = scene.found()
    left = scene.strangers(found)
    if left and point.name not in REMOVING:
        wrong.append(f"left {left}")
    if ended.code == 0:
        wrong += _wrong_success(point, scene, found)
    else:
        wrong += wrong_failure(ended, scene, found, calls)
    return wrong + (scene.wrong_again() if left else [])


def _wrong_success(point, scene, found):
    """Only what tidies up may fail without a word."""
    wrong = [] if point.name in REMOVING or scene.scenario.aside else ["exit code 0"]
    if any(found.get(output) != content for output, content in scene.new.items()):
        wrong.append("exit code 0 without a whole output")
    return wrong


def wrong_failure(ended, scene, found, calls):
    """What failed says so in a sentence, and has changed nothing."""
    wrong = [] if ended.code == OUTPUT_FAILED else [f"exit code {ended.code}"]
    said = [line for line in ended.stderr.splitlines() if not line.startswith("warning: ")]
    if len(said) != 1 or not said[0].startswith("error: cannot write "):
        wrong.append(f"says {said}")
    # A file cannot be put back where names cannot be exchanged; it is then the new one, and whole.
    replaced = {
        call.names[1] for call in calls if call.name in NAMING and call.succeeded and scene.scenario.plain
    }
    for output in scene.scenario.outputs:
        gone = scene.scenario.old and str(scene.out / output) in replaced
        if not (scene.is_old(output, found) or (gone and found.get(output) == scene.new[output])):
            wrong.append(f"{output} is not as before")
    return wrong + scene.wrong_checksums(found)
