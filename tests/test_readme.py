"""What the README promises is there: every option, method, exit code and make target."""

import inspect
import re
from pathlib import Path

import pytest

import swatool
import swatool.errors
from swatool.averaging.measures import Difference, Statistics
from swatool.averaging.schemes import SCHEMES
from swatool.batchnorm.recalibrate import MODES
from swatool.cli.average import average
from swatool.cli.diff import diff
from swatool.cli.inspect import inspect as inspect_command
from swatool.cli.recalibrate_bn import recalibrate_bn
from swatool.cli.run import run
from swatool.cli.soup import soup
from swatool.cli.verify import verify
from swatool.jobs.diff_report import ComparedCheckpoint, DiffReport
from swatool.jobs.inspect_report import InspectReport, StateDictReport, TensorReport, Total
from swatool.jobs.recalibrate_report import DataReport, RecalibrationReport, RecalibrationSeconds
from swatool.jobs.recipe_model import recipe_schema
from swatool.jobs.recipe_reading import read_recipe
from swatool.jobs.recipe_report import CheckReport, EvaluationReport, ProductReport, RecipeReport
from swatool.jobs.soup_report import SoupMember, SoupReport
from swatool.jobs.verify_report import ComparedSources, VerifyReport
from swatool.report import Report

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


COMMANDS = {
    "average": average,
    "soup": soup,
    "run": run,
    "recalibrate-bn": recalibrate_bn,
    "inspect": inspect_command,
    "diff": diff,
    "verify": verify,
}
# Options of other commands that a section speaks of.
ALSO_NAMED = {"run": {"--save-recipe"}, "verify": {"--checksum"}}
SECTIONS = re.split(r"(?m)^(?=## )", README)
REPORTS = {
    "average": (Report,),
    "recalibrate-bn": (RecalibrationReport, RecalibrationSeconds, DataReport),
    "soup": (SoupReport, SoupMember),
    "run": (RecipeReport, ProductReport, EvaluationReport, CheckReport),
    "inspect": (InspectReport, StateDictReport, TensorReport, Total, Statistics),
    "diff": (DiffReport, ComparedCheckpoint, Difference),
    "verify": (VerifyReport, ComparedSources),
}


def section(command):
    (found,) = [one for one in SECTIONS if one.startswith(f"## `swatool {command}`")]
    return found


def options(command):
    for parameter in inspect.signature(COMMANDS[command], eval_str=True).parameters.values():
        declared = parameter.annotation.__metadata__[0]
        # typer takes the first name for a default until it reads the signature.
        for name in (declared.default, *(declared.param_decls or ())):
            if isinstance(name, str):
                yield from name.split("/")


@pytest.mark.parametrize(
    ("command", "option"), [(command, option) for command in COMMANDS for option in sorted(options(command))]
)
def test_every_option_is_documented(command, option):
    assert f"`{option}`" in section(command) or f"`{option} " in section(command)


@pytest.mark.parametrize("command", COMMANDS)
def test_no_option_is_documented_that_does_not_exist(command):
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", section(command)))
    assert named - set(options(command)) <= {"--help", "--nproc-per-node"} | ALSO_NAMED.get(command, set())


@pytest.mark.parametrize("method", SCHEMES)
def test_every_method_is_documented(method):
    assert f"| `{method}` |" in README


@pytest.mark.parametrize("command", COMMANDS)
def test_every_field_of_the_json_report_is_documented(command):
    for report in REPORTS[command]:
        fields = getattr(report, "__dataclass_fields__", None) or report._fields
        for name in ("schema", *fields):
            assert re.search(rf"\b{name}\b", section(command)), name


def test_every_kind_of_data_and_mode_is_documented():
    text = section("recalibrate-bn")
    for kind in ("npy", "npz", "safetensors", "imagefolder", "wds", "hf"):
        assert re.search(rf"`[^`]*{kind}[^`]*`", text), kind
    for mode in MODES:
        assert f"| `{mode}` |" in text


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
        # `check` runs the tests, which are short forms of these; the last needs a package more.
        apart = ("test", "bench-reliability", "fuzz", "fuzz-guided")
        assert f"make {target}" in gate or target in apart, target
    assert re.search(r"^check:.*\btest\b", makefile, re.MULTILINE)


def test_every_key_of_a_recipe_is_documented():
    schema = recipe_schema()
    parts = ("Reading", "Choosing", "Policies", "Machine", "Evaluation", "Output", "Check")
    for one in (schema, *(schema["$defs"][name] for name in parts)):
        for key in one["properties"]:
            assert re.search(rf"`{key}`", section("run")), key


def test_the_recipes_in_the_readme_are_recipes(tmp_path, monkeypatch):
    monkeypatch.setenv("RUN_DIR", "run")
    found = re.findall(r"```yaml\n(.*?)```", section("run"), re.DOTALL)
    assert len(found) == 2
    for name in ("model.py", "train.npz"):
        (tmp_path / name).touch()
    for text in found:
        (tmp_path / "r.yaml").write_text(text)
        assert read_recipe(tmp_path / "r.yaml").products
