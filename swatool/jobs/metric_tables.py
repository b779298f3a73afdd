"""Tables of metrics that people keep beside their checkpoints: CSV, JSON, JSON lines, YAML."""

from __future__ import annotations

import codecs
import csv
import io
import os
from collections.abc import Iterator, Mapping

from swatool.checkpoints.files import open_regular
from swatool.errors import CheckpointError, UsageError, printable
from swatool.json_text import BEFORE_A_VALUE, JsonError, parse_json
from swatool.recipe.yaml_text import plain, read_yaml

__all__ = ["Row", "read_table"]

Row = Mapping[str, object]

MAX_BYTES = 8 << 20
MOST_VALUES = 500_000  # and names of them; as objects, each takes up to a hundred bytes
# Where a document keeps its rows: transformers' trainer_state.json.
ROWS_INSIDE = "log_history"
NAME = "checkpoint"
SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".yaml", ".yml")


def read_table(path: str | os.PathLike[str]) -> list[Row]:
    """Return the rows of a table; its format is told by the suffix.

    CSV: a header and rows. JSON and YAML: a list of objects; an object of objects or numbers by checkpoint;
    or transformers' trainer_state.json. JSON lines: an object in each line.

    Raises:
        CheckpointError: it cannot be read, is damaged or too long, or holds no rows.
        UsageError: by its name, it is no table.
    """
    where = f"the table {printable(os.fspath(path))}"
    suffix = os.path.splitext(os.fspath(path))[1].lower()
    if suffix not in SUFFIXES:
        raise UsageError(f"{where} must be .csv, .tsv, .json, .jsonl, .yaml or .yml by its name")
    data = _read(path, where).removeprefix(codecs.BOM_UTF8)
    try:
        if suffix in (".csv", ".tsv"):
            return _rows_of_csv(data, where, "\t" if suffix == ".tsv" else ",")
        if suffix in (".jsonl", ".ndjson"):
            return list(_rows_of_lines(data, where))
        if suffix == ".json":
            return _rows_of(_json(data, where), where)
        return _rows_of(plain(read_yaml(data.decode(), where)), where)
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{where} is not UTF-8, near byte {error.start}") from error
    except UsageError as error:  # as recipes are refused
        raise CheckpointError(str(error)) from error


def _read(path: str | os.PathLike[str], where: str) -> bytes:
    try:
        with open_regular(path) as file:
            nbytes = os.fstat(file.fileno()).st_size
            if nbytes > MAX_BYTES:
                raise CheckpointError(
                    f"{where} has {nbytes:,} bytes, and at most {MAX_BYTES:,} are read: keep the rows of "
                    "these checkpoints only"
                )
            return file.read(MAX_BYTES)
    except OSError as error:
        raise CheckpointError(f"cannot read {where}: {error.strerror}") from error


def _refuse_too_many(count: int, what: str, where: str) -> None:
    if count > MOST_VALUES:
        raise CheckpointError(
            f"{where} has more than {MOST_VALUES:,} {what}: keep the rows of these checkpoints only"
        )


def _rows_of_csv(data: bytes, where: str, delimiter: str) -> list[Row]:
    _refuse_too_many(sum(map(data.count, (delimiter.encode(), b"\n", b"\r"))), "cells", where)
    # Line by line: as a whole, a text may take four times its bytes.
    lines = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8", newline="")
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    rows: list[Row] = []
    try:
        header = [name.strip() for name in next(reader, [])]
        if len(set(header)) != len(header):
            raise CheckpointError(f"{where} has a column twice in its header")
        for cells in reader:
            if len(cells) > len(header):
                counts = f"{len(cells)} cells under {len(header)} names"
                raise CheckpointError(f"{where}, line {reader.line_num}, has {counts}")
            said = zip(header, map(str.strip, cells), strict=False)
            # An empty cell says nothing: loggers leave empty what a row is not about.
            rows.append({name: cell for name, cell in said if cell})
    except csv.Error as error:
        what = str(error).replace("\t", r"\t")  # it names the delimiter
        raise CheckpointError(f"{where}, line {reader.line_num}, is no CSV: {what}") from error
    return rows


def _rows_of_lines(data: bytes, where: str) -> Iterator[Row]:
    _refuse_too_many(sum(data.count(one.encode()) for one in BEFORE_A_VALUE), "values", where)
    for number, line in enumerate(io.BytesIO(data), 1):
        if line.strip():
            yield _object(_json(line, f"{where}, line {number}"), where)


def _json(data: bytes, where: str) -> object:
    try:
        return parse_json(data, most=MOST_VALUES)
    except JsonError as error:
        raise CheckpointError(f"{where} is damaged: {error}") from error


def _rows_of(document: object, where: str) -> list[Row]:
    if isinstance(document, dict) and isinstance(document.get(ROWS_INSIDE), list):
        document = document[ROWS_INSIDE]
    if isinstance(document, list):
        return [_object(item, where) for item in document]
    if not isinstance(document, dict):
        raise CheckpointError(f"{where} holds neither a list of objects nor an object by checkpoint")
    return [
        {NAME: name, **value} if isinstance(value, dict) else {NAME: name, "": value}
        for name, value in document.items()
    ]


def _object(item: object, where: str) -> Row:
    if not isinstance(item, dict):
        raise CheckpointError(f"{where} has a row that is no object: {printable(item)}")
    return item
