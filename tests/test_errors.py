"""The exception tree, its exit codes, and names from files that must not drive a terminal."""

import pytest

from swatool import errors
from swatool.errors import MismatchError, SwatoolError, few, listed, printable

EXIT_CODES = {
    "CheckFailedError": 6,
    "CheckpointError": 3,
    "DataError": 3,
    "MismatchError": 4,
    "OutputError": 5,
    "SettingError": 2,
    "SwatoolError": 1,
    "UsageError": 2,
}


def test_every_error_has_the_exit_code_that_is_documented():
    found = {
        name: value.exit_code
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, SwatoolError)
    }
    assert found == EXIT_CODES
    for name, code in EXIT_CODES.items():
        assert name in errors.__all__
        if name != "SwatoolError":
            line = next(line for line in errors.__doc__.splitlines() if f"── {name} " in line)
            assert line.partition(f"── {name} ")[2].split()[0] == str(code)


def test_a_mismatch_keeps_every_difference_and_shows_the_first_twenty():
    differences = [f"difference {number}" for number in range(23)]
    error = MismatchError("they differ", differences)
    assert error.differences == tuple(differences)
    lines = str(error).splitlines()
    assert lines[0] == "they differ"
    assert lines[1] == "  difference 0"
    assert lines[20] == "  difference 19"
    assert lines[21:] == ["  ... and 3 more"]


@pytest.mark.parametrize("count", [0, 1, 20])
def test_a_mismatch_with_few_differences_shows_all_of_them(count):
    lines = str(MismatchError("they differ", ["x"] * count)).splitlines()
    assert lines == ["they differ"] + ["  x"] * count


def test_a_printable_name_is_quoted():
    assert printable("layer.0.weight") == "'layer.0.weight'"
    assert printable(7) == "'7'"


@pytest.mark.parametrize(
    "name",
    [
        "\x1b[2J",
        "\x1b]0;title\x07",
        "a\nb",
        "a\rb",
        "a\0b",
        "\x7f",
        "\x9b1m",
        "\u202egnp.exe",
        "\u2028",
        "\udc80",
        "\U000e0001",
        "\ufeff",
    ],
)
def test_a_printable_name_cannot_drive_a_terminal(name):
    shown = printable(name)
    assert shown.isprintable()
    assert shown.encode()
    assert "\\" in shown


@pytest.mark.parametrize("length", [157, 158, 159, 1000, 1_000_000])
def test_a_long_name_keeps_its_beginning_and_its_end(length):
    shown = printable("b" + "x" * (length - 2) + "e")
    assert len(shown) <= 160
    assert shown.startswith("'bx")
    assert shown.endswith("xe'")
    assert ("..." in shown) == (length > 158)


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        ([], ""),
        (["a"], "'a'"),
        (list("abcde"), "'a', 'b', 'c', 'd', 'e'"),
        (iter("abcdef"), "'a', 'b', 'c', 'd', 'e' and 1 more"),
        (range(5005), "'0', '1', '2', '3', '4' and 5,000 more"),
    ],
)
def test_of_many_names_a_few_are_shown(names, shown):
    assert listed(names) == shown


def test_words_are_listed_as_they_are():
    assert few(["a", "b c"]) == "a, b c"
