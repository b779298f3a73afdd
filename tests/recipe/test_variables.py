import pytest

from swatool.recipe.variables import filled
from swatool.recipe.yaml_text import Node, plain, read_yaml

ENVIRONMENT = {"RUN": "runs/7", "EMPTY": "", "SECRET": "s", "ODD": "${RUN}"}


def fill(text, *declared):
    found, mistakes = filled(read_yaml(text, "'r.yaml'"), declared, ENVIRONMENT)
    assert mistakes == []
    return plain(found)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("${RUN}", "runs/7"),
        ("${RUN}/ckpt-*.pt", "runs/7/ckpt-*.pt"),
        ("a${RUN}b${EMPTY}c${RUN}", "aruns/7bcruns/7"),
        ("[x, {a: '${RUN}'}]", ["x", {"a": "runs/7"}]),
        ("$${RUN}", "${RUN}"),
        ("$RUN $$ $", "$RUN $$ $"),
        ("{path} ${RUN}", "{path} runs/7"),
        ("'${ODD}'", "${RUN}"),
        ("1", 1),
        ("'${RUN}': 1", {"${RUN}": 1}),
    ],
)
def test_texts_are_filled_once_and_keys_never(text, found):
    text = f"'{text}'" if text.startswith(("{p", "$")) else text
    assert fill(text, "RUN", "EMPTY", "ODD") == found


def test_every_mistake_is_told_with_its_line():
    text = 'a: ${SECRET}\nb: ["${RUN}", "${GONE}"]\nc: "${"\nd: ${a-b}\ne: "\\0"'
    found, mistakes = filled(read_yaml(text, "'r.yaml'"), ("RUNS", "GONE"), ENVIRONMENT)
    assert mistakes == [
        (1, "${SECRET} is not declared under environment: SECRET is unknown; there are RUNS, GONE"),
        (2, "${RUN} is not declared under environment: RUN is unknown; did you mean RUNS?"),
        (2, "${GONE} is not set in the environment"),
        (3, "'${' is no ${NAME}; write $${ for a plain ${"),
        (4, "'${a-b}' is no ${NAME}; write $${ for a plain ${"),
        (5, "'\\x00' has a character that no name can have"),
    ]
    assert plain(found)["a"] == "${SECRET}"  # the value of what is not declared goes nowhere


def test_half_a_character_is_no_text():
    (mistake,) = filled(Node("\ud800", 3), (), {})[1]
    assert mistake == (3, "'\\ud800' has a character that no name can have")
