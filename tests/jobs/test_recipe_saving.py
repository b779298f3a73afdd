"""A command line and its recipe ask for the same."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swatool.checkpoints.selection import expand
from swatool.errors import OutputError, UsageError
from swatool.jobs.average_settings import AverageSettings
from swatool.jobs.recipe_reading import read_recipe
from swatool.jobs.recipe_saving import HEADER, AskedFor, check_recipe_target, save_recipe
from swatool.jobs.scoring import Scoring


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "a.pt").touch()
    return tmp_path


def saved(path="r.yaml", **asked):
    asked = {"checkpoints": ["run/*.pt"], "output": "a.safetensors", "settings": AverageSettings(), **asked}
    check_recipe_target(path, AskedFor(**asked))
    save_recipe(path, AskedFor(**asked))
    return Path(path).read_text()


def test_what_is_as_by_default_is_not_written():
    assert saved() == f"{HEADER}inputs: [run/*.pt]\noutputs:\n- {{path: a.safetensors}}\n"


SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "method": st.sampled_from(["ema", "wsm"]),
        "key": st.sampled_from(["model", "1e-3", "${X}"]),
        "strip_prefix": st.lists(st.sampled_from(["a.", "b"]), max_size=2).map(tuple),
        "keep_prefix": st.booleans(),
        "sort": st.sampled_from(["name", "mtime"]),
        "last": st.integers(1, 9),
        "min_step": st.integers(0, 9),
        "allow_duplicates": st.booleans(),
        "dtype": st.sampled_from(["float32", "bfloat16"]),
        "exclude": st.lists(st.sampled_from(["*", "- x", "bn.*"]), max_size=2).map(tuple),
        "integers": st.just("equal"),
        "accumulate": st.just("float64"),
        "allow_nonfinite": st.booleans(),
        "format": st.just("safetensors"),
        "sidecars": st.booleans(),
        "threads": st.integers(1, 9),
        "device": st.just("auto"),
        "overwrite": st.just(True),
    },
)
PARAMETERS = {"ema": {"decay": 0.9, "debias": True}, "wsm": {"schedule": "minus-sqrt"}}


@given(given=SETTINGS)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_recipe_has_the_settings_of_the_command_line(given):
    chosen = AverageSettings(**given, **PARAMETERS.get(given.get("method"), {}))
    Path("r.yaml").unlink(missing_ok=True)
    saved(settings=chosen)
    (product,) = read_recipe("r.yaml").products
    assert product.request.settings == chosen
    assert product.request.output == "a.safetensors"


def test_sweeps_and_evaluations_are_written_so_that_they_give_the_same_names():
    chosen = AverageSettings(method="power-ema", metric="acc", mode="max")
    text = saved(
        settings=chosen,
        output="a-{sigma-rel}-{last}.safetensors",
        axes=["sigma-rel=0.1,0.20,1e-2", "last=2,3"],
        scoring=Scoring(evaluate="python eval.py {path}", metric="acc", mode="max"),
        keep="all",
    )
    assert "    sigma_rel:\n    - 0.1\n    - '0.20'\n    - '1e-2'\n    last: [2, 3]\n" in text
    recipe = read_recipe("r.yaml")
    names = [f"a-{sigma}-{last}.safetensors" for sigma in ("0.1", "0.20", "1e-2") for last in (2, 3)]
    assert [one.request.output for one in recipe.products] == names
    assert recipe.evaluate.scoring() == Scoring(evaluate="python eval.py {path}", metric="acc", mode="max")
    assert recipe.wanted[0].keep == "all"
    assert (recipe.select.metric, recipe.select.mode) == (None, None)


def test_choosing_by_a_metric_is_written():
    chosen = AverageSettings(best=3, metric="acc", mode="max", metrics="table.csv")
    saved(settings=chosen)
    assert read_recipe("r.yaml").products[0].request.settings == chosen


def test_paths_are_relative_to_the_recipe():
    os.mkdir("recipes")
    chosen = AverageSettings(best=1, metric="m", mode="max", metrics="t.csv", like="x.ckpt")
    saved(
        "recipes/r.yaml",
        checkpoints=["run/**/*.pt", "/abs/b.pt", "run/"],
        output="out/a.pt",
        settings=chosen,
    )
    recipe = read_recipe("recipes/r.yaml")
    assert recipe.inputs == ("../run/**/*.pt", "/abs/b.pt", "../run/")
    assert recipe.products[0].request.output == "../out/a.pt"
    assert (recipe.select.metrics, recipe.wanted[0].like) == ("../t.csv", "../x.ckpt")


def test_an_evaluation_is_not_moved_to_another_folder():
    os.mkdir("recipes")
    scoring = Scoring(evaluate="python eval.py {path}", mode="max")
    with pytest.raises(UsageError, match="save the recipe in the current folder"):
        saved("recipes/r.yaml", scoring=scoring)
    assert os.listdir("recipes") == []


def test_a_recipe_is_not_replaced_unless_that_is_asked_for():
    Path("r.yaml").write_text("mine")
    with pytest.raises(UsageError, match=r"'r\.yaml' exists"):
        saved()
    assert Path("r.yaml").read_text() == "mine"
    assert "overwrite: true" in saved(settings=AverageSettings(overwrite=True))


def test_a_recipe_that_cannot_be_written():
    with pytest.raises(OutputError, match="gone"):
        saved("gone/r.yaml")


@pytest.mark.parametrize(
    ("path", "said"), [("./a.safetensors", "is the output, too"), ("run/a.pt", "inputs")]
)
def test_a_recipe_is_never_an_input_or_the_output(path, said):
    with pytest.raises(UsageError, match=said):
        saved(path, settings=AverageSettings(overwrite=True))
    assert Path("run/a.pt").read_bytes() == b""


@pytest.mark.parametrize("name", ["like.pt", "table.csv", "fast.py"])
def test_a_recipe_does_not_replace_what_the_command_line_names(name):
    for other in ("like.pt", "table.csv", "fast.py"):
        Path(other).write_text("mine")
    chosen = AverageSettings(
        overwrite=True, like="like.pt", best=1, metric="loss", mode="min", metrics="table.csv"
    )
    with pytest.raises(UsageError, match=f"'{name}' is (one of the inputs|named by --eval)"):
        saved(name, settings=chosen, scoring=Scoring(evaluate="python3 fast.py {path}", mode="max"))
    assert Path(name).read_text() == "mine"


@pytest.mark.parametrize("name", ["br[1]", "br*", "br{x}"])
def test_a_folder_may_be_called_like_a_pattern(name, tmp_path, monkeypatch):
    (tmp_path / name / "run").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / name)
    for step in (1, 2, 3):
        Path(f"run/{step}.pt").touch()
    saved("../elsewhere/r.yaml", checkpoints=["run/*.pt"], output="a-{last}.pt", axes=["last=2,3"])
    recipe = read_recipe("../elsewhere/r.yaml")
    assert [one.request.output for one in recipe.products] == [f"../{name}/a-{last}.pt" for last in (2, 3)]
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert expand(recipe.inputs) == [f"../{name}/run/{step}.pt" for step in (1, 2, 3)]


def test_a_recipe_is_no_output_of_its_sweep():
    asked = AskedFor(
        checkpoints=["run/"], output="a-{last}.pt", settings=AverageSettings(), axes=["last=2,3"]
    )
    with pytest.raises(UsageError, match="is the output, too"):
        check_recipe_target("a-3.pt", asked)


def test_a_path_that_is_no_unicode_is_refused_before_the_work():
    asked = AskedFor(checkpoints=["run/"], output="a\udcff.pt", settings=AverageSettings())
    with pytest.raises(UsageError, match="not UTF-8"):
        check_recipe_target("r.yaml", asked)
