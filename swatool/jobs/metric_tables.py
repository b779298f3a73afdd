"""Tables of metrics that people keep beside their checkpoints: CSV, JSON, JSON lines, YAML."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping

from swatool.checkpoints.files import open_regular
from swatool.errors import UsageError, printable
from swatool.recipe.yaml_text import plain, read_yaml

__all__ = ["Row", "read_table"]

Row = Mapping[str, object]

MAX_BYTES = 64 << 20
# Where a document keeps its rows: transformers' trainer_state.json.
ROWS_INSIDE = "log_history"
NAME = "checkpoint"


def read_table(path: str | os.PathLike[str]) -> list[Row]:
    """Return the rows of a table; its format is told by the suffix.

    CSV: a header and rows. JSON and YAML: a list of objects; an object of objects or numbers by checkpoint;
    or transformers' trainer_state.json. JSON lines: an object in each line.

    Raises:
        UsageError: it cannot be read, or is no table.
    """
    where = printable(os.fspath(path))
    try:
        with open_regular(path) as file:
            data = file.read(MAX_BYTES + 1)
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"cannot read the table {where}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"the table {where} is not UTF-8, near byte {error.start}") from error
    if len(data) > MAX_BYTES:
        raise UsageError(f"the table {where} has more than {MAX_BYTES:,} bytes")
    suffix = os.path.splitext(os.fspath(path))[1].lower()
    if suffix in (".csv", ".tsv"):
        return _rows_of_csv(text, where, "\t" if suffix == ".tsv" else ",")
    if suffix in (".jsonl", ".ndjson"):
        lines = ((number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip())
        return [_object(_json(line, f"{where}, line {number}"), where) for number, line in lines]
    if suffix == ".json":
        return _rows_of(_json(text, where), where)
    if suffix in (".yaml", ".yml"):
        return _rows_of(plain(read_yaml(text, where)), where)
    raise UsageError(f"the table {where} must be .csv, .tsv, .json, .jsonl, .yaml or .yml by its name")


def _rows_of_csv(text: str, where: str, delimiter: str) -> list[Row]:
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)
    rows: list[Row] = []
    try:
        header = [name.strip() for name in next(reader, [])]
        if len(set(header)) != len(header):
            raise UsageError(f"the table {where} has a column twice in its header")
        for cells in reader:
            if len(cells) > len(header):
                counts = f"{len(cells)} cells under {len(header)} names"
                raise UsageError(f"the table {where}, line {reader.line_num}, has {counts}")
            said = zip(header, map(str.strip, cells), strict=False)
            # An empty cell says nothing: loggers leave empty what a row is not about.
            rows.append({name: cell for name, cell in said if cell})
    except csv.Error as error:
        raise UsageError(f"the table {where}, line {reader.line_num}, is no CSV: {error}") from error
    return rows


def _json(text: str, where: str) -> object:
    try:
        return json.loads(text, object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the table {where} is no JSON: {error}") from error


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


def _rows_of(document: object, where: str) -> list[Row]:
    if isinstance(document, dict) and isinstance(document.get(ROWS_INSIDE), list):
        document = document[ROWS_INSIDE]
    if isinstance(document, list):
        return [_object(item, where) for item in document]
    if not isinstance(document, dict):
        raise UsageError(f"the table {where} holds neither a list of objects nor an object by checkpoint")
    return [
        {NAME: name, **value} if isinstance(value, dict) else {NAME: name, "": value}
        for name, value in document.items()
    ]


def _object(item: object, where: str) -> Row:
    if not isinstance(item, dict):
        raise UsageError(f"the table {where} has a row that is no object: {printable(item)}")
    return item
