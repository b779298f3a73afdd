"""Hostile tables of metrics."""

import os

from hostile.cases import Case, of_bytes

ESCAPES = "\x1b[2J\x1b]0;owned\x07\u202e"
NONE = {"*": 4}  # some checkpoints have no value
REFUSED = {"*": 2}  # it is not clear what is meant


def csv(*lines):
    return ("file,a\n" + "\n".join(lines)).encode()


def texts():
    """Yield what is wrong, the table, and what is said of it."""
    yield "100,000 digits", "csv", csv("good.pt," + "9" * 100_000, "other.pt,1"), "best value would be inf"
    yield "a cell of 1 MB", "csv", csv("good.pt,1" + " " * (1 << 20)), "no CSV"
    yield "a header twice", "csv", b"file,a,a\ngood.pt,1,2\n", "a column twice"
    yield "NUL bytes", "csv", csv("good.pt,1\0", "other.pt,2"), "where a number"
    yield "no UTF-8", "csv", b"file,a\n\xff,1\n", "not UTF-8"
    yield "a quote that does not end", "csv", csv('good.pt,"1'), "no CSV"
    yield "half a million rows", "csv", csv(*["x,1"] * 600_000), "more than 500,000 cells"
    yield "columns without end", "csv", b"file,a" + b",b" * 600_000, "more than 500,000 cells"
    yield "more cells than names", "csv", csv("good.pt,1,2,3"), "4 cells under 2 names"
    yield "a column for the terminal", "csv", f"file,{ESCAPES}\ngood.pt,1\n".encode(), "no column 'a'"
    yield "a value for the terminal", "csv", csv(f"good.pt,{ESCAPES}"), "where a number"
    yield "NaN", "csv", csv("good.pt,nan", "other.pt,1"), "has NaN"
    yield "infinity", "csv", csv("good.pt,inf", "other.pt,1"), "best value would be inf"
    yield "nothing", "csv", b"", "whose its rows are"
    yield "nothing but lines", "csv", b"\n" * 400_000, "whose its rows are"
    yield "100,000 digits", "json", b'{"good.pt": ' + b"9" * 100_000 + b"}", "a number of 100,000 digits"
    yield "1e400", "json", b'{"good.pt": 1e400, "other.pt": 1}', "best value would be inf"
    yield "400 digits", "json", b'{"good.pt": ' + b"9" * 400 + b"}", "where a number"
    yield "NaN", "json", b'{"good.pt": NaN, "other.pt": 1}', "has NaN"
    yield "deep lists", "json", b"[" * 1_000_000, "values|nested too deep"
    yield "deep objects", "json", b'{"a":' * 100_000, "nested too deep"
    yield "empty objects", "json", b"[" + b"{}," * 2_000_000 + b"{}]", "more than 500,000 values"
    yield "a key twice", "json", b'{"good.pt": 1, "good.pt": 2}', "the same key twice: 'good.pt'"
    yield "a key for the terminal", "json", b'{"\\u001b[2J": 1, "\\u001b[2J": 2}', "the same key twice"
    yield "half a surrogate pair", "json", b'{"\\ud800": "\\udfff"}', "where a number"
    yield "NUL bytes", "json", b"\0" * 1000, "no JSON"
    yield "no UTF-8", "json", b'{"\xff": 1}', "not UTF-8"
    yield "nothing", "json", b"", "no JSON"
    yield "a number", "json", b"1", "neither a list"
    yield "a pickle", "json", b"\x80\4N.", "not UTF-8"
    yield "lists", "jsonl", b"[]\n" * 10, "a row that is no object"
    yield "deep lists in a line", "jsonl", b'{"file": "good.pt"}\n' + b"[" * 100_000, "line 2 is damaged"
    yield "100,000 digits", "jsonl", b'{"a": ' + b"9" * 100_000 + b"}", "a number of 100,000 digits"
    yield "half a million lines", "jsonl", b'{"a":1}\n' * 500_000, "more than 500,000 values"
    yield "empty lines", "jsonl", b"\n" * (8 << 20), "whose its rows are"
    yield "a header twice", "tsv", b"file\ta\ta\n", "a column twice"
    yield "a deep list", "yaml", b"[" * 10_000, "nested|YAML|line 1"
    yield (
        "a number of 100,000 digits",
        "yaml",
        b"good.pt: " + b"9" * 100_000,
        "more than 40 digits",
    )


CODES = {
    **dict.fromkeys(("csv: NaN", "json: NaN"), NONE),
    **dict.fromkeys(
        (
            *("csv: 100,000 digits", "csv: NUL bytes", "csv: a column for the terminal", "csv: infinity"),
            *("csv: a value for the terminal", "csv: nothing", "csv: nothing but lines", "json: 1e400"),
            *("json: 400 digits", "json: half a surrogate pair", "jsonl: empty lines"),
        ),
        REFUSED,
    ),
}


def large(path):
    with open(path, "wb") as file:
        file.truncate(100_000_000)


def elsewhere():
    """Yield tables that are no files, or too large ones."""
    yield "a FIFO", os.mkfifo, "no regular file"
    yield "a folder", os.mkdir, "cannot read the table"
    yield "a device", lambda path: path.symlink_to("/dev/zero"), "no regular file"
    yield "a broken link", lambda path: path.symlink_to("nowhere"), "cannot read the table"
    yield "100 MB", large, "has 100,000,000 bytes"


def cases():
    for name, suffix, data, said in texts():
        title = f"{suffix}: {name}"
        codes = CODES.get(title, {"*": 3})
        yield of_bytes("M1", f"table: {title}", f"bad.{suffix}", data, said, kind="table", codes=codes)
    for suffix in ("csv", "json", "jsonl"):
        for name, make, said in elsewhere():
            yield Case("M1", f"table: {suffix}: {name}", f"bad.{suffix}", make, said, kind="table")
