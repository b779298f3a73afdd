import json
import math
import os
import subprocess
import sys

import pytest

from swatool.errors import CheckFailedError, UsageError
from swatool.jobs.evaluation import as_numbers
from swatool.jobs.scoring import Scoring, check_comparable, check_evaluation, score


@pytest.fixture
def printing(tmp_path, monkeypatch):
    """Make the command of a script that prints a text."""
    monkeypatch.chdir(tmp_path)

    def write(text):
        (tmp_path / "say.py").write_text(f"print({text!r})")
        return f"{sys.executable} say.py {{path}}"

    return write


@pytest.mark.parametrize(
    ("text", "metric", "value", "found"),
    [
        ("loss 3 accuracy 0.5", None, 0.5, {"value": 0.5}),
        ("loss 3\naccuracy: -1.5e-3.", None, -0.0015, {"value": -0.0015}),
        ("0.25", "acc", 0.25, {"acc": 0.25}),
        ('epoch 3 of 10\n{"acc": 0.5, "loss": 2}', "acc", 0.5, {"acc": 0.5, "loss": 2.0}),
        ('{"acc": 0.5, "name": "x", "ok": true}', None, 0.5, {"acc": 0.5}),
        ('{\n"acc": 0.5\n}\n', None, 0.5, {"acc": 0.5}),
        ('evaluating\n{\n"acc": 0.5,\n"loss": 2\n}\n', "acc", 0.5, {"acc": 0.5, "loss": 2.0}),
        ('{"acc": 0.5}\nelapsed 3.2 s', "acc", 0.5, {"acc": 0.5}),
        ('{"acc": 0.1}\n{"acc": 0.5}\n{"name": "x"}', "acc", 0.5, {"acc": 0.5}),
        ("loss -inf", None, -math.inf, {"value": -math.inf}),
        ("1,234 images, loss 0.5", None, 0.5, {"value": 0.5}),
        ("0.1,234", None, 234.0, {"value": 234.0}),
        ("1, 234", None, 234.0, {"value": 234.0}),
        ("1,23", None, 23.0, {"value": 23.0}),
    ],
)
def test_what_a_command_prints(printing, text, metric, value, found):
    assert score("a.pt", Scoring(evaluate=printing(text), metric=metric, mode="max")) == (value, found)


@pytest.mark.parametrize(
    ("text", "metric", "said"),
    [
        ("fine", None, "printed no number on stdout, but 'fine'"),
        ("", None, "printed no number"),
        ("nano v2 3x 1.2.3", None, "printed no number"),
        ("accuracy on 600 images: nan", None, "gives NaN for 'a.pt'"),
        ('{"acc": 0.5}\n3.2', "loss", "gives no 'loss'"),
        ("{" * 100_000, None, "printed no number"),
        ('{"a": 1, "b": 2}', None, "gives 'a', 'b' of 'a.pt': say with --metric"),
        ('{"a": 1, "b": 2}', "c", "gives no 'c' of 'a.pt'"),
        ('{"a": NaN}', None, "gives NaN for 'a.pt'"),
        ("loss 1,234.5", None, "printed '1,234.5' at last, whose commas may part thousands or numbers"),
        ("scores 0.5 1,234", None, "printed '1,234' at last"),
        ("[" * 100_000, None, "printed no number"),
    ],
)
def test_a_command_that_prints_something_else(printing, text, metric, said):
    with pytest.raises(CheckFailedError, match=said):
        score("a.pt", Scoring(evaluate=printing(text), metric=metric, mode="max"))


def test_the_path_is_one_word_and_no_shell_sees_it(tmp_path):
    command = f'{sys.executable} -c "import sys; print(len(sys.argv), len(sys.argv[1]))" {{path}}'
    assert score("a b; touch c", Scoring(evaluate=command, mode="max"))[0] == 12
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (f'{sys.executable} -c "import sys; sys.exit(3)" {{path}}', "ended with 3 on 'a.pt'"),
        (f'{sys.executable} -c "import os; os.kill(os.getpid(), 9)" {{path}}', "ended by signal 9"),
        ("/no/such/program {path}", "cannot be run: No such file"),
    ],
)
def test_a_command_that_fails(command, said):
    with pytest.raises(CheckFailedError, match=said):
        score("a.pt", Scoring(evaluate=command, mode="max"))


FUNCTIONS = """
def number(path):
    return len(path)


def numbers(path):
    return {"acc": 0.5, "loss": 2}


def fails(path):
    raise KeyError("x")


def leaves(path):
    raise SystemExit(0)


def text(path):
    return "high"


def nothing(path):
    return float("nan")
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(FUNCTIONS)


@pytest.mark.usefixtures("module")
@pytest.mark.parametrize(
    ("name", "metric", "expected"),
    [
        ("number", None, (4.0, {"value": 4.0})),
        ("number", "length", (4.0, {"length": 4.0})),
        ("numbers", "loss", (2.0, {"acc": 0.5, "loss": 2.0})),
    ],
)
def test_what_a_function_returns(name, metric, expected):
    assert score("a.pt", Scoring(evaluate=f"mine.py:{name}", metric=metric, mode="min")) == expected


@pytest.mark.usefixtures("module")
@pytest.mark.parametrize(
    ("name", "metric", "said"),
    [
        ("fails", None, "failed on 'a.pt': KeyError: 'x'"),
        ("leaves", None, "failed on 'a.pt': SystemExit: 0"),
        ("text", None, "returned 'str'"),
        ("nothing", None, "gives NaN"),
        ("numbers", None, "gives 'acc', 'loss' of 'a.pt': say with --metric"),
        ("numbers", "f1", "gives no 'f1'"),
    ],
)
def test_a_function_that_fails(name, metric, said):
    with pytest.raises(CheckFailedError, match=said):
        score("a.pt", Scoring(evaluate=f"mine.py:{name}", metric=metric, mode="min"))


@pytest.mark.parametrize(
    ("evaluate", "mode", "said"),
    [
        ("python eval.py", "max", "neither a command with {path}"),
        ("python 'eval.py {path}", "max", "is no command"),
        ("mine:f", "best", "--mode must be max or min"),
    ],
)
def test_what_is_refused_before_anything_runs(evaluate, mode, said):
    with pytest.raises(UsageError, match=said):
        Scoring(evaluate=evaluate, mode=mode)


def test_better():
    assert Scoring(evaluate="m:f", mode="max").better(2, 1)
    assert Scoring(evaluate="m:f", mode="min").better(1, 2)
    assert not Scoring(evaluate="m:f", mode="min").better(1, 1)


@pytest.mark.usefixtures("module")
def test_what_a_function_prints_is_no_report(capsys):
    with open("mine.py", "a") as file:
        file.write("def chatty(path):\n    print('hello')\n    return 1.0\n")
    assert score("a.pt", Scoring(evaluate="mine.py:chatty", mode="max"))[0] == 1.0
    found = capsys.readouterr()
    assert (found.out, found.err) == ("", "hello\n")


@pytest.mark.usefixtures("module")
@pytest.mark.parametrize(
    ("evaluate", "said"), [("mine.py:absent", "absent"), ("/no/such {path}", "no such program")]
)
def test_an_evaluation_that_is_not_there_is_found_before(evaluate, said):
    with pytest.raises(UsageError, match=said):
        check_evaluation(evaluate)


@pytest.mark.usefixtures("module")
def test_an_evaluation_that_is_there():
    check_evaluation("mine.py:number")
    check_evaluation(f"{sys.executable} -c 1 {{path}}")


def test_a_number_that_is_too_large(printing):
    text = f'{{"a": {"9" * 400}, "b": -{"9" * 400}}}'
    found = score("a.pt", Scoring(evaluate=printing(text), metric="a", mode="min"))[1]
    assert found == {"a": math.inf, "b": -math.inf}
    assert as_numbers(10**400, "x", alone="") == {"": math.inf}


def test_an_evaluation_that_removes_its_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "remover.py").write_text("import os\ndef score(path):\n    os.unlink(path)\n    return 1.0\n")
    for evaluate in ("remover.py:score", "sh -c 'rm \"$1\"; echo 1' - {path}"):
        (tmp_path / "a.pt").write_bytes(b"x")
        with pytest.raises(CheckFailedError, match=r"removed 'a\.pt' when it was to evaluate"):
            score("a.pt", Scoring(evaluate=evaluate, mode="max"))


def test_the_current_folder_is_what_it_was_before(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mover.py").write_text("import os\ndef score(path):\n    os.chdir('/')\n    return 1.0\n")
    assert score("a.pt", Scoring(evaluate="mover.py:score", mode="max"))[0] == 1
    assert os.getcwd() == str(tmp_path)


@pytest.mark.parametrize(("text", "mode"), [("inf", "max"), ("-inf", "min"), ("nan", "max")])
def test_nothing_infinite_is_the_best(printing, text, mode):
    with pytest.raises(CheckFailedError, match=r"gives (inf|-inf|NaN)"):
        score("a.pt", Scoring(evaluate=printing(f"loss {text}"), mode=mode))


@pytest.mark.parametrize("meant", ["| tail -1", "> out", "&& echo 1", "; echo 1", "2>&1"])
def test_what_only_a_shell_knows_is_refused(meant):
    with pytest.raises(UsageError, match="no shell sees it"):
        check_evaluation(f"{sys.executable} -c 1 {{path}} {meant}")
    check_evaluation(f"sh -c 'cat {{path}} {meant}'")


def test_processes_of_a_function_speak_on_stderr_too(tmp_path):
    (tmp_path / "loud.py").write_text(
        "import os\ndef score(path):\n    os.system('echo loud')\n    return 1.0\n"
    )
    code = (
        "from swatool.jobs.scoring import Scoring, score\n"
        "print('before'); score('a.pt', Scoring(evaluate='loud.py:score', mode='max')); print('after')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("before\nafter\n", "loud\n")


def test_an_evaluation_that_removes_another_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b.pt").write_bytes(b"x")
    with pytest.raises(CheckFailedError, match=r"removed 'b\.pt' when it was to evaluate 'a\.pt'"):
        score("a.pt", Scoring(evaluate="sh -c 'rm b.pt; echo 1' {path}", mode="max"), ["b.pt", "c.pt"])


def test_of_very_many_numbers_a_few_are_named(printing):
    text = json.dumps({f"metric {number}": number for number in range(1000)})
    with pytest.raises(CheckFailedError, match=r"'metric 4' and 995 more of 'a\.pt': say with --metric"):
        score("a.pt", Scoring(evaluate=printing(text), mode="max"))


def test_of_very_many_numbers_that_cannot_be_compared_a_few_are_named():
    scoring = Scoring(evaluate="x:y", mode="max")
    many = {f"metric {number}": 1.0 for number in range(1000)}
    with pytest.raises(CheckFailedError, match=r"'metric 4' and 995 more of 'a' and 'acc' of 'b'"):
        check_comparable(scoring, ("a", many), ("b", {"acc": 1.0}))
