"""A recipe as a whole: what it reads and writes, what it is compared with, and what stops it."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

import swatool
from swatool.errors import CheckpointError, DataError, MismatchError, OutputError, UsageError
from swatool.jobs import recipes as module
from swatool.jobs.recalibrate_report import RecalibrationReport
from swatool.jobs.recipe_report import CheckReport, EvaluationReport, RecipeReport
from swatool.jobs.recipes import run_recipe

CODE = """
import torch
from torch import nn
from safetensors.torch import load_file

evaluated = []

def build():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))

def data():
    return torch.randn(40, 3, generator=torch.Generator().manual_seed(0)).split(20)

def broken_data():
    return [torch.full((4, 3), float("nan"))]

def score(path):
    # The first weight of the first layer: known in advance.
    evaluated.append(path)
    print("scoring", path)
    if path.endswith(".safetensors"):
        return {"w": load_file(path)["0.weight"][0, 0].item(), "other": 7.0}
    return {"w": torch.load(path)["model"]["0.weight"][0, 0].item(), "other": 7.0}

def fails(path):
    raise RuntimeError("no GPU\\nat all")
"""
EVALUATE = "evaluate: {command: 'mine.py:score', metric: w, mode: max}\n"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A run whose first weight is the step: 1, 2, 3, 4."""
    monkeypatch.chdir(tmp_path)
    os.mkdir("run")
    with open("mine.py", "w") as file:
        file.write(CODE)
    generator = torch.Generator().manual_seed(0)
    for step in (1, 2, 3, 4):
        state = {
            "0.weight": torch.randn(4, 3, generator=generator),
            "0.bias": torch.zeros(4),
            "1.weight": torch.ones(4),
            "1.bias": torch.zeros(4),
            "1.running_mean": torch.zeros(4),
            "1.running_var": torch.ones(4),
            "1.num_batches_tracked": torch.tensor(step),
        }
        state["0.weight"][0, 0] = step
        torch.save({"model": state, "step": step}, f"run/ckpt-{step}.pt")
    return tmp_path


def run(text, **options):
    with open("r.yaml", "w") as file:
        file.write(f"inputs: run/*.pt\n{text}")
    return run_recipe("r.yaml", **options)


def listing():
    return sorted(
        str(path) for path in Path().rglob("*") if path.is_file() and "__pycache__" not in str(path)
    )


def same(one, other):
    return Path(one).read_bytes() == Path(other).read_bytes()


def test_outputs_are_those_of_average():
    run("outputs: [a.safetensors, {path: b.safetensors, method: ema, parameters: {decay: 0.5}, last: 3}]")
    swatool.average("run/*.pt", "a2.safetensors")
    swatool.average("run/*.pt", "b2.safetensors", method="ema", decay=0.5, last=3)
    assert same("a.safetensors", "a2.safetensors")
    assert same("b.safetensors", "b2.safetensors")


def test_averages_of_one_type_are_made_from_one_read(monkeypatch):
    calls = []

    def counting(checkpoints, requests, **options):
        calls.append([(one.output, one.settings.dry_run) for one in requests])
        return real(checkpoints, requests, **options)

    real = module.average_all
    monkeypatch.setattr(module, "average_all", counting)
    run("outputs: [a.safetensors, {path: 'b-{last}.pt', sweep: {last: [2, 3]}}]")
    assert calls == [[("a.safetensors", False), ("b-2.pt", False), ("b-3.pt", False)]]
    calls.clear()
    run("outputs: [c.safetensors, {path: d.safetensors, dtype: bfloat16}, e/]")
    first, second = ["c.safetensors", "e/"], ["d.safetensors"]
    assert calls == [[(one, dry) for one in group] for dry in (True, False) for group in (first, second)]
    swatool.average("run/*.pt", "d2.safetensors", dtype="bfloat16")
    assert same("d.safetensors", "d2.safetensors")


def test_nothing_is_made_if_one_of_several_reads_does_not_fit():
    with pytest.raises(UsageError, match="needs at least two"):
        run("outputs: [c.safetensors, {path: d.safetensors, dtype: bfloat16, last: 1}]")
    assert not os.path.exists("c.safetensors")


def test_a_dry_run_tells_everything_and_writes_and_runs_nothing():
    with open("mine.py", "a") as file:
        file.write("open('ran', 'w').close()\n")
    before = [*listing(), "r.yaml"]
    plans, parts = [], []
    report = run(
        f"""{EVALUATE}outputs:
- path: a.safetensors
  recalibrate: {{path: a-bn.safetensors, model: mine.py:build, data: mine.py:data}}
  check: {{worse_than: last}}
- {{path: b.safetensors, dtype: float16}}
report: report.json
""",
        dry_run=True,
        on_plan=plans.append,
        on_part=parts.append,
    )
    assert listing() == sorted(before)
    assert (report.dry_run, report.passed, parts) == (True, True, [])
    assert [one.average.output.path for one in plans[0].outputs] == ["a.safetensors", "b.safetensors"]
    assert all(one.average.estimate for one in report.outputs)
    assert report.outputs[0].recalibrated == "a-bn.safetensors"


def test_everything_in_turn(capsys):
    parts = []
    report = run(
        f"""{EVALUATE}outputs:
- path: swa.safetensors
  recalibrate: {{path: swa-bn.safetensors, model: mine.py:build, data: mine.py:data, mode: exact}}
  check: [{{worse_than: last, by: 1.5}}, {{worse_than: 'ema-{{decay}}.safetensors', by: 1}}]
- path: ema-{{decay}}.safetensors
  method: ema
  sweep: {{decay: [0.5, 0.1, 0.9]}}
report: report.json
""",
        on_part=parts.append,
    )
    assert [type(part) for part in parts] == [
        *(RecipeReport, RecalibrationReport),
        *([EvaluationReport] * 5),
        *([CheckReport] * 2),
    ]
    assert capsys.readouterr().err.count("scoring") == 5
    swatool.recalibrate_checkpoint(
        "swa.safetensors", "bn2.safetensors", model="mine.py:build", data="mine.py:data", mode="exact"
    )
    assert same("swa-bn.safetensors", "bn2.safetensors")
    values = {one.average.output.path: one.evaluation.value for one in report.outputs}
    ema = [0.5**3 * 1 + 0.5**3 * 2 + 0.25 * 3 + 0.5 * 4, 0.1**3 + 0.9 * (0.01 * 2 + 0.1 * 3 + 4)]
    assert list(values) == ["swa.safetensors", *(f"ema-{decay}.safetensors" for decay in (0.1, 0.5, 0.9))]
    assert values["swa.safetensors"] == 2.5
    assert values["ema-0.5.safetensors"] == pytest.approx(ema[0])
    assert values["ema-0.1.safetensors"] == pytest.approx(ema[1])
    assert [one.kept for one in report.outputs] == [True, True, False, False]
    assert not os.path.exists("ema-0.5.safetensors")
    assert os.path.exists("ema-0.1.safetensors")
    assert [(one.path, one.value) for one in report.references] == [("run/ckpt-4.pt", 4.0)]
    assert [(one.worse_than, one.passed) for one in report.checks] == [
        ("run/ckpt-4.pt", True),
        ("ema-0.1.safetensors", False),
    ]
    assert report.failures == (
        f"'swa-bn.safetensors' is 2.5, and must not be worse than the {ema[1]:.6g} of 'ema-0.1.safetensors' "
        "by more than 1",
    )
    assert not report.passed
    written = json.loads(Path("report.json").read_text())
    assert written["recipe"]["outputs"][1]["sweep"] == {"decay": [0.5, 0.1, 0.9]}
    assert written == json.loads(json.dumps(report.as_json()))


@pytest.mark.parametrize(
    ("mode", "by", "passed"), [("max", 1.4, False), ("max", 1.5, True), ("min", 0, True), ("max", 0, False)]
)
def test_a_check_is_in_the_direction_of_the_metric(mode, by, passed):
    evaluate = EVALUATE.replace("max", mode)
    report = run(f"{evaluate}outputs: {{path: a.safetensors, check: {{worse_than: last, by: {by}}}}}")
    assert report.passed is passed
    assert os.path.exists("a.safetensors")


def test_the_smallest_is_best_where_that_is_said():
    evaluate = EVALUATE.replace("max", "min")
    report = run(
        f"{evaluate}outputs: {{path: 'a-{{last}}.safetensors', sweep: {{last: [2, 4, 3]}}, keep: all}}"
    )
    assert [one.values["last"] for one in report.outputs] == ["4", "3", "2"]
    assert all(one.kept and os.path.exists(one.average.output.path) for one in report.outputs)


def test_of_a_sweep_the_files_with_new_statistics_go_with_their_averages():
    report = run(
        f"""{EVALUATE}outputs:
  path: a-{{last}}/
  sweep: {{last: [4, 2]}}
  recalibrate: {{path: 'a-{{last}}.safetensors', model: mine.py:build, data: mine.py:data}}
"""
    )
    assert [one.recalibrated for one in report.outputs] == ["a-2.safetensors", "a-4.safetensors"]
    assert sorted(path for path in os.listdir() if path.startswith("a-")) == ["a-2", "a-2.safetensors"]


def test_an_evaluation_that_fails_removes_nothing_and_is_reported():
    report = run(
        """evaluate: {command: 'mine.py:fails', mode: max}
outputs: {path: 'a-{last}.safetensors', sweep: {last: [4, 2]}, check: {worse_than: last}}
report: report.json
"""
    )
    assert report.failures == (
        "--eval 'mine.py:fails' failed on 'a-4.safetensors': RuntimeError: no GPU; -v shows where; "
        "all that was written is kept",
    )
    assert os.path.exists("a-4.safetensors")
    assert os.path.exists("a-2.safetensors")
    assert json.loads(Path("report.json").read_text())["passed"] is False


@pytest.mark.parametrize("existing", ["a.safetensors", "a-bn.safetensors", "report.json", "b-2.safetensors"])
def test_what_exists_is_refused_before_anything_is_read(existing, monkeypatch):
    text = """outputs:
- path: a.safetensors
  recalibrate: {path: a-bn.safetensors, model: mine.py:build, data: mine.py:data}
- {path: 'b-{last}.safetensors', sweep: {last: [2, 3]}}
report: report.json
"""
    Path(existing).write_text("mine")
    with monkeypatch.context() as patched:
        patched.setattr(module, "average_all", None)
        with pytest.raises(UsageError, match=f"'{existing}' exists: set run.overwrite to true"):
            run(text)
    assert Path(existing).read_text() == "mine"


def test_overwriting_is_asked_for():
    for name in ("a.safetensors", "report.json"):
        Path(name).write_text("mine")
    run("run: {overwrite: true}\noutputs: a.safetensors\nreport: report.json")
    assert load_file("a.safetensors")["0.weight"][0, 0] == 2.5
    assert json.loads(Path("report.json").read_text())["command"] == "run"


@pytest.mark.parametrize(
    "text",
    [
        "outputs: a.safetensors\nreport: run/ckpt-1.pt",
        "outputs: run/ckpt-1.pt",
        "outputs: {path: a.safetensors, recalibrate: {path: run/ckpt-1.pt, model: m:build, data: m:data}}",
    ],
)
def test_an_input_is_never_replaced(text):
    before = Path("run/ckpt-1.pt").read_bytes()
    with pytest.raises(UsageError, match="is one of the inputs"):
        run(f"run: {{overwrite: true}}\n{text}")
    assert Path("run/ckpt-1.pt").read_bytes() == before
    assert not os.path.exists("a.safetensors")


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("outputs: gone/a.safetensors", OutputError, "gone"),
        ("outputs: a.safetensors\nreport: gone/r.json", OutputError, "gone"),
        (
            "outputs: a.safetensors\nevaluate: {command: 'no-such-program {path}', mode: max}",
            UsageError,
            "no such program",
        ),
        (
            "outputs: a.safetensors\nevaluate: {command: 'mine.py:scor', mode: max}",
            UsageError,
            "did you mean score",
        ),
        (
            "outputs: a.safetensors\nevaluate: {command: 'no.such:f', mode: max}",
            UsageError,
            "there is no module",
        ),
        ("outputs: a.safetensors\nselect: {last: 1}", UsageError, "at least two"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_written(text, error, said):
    before = [*listing(), "r.yaml"]
    with pytest.raises(error, match=said):
        run(text)
    assert listing() == sorted(before)


def test_inputs_that_match_nothing():
    with open("r.yaml", "w") as file:
        file.write("inputs: gone/*.pt\noutputs: a.safetensors")
    with pytest.raises(CheckpointError, match=r"no file matches 'gone/\*\.pt'"):
        run_recipe("r.yaml")


def test_a_recalibration_that_fails_leaves_what_was_published():
    with pytest.raises(DataError):
        run(
            "outputs:\n  path: a.safetensors\n"
            "  recalibrate: {path: b.safetensors, model: mine.py:build, data: mine.py:broken_data}"
        )
    assert os.path.exists("a.safetensors")
    assert not os.path.exists("b.safetensors")


@pytest.mark.parametrize(
    ("model", "data", "more", "error"),
    [
        ("mine.py:biuld", "mine.py:data", "", UsageError),
        ("mine.py:build", "mine.py:data", ", model_arguments: {depth: 3}", UsageError),
        ("mine.py:build", "mine.py:dta", "", UsageError),
        ("mine.py:build", "broken.npz:x", "", DataError),
        ("mine.py:build", "mine.py:data", ", forward: 'mine.py:gone'", UsageError),
        ("mine.py:build", "mine.py:data", ", evaluate: 'mine.py:gone'", UsageError),
    ],
)
def test_a_recalibration_that_cannot_begin_is_refused_before_the_average(model, data, more, error):
    Path("broken.npz").write_bytes(b"PK")
    with pytest.raises(error):
        run(
            "outputs:\n  path: a.safetensors\n"
            f"  recalibrate: {{path: b.safetensors, model: '{model}', data: '{data}'{more}}}"
        )
    assert not os.path.exists("a.safetensors")


def test_other_metrics_are_not_compared():
    with open("flip.py", "w") as file:
        file.write(
            "def score(path):\n    return {'acc': 0.3} if path == 'a.safetensors' else {'loss': 0.2}\n"
        )
    report = run(
        "outputs: {path: a.safetensors, check: {worse_than: last}}\n"
        "evaluate: {command: 'flip.py:score', mode: max}\n"
    )
    (failure,) = report.failures
    assert "gives 'acc' of 'a.safetensors' and 'loss' of" in failure


def test_a_flag_is_swept():
    report = run(
        "outputs:\n  {path: 'a-{debias}.pt', method: ema, parameters: {decay: 0.5},"
        " sweep: {debias: [true, false]}}"
    )
    assert [one.average.output.path for one in report.outputs] == ["a-true.pt", "a-false.pt"]


def test_paths_are_those_of_the_recipes_folder_and_the_current_one_stays(folder, monkeypatch):
    with open("r.yaml", "w") as file:
        file.write(f"inputs: run\n{EVALUATE}outputs: a.safetensors\nreport: report.json")
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    report = run_recipe("../r.yaml")
    assert os.getcwd() == str(folder / "elsewhere")
    assert os.listdir() == []
    assert report.outputs[0].average.output.path == "a.safetensors"
    assert {"a.safetensors", "report.json"} <= set(os.listdir(folder))


def test_a_command_is_run_in_the_recipes_folder(folder, monkeypatch):
    with open("r.yaml", "w") as file:
        file.write(
            "inputs: run\noutputs: a.safetensors\n"
            "evaluate: {command: 'sh -c \"test -e run; echo $?\" {path}', mode: max}"
        )
    monkeypatch.chdir("/")
    assert run_recipe(folder / "r.yaml").outputs[0].evaluation.value == 0


def test_whatever_stops_it_by_force_tells_what_was_written():
    def stop(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        run("outputs: [a.safetensors, b/]", on_part=stop)
    assert caught.value.__notes__ == ["written before that: 'a.safetensors', 'b/'"]
    with pytest.raises(KeyboardInterrupt) as caught:
        run("outputs: c.safetensors", on_plan=stop)
    assert caught.value.__notes__ == ["no output was written"]


def test_progress_goes_on_from_one_read_to_the_next(monkeypatch):
    def telling(checkpoints, requests, on_plan=None, on_progress=None):
        if on_progress is not None:
            on_progress(10)
        return real(checkpoints, requests, on_plan=on_plan)

    real = module.average_all
    monkeypatch.setattr(module, "average_all", telling)
    seen = []
    report = run("outputs: [c.safetensors, {path: d.safetensors, dtype: bfloat16}]", on_progress=seen.append)
    assert seen == [10, 10 + report.outputs[0].average.bytes_read]


def test_an_infinite_value_is_null_in_the_report():
    evaluation = EvaluationReport("a", float("inf"), {"x": float("nan")})
    report = RecipeReport("0", "run", False, "r", (), {}, (), references=(evaluation,))
    assert report.as_json()["references"] == [{"path": "a", "value": None, "metrics": {"x": None}}]


@pytest.mark.parametrize("name", ["r.yaml", "score.py"])
def test_neither_the_recipe_nor_what_it_names_is_written_over(tmp_path, name):
    for step in range(2):
        torch.save({"w": torch.ones(2) * step}, tmp_path / f"{step}.safetensors")
    (tmp_path / "score.py").write_text("def score(path):\n    return 1.0\n")
    text = (
        "inputs: '*.safetensors'\nrun: {overwrite: true}\nevaluate: {command: 'score.py:score', mode: max}\n"
        f"outputs: {{path: out.pt}}\nreport: {name}\n"
    )
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(UsageError, match="is the recipe, or what it names"):
        run_recipe(tmp_path / "r.yaml")
    assert (tmp_path / "r.yaml").read_text() == text
    assert not (tmp_path / "out.pt").exists()


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("code.py", "recalibrate: {path: bn.pt, model: 'm:f', data: 'd:f', forward: 'code.py:f'}"),
        ("code.py", "recalibrate: {path: bn.pt, model: 'm:f', data: 'd:f', evaluate: 'code.py:f'}"),
        ("like.pt", "like: like.pt"),
        ("folder/part", "like: folder"),
    ],
)
def test_what_only_an_output_names_is_not_written_over(tmp_path, name, named):
    (tmp_path / "folder").mkdir()
    for file in ("0.safetensors", "like.pt", "folder/part"):
        torch.save({"w": torch.ones(2)}, tmp_path / file)
    (tmp_path / "code.py").write_text("def f(*_): pass\n")
    before = (tmp_path / name).read_bytes()
    (tmp_path / "r.yaml").write_text(
        f"inputs: '*.safetensors'\nrun: {{overwrite: true}}\nreport: {name}\n"
        f"outputs: {{path: out.pt, {named}}}\n"
    )
    with pytest.raises(UsageError, match="is the recipe, or what it names"):
        run_recipe(tmp_path / "r.yaml")
    assert (tmp_path / name).read_bytes() == before


PLANNED = """inputs:
- run/*.pt
- nodir/
- gone-*.pt
evaluate: {command: 'no-such-program {path}', mode: max}
outputs:
- path: a.pt
  like: gone.ckpt
- path: exists.safetensors
- path: c.safetensors
  evaluate: {command: 'no.such.module:f', mode: max}
  recalibrate:
    path: c-bn.safetensors
    model: no.such.model:build
    data: no.such.data:batches
"""


def test_mistakes_that_only_the_files_show_are_told_at_once_with_their_lines():
    Path("exists.safetensors").write_text("mine")
    with open("r.yaml", "w") as file:
        file.write(PLANNED)
    with pytest.raises(UsageError) as caught:
        run_recipe("r.yaml", dry_run=True)
    told = [line.strip() for line in str(caught.value).splitlines()]
    assert told[0] == "'r.yaml' has 8 mistakes:"
    for line, said in zip(
        told[1:],
        [
            "line 3: inputs[1]: there is no 'nodir/'",
            "line 4: inputs[2]: no file matches 'gone-*.pt'",
            "line 5: evaluate.command: command 'no-such-program {path}': there is no such program",
            "line 8: outputs[0].like: there is no 'gone.ckpt'",
            "line 9: outputs[1]: 'exists.safetensors' exists: set run.overwrite to true",
            "line 11: outputs[2].evaluate.command: command 'no.such.module:f': there is no module 'no'",
            "line 14: outputs[2].recalibrate.model: model 'no.such.model:build': there is no module 'no'",
            "line 15: outputs[2].recalibrate.data: data 'no.such.data:batches': there is no module 'no'",
        ],
        strict=True,
    ):
        assert line.startswith(said)
    assert listing() == sorted([*(f"run/ckpt-{n}.pt" for n in (1, 2, 3, 4)), *LEFT])


LEFT = ("exists.safetensors", "mine.py", "r.yaml")


def test_a_dry_run_finds_a_module_without_importing_it():
    os.makedirs("package/inner")
    for name in ("package/__init__.py", "package/inner/__init__.py", "package/inner/scores.py"):
        Path(name).write_text("raise RuntimeError('imported')\n")
    text = "outputs: a.safetensors\nevaluate: {command: 'package.inner.scores:f', mode: max}"
    assert run(text, dry_run=True).dry_run
    with pytest.raises(UsageError, match=r"there is no module 'package\.inner\.score'"):
        run(text.replace("scores", "score"), dry_run=True)


def test_a_recalibration_that_fails_is_told_in_the_report():
    with pytest.raises(DataError) as caught:
        run(
            "outputs:\n- path: a.safetensors\n"
            "  recalibrate: {path: b.safetensors, model: mine.py:build, data: mine.py:data}\n"
            "- path: c.safetensors\n"
            "  recalibrate: {path: d.safetensors, model: mine.py:build, data: mine.py:broken_data}\n"
            "report: report.json"
        )
    told = json.loads(Path("report.json").read_text())
    assert told == caught.value.report.as_json()
    assert told["failures"] == [str(caught.value)]
    assert [one["recalibration"] is None for one in told["outputs"]] == [False, True]
    assert not told["passed"]
    assert sorted(name for name in os.listdir() if name.endswith(".safetensors")) == [
        *("a.safetensors", "b.safetensors", "c.safetensors")
    ]


def test_a_sweep_whose_evaluation_changes_its_number_removes_nothing():
    with open("flip.py", "w") as file:
        file.write("def score(path):\n    return {'acc' if '2' in path else 'loss': 0.2}\n")
    report = run(
        "outputs: {path: 'a-{last}.safetensors', sweep: {last: [2, 3]}}\n"
        "evaluate: {command: 'flip.py:score', mode: max}\n"
    )
    (failure,) = report.failures
    assert "gives 'acc' of 'a-2.safetensors' and 'loss' of 'a-3.safetensors'" in failure
    assert {"a-2.safetensors", "a-3.safetensors"} <= set(os.listdir())


def test_a_model_that_does_not_fit_is_refused_before_the_average():
    with open("other.py", "w") as file:
        file.write("from torch import nn\ndef build():\n    return nn.Sequential(nn.BatchNorm1d(4))\n")
    before = [*listing(), "r.yaml"]
    with pytest.raises(MismatchError, match=r"'a\.safetensors' would not fit the model") as caught:
        run(
            "outputs:\n  path: a.safetensors\n"
            "  recalibrate: {path: b.safetensors, model: other.py:build, data: mine.py:data}"
        )
    assert set(caught.value.differences) == {
        *(
            f"'0.{name}' of the model is missing in the checkpoint"
            for name in ("running_mean", "running_var")
        ),
        *(f"'1.{name}' of the checkpoint is missing in the model" for name in ONE_LAYER),
    }
    assert listing() == sorted(before)


NEEDED = ("running_mean", "running_var")
ONE_LAYER = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def test_what_does_not_fit_together_is_refused_before_anything_is_made(monkeypatch):
    size = os.path.getsize(average_of("run/*.pt"))
    text = (
        "outputs:\n- {path: a.safetensors, dtype: float32}\n- {path: b.safetensors, dtype: bfloat16}\n"
        "- path: c.safetensors\n"
        "  recalibrate: {path: d.safetensors, model: mine.py:build, data: mine.py:data}\n"
    )
    room = SimpleNamespace(f_bavail=3 * size, f_frsize=1, f_blocks=10 * size)
    monkeypatch.setattr("swatool.output.unfinished.os.statvfs", lambda _: room)
    before = [*listing(), "r.yaml"]
    with pytest.raises(OutputError, match="bytes are needed"):
        run(text)
    assert listing() == sorted(before)
    assert any("all together: cannot write" in one for one in run(text, dry_run=True).warnings)
    room.f_bavail = 10 * size
    assert run(text).passed


def average_of(pattern):
    swatool.average(pattern, "measured.safetensors")
    return "measured.safetensors"


def test_averages_of_another_type_that_fail_leave_a_report():
    state = torch.load("run/ckpt-1.pt")
    state["model"]["0.weight"][0, 0] = 1e6
    torch.save(state, "run/ckpt-1.pt")
    with pytest.raises(CheckpointError, match="too large for float16") as caught:
        run("outputs:\n- a.safetensors\n- {path: b.safetensors, dtype: float16}\nreport: report.json\n")
    told = json.loads(Path("report.json").read_text())
    assert told == caught.value.report.as_json()
    assert [one["average"]["dry_run"] for one in told["outputs"]] == [False, True]
    assert (told["failures"], told["dry_run"]) == ([str(caught.value)], False)
    assert os.path.exists("a.safetensors")
    assert not os.path.exists("b.safetensors")


def test_outputs_that_cannot_be_planned_are_told_together_with_their_lines():
    with pytest.raises(OutputError) as caught:
        run(
            "outputs:\n- {path: a.safetensors, method: lr-weighted}\n- b.safetensors\n"
            "- {path: c.safetensors, method: difference}\n- nodir/d.safetensors\n"
        )
    assert "line 6: outputs[3]: cannot write 'nodir/d.safetensors': there is no folder" in str(caught.value)
    with pytest.raises(UsageError) as caught:
        run(
            "outputs:\n- {path: a.safetensors, method: lr-weighted}\n- b.safetensors\n"
            "- {path: c.safetensors, method: difference}\n"
        )
    told = [line.strip() for line in str(caught.value).splitlines()]
    assert told[0] == "'r.yaml' has 2 mistakes:"
    assert told[1].startswith("line 3: outputs[0]: method lr-weighted needs learning rates")
    assert told[2] == "line 5: outputs[2]: method difference takes two running means, not 4"
