"""Objects that a reader asked for are kept with what they hold; all others stay what they were."""

import pickle
import types

import pytest

from swatool.checkpoints.contents import Opaque
from swatool.checkpoints.pickle_descriptors import load_descriptors
from swatool.checkpoints.pickle_records import Record
from swatool.errors import CheckpointError

NAME = f"{__name__}.Thing"


class Thing:
    """A class of somebody's own."""

    def __init__(self, **fields):
        vars(self).update(fields)

    __hash__ = object.__hash__


class Made(Thing):
    def __new__(cls, *_arguments, **_fields):
        return super().__new__(cls)

    def __getnewargs__(self):
        return 1, "two"


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """Let pickle find the classes above, by the name of this module."""
    module = types.ModuleType(__name__)
    module.Thing, module.Made = Thing, Made
    monkeypatch.setitem(__import__("sys").modules, __name__, module)


def load(value, protocol=2, records=(NAME,)):
    return load_descriptors(pickle.dumps(value, protocol), "file", records=records)


@pytest.mark.parametrize("protocol", range(2, 6))
def test_an_object_keeps_arguments_and_state(protocol):
    found = load(Thing(a=[1], b={"c": Thing()}), protocol)
    assert (type(found), found.name, found.arguments) == (Record, NAME, ())
    assert found.state["a"] == [1]
    assert found.state["b"]["c"].state is None
    found = load(Made(three=3), protocol, records=(f"{__name__}.Made",))
    assert (type(found), found.arguments, found.state) == (Record, (1, "two"), {"three": 3})


def test_a_dict_keeps_it_as_a_key():
    found = load({Thing(a=1): "x", Thing(a=1): "y", "plain": 3, (1, 2): 4})
    assert sorted(map(str, found.values())) == ["3", "x", "y"]
    assert {key.state["a"] for key in found if isinstance(key, Record)} == {1}


def test_records_are_told_apart_by_identity():
    one, other = Record("a", ()), Record("a", ())
    assert one == one
    assert one != other
    assert len({one, other}) == 2


def test_nothing_changes_for_who_asks_for_none():
    value = {Thing(a=1): "x", "plain": 3, "object": Thing(a=2)}
    assert load(value, records=()) == {"plain": 3, "object": Opaque(NAME)}
    assert load(value, records=("other.Thing",)) == {"plain": 3, "object": Opaque(NAME)}


def test_only_the_class_itself_makes_one():
    assert load([Thing], records=(NAME,)) == [Opaque(NAME)]


@pytest.mark.parametrize("code", [b"\x80\x02b.", b"\x80\x02Nb.", b"\x80\x02}(Nu."])
def test_a_state_of_nothing_is_damage(code):
    with pytest.raises(CheckpointError, match="is damaged"):
        load_descriptors(code, "file", records=(NAME,))


MADE = b"\x80\x02c" + f"{__name__}\nThing\n".encode() + b")\x81q\0}q\x01X\1\0\0\0aK\1sb"


def test_what_happens_to_the_state_later_does_not_happen_to_the_object():
    data = MADE + b"h\x01X\1\0\0\0aK\2s0."
    assert vars(pickle.loads(data)) == {"a": 1}
    assert load_descriptors(data, "file", records=(NAME,)).state == {"a": 1}


def test_values_given_twice_are_refused():
    data = MADE + b"}X\1\0\0\0bK\2sb."
    assert vars(pickle.loads(data)) == {"a": 1, "b": 2}
    with pytest.raises(CheckpointError, match="gives an object its values twice"):
        load_descriptors(data, "file", records=(NAME,))
