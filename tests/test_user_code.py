"""Finding what the user names in Python code, and saying precisely what is wrong."""

import pickle
import sys
import textwrap

import pytest

from swatool.errors import UsageError
from swatool.user_code import describe_failure, load_attribute, names_code


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A current folder with a package and a file; what is imported from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    write(tmp_path, "package_of_mine/__init__.py", "")
    write(
        tmp_path,
        "package_of_mine/models.py",
        "class Net:\n    @staticmethod\n    def build():\n        return 1",
    )
    write(tmp_path, "scripts/beside.py", "VALUE = 7")
    write(
        tmp_path, "scripts/my-file.py", "import beside\ndef build():\n    return beside.VALUE\nclass A: pass"
    )
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def write(folder, name, text):
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(textwrap.dedent(text))


def test_a_module_in_the_current_folder(here):  # noqa: ARG001
    assert load_attribute("package_of_mine.models:Net.build", "--model")() == 1


def test_an_installed_module():
    assert load_attribute("os.path:join", "--model") is __import__("os").path.join


@pytest.mark.parametrize("absolute", [True, False])
def test_a_file_and_what_lies_beside_it(here, absolute):
    path = str(here / "scripts/my-file.py") if absolute else "scripts/my-file.py"
    assert load_attribute(f"{path}:build", "--data")() == 7


def test_a_file_is_one_module_whatever_names_it(here):
    first = load_attribute("scripts/my-file.py:A", "--data")
    assert load_attribute(f"{here}/scripts/../scripts/my-file.py:A", "--model") is first
    assert pickle.loads(pickle.dumps(first)) is first


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("package_of_mine", "names nothing in a module: give package.module:name or path/file.py:name"),
        ("", "names nothing"),
        (":build", "is no name in Python code"),
        ("package_of_mine:", "is no name in Python code"),
        ("package of mine:x", "is no name in Python code"),
        (".models:x", "is no name in Python code"),
        ("package_of_mine:a-b", "is no name in Python code"),
        ("nowhere_at_all:x", "there is no module 'nowhere_at_all'; it is looked for in the current folder"),
        ("package_of_mine.nowhere:x", "there is no module 'package_of_mine.nowhere'"),
        ("scripts/nowhere.py:x", "there is no file 'scripts/nowhere.py'"),
        ("package_of_mine.models:net", "there is no 'net' in it; did you mean Net?"),
        ("package_of_mine.models:Net.bild", "there is no 'bild' in it; did you mean build?"),
        ("package_of_mine.models:zzz", "there is no 'zzz' in it$"),
    ],
)
def test_what_is_wrong_is_said(here, spec, message):  # noqa: ARG001
    with pytest.raises(UsageError, match=message) as caught:
        load_attribute(spec, "--model")
    assert str(caught.value).startswith(f"--model '{spec}'")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("def f(:", "SyntaxError: invalid syntax"),
        ("import not_there_either", "ModuleNotFoundError: No module named 'not_there_either'"),
        ("import broken.deeper", "ModuleNotFoundError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("raise ValueError('one\\ntwo')", "ValueError: one$"),
        ("raise ValueError('\\x1b[2J')", r"ValueError: \?\[2J$"),
        ("raise ValueError", "ValueError$"),
    ],
)
@pytest.mark.parametrize("spec", ["broken:x", "broken.py:x"])
def test_what_importing_raises_is_told_and_kept_as_the_cause(here, code, message, spec):
    write(here, "broken.py", code)
    for _ in range(2):  # a half-imported module does not stay
        with pytest.raises(UsageError, match=rf"^importing --eval '{spec}' failed: {message}") as caught:
            load_attribute(spec, "--eval")
        assert caught.value.__cause__ is not None


def test_an_interrupt_is_no_usage_error(here):
    write(here, "slow.py", "raise KeyboardInterrupt")
    for spec in ("slow:x", "slow.py:x"):
        with pytest.raises(KeyboardInterrupt):
            load_attribute(spec, "--data")


def test_the_form_alone_tells_whether_code_is_named():
    assert names_code("a.b:c.d")
    assert names_code("any thing/at-all.py:f")
    assert names_code("/a:b/c.py:f")
    for spec in ("a", "a:", ":a", "a-b:c", "s3://bucket/x", "a.b:c d", "x.tar:y", "a..b:c"):
        assert names_code(spec) == (spec == "x.tar:y"), spec


def test_a_failure_is_one_bounded_line():
    assert describe_failure(ValueError("x" * 1000)) == "ValueError: " + "x" * 300
    assert describe_failure(KeyError()) == "KeyError"


def test_what_failed_in_a_worker_of_a_data_loader_is_told_by_its_own_message():
    handed_on = ValueError(
        "Caught ValueError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
        '  File "mine.py", line 3\nValueError: cannot decode file_300.jpg\n'
    )
    assert describe_failure(handed_on) == "ValueError: cannot decode file_300.jpg"
