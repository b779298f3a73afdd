"""What `import swatool` offers: complete, resolved when first used, and typed."""

import importlib
import importlib.resources
import subprocess
import sys

import pytest

import swatool
from swatool import errors


@pytest.mark.parametrize("name", swatool.__all__)
def test_every_public_name_resolves(name):
    value = getattr(swatool, name)
    if name != "__version__":
        assert value.__name__ == name
        assert value is getattr(importlib.import_module(value.__module__), name)


def test_the_list_of_public_names_is_sorted_and_has_no_name_twice():
    assert sorted(set(swatool.__all__)) == swatool.__all__


def test_every_error_is_public():
    assert set(errors.__all__) - {"few", "listed", "printable"} <= set(swatool.__all__)


def test_a_star_import_gives_exactly_the_public_names():
    namespace = {}
    exec("from swatool import *", namespace)
    assert set(namespace) - {"__builtins__"} == set(swatool.__all__)


def test_every_lazy_name_has_its_home_and_no_home_is_left_over():
    assert set(swatool.HOME) <= set(swatool.__all__)
    for name, home in swatool.HOME.items():
        assert name in importlib.import_module(home).__all__


@pytest.mark.parametrize(
    "code",
    [
        "import swatool, swatool.jobs.average",
        "import swatool; swatool.average; import swatool.jobs.average",
        "import swatool.jobs.average, swatool",
        "from swatool import average; import swatool.jobs.average, swatool.averaging.plan, swatool",
        "import swatool.cli.average, swatool",
    ],
)
def test_average_is_the_function_whatever_was_imported(code):
    check = f"{code}; from types import FunctionType; assert type(swatool.average) is FunctionType"
    subprocess.run([sys.executable, "-c", check], check=True, timeout=60)


@pytest.mark.parametrize("name", ["averages", "HOMES", "torch", "__path", ""])
def test_an_unknown_name_is_an_attribute_error(name):
    with pytest.raises(AttributeError, match="module 'swatool' has no attribute"):
        getattr(swatool, name)


def test_an_unknown_name_cannot_be_imported():
    with pytest.raises(ImportError):
        exec("from swatool import no_such_name")


def test_the_package_says_that_it_is_typed():
    assert importlib.resources.files("swatool").joinpath("py.typed").is_file()
