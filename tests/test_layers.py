"""Which module may know which, read from the source."""

import ast
import pathlib
import re
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter

import pytest

import swatool

PACKAGE = pathlib.Path(swatool.__file__).parent
PROJECT = pathlib.Path(__file__).parents[1]

# Each wing and the wings it may know, itself aside.
KNOWS = {
    "version": set(),
    "errors": set(),
    "choices": {"errors"},
    "json_text": {"errors"},
    "tensors": {"errors"},
    "checkpoints": {"errors", "choices", "json_text", "tensors"},
    "output": {"errors", "json_text", "tensors"},
    "averaging": {"errors", "choices", "tensors", "checkpoints", "output"},
    "report": {"errors", "tensors"},
    "user_code": {"errors"},
    "batchnorm": {"errors"},
    "schemes": {"averaging"},
    "swa_utils": {"errors", "averaging", "batchnorm"},
    "models": {"errors", "tensors", "checkpoints", "user_code"},
    "data": {"errors", "tensors", "checkpoints", "user_code", "batchnorm"},
    "jobs": {
        *("version", "errors", "choices", "tensors", "checkpoints", "output", "averaging", "report"),
        *("user_code", "batchnorm", "models", "data", "recipe", "json_text"),
    },
    "recipe": {"errors", "choices"},
    "cli": {
        "version",
        "errors",
        "tensors",
        "report",
        "averaging",
        "output",
        "batchnorm",
        "jobs",
        "user_code",
    },
    "__main__": {"cli"},
    # The package itself: what is imported from it directly are its public names.
    "swatool": {"version", "errors", "report", "batchnorm", "jobs"},
}
# What works on tensors; all else describes, plans and writes without torch.
WORKS_ON_TENSORS = ("swatool.batchnorm.", "swatool.data.", "swatool.models.", "swatool.swa_utils")
IMPORT_TORCH = {
    f"swatool.averaging.{name}"
    for name in (
        *("kernels", "reducers", "memory", "reading", "workers", "stream"),
        *("measuring", "widening"),
    )
}
WITHOUT_TORCH = {f"swatool.data.{name}" for name in ("opening", "options", "files", "npy_header", "npz")}
IMPORT_RICH = {"swatool.cli.render"}
DEPENDENCIES = {"torch", "typer", "rich", "pyyaml", "safetensors"}


def module_name(path):
    parts = ["swatool", *path.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}


def wing(module):
    return module.split(".")[1] if "." in module else "swatool"


def imported(module, nodes):
    """Absolute names of the imported modules; `from package import module` gives the module."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in MODULES else node.module


def when_loaded(tree):
    """Nodes that are executed when the module is imported: not in functions, not under TYPE_CHECKING."""
    pending = list(tree.body)
    while pending:
        node = pending.pop()
        yield node
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            pending += node.orelse
            continue
        pending += ast.iter_child_nodes(node)


def everything_imported(module):
    return set(imported(module, ast.walk(MODULES[module])))


def own(names):
    return {name for name in names if name.split(".")[0] == "swatool"}


def root_of(names):
    return {name.split(".")[0] for name in names}


def test_the_source_is_read_as_expected():
    assert {"swatool", "swatool.cli", "swatool.checkpoints.opening", "swatool.__main__"} <= set(MODULES)
    assert "swatool.averaging.stream" in everything_imported("swatool.jobs.average")
    loaded = set(imported("", when_loaded(MODULES["swatool.jobs.average"])))
    assert "swatool.jobs.average_plan" in loaded
    assert "swatool.averaging.stream" not in loaded
    assert "swatool.averaging.kernels" in everything_imported("swatool.averaging.reducers")


def test_every_wing_has_its_place():
    assert {wing(module) for module in MODULES} <= set(KNOWS), "a new wing: say in KNOWS what it may know"


@pytest.mark.parametrize("module", MODULES)
def test_numpy_is_neither_imported_nor_asked_of_tensors(module):
    tree = MODULES[module]
    asked = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert "numpy" not in root_of(everything_imported(module))
    assert not asked & {"numpy", "from_numpy", "__array__"}


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down_only(module):
    here = wing(module)
    known = {wing(name) for name in own(everything_imported(module))} - {here}
    if here == "swatool":
        known |= {home.split(".")[1] for home in swatool.HOME.values()}
    assert known <= KNOWS[here]


def test_the_layers_have_an_order():
    order = list(TopologicalSorter(KNOWS).static_order())
    assert order.index("errors") < order.index("tensors") < order.index("checkpoints")


def test_no_module_is_imported_in_a_circle():
    graph = {module: own(everything_imported(module)) - {module} for module in MODULES}
    TopologicalSorter(graph).prepare()


def test_an_import_names_a_module_that_exists():
    for module in MODULES:
        assert own(everything_imported(module)) <= set(MODULES), module


def test_only_one_module_imports_rich():
    found = {module for module in MODULES if "rich" in root_of(everything_imported(module))}
    assert found <= IMPORT_RICH


def test_only_what_works_on_tensors_imports_torch_when_it_is_loaded():
    found = {
        module for module, tree in MODULES.items() if "torch" in root_of(imported(module, when_loaded(tree)))
    }
    working = {module for module in found if module.startswith(WORKS_ON_TENSORS)}
    assert found - working == IMPORT_TORCH
    assert not working & WITHOUT_TORCH
    assert set(MODULES) >= WITHOUT_TORCH


def names_of_torch_load(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr == "load":
            owner = ast.unparse(node.value)
            if owner.split(".")[-1] not in ("json", "tomllib"):
                yield ast.unparse(node)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
            yield from (alias.name for alias in node.names if alias.name == "load")
        elif isinstance(node, ast.Constant) and node.value == "load":
            yield "'load'"


@pytest.mark.parametrize(
    "code",
    ["torch.load(path)", "f = torch.load", "t.load(x)", "from torch import load", "getattr(torch, 'load')"],
)
def test_torch_load_would_be_found(code):
    assert list(names_of_torch_load(ast.parse(code)))


@pytest.mark.parametrize("module", MODULES)
def test_torch_load_is_nowhere(module):
    assert not list(names_of_torch_load(MODULES[module]))


@pytest.mark.parametrize(
    "code",
    [
        "import swatool",
        "import swatool; swatool.average, swatool.Report, swatool.AverageSettings",
        "import swatool; swatool.recalibrate_checkpoint, swatool.RecalibrateSettings",
        "import swatool; swatool.soup, swatool.SoupSettings, swatool.SoupReport",
        "import swatool; swatool.run_recipe, swatool.RecipeReport",
        "import swatool; swatool.inspect, swatool.diff, swatool.InspectReport, swatool.DiffReport",
        "import swatool; swatool.verify, swatool.VerifySettings, swatool.VerifyReport",
        "import swatool.jobs.average",
        "import swatool.jobs.inspect, swatool.jobs.diff",
        "import swatool.cli",
        "import swatool.cli.render",
    ],
)
def test_importing_does_not_import_torch(code):
    check = f"{code}\nimport sys\nassert not {{'torch', 'numpy', 'rich'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True, timeout=60)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["average", "--help"],
        ["soup", "--help"],
        ["run", "--help"],
        ["run", "--schema"],
        ["recalibrate-bn", "--help"],
        ["inspect", "--help"],
        ["diff", "--help"],
        ["verify", "--help"],
        ["--version"],
    ],
)
def test_help_does_not_import_torch(arguments):
    code = (
        f"import sys; sys.argv = ['swatool', *{arguments!r}]\n"
        "from swatool.cli import main\n"
        "try:\n    main()\n"
        "except SystemExit as exit:\n    assert not exit.code\n"
        "assert not {'torch', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, timeout=60, capture_output=True)
    assert b"swatool" in done.stdout


def test_the_runtime_dependencies_are_the_agreed_ones():
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    assert {re.match(r"[\w-]+", entry)[0] for entry in project["dependencies"]} == DEPENDENCIES
