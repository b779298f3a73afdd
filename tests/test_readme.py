"""What the README promises is there: every option, method, exit code and make target."""

import inspect
import re
from pathlib import Path

import pytest

import swatool
import swatool.errors
from swatool.averaging.schemes import SCHEMES
from swatool.cli.average import average
from swatool.report import Report

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def options():
    for parameter in inspect.signature(average, eval_str=True).parameters.values():
        declared = parameter.annotation.__metadata__[0]
        # typer takes the first name for a default until it reads the signature.
        for name in (declared.default, *(declared.param_decls or ())):
            if isinstance(name, str):
                yield from name.split("/")


@pytest.mark.parametrize("option", sorted(options()))
def test_every_option_is_documented(option):
    assert f"`{option}`" in README or f"`{option} " in README


def test_no_option_is_documented_that_does_not_exist():
    command = README[README.index("## `swatool average`") : README.index("### Exit codes")]
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", command))
    assert named - set(options()) == {"--help"}


@pytest.mark.parametrize("method", SCHEMES)
def test_every_method_is_documented(method):
    assert f"| `{method}` |" in README


def test_every_field_of_the_json_report_is_documented():
    for name in ("schema", *Report.__dataclass_fields__):
        assert re.search(rf"`{name}(`|:)", README), name


def test_every_exit_code_is_documented():
    codes = {
        error.exit_code
        for error in vars(swatool.errors).values()
        if isinstance(error, type) and hasattr(error, "exit_code")
    }
    for code in codes:
        assert re.search(rf"^\| {code} \|", README, re.MULTILINE), code


def test_make_targets_exist_and_are_run_by_the_gate():
    makefile = (ROOT / "Makefile").read_text()
    gate = (ROOT / ".ci" / "run").read_text()
    for target in set(re.findall(r"make ([a-z][a-z-]+)", README)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
        assert f"make {target}" in gate or target == "test", target  # `check` runs the tests
    assert re.search(r"^check:.*\btest\b", makefile, re.MULTILINE)
