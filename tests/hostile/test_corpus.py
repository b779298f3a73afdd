"""Every hostile input, through every command that reads it: one sentence, and nothing else happens."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hostile.cases import ROWS, Case
from hostile.corpus import CASES
from hostile.judging import faults
from hostile.measuring import told_of

pytest.importorskip("PIL")

TESTS = Path(__file__).parents[1]
KEPT = 64 << 20  # bytes that may stay with a process after thousands of refusals


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What every command said of every case, and what it did, from one process that is watched."""
    return told_of(CASES, tmp_path_factory.mktemp("cases"))


@pytest.fixture(scope="module")
def by_case(told):
    found = {}
    for line in told:
        if "code" in line:
            found.setdefault(line["case"], {})[line["command"]] = line
    return found


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_input_is_refused_by_every_command(by_case, name):
    case = CASES[name]
    found = {command: faults(case, command, line) for command, line in by_case[name].items()}
    assert found
    assert not any(found.values()), found


OF_KIND = {
    "data": {"recalibrate-bn", "recipe"},
    "recipe": {"metrics", "run"},
    "table": {"metrics", "recipe", "soup"},
    "sums": {"verify", "file", "required"},
    "sidecar": {"average", "dry-run", "recipe", "soup", "recalibrate-bn"},
    "work": {"soup", "dry-run"},
}


def test_every_command_reads_every_case(by_case):
    commands = {
        "average",
        "dry-run",
        "recipe",
        "inspect",
        "stats",
        "verify",
        "diff",
        "reversed",
        "recalibrate-bn",
    }
    for name, case in CASES.items():
        expected = {one for one in commands if case.code(one) >= 0}
        if case.kind != "checkpoint":
            expected = OF_KIND[case.kind]
        elif case.sample:
            expected |= {one for one in ("like", "source", "soup") if case.code(one) >= 0}
        assert expected <= set(by_case[name]), name


def test_memory_is_given_back(told):
    assert told[-1]["finally_idle"] - told[-1]["idle"] < KEPT + (64 << 20)


def test_every_row_of_the_table_of_threats_has_cases():
    assert {case.row for case in CASES.values()} == set(ROWS)
    assert len(CASES) >= 150


PLACES = (
    *("in a zip", "in the magic number", "in sys_info", "in the object", "in the keys"),
    *(
        "root in .metadata",
        "in a byte entry",
        "in an array",
        "in x.npy of an archive",
        "in a .pickle of a tar",
    ),
)


def test_code_hides_in_every_place():
    attacks = [name for name in CASES if name.startswith("attack: ")]
    assert len(attacks) >= 40
    for place in PLACES:
        assert any(place in name for name in attacks), place


# That the judge and the watch see what they should.

GOOD = {
    "code": 3,
    "stdout": "",
    "stderr": "error: 'bad.pt' is empty\n",
    "exception": "",
    "seconds": 0.1,
    "growth": 0,
    "events": [],
    "left": [],
    "gone": [],
}
CASE = Case("U1", "x", "bad.pt", None, "is empty")


def test_the_judge_finds_nothing_where_nothing_is():
    assert faults(CASE, "average", GOOD) == []


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"code": 1}, "exit code 1"),
        ({"code": 0}, "exit code 0"),
        ({"exception": "KeyError()"}, "raised"),
        ({"seconds": 2.1}, "took"),
        ({"growth": 65 << 20}, "above idle"),
        ({"events": ["exec"]}, "did exec"),
        ({"left": ["./canary"]}, "left ./canary"),
        ({"gone": ["./good.pt"]}, "removed"),
        ({"stderr": GOOD["stderr"] + GOOD["stderr"]}, "no single sentence"),
        ({"stderr": "Traceback\n" + GOOD["stderr"]}, "shows what is"),
        ({"stderr": "error: 'other.pt' is empty\n"}, "does not name"),
        ({"stderr": "error: 'bad.pt' is full\n"}, "does not say"),
        ({"stderr": "error: 'bad.pt\x1b[2J' is empty\n"}, "prints"),
        ({"stdout": "\u202e"}, "prints"),
    ],
)
def test_the_judge_finds_each_fault(change, found):
    assert any(found in fault for fault in faults(CASE, "average", {**GOOD, **change}))


DEEDS = {
    "import": "import this",
    "exec": "exec('1')",
    "open ('canary', 'w'": "open('canary', 'w')",
    "open ('canary', None": "os.open('canary', os.O_CREAT)",
    "os.mkdir": "os.mkdir('folder')",
    "os.system": "os.system('true')",
    "subprocess.Popen": "subprocess.run(['true'])",
    "pickle.find_class": "pickle.loads(b'cos\\nsystem\\n.')",
    "socket": "socket.socket().close()",
}
WATCHED = """
import os, pickle, socket, subprocess
from hostile.watching import Watch
watch = Watch()
for deed in {}:
    watch.events.clear()
    watch.armed = True
    eval(compile(deed, "x", "exec"))
    watch.armed = False
    print(*watch.events, sep="; ")
"""


def test_the_watch_sees_what_an_attack_would_do(tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", WATCHED.format(list(DEEDS.values()))],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [line for line in run.stdout.splitlines() if "; " in line]  # the Zen has none
    assert len(lines) == len(DEEDS)
    for line, event in zip(lines, DEEDS, strict=True):
        events = [one for one in line.split("; ") if not one.startswith(("compile", "exec (<code"))]
        assert event == "exec" or any(one.startswith(event) for one in events), (event, line)
        assert event != "exec" or line.count("exec (") > 1
