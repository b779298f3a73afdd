import pytest

from swatool.errors import UsageError
from swatool.recipe.variables import filled
from swatool.recipe.yaml_text import Node, plain, read_yaml

ENVIRONMENT = {"RUN": "runs/7", "EMPTY": "", "SECRET": "s", "ODD": "${RUN}"}


def fill(text, *declared):
    return plain(filled(read_yaml(text, "'r.yaml'"), declared, ENVIRONMENT, "'r.yaml'"))


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
    with pytest.raises(UsageError) as caught:
        fill('a: ${SECRET}\nb: ["${RUN}", "${GONE}"]\nc: "${"\nd: ${a-b}\ne: "\\0"', "RUNS", "GONE")
    assert str(caught.value).splitlines() == [
        "'r.yaml' has 6 mistakes:",
        "  line 1: ${SECRET} is not declared under environment: SECRET is unknown; there are RUNS, GONE",
        "  line 2: ${GONE} is not set in the environment",
        "  line 2: ${RUN} is not declared under environment: RUN is unknown; did you mean RUNS?",
        "  line 3: '${' is no ${NAME}; write $${ for a plain ${",
        "  line 4: '${a-b}' is no ${NAME}; write $${ for a plain ${",
        "  line 5: '\\x00' has a character that no name can have",
    ]


def test_half_a_character_is_no_text():
    with pytest.raises(UsageError, match=r"line 3: .* has a character that no name can have"):
        filled(Node("\ud800", 3), (), {}, "'r.yaml'")
