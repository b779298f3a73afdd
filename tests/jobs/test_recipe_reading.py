"""What a recipe's file says, and every way in which it can be wrong: told with its line, all at once."""

import json
import os
import re

import pytest

from swatool.averaging.schemes import SCHEMES
from swatool.errors import UsageError
from swatool.jobs.recipe_model import Recipe, recipe_schema
from swatool.jobs.recipe_parts import Output
from swatool.jobs.recipe_reading import read_recipe


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(text, *overrides):
    with open("r.yaml", "w") as file:
        file.write(text)
    return read_recipe("r.yaml", overrides)


def test_the_shortest_recipe():
    recipe = read("inputs: run/*.pt\noutputs: a.safetensors\n")
    assert recipe == Recipe(inputs=("run/*.pt",), outputs=(Output(path="a.safetensors"),))
    assert recipe.wanted[0].path == "a.safetensors"
    assert Recipe(inputs=("x",), outputs=("a.safetensors",)).products == recipe.products


def test_settings_are_put_together_from_their_parts():
    recipe = read("""
inputs: [a.pt, b/]
read: {key: ema, strip_prefix: [x.]}
select: {sort: name, last: 5, min_step: 3, allow_duplicates: true}
policies: {integers: first, dtype: bfloat16, exclude: "bn.*"}
run: {threads: 3, device: cuda, overwrite: true}
outputs:
  - path: one.safetensors
  - path: two/
    method: ema
    parameters: {decay: 1, debias: true}
    last: 2
    every: 4
    dtype: float32
    max_shard_size: 5MB
    sidecars: false
""")
    one, two = (product.request.settings for product in recipe.products)
    assert (one.key, one.strip_prefix, one.sort, one.last, one.min_step) == ("ema", ("x.",), "name", 5, 3)
    assert (one.integers, one.dtype, one.exclude, one.threads) == ("first", "bfloat16", ("bn.*",), 3)
    assert (one.device, one.overwrite, one.dry_run, one.allow_duplicates) == ("cuda", True, False, True)
    assert (one.method, one.decay, one.format) == (None, None, None)
    assert (two.key, two.last, two.every, two.min_step, two.sort) == ("ema", 2, 4, 3, "name")
    assert (two.method, two.decay, two.debias, two.dtype) == ("ema", 1.0, True, "float32")
    assert (two.max_shard_size, two.sidecars, two.allow_duplicates) == ("5MB", False, True)


def test_a_sweep_gives_several_products():
    open("m.py", "w").close()
    recipe = read("""
inputs: run
outputs:
  path: a-{last}-{sigma_rel}.safetensors
  method: power-ema
  sweep: {last: [2, 3], sigma_rel: [0.10, '0.20']}
  recalibrate: {path: "b-{sigma-rel}-{last}.safetensors", model: "m.py:f", data: my.data:loader}
""")
    assert [product.request.output for product in recipe.products] == [
        f"a-{last}-{sigma}.safetensors" for last in (2, 3) for sigma in ("0.1", "0.20")
    ]
    assert [product.final for product in recipe.products] == [
        f"b-{sigma}-{last}.safetensors" for last in (2, 3) for sigma in ("0.1", "0.20")
    ]
    assert [product.request.settings.sigma_rel for product in recipe.products] == [0.1, 0.2, 0.1, 0.2]
    assert recipe.products[1].values == {"last": "2", "sigma-rel": "0.20"}


def test_what_the_recipe_decides_for_all_is_no_key_of_a_part():
    for text in (
        "run: {dry_run: true}",
        "outputs: {path: a, sort: name}",
        "outputs: {path: a, overwrite: true}",
    ):
        with pytest.raises(UsageError, match="is unknown"):
            read(f"inputs: x\n{text}\n")


def test_recalibrations_run_where_the_recipe_does():
    recipe = read("""
inputs: run
run: {threads: 3, overwrite: true}
outputs:
  path: a.safetensors
  recalibrate: {path: b.safetensors, model: m:f, data: m:g, size: [3, 4], mode: exact}
""")
    settings = recipe.wanted[0].recalibrate.settings(recipe.run)
    assert (settings.threads, settings.overwrite, settings.size, settings.mode) == (3, True, (3, 4), "exact")


def test_variables_that_are_declared_are_put_in(monkeypatch):
    monkeypatch.setenv("SWATOOL_TEST_RUN", "runs/7")
    recipe = read("environment: SWATOOL_TEST_RUN\ninputs: ${SWATOOL_TEST_RUN}/*.pt\noutputs: a.safetensors\n")
    assert recipe.inputs == ("runs/7/*.pt",)


def test_values_are_set_from_outside():
    text = "inputs: run\noutputs: a.safetensors\n"
    recipe = read(
        text, "outputs.0.method=ema", "outputs.0.parameters.decay=0.9", "select.last=3", "inputs=[x, y]"
    )
    settings = recipe.products[0].request.settings
    assert (settings.method, settings.decay, settings.last, recipe.inputs) == ("ema", 0.9, 3, ("x", "y"))


ONE = "inputs: run\noutputs:\n  path: a.safetensors\n"
TWO = "inputs: run\noutputs:\n- path: a.safetensors\n- path: b.safetensors\n"
EVALUATE = "evaluate: {command: 'x {path}', mode: max}\n"
MISTAKES = {
    "": "line 1: the file must be a mapping, not nothing",
    "- 1": "line 1: the file must be a mapping, not a list",
    "inputs: run": "line 1: outputs is missing",
    "outputs: a": "line 1: inputs is missing",
    "inputs: []\noutputs: a": "line 1: inputs: name at least one",
    "inputs: x\noutputs: []": "line 2: outputs: name at least one",
    "inputs: x\noutputs: 3": "outputs[0] must be a text or a mapping, not '3'",
    "inputs: x\noutputs: {method: swa}": "line 2: outputs[0].path is missing",
    "inputs: x\noutputs: ''": "outputs[0]: path is empty",
    f"{ONE}slect: {{last: 2}}": "line 4: slect is unknown; did you mean select?",
    f"{ONE}select: {{lst: 2}}": "line 4: select.lst is unknown; did you mean last?",
    f"{ONE}select: {{last: two}}": "line 4: select.last must be a whole number, not 'two'",
    f"{ONE}select:\n  last: 0": "line 5: select.last must be a whole number of at least 1, not 0",
    f"{ONE}select: {{best: 2}}": "line 4: select: best needs metric",
    f"{ONE}select: {{sort: age}}": "line 4: select.sort must be one of step, name, mtime, given, not 'age'",
    f"{ONE}policies: {{dtype: int4}}": "line 4: policies.dtype must be one of same",
    f"{ONE}policies: {{exclude: [1]}}": "policies.exclude[0] must be a text, not '1'",
    f"{ONE}read: {{variant: ''}}": "read: variant is empty",
    f"{ONE}run: {{threads: 0}}": "run.threads must be from 1",
    f"{ONE}run: {{device: tpu}}": "run.device must be cpu",
    f"{ONE}environment: [1]": "environment[0] must be a text",
    f"{ONE}evaluate: {{command: 'x {{path}}'}}": "line 4: evaluate.mode is missing",
    f"{ONE}evaluate: {{command: 'x {{path}}', mode: best}}": (
        "evaluate.mode must be one of max, min, not 'best'"
    ),
    f"{ONE}evaluate: {{command: x, mode: max}}": "line 4: evaluate: eval 'x' is neither a command",
    f"{ONE}evaluate: {{command: 'gone.py:f', mode: max}}": (
        "line 4: evaluate.command names 'gone.py', and there is no such file"
    ),
    f"{ONE}  method: emma": "not 'emma'; did you mean ema?",
    f"{ONE}  method: schedule-free": "line 4: outputs[0].method must be one of swa",
    f"{ONE}  method: schedule_free": "not 'schedule_free'; that is method lr-weighted",
    f"{ONE}  parameters: {{spacing: even}}": "parameters.spacing must be one of auto, index, steps",
    f"{ONE}  method: ema": "outputs[0]: method ema needs decay",
    f"{ONE}  method: ema\n  parameters: {{decy: 1}}": (
        "line 5: outputs[0].parameters.decy is unknown; did you mean decay?"
    ),
    f"{ONE}  method: ema\n  parameters: {{decay: x}}": (
        "line 5: outputs[0].parameters.decay must be a number, not 'x'"
    ),
    f"{ONE}  method: ema\n  parameters: {{decay: 2}}": (
        "outputs[0].parameters.decay: decay must lie in [0, 1], not 2"
    ),
    f"{ONE}  parameters: {{decay: 1}}": "decay does not belong to method swa, but to ema",
    f"{ONE}  format: gguf": "outputs[0].format must be one of safetensors",
    f"{ONE}  max_shard_size: 5MB": "'a.safetensors' is a file's name, and a folder is to be written",
    f"{ONE}  min_step: 9\n  max_step: 3": "min_step 9 is above max_step 3",
    f"{ONE}  sweep: {{decy: [1, 2]}}": "line 4: outputs[0].sweep.decy is unknown; did you mean decay?",
    f"{ONE}  sweep: {{last: [1, 2]}}": "outputs[0]: path 'a.safetensors' needs {last}",
    f"{ONE}  sweep: {{last: [[1]]}}": (
        "line 4: outputs[0].sweep.last[0] must be a text or true or false or a whole number"
    ),
    f"{TWO}  methd: ema\n- path: c.safetensors\n  check: {{worse_than: b.safetensors}}\n{EVALUATE}": (
        "line 5: outputs[1].methd is unknown; did you mean method?"
    ),
    f"{ONE}  keep: all": "outputs[0]: keep has no use without a sweep",
    f"{ONE}  check: {{worse_than: last}}": "line 4: outputs[0].check[0]: a check needs evaluate",
    f"{ONE}  check: [{{worse_than: last, bye: 1}}]": (
        "line 4: outputs[0].check[0].bye is unknown; did you mean by?"
    ),
    f"{ONE}  check: {{worse_than: last, by: -1}}": "outputs[0].check[0].by must be a finite number",
    f"{ONE}  check: {{worse_than: last, by: .nan}}": "by must be a finite number",
    f"{TWO}  check: {{worse_than: a.safetensor}}\n{EVALUATE}": (
        "line 5: outputs[1].check[0]: worse_than 'a.safetensor' is no "
        "other output's path; did you mean a.safetensors?"
    ),
    f"{TWO}  check: {{worse_than: b.safetensors}}\n{EVALUATE}": (
        "is no other output's path; did you mean a.safetensors?"
    ),
    f"{TWO}  check: {{worse_than: a.safetensors}}\n  {EVALUATE}": (
        "'a.safetensors' is evaluated in another way"
    ),
    f"{TWO}- path: ./a.safetensors": "line 5: outputs[2]: './a.safetensors' is written twice",
    f"{ONE}report: a.safetensors": "line 4: report: 'a.safetensors' is written twice",
    f"{ONE}  recalibrate: {{path: b, model: 'm:f'}}": "line 4: outputs[0].recalibrate.data is missing",
    f"{ONE}  recalibrate: {{path: b, model: 'gone.py:f', data: 'm:f'}}": (
        "line 4: outputs[0].recalibrate.model names 'gone.py', and there is no such file"
    ),
    f"{ONE}  recalibrate: {{path: b, model: 'm:f', data: 'gone.npz:x'}}": (
        "recalibrate.data names 'gone.npz', and there is no such file"
    ),
    f"{ONE}  recalibrate: {{path: b, model: 'm:f', data: 'm:g', mode: fast}}": (
        "recalibrate.mode must be one of batch"
    ),
    f"{ONE}  recalibrate: {{path: a.safetensors, model: 'm:f', data: 'm:g'}}": (
        "'a.safetensors' is written twice"
    ),
    f"{ONE}inputs: x": "line 4: 'inputs' stands twice, first in line 1",
    f"{ONE}report: &a x": "line 4: anchors (&name) are refused",
    f"{ONE}report: !!python/object/apply:os.system [x]": "line 4: tags",
    f"{ONE}report: ${{HOME}}": "line 4: ${HOME} is not declared under environment",
    f'{ONE}report: "a\\0b"': "line 4: 'a\\x00b' has a character that no name can have",
    "[" * 900: "nested more than 32 deep",  # libyaml itself refuses what is much deeper
    "x" * (2 << 20): "has more than",
}


@pytest.mark.parametrize(("text", "said"), MISTAKES.items(), ids=range(len(MISTAKES)))
def test_what_is_wrong_is_told_in_one_sentence_with_its_line(text, said):
    with pytest.raises(UsageError) as caught:
        read(text)
    message = str(caught.value)
    assert message.startswith("'r.yaml'")
    assert said in message
    assert "\n" not in message
    assert message.isprintable()


def test_an_output_under_two_names_of_one_folder_is_written_twice(folder):
    (folder / "d").mkdir()
    (folder / "e").symlink_to("d")
    text = "inputs: run\noutputs:\n- path: d/o.safetensors\n- path: e/o.safetensors\n"
    with pytest.raises(UsageError, match=r"line 4: outputs\[1\]: 'e/o.safetensors' is written twice"):
        read(text)


def test_all_mistakes_are_told_at_once():
    with pytest.raises(UsageError) as caught:
        read("""inputs: run
outputs:
- path: a.safetensors
  method: emma
- path: b.safetensors
  parameters: {decay: 0.9}
- path: a.safetensors
  check:
  - {worse_than: last}
""")
    lines = str(caught.value).splitlines()
    assert lines[0] == "'r.yaml' has 3 mistakes:"
    assert [line.split(": ")[0].strip() for line in lines[1:]] == ["line 4", "line 5", "line 9"]


def told_by(text):
    with pytest.raises(UsageError) as caught:
        read(text)
    return [line.strip() for line in str(caught.value).splitlines()[1:]]


MANY_MISTAKES = """inputs: "${NOWHERE}/*.pt"
report: a.safetensors
outputs:
- path: a.safetensors
- path: b.safetensors
  method: ema
- path: c.safetensors
  format: gguf
- path: d.safetensors
  parameters: {decay: 0.9}
"""


def test_a_mistake_hides_none_in_other_parts():
    assert told_by(f"{MANY_MISTAKES}read: {{keyy: model}}") == [
        *told_by(MANY_MISTAKES),
        "line 11: read.keyy is unknown; did you mean key?",
    ]
    assert told_by(MANY_MISTAKES) == [
        "line 1: ${NOWHERE} is not declared under environment",
        "line 2: report: 'a.safetensors' is written twice: give each output a path of its own",
        "line 5: outputs[1]: method ema needs decay",
        "line 8: outputs[2].format must be one of safetensors, pt, hf, dcp, not 'gguf'",
        "line 9: outputs[3]: decay does not belong to method swa, but to ema, ema-warmup",
    ]


@pytest.mark.parametrize("name", ["gone.yaml", "gone/r.yaml", "folder", "pipe", "bytes.yaml", "x" * 300])
def test_a_file_that_cannot_be_read_is_refused(name):
    os.mkdir("folder")
    os.mkfifo("pipe")
    with open("bytes.yaml", "wb") as file:
        file.write(b"\xff\xfe\x00")
    with pytest.raises(UsageError) as caught:
        read_recipe(name)
    assert "\n" not in str(caught.value)


def test_files_are_looked_for_in_the_recipes_folder(folder):
    os.mkdir("sub")
    open("sub/score.py", "w").close()
    with open("sub/r.yaml", "w") as file:
        file.write(f"{ONE}evaluate: {{command: 'score.py:f', mode: max}}\n")
    assert read_recipe("sub/r.yaml").evaluate.command == "score.py:f"
    assert os.getcwd() == str(folder)


def test_the_schema_describes_every_key():
    schema = recipe_schema()
    json.dumps(schema)
    assert schema["required"] == ["inputs", "outputs"]
    for definition in (schema, *schema["$defs"].values()):
        assert definition["additionalProperties"] is False
        for name, one in definition["properties"].items():
            assert one.get("description"), name


def test_the_schema_names_the_words_that_a_key_takes():
    schema = recipe_schema()
    parts = schema["$defs"]
    assert parts["Policies"]["properties"]["integers"]["enum"] == ["last", "first", "equal"]
    assert parts["Choosing"]["properties"]["sort"]["enum"] == ["step", "name", "mtime", "given"]
    output = parts["Output"]["properties"]
    assert set(output["method"]["anyOf"][0]["enum"]) == set(SCHEMES)
    assert "decay" in output["sweep"]["propertyNames"]["enum"]
    assert re.fullmatch(parts["Machine"]["properties"]["device"]["pattern"][1:-1], "cuda:1")


OUT_OF_RANGE = """inputs: run
outputs:
- path: a.safetensors
  method: ema-warmup
  parameters:
    decay: 2
    power: -1
"""


def test_every_value_out_of_range_is_told_beside_others():
    found = [
        "line 6: outputs[0].parameters.decay: decay must lie in [0, 1], not 2.0",
        "line 7: outputs[0].parameters.power: power must be a finite number above 0, not -1.0",
    ]
    assert told_by(OUT_OF_RANGE) == found
    assert told_by(f"{OUT_OF_RANGE}select: {{last: 0, every: -1, firts: 3}}\nrun: {{threads: 0}}\n") == [
        *found,
        "line 8: select.every must be a whole number of at least 1, not -1",
        "line 8: select.firts is unknown; did you mean first?",
        "line 8: select.last must be a whole number of at least 1, not 0",
        "line 9: run.threads must be from 1 to 1,024, not 0",
    ]


def test_what_plain_data_needs_not_hides_no_other_mistake():
    assert told_by("""inputs: &run run
inputs: other
select: {last: *run, <<: {first: 2}}
read: !!map {key: m}
outputs:
- path: !!str a
- path: b
  methd: ema
""") == [
        "line 1: anchors (&name) are refused: write the value where it is needed",
        "line 2: 'inputs' stands twice, first in line 1",
        "line 3: aliases (*name) are refused: write the value again",
        "line 3: merging (<<) is refused: write the values again",
        "line 4: tags ('tag:yaml.org,2002:map') are refused: write plain values",
        "line 6: tags ('tag:yaml.org,2002:str') are refused: write plain values",
        "line 8: outputs[1].methd is unknown; did you mean method?",
    ]


def test_what_is_wrong_on_the_command_line_is_told_with_the_file():
    with open("r.yaml", "w") as file:
        file.write("inputs: run\noutputs: {path: a, methd: ema}\n")
    with pytest.raises(UsageError) as caught:
        read_recipe("r.yaml", ["select.lst=3", "foo=1", "outputs.path=b"])
    assert [line.strip() for line in str(caught.value).splitlines()] == [
        "'r.yaml' has 3 mistakes:",
        "--set foo: foo is unknown; there are environment, inputs, read, select, policies, run, evaluate, "
        "outputs, report",
        "--set select.lst: lst is unknown; did you mean last?",
        "line 2: outputs[0].methd is unknown; did you mean method?",
    ]


def test_what_is_wrong_between_values_is_told_where_each_is_right():
    assert "metrics has no use without best" in mistake("inputs: run\nselect: {metrics: m.csv}\noutputs: a")
    assert mistake("inputs: run\nselect: {metrics: m.csv, last: 0}\noutputs: a") == (
        "'r.yaml', line 2: select.last must be a whole number of at least 1, not 0"
    )


def mistake(text):
    with pytest.raises(UsageError) as caught:
        read(text)
    return str(caught.value)


def test_a_variable_may_stand_for_a_number_or_a_flag(monkeypatch):
    monkeypatch.setenv("N", "3")
    monkeypatch.setenv("FLAG", "true")
    recipe = read(
        "environment: [N, FLAG]\ninputs: run/${N}\nselect: {last: '${N}'}\nrun: {overwrite: '${FLAG}'}\n"
        "outputs: {path: '${N}', method: ema, parameters: {decay: '0.${N}'}}"
    )
    assert (recipe.select.last, recipe.run.overwrite, recipe.inputs) == (3, True, ("run/3",))
    assert recipe.wanted[0].path == "3"
    assert recipe.wanted[0].parameters.decay == 0.3
    monkeypatch.setenv("N", "three")
    assert "select.last must be a whole number, not 'three'" in mistake(
        "environment: N\ninputs: run\nselect: {last: '${N}'}\noutputs: a"
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("environment: ['1 2']\ninputs: run\noutputs: a", "line 1: environment[0]: '1 2' is no name"),
        ("inputs: run\noutputs: 'a-{last}'", "'a-{last}' has {last}, and nothing is swept"),
        (
            "inputs: run\noutputs: {path: 'a-{last}', last: 3, sweep: {last: [2]}}",
            "last is swept, and has a value of its own",
        ),
        (
            "inputs: run\noutputs: {path: 'a-{decay}', method: ema, parameters: {decay: 0.5}, "
            "sweep: {decay: [0.9]}}",
            "decay is swept, and has a value of its own",
        ),
        (
            "inputs: run\noutputs: {path: 'a-{decay}', method: ema, sweep: {decay: [0.9, 2]}}",
            "line 2: outputs[0]: decay must lie in [0, 1], not 2",
        ),
    ],
)
def test_places_and_names(text, said):
    with pytest.raises(UsageError) as caught:
        read(text)
    assert said in str(caught.value)
