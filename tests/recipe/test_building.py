from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from swatool.errors import UsageError
from swatool.recipe.building import PlacedError, build, dump
from swatool.recipe.yaml_text import read_yaml


@dataclass(frozen=True, kw_only=True)
class Inner:
    a: int = 1
    b: float | None = None
    kind: Literal["x", "y"] = "x"

    def __post_init__(self):
        if self.a < 0:
            raise UsageError("a must not be below 0")


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str
    flag: bool = False
    names: tuple[str, ...] = ()
    inner: Inner = field(default_factory=Inner)
    many: tuple[Inner, ...] = ()
    by_name: Mapping[str, Inner] = field(default_factory=dict)
    either: str | Inner | None = None
    free: Mapping[str, object] = field(default_factory=dict)


def built(text, cls=Outer):
    return build(cls, read_yaml(text, "'r.yaml'"), "'r.yaml'")


def test_everything():
    text = """
name: n
flag: true
names: [a, b]
inner: {a: 2, b: 3, kind: y}
many:
  - {a: 4}
  - {b: 1e-3}
by_name:
  first: {a: 5}
either: {a: 6}
free: {x: [1, {y: null}], z: text}
"""
    assert built(text) == Outer(
        name="n",
        flag=True,
        names=("a", "b"),
        inner=Inner(a=2, b=3.0, kind="y"),
        many=(Inner(a=4), Inner(b=0.001)),
        by_name={"first": Inner(a=5)},
        either=Inner(a=6),
        free={"x": [1, {"y": None}], "z": "text"},
    )


def test_defaults_and_single_values():
    assert built("name: n") == Outer(name="n")
    assert built("{name: n, names: a, many: {a: 2}, either: text}") == Outer(
        name="n", names=("a",), many=(Inner(a=2),), either="text"
    )
    assert type(built("{a: 1, b: 2}", Inner).b) is float


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("flag: true", "line 1: name is missing"),
        ("name: n\nflga: true", "line 2: flga is unknown; did you mean flag?"),
        ("name: n\nzzz: 1", "zzz is unknown; there are name, flag"),
        ("name: 1", "line 1: name must be a text, not '1'"),
        ("name: n\n\nflag: yes", "line 3: flag must be true or false, not 'yes'"),
        ("name: n\ninner: {a: 1.5}", "inner.a must be a whole number, not '1.5'"),
        ("name: n\ninner: {a: true}", "inner.a must be a whole number, not 'True'"),
        ("name: n\ninner: {b: x}", "inner.b must be a number, not 'x'"),
        ("name: n\ninner: {kind: z}", "inner.kind must be one of x, y, not 'z'"),
        ("name: n\ninner: 3", "inner must be a mapping, not '3'"),
        ("name: n\nnames:", "names must be a list, not nothing"),
        ("name: n\nnames: [a, 1]", r"names\[1\] must be a text, not '1'"),
        ("name: n\nmany:\n- {a: 1}\n- {a: -1}", r"line 4: many\[1\]: a must not be below 0"),
        ("name: n\nby_name: {x: {c: 1}}", "by_name.x.c is unknown"),
        ("name: n\neither: 3", "either must be a text or a mapping, not '3'"),
        ("- 1", "the file must be a mapping, not a list"),
        ("", "the file must be a mapping, not nothing"),
        ('name: n\n"\\e[31m": 1', r"\\x1b\[31m is unknown"),
    ],
)
def test_mistakes_have_their_line(text, said):
    with pytest.raises(UsageError, match=said) as caught:
        built(text)
    assert str(caught.value).startswith("'r.yaml'")
    assert "\n" not in str(caught.value)


def test_all_mistakes_are_told_at_once_in_the_order_of_the_file():
    text = "flag: 1\nnames: {}\ninner:\n  a: -1\nmany:\n- a: x\n  q: 1\n"
    with pytest.raises(UsageError) as caught:
        built(text)
    lines = str(caught.value).splitlines()
    assert lines[0] == "'r.yaml' has 6 mistakes:"
    assert [line.split(":")[0].strip() for line in lines[1:]] == [
        "line 1",
        "line 1",
        *("line 2",),
        "line 4",
        "line 6",
        "line 7",
    ]


INNERS = st.builds(
    Inner, a=st.integers(0, 9), b=st.none() | st.floats(0, 1), kind=st.sampled_from(["x", "y"])
)
NAMES = st.text("abc", min_size=1, max_size=3)


@given(
    outer=st.builds(
        Outer,
        name=NAMES,
        flag=st.booleans(),
        names=st.lists(NAMES, max_size=3).map(tuple),
        inner=INNERS,
        many=st.lists(INNERS, max_size=2).map(tuple),
        by_name=st.dictionaries(NAMES, INNERS, max_size=2),
        either=st.none() | NAMES | INNERS,
        free=st.dictionaries(NAMES, st.integers() | NAMES, max_size=2),
    )
)
def test_what_is_dumped_is_built_again(outer):
    assert built(yaml.safe_dump(dump(outer), sort_keys=False)) == outer


def test_defaults_are_not_dumped():
    assert dump(Outer(name="n", inner=Inner(a=2))) == {"name": "n", "inner": {"a": 2}}


@dataclass(frozen=True, kw_only=True)
class Deep:
    either: tuple[str | Inner, ...] = ()

    def __post_init__(self):
        raise PlacedError(
            [
                (("either", 1, "kind"), "--some-thing is wrong"),
                (("either", 0), "this too"),
                (("gone",), "none"),
            ]
        )


def test_a_dataclass_can_refuse_what_lies_deep_in_it():
    with pytest.raises(UsageError) as caught:
        built("either:\n- text\n- a: 2\n  kind: y\n", Deep)
    assert str(caught.value).splitlines() == [
        "'r.yaml' has 3 mistakes:",
        "  line 1: none",
        "  line 2: either[0]: this too",
        "  line 4: either[1].kind: some_thing is wrong",
    ]


def test_a_single_value_counts_as_a_list_there_too():
    with pytest.raises(UsageError, match=r"line 2: either\[0\]: this too"):
        built("either:\n  a: 2\n  kind: y\n", Deep)


def test_mistakes_inside_a_mapping_are_told_although_a_text_would_do():
    with pytest.raises(UsageError, match=r"line 2: either\.aa is unknown; did you mean a\?"):
        built("name: n\neither: {aa: 1}")


def test_a_list_or_a_number():
    @dataclass(frozen=True)
    class Sized:
        size: int | tuple[int, int] | None = None

    assert built("size: 3", Sized).size == 3
    assert built("size: [3, 4]", Sized).size == (3, 4)
    with pytest.raises(UsageError, match=r"size\[1\] must be a whole number, not 'x'"):
        built("size: [3, x]", Sized)
    with pytest.raises(UsageError, match="size must be a whole number or a list, not 'x'"):
        built("size: x", Sized)
