"""Whether what a command said of a hostile input, and did, is what it should."""

import dataclasses
import re

SECONDS = 2  # of the processor
# Commands that ask something else of a checkpoint than what deserves attention about it.
ASKING_LITTLE = ("like", "source")


def faults(case, command, told):
    """Everything that is wrong, as sentences."""
    found = []
    code = case.code(command)
    if told["code"] != code:
        found.append(f"exit code {told['code']} instead of {code}: {told['stderr'][:300]}{told['exception']}")
    if told["exception"]:
        found.append(f"raised {told['exception']}")
    if told["seconds"] > SECONDS:
        found.append(f"took {told['seconds']:.1f} s")
    if told["growth"] > case.memory:
        found.append(f"took {told['growth']:,} bytes above idle")
    found += [f"did {event}" for event in told["events"]]
    found += [f"left {name}" for name in told["left"]]
    found += [f"removed {name}" for name in told["gone"]]
    if command in ASKING_LITTLE and code == 0:
        case = dataclasses.replace(case, said="")
    return found + faults_of_words(case, code, told["stdout"] + told["stderr"], told["stderr"])


def faults_of_words(case, code, output, stderr):
    """What is wrong with what was said: for an error, one sentence, and differences below it."""
    found = [
        f"prints {character!a}"
        for character in set(output)
        if not (character.isprintable() or character == "\n")
    ]
    if "Traceback" in output or "weights_only" in output:
        found.append("shows what is torch's or Python's own")
    lines = stderr.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    if any(not line.startswith(("error: ", "warning: ", "  ")) for line in lines) or len(errors) != (
        code != 0
    ):
        found.append(f"says no single sentence: {lines[:3]}")
    if len(stderr) > 5000:
        found.append(f"says {len(stderr)} characters")
    if code in (2, 3) and case.target[:60] not in stderr and repr(case.target)[1:60] not in stderr:
        found.append(f"does not name {case.target!a}: {stderr[:300]}")
    if case.said and (code or case.code("*") == 0) and not re.search(case.said, stderr):
        found.append(f"does not say {case.said!r}: {stderr[:300]}")
    return found
