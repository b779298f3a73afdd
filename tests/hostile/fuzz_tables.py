"""Tables of metrics, and checksum files, that are damaged at random, and what Python and coreutils read."""

import contextlib
import csv
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

from hostile import mutating
from hostile.fuzz_format import Format, written_to
from swatool.errors import CheckpointError, SwatoolError
from swatool.jobs.metric_tables import read_table
from swatool.jobs.metrics import metric_values
from swatool.output.checksums import checksum_line, parse_checksums

ROWS = (
    {"checkpoint": "a/epoch-1.pt", "step": 10, "val_loss": 0.5, "note": None},
    {"checkpoint": 'epoch 2, "best".pt', "step": 20, "val_loss": 1e-3, "note": "x\ty\nz \u2028 \u00e9"},
    {"checkpoint": "epoch-3.pt", "step": 30, "val_loss": float("nan"), "note": "[1, {}]"},
)
DATED = [
    SimpleNamespace(step=step, checkpoint=SimpleNamespace(path=path, fields={"epoch": step // 10}))
    for path, step in (("a/epoch-1.pt", 10), ("b/epoch-3.pt", 30))
]
TOKENS = (
    *(b",", b"\t", b'"', b'""', b"\n", b"\r\n", b"\r", b"\n\n", b" ", b"\0", b"\xef\xbb\xbf", b"\x0b"),
    *(b"\xe2\x80\xa8", b"\xc2\x85", b"\x0c", b"\x1c", b"{", b"}", b"[", b"]", b":", b"null", b"nan"),
    *(b'"step": 1,', b"\\u0000", b"\\ud800", b"\xff", b"-inf", b"1_0", b"1e999", b"9" * 50),
)


def csv_seed(delimiter):
    file = io.StringIO()
    table = csv.DictWriter(file, ROWS[0], delimiter=delimiter, lineterminator="\n")
    table.writeheader()
    table.writerows(ROWS)
    return file.getvalue().encode()


def with_tokens(dice, data, most=2):
    """Put something with a meaning in between, or in place of a byte."""
    for _ in range(dice.randint(1, most)):
        place = dice.randrange(len(data))
        data = data[:place] + dice.choice(TOKENS) + data[place + dice.randrange(2) :]
    return data


def csv_mutant(dice):
    seed = csv_seed(dice.choice(",\t"))
    return with_tokens(dice, seed, 5) if dice.randrange(4) else mutating.of_bytes(dice, seed)


def json_seeds():
    by_name = {row["checkpoint"]: {"val_loss": row["val_loss"]} for row in ROWS}
    plain = {row["checkpoint"]: row["val_loss"] for row in ROWS}
    for document in (list(ROWS), by_name, plain, {"log_history": list(ROWS), "epoch": 3}):
        yield json.dumps(document, ensure_ascii=False).encode()


JSON_SEEDS = tuple(json_seeds())


def json_mutant(dice):
    seed = dice.choice(JSON_SEEDS)
    change = dice.randrange(3)
    if change == 0:
        return mutating.of_bytes(dice, seed)
    return with_tokens(dice, seed) if change == 1 else mutating.of_json(dice, seed)


def lines_mutant(dice):
    lines = [json.dumps(row, ensure_ascii=False).encode() for row in ROWS]
    place = dice.randrange(len(lines))
    if dice.randrange(2):
        lines[place] = mutating.of_json(dice, lines[place])
    text = dice.choice((b"\n", b"\n", b"\r\n", b"\n\n")).join(lines) + b"\n"
    return with_tokens(dice, text) if dice.randrange(2) else mutating.of_bytes(dice, text, 2)


# What Python's own readers make of them.


def csv_reads(data):
    """Return rows by the names in the header, as they stand there; what is empty says nothing."""
    text = data.decode("utf-8-sig")
    rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter_of(data)))
    names = [name.strip() for name in rows[0]] if rows else []
    found = []
    for cells in rows[1:]:
        if len(cells) > len(names):
            raise ValueError("too many cells")
        found.append({name: cell.strip() for name, cell in zip(names, cells, strict=False) if cell.strip()})
    return found


def delimiter_of(data):
    return "\t" if b"\t" in data.partition(b"\n")[0] else ","


def json_reads(data):
    """Return the rows of a list, of a log, or of an object by checkpoint."""
    document = json.loads(data.decode("utf-8-sig"))
    if isinstance(document, dict) and isinstance(document.get("log_history"), list):
        document = document["log_history"]
    if isinstance(document, dict):
        return [
            {"checkpoint": name} | (said if isinstance(said, dict) else {"": said})
            for name, said in document.items()
        ]
    return [dict(row.items()) for row in document]


def lines_read(data):
    return [dict(json.loads(line).items()) for line in data.decode("utf-8-sig").split("\n") if line.strip()]


def compare_rows(ours, theirs):
    """Compare as texts: NaN is no other NaN, and 1 and 1.0 and true are equal."""
    return "" if repr(list(map(dict, ours))) == repr(theirs) else f"{ours} {theirs}"[:500]


def ours(path):
    """Read a table as `--metrics` does, which may lack what is asked for; and return its rows."""
    with contextlib.suppress(SwatoolError):
        metric_values(DATED, "val_loss", path)
    return read_table(path)


# Checksum files.

CHECKSUMS = "SHA256SUMS"
FILES = {"model.safetensors": b"a", "a b": b"b", "c\nd\\e": b"c"}
ESCAPES = {b"\\": b"\\\\", b"\n": b"\\n", b"\r": b"\\r"}


def prepare(folder):
    for name, data in FILES.items():
        (folder / name).write_bytes(data)


def sums_mutant(dice):
    lines = [checksum_line(hashlib.sha256(data).hexdigest(), name) for name, data in FILES.items()]
    place = dice.randrange(len(lines))
    change = dice.randrange(4)
    if change == 0:
        lines[place] = mutating.of_bytes(dice, lines[place], 2)
    elif change == 1:
        lines[place] = mutating.of_bytes(dice, lines[place][:66], 1) + lines[place][66:]
    elif change == 2:
        lines[place] = lines[place][:60] + with_tokens(dice, lines[place][60:])
    else:
        lines[place] = with_tokens(dice, lines[dice.randrange(len(lines))])
    return b"".join(lines)


def checksums_of(path):
    """Return which files are listed, and whether they have the bytes that were summed up."""
    digests = parse_checksums(Path(path).read_bytes())
    if digests is None:
        raise CheckpointError("no list of checksums")
    return {(os.fsencode(name), _has(name, digest)) for name, digest in digests.items()}


def _has(name, digest):
    return os.path.isfile(name) and hashlib.sha256(Path(name).read_bytes()).hexdigest() == digest


def coreutils_reads(_mutant):
    """Return the same as `sha256sum --check` sees it; ValueError if it understands not every line."""
    run = subprocess.run(
        ["sha256sum", "--check", "--strict", CHECKSUMS],
        env={**os.environ, "LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=9,
        check=False,
    )
    if b"improperly formatted" in run.stderr or b"no properly formatted" in run.stderr:
        raise ValueError(run.stderr)
    return {_verdict(line) for line in run.stdout.split(b"\n")[:-1]}


def _verdict(line):
    name, _, verdict = line.rpartition(b": ")
    return name, verdict == b"OK"


def compare_verdicts(ours, theirs):
    """Compare what is listed; releases of coreutils differ in which names they print escaped."""
    printed = {(one, holds): name for name, holds in ours for one in (name, _escaped(name))}
    known = {(printed[one], one[1]) for one in theirs if one in printed}
    return "" if theirs <= printed.keys() and known == ours else f"{ours} {theirs}"


def _escaped(name):
    return b"\\" + re.sub(rb"[\\\n\r]", lambda match: ESCAPES[match[0]], name)


FORMATS = {
    "metrics csv": Format(
        csv_mutant,
        lambda mutant: written_to("x.tsv" if delimiter_of(mutant) == "\t" else "x.csv")(mutant),
        ours,
        csv_reads,
        compare_rows,
    ),
    "metrics json": Format(json_mutant, written_to("x.json"), ours, json_reads, compare_rows),
    "metrics lines": Format(lines_mutant, written_to("x.jsonl"), ours, lines_read, compare_rows),
}
if shutil.which("sha256sum"):
    FORMATS["checksums"] = Format(
        sums_mutant,
        written_to(CHECKSUMS),
        checksums_of,
        coreutils_reads,
        compare_verdicts,
        prepare=prepare,
    )
