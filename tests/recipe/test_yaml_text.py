import contextlib
import math
import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from swatool.errors import UsageError
from swatool.recipe.yaml_text import Node, plain, read_yaml

# PyYAML goes by YAML 1.1, in which numbers of this form without a dot, such as 1e3, are texts.
NUMBER = re.compile(r"0o[0-7]+|[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")  # YAML 1.2, 10.3.2
TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=8).filter(
    lambda text: not (NUMBER.fullmatch(text) and yaml.safe_load(text) == text)
)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-(10**9), 10**9), st.floats(-1e9, 1e9), TEXT)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


def read(text):
    return plain(read_yaml(text, "'r.yaml'"))


@given(tree=TREES)
def test_what_pyyaml_dumps_is_read_back(tree):
    for style in (None, True):
        assert read(yaml.safe_dump(tree, default_flow_style=style, allow_unicode=True)) == tree


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("# nothing", None),
        ("~", None),
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("1e-3", 0.001),
        ("0E0", 0.0),
        ("'1'", "1"),
        ("010", 10),
        ("0x1f", 31),
        ("0X1f", "0X1f"),
        ("-0x1f", "-0x1f"),
        ("0o17", 15),
        ("0o18", "0o18"),
        ("1_000", "1_000"),
        ("12:30:00", "12:30:00"),
        ("2026-01-01", "2026-01-01"),
        ("-.inf", -math.inf),
        (".5", 0.5),
        ("1.", 1.0),
        ("a: |\n  x\n  y\n", {"a": "x\ny\n"}),
        (b"a: \xc3\xa9", {"a": "é"}),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text, value):
    assert read(text) == value
    assert type(read(text)) is type(value)


def test_not_a_number_is_one():
    assert math.isnan(read(".nan"))


def test_everything_has_its_line():
    node = read_yaml("a: 1\n\nb:\n  - x\n  - {c: y}\n", "'r.yaml'")
    assert node == Node(
        {
            "a": Node(1, 1),
            "b": Node([Node("x", 4), Node({"c": Node("y", 5)}, 5)], 4),
        },
        1,
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3", "line 3: 'a' stands twice, first in line 1"),
        ("a: &x 1", "line 1: anchors"),
        ("a: &x [1]\nb: *x", "line 1: anchors"),
        ("a: *x", "line 1: aliases|undefined alias"),
        ("a: !!python/object/apply:os.system ['true']", "line 1: tags"),
        ("a: !!str 1", "line 1: tags"),
        ("<<: {a: 1}", "merging"),
        ("[a]: 1", "a key must be a plain text"),
        ("? {a: 1}\n: 2", "a key must be a plain text"),
        ("a: 1\n---\nb: 2", "line 2: a second document"),
        ("a: [1,", "line 1|line 2"),
        ("a: 'x", "line"),
        ("\ta: 1", "line 1"),
        ("%YAML 9.9\n---\na: 1", "line 1"),
        ("a: \x01", "special characters|control characters"),
        (b"\xff\xfe\x00", "not UTF-8"),
        ("a: " + "9" * 41, "more than 40 digits"),
        ("a: 0x" + "f" * 39, "more than 40 digits"),
        ("a" * (1 << 20) + "a", "more than 1,048,576"),
        ("[" * 40 + "]" * 40, "nested more than 32 deep"),
        ("a: " + "{a: " * 40, "nested more than 32 deep"),
    ],
)
def test_what_is_refused(text, said):
    with pytest.raises(UsageError, match=said) as caught:
        read_yaml(text, "'r.yaml'")
    assert str(caught.value).startswith("'r.yaml'")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["[" * 1_000_000, "a: " + "{a: " * 200_000, "- " * 500_000, "a\n" * 500_000])
def test_bombs_are_refused_or_read(text):
    with contextlib.suppress(UsageError):
        read_yaml(text, "'r.yaml'")


def test_a_text_with_half_a_character_is_refused():
    """As the value of an argument that is not UTF-8."""
    with pytest.raises(UsageError, match=r"^'r\.yaml' is not UTF-8, near character 1$"):
        read("a\udcff")
