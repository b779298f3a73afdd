"""Recipes that are damaged at random: how they are written, damaged and read, and by whom."""

import contextlib
import re
from pathlib import Path

import yaml

from hostile import mutating
from hostile.fuzz_format import Format, written_to
from swatool.errors import SwatoolError
from swatool.jobs.recipe_reading import read_recipe
from swatool.recipe.yaml_text import plain, read_yaml

RECIPES = Path(__file__).parents[2] / "recipes"
SCALAR = re.compile(rb"(?<=[ \[,])[^\s\[\]{},:]+(?=[\n\],}])")
SCALARS = (
    *(b"1", b"-3", b"0.5", b"1e-3", b"007", b"0x1F", b"0o17", b"1_000", b"12:30", b"2026-01-01", b".inf"),
    *(b"yes", b"no", b"on", b"true", b"~", b"", b"''", b'"a\\tb"', b"'it''s'", b"[1, 2]", b"{last: 2}"),
    *(b"&a x", b"*a", b"!!str 1", b"!x y", b"<<", b"=", b"-", b"? a", b"|", b">-", b"%", b"@", b"`"),
    *(b"a: b", b"x # y", b"${X}"),
)
INDENTED_BY_TABS = re.compile(rb"^[ -]*\t[ \t-]*[^ \t#\r\n-]", re.MULTILINE)
INDENTS = (b"", b" ", b"  ", b"   ", b"    ", b"\t", b"- ", b"  - ")

# Scalars without quotes that YAML 1.2 reads otherwise than YAML 1.1, by which PyYAML goes, and as what.
OTHERWISE = (
    (re.compile(r"yes|Yes|YES|no|No|NO|on|On|ON|off|Off|OFF|=|<<"), str),
    (re.compile(r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([Tt \t].*)?"), str),  # dates
    (re.compile(r"[-+]?[0-9.]*[_:][0-9_:.]*"), str),  # 1_000, and 12:30, which is 750
    (re.compile(r"[-+]?0[bB][01_]+|[-+]0x[0-9a-fA-F_]+|0x[0-9a-fA-F_]*_[0-9a-fA-F_]*"), str),
    (re.compile(r"[-+]?0[0-9]+"), int),  # not in base 8
    (re.compile(r"0o[0-7]+"), lambda text: int(text, 8)),
    (re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"), float),
)

# What PyYAML says of letters that YAML 1.2 allows (6.1, 7.3.3), those that it allows, too, and what they are.
ALLOWED = (
    (
        "'\\t' that cannot start any token",
        (re.compile(r"\t"), " "),
        "a tab between words or before a comment",
    ),
    ("but got '?'", (re.compile(r"(?<=\w)\?"), "q"), "a question mark in a word of a flow"),
)


def seeds():
    """Return what is alive in the recipes of this project, without the comments at their top."""
    texts = [path.read_bytes() for path in sorted(RECIPES.rglob("*.yaml"))]
    return [text[text.index(b"\n\n") + 2 :] for text in texts]


SEEDS = seeds()


def mutant(dice):
    data = dice.choice(SEEDS)
    if not dice.randrange(3):
        return mutating.of_bytes(dice, data, 2)
    for _ in range(dice.randint(1, 2)):
        data = dice.choice((_with_other_lines, _with_other_indents, _with_other_scalars))(dice, data)
    return data


def _with_other_lines(dice, data):
    """Swap, repeat, remove or join lines."""

    def joined(line):
        return line.rstrip(b"\n") + dice.choice((b" ", b"", b"\r", b"\r\n", b", "))

    return mutating.rearranged(dice, data.splitlines(keepends=True), joined)


def _with_other_indents(dice, data):
    lines = data.splitlines(keepends=True)
    for place in range(len(lines))[dice.randrange(len(lines)) :][: dice.randint(1, 3)]:
        lines[place] = dice.choice(INDENTS) + lines[place].lstrip()
    return b"".join(lines)


def _with_other_scalars(dice, data):
    """Put a scalar, or something stranger, in place of one."""
    found = list(SCALAR.finditer(data))
    if not found:
        return data
    begin, end = dice.choice(found).span()
    value = dice.choice((*SCALARS, dice.choice(found)[0]))
    return data[:begin] + value + data[end:]


def ours(path):
    """Read a recipe as `run` does, which may refuse what it asks for; and return what its text says."""
    with contextlib.suppress(SwatoolError):
        read_recipe(path)
    return plain(read_yaml(Path(path).read_bytes(), path))


def theirs(text):
    """Return what `yaml.safe_load` makes values of, which it does, and may refuse."""
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is not None:
            loader.construct_document(node)
        return node
    finally:
        loader.dispose()


def difference(ours, theirs):
    """Say where the values differ; the keys are texts here, and may be numbers there."""
    if isinstance(theirs, yaml.MappingNode):
        names = [key.value for key, _ in theirs.value]
        if not isinstance(ours, dict) or list(ours) != names:
            return f"keys {names}"
        return next(filter(None, (difference(ours[key.value], one) for key, one in theirs.value)), "")
    if isinstance(theirs, yaml.SequenceNode):
        if not isinstance(ours, list) or len(ours) != len(theirs.value):
            return f"a list of {len(theirs.value)}"
        return next(filter(None, map(difference, ours, theirs.value)), "")
    if theirs is None or _same(ours, yaml.constructor.SafeConstructor().construct_object(theirs)):
        return "" if theirs or ours is None else "nothing"
    return "" if _same(ours, _by_yaml_1_2(theirs)) else f"{theirs.value!r} is {ours!r}"


def _same(one, other):
    return type(one) is type(other) and (one == other or (one != one and other != other))


def _by_yaml_1_2(scalar):
    """Return what a scalar is that YAML 1.2 reads otherwise; of others, what no value is the same as."""
    if scalar.style:
        return NotImplemented
    kinds = (kind for pattern, kind in OTHERWISE if pattern.fullmatch(scalar.value))
    return next(kinds, lambda _: NotImplemented)(scalar.value)


def reason(mutant, ours, error):
    """Say why YAML 1.2 allows what PyYAML refuses: with another letter there it reads the same."""
    if re.search(r"tag:yaml.org,2002:(value|merge)'", str(error)):
        return "a text that has a meaning of its own in YAML 1.1"
    for said, (letter, stand_in), name in ALLOWED:
        if said in str(error) and not INDENTED_BY_TABS.search(mutant):
            text = letter.sub(stand_in, mutant.decode())
            return None if difference(_changed(ours, letter, stand_in), theirs(text)) else name
    return None


def _changed(value, letter, stand_in):
    """Return a value with another letter in its texts."""
    if isinstance(value, dict):
        return {
            _changed(key, letter, stand_in): _changed(one, letter, stand_in) for key, one in value.items()
        }
    if isinstance(value, list):
        return [_changed(one, letter, stand_in) for one in value]
    return letter.sub(stand_in, value) if isinstance(value, str) else value


FORMATS = {"recipe": Format(mutant, written_to("x.yaml"), ours, theirs, difference, reason)}
