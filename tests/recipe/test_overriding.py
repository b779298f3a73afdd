from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from swatool.errors import UsageError
from swatool.recipe.building import build
from swatool.recipe.overriding import overridden
from swatool.recipe.yaml_text import plain, read_yaml


@dataclass(frozen=True, kw_only=True)
class Inner:
    a: int = 1
    words: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str = ""
    inner: Inner = field(default_factory=Inner)
    many: tuple[str | Inner, ...] = ()
    free: Mapping[str, object] = field(default_factory=dict)
    maybe: Inner | None = None


def changed(text, *overrides):
    node = read_yaml(text, "'r.yaml'")
    for one in overrides:
        node = overridden(Outer, node, one, "--set")
    return node


@pytest.mark.parametrize(
    ("text", "override", "said"),
    [
        ("name: n", "name=m", {"name": "m"}),
        ("name: n", "name=", {"name": None}),
        ("name: n", "name='1'", {"name": "1"}),
        ("name: n", "inner.a=2", {"name": "n", "inner": {"a": 2}}),
        ("", "inner.a=2", {"inner": {"a": 2}}),
        ("inner: {a: 1, words: [x]}", "inner.a=2", {"inner": {"a": 2, "words": ["x"]}}),
        ("inner: {words: [x, y]}", "inner.words.1=z", {"inner": {"words": ["x", "z"]}}),
        ("inner: {words: x}", "inner.words.0=z", {"inner": {"words": ["z"]}}),
        ("inner: {words: x}", "inner.words=[a, b]", {"inner": {"words": ["a", "b"]}}),
        ("many: [{a: 1}, x]", "many.0.a=3", {"many": [{"a": 3}, "x"]}),
        ("many: {a: 1}", "many.a=3", {"many": {"a": 3}}),
        ("many: {a: 1}", "many.0.a=3", {"many": [{"a": 3}]}),
        ("free: {x: 1}", "free.y=0.5", {"free": {"x": 1, "y": 0.5}}),
        ("", "maybe.a=4", {"maybe": {"a": 4}}),
    ],
)
def test_values_are_replaced_and_added(text, override, said):
    assert plain(changed(text, override)) == said


def test_the_document_stays_as_it_was():
    node = read_yaml("inner: {a: 1}", "'r.yaml'")
    overridden(Outer, node, "inner.a=2", "--set")
    assert plain(node) == {"inner": {"a": 1}}


def test_several_follow_each_other():
    assert plain(changed("", "inner.a=1", "inner.a=2", "name=x")) == {"inner": {"a": 2}, "name": "x"}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("nmae=x", "--set nmae: nmae is unknown; did you mean name?"),
        ("inner.wrods=x", "--set inner.wrods: wrods is unknown; did you mean words?"),
        ("many.7.a=1", "--set many.7.a: '7' is no index: there are 2, counted from 0"),
        ("many.x=1", "'x' is no index"),
        ("name.x=1", "--set name.x: there is nothing called 'x' in a single value"),
        ("name", "--set must be key=value, not 'name'"),
        ("=x", "--set must be key=value"),
        ("name=[1", "--set name"),
        ("name=*x", "alias"),
        (".=1", "is unknown"),
        ("\x1b[2J=1", r"\x1b"),
    ],
)
def test_what_is_no_key_or_no_value_is_refused(override, said):
    with pytest.raises(UsageError) as caught:
        changed("many: [{a: 1}, x]", override)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_value_of_another_type_is_told_without_a_line():
    with pytest.raises(UsageError) as caught:
        build(Outer, changed("name: n", "inner.a=x"), "'r.yaml'")
    assert str(caught.value) == "'r.yaml', inner.a must be a whole number, not 'x'"
