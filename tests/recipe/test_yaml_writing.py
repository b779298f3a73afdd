import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from swatool.recipe.yaml_text import plain, read_yaml
from swatool.recipe.yaml_writing import write_yaml

TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=8)
NUMBERS = st.from_regex(r"[-+]?(0[ox])?[0-9.]*(e-?[0-9])?", fullmatch=True)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**9), 10**9), st.floats(allow_nan=False), TEXT, NUMBERS
)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@given(tree=TREES)
@example(
    tree={"a": "1e-3", "b": "no", "c": "", "d": "null", "e": "- x", "f": "a: b", "g": "${X}", "h": "x #"}
)
def test_what_is_written_is_read_back_by_us_and_by_others(tree):
    written = write_yaml(tree)
    found = plain(read_yaml(written, "'r.yaml'"))
    assert found == tree
    assert repr(found) == repr(tree)  # 1 and 1.0 and True are equal
    yaml.safe_load(written)


def test_it_is_written_for_people():
    said = {
        "inputs": ["run/*.pt"],
        "select": {"last": 3},
        "outputs": [{"path": "a", "parameters": {"decay": 0.9}}],
    }
    assert write_yaml(said) == (
        "inputs: [run/*.pt]\nselect: {last: 3}\noutputs:\n- path: a\n  parameters: {decay: 0.9}\n"
    )


def test_what_stands_twice_is_written_twice():
    same = ["x"]
    assert write_yaml({"a": same, "b": same}) == "a: [x]\nb: [x]\n"
