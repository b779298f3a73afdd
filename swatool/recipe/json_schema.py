"""The JSON schema of a dataclass that a file is built into, for editors and for machines."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, Union

from swatool.choices import KEYS, PATTERN, choices_of
from swatool.recipe.building import fields_of, is_required

__all__ = ["json_schema"]

DIALECT = "https://json-schema.org/draft/2020-12/schema"
TYPES: Mapping[object, str] = {str: "string", int: "integer", float: "number", bool: "boolean"}
ATTRIBUTE = re.compile(r"^        (\w+): (.*(?:\n {12,}.*)*)", re.MULTILINE)

Schema = dict[str, object]


def json_schema(cls: type) -> Schema:
    """Return the schema of a dataclass; descriptions are those of its docstring's attributes."""
    definitions: dict[str, Schema] = {}
    found = _of_dataclass(cls, definitions)
    return {"$schema": DIALECT, **found, "$defs": definitions}


def _of_dataclass(cls: type, definitions: dict[str, Schema]) -> Schema:
    described = _descriptions(cls)
    properties: dict[str, Schema] = {}
    for name, (wanted, field) in fields_of(cls).items():
        properties[name] = one = _narrowed(_of(wanted, definitions), field)
        if name in described:
            one["description"] = described[name]
        if isinstance(field.default, str | int | float | bool):
            one["default"] = field.default
    required = [name for name, (_, field) in fields_of(cls).items() if is_required(field)]
    return {
        "type": "object",
        "description": _summary(cls),
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _of(wanted: object, definitions: dict[str, Schema]) -> Schema:
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (Union, types.UnionType):
        return {"anyOf": [_of(one, definitions) for one in arguments]}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is tuple:
        item = _of(arguments[0], definitions)
        return {"anyOf": [{"type": "array", "items": item}, item]}
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {"type": "object", "additionalProperties": _of(arguments[1], definitions)}
    if wanted is type(None):
        return {"type": "null"}
    if isinstance(wanted, type) and dataclasses.is_dataclass(wanted):
        if wanted.__name__ not in definitions:
            definitions[wanted.__name__] = {}  # its place, before what it refers to
            definitions[wanted.__name__] = _of_dataclass(wanted, definitions)
        return {"$ref": f"#/$defs/{wanted.__name__}"}
    return {"type": TYPES[wanted]} if wanted in TYPES else {}


def _narrowed(schema: Schema, field: dataclasses.Field[Any]) -> Schema:
    """Return the schema of a field's type with what the field itself takes of it."""
    if "anyOf" in schema:
        return {"anyOf": [_narrowed(one, field) for one in typing.cast(list[Schema], schema["anyOf"])]}
    if schema == {"type": "string"} and choices_of(field):
        return {"enum": list(choices_of(field))}
    if schema == {"type": "string"} and PATTERN in field.metadata:
        return {**schema, "pattern": f"^(?:{field.metadata[PATTERN]})$"}
    if schema.get("type") == "object" and KEYS in field.metadata:
        return {**schema, "propertyNames": {"enum": list(field.metadata[KEYS])}}
    return schema


def _summary(cls: type) -> str:
    return (cls.__doc__ or "").strip().partition("\n")[0]


def _descriptions(cls: type) -> Mapping[str, str]:
    """Read the `Attributes:` of the docstrings of a class and of those that it inherits fields from."""
    found: dict[str, str] = {}
    for one in reversed(cls.__mro__):
        _, _, attributes = (one.__doc__ or "").partition("Attributes:\n")
        for name, text in ATTRIBUTE.findall(attributes):
            found[name] = " ".join(text.split())
    return found
