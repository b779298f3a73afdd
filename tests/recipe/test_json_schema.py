from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from swatool.choices import KEYS, PATTERN, choice
from swatool.recipe.json_schema import DIALECT, json_schema


@dataclass(frozen=True, kw_only=True)
class Inner:
    """What is inside.

    Attributes:
        a: a number, which
            goes on.
        kind: one of two.
    """

    a: int = 1
    kind: Literal["x", "y"] = "x"


@dataclass(frozen=True, kw_only=True)
class Outer(Inner):
    """The whole.

    Attributes:
        name: how it is called.
    """

    name: str
    maybe: float | None = None
    names: tuple[str, ...] = ()
    inner: Inner = field(default_factory=Inner)
    more: Mapping[str, Inner] = field(default_factory=dict)
    free: Mapping[str, object] = field(default_factory=dict)


def test_what_a_field_takes_of_its_type():
    @dataclass(frozen=True)
    class Narrow:
        word: str = choice(("x", "y"), default="x")
        maybe: str | None = choice(("x", "y"), default=None)
        place: str = field(default="a1", metadata={PATTERN: "a[0-9]|b"})
        values: Mapping[str, int] = field(default_factory=dict, metadata={KEYS: ("p", "q")})

    assert json_schema(Narrow)["properties"] == {
        "word": {"enum": ["x", "y"], "default": "x"},
        "maybe": {"anyOf": [{"enum": ["x", "y"]}, {"type": "null"}]},
        "place": {"type": "string", "pattern": "^(?:a[0-9]|b)$", "default": "a1"},
        "values": {
            "type": "object",
            "additionalProperties": {"type": "integer"},
            "propertyNames": {"enum": ["p", "q"]},
        },
    }


def test_the_whole_schema():
    inner = {
        "type": "object",
        "description": "What is inside.",
        "properties": {
            "a": {"type": "integer", "description": "a number, which goes on.", "default": 1},
            "kind": {"enum": ["x", "y"], "description": "one of two.", "default": "x"},
        },
        "required": [],
        "additionalProperties": False,
    }
    assert json_schema(Outer) == {
        "$schema": DIALECT,
        "type": "object",
        "description": "The whole.",
        "properties": {
            **inner["properties"],
            "name": {"type": "string", "description": "how it is called."},
            "maybe": {"anyOf": [{"type": "number"}, {"type": "null"}]},
            "names": {"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "string"}]},
            "inner": {"$ref": "#/$defs/Inner"},
            "more": {"type": "object", "additionalProperties": {"$ref": "#/$defs/Inner"}},
            "free": {"type": "object", "additionalProperties": {}},
        },
        "required": ["name"],
        "additionalProperties": False,
        "$defs": {"Inner": inner},
    }
