"""Several averages from one read: each as if it had been made alone, all published or none."""

import os
import pathlib
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

import swatool
from swatool.errors import CheckFailedError, MismatchError, OutputError, UsageError
from swatool.jobs import average as average_module
from swatool.jobs.average import AverageSettings, average
from swatool.jobs.scoring import Scoring
from swatool.jobs.sweep_average import average_sweep

DTYPES = (torch.float32, torch.bfloat16, torch.float64, torch.complex64)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run():
    """Ten checkpoints with tensors of all kinds, some shared, some strided."""
    os.mkdir("run")
    generator = torch.Generator().manual_seed(0)
    for step in range(10):
        state = {f"w{i}": torch.randn(7, 5 + i, generator=generator).to(d) for i, d in enumerate(DTYPES)}
        state["large"] = torch.randn(700, 300, generator=generator)
        state["turned"] = torch.randn(40, 30, generator=generator).t()
        state["tied"] = state["w0"]
        state["count"] = torch.tensor(step)
        state["mask"] = torch.tensor([True, step > 4])
        torch.save({"state_dict": state, "step": step, "acc": float(step % 4)}, f"run/ckpt-{step}.pt")
    return "run"


AXES = [
    ["last=2,3,5,9"],
    ["decay=0.5,0.9,1"],
    ["first=2,7", "last=2,3"],
    ["every=1,2,3"],
    ["method=swa,wma,ema-warmup"],
    ["best=2,5"],
    ["sigma-rel=0.1,0.2"],
    ["min-step=0,4", "max-step=7,9"],
]


@pytest.mark.parametrize("axes", AXES, ids=" ".join)
@pytest.mark.parametrize("options", [{}, {"dtype": "bfloat16"}, {"integers": "first", "exclude": ("w1",)}])
def test_each_is_byte_for_byte_what_it_is_alone(run, axes, options):
    method = {"decay": "ema", "sigma-rel": "power-ema"}.get(axes[0].partition("=")[0])
    settings = AverageSettings(method=method, metric="acc", mode="max", threads=2, **options)
    template = "-".join(f"{{{axis.partition('=')[0]}}}" for axis in axes) + ".safetensors"
    found = average_sweep(run, template, axes, settings=settings)
    assert len(found.outputs) > 1
    for one in found.outputs:
        path = one.report.output.path
        values = {name.replace("-", "_"): value for name, value in one.values.items()}
        typed = {name: value if name == "method" else type_of(name)(value) for name, value in values.items()}
        alone = average(
            run,
            f"alone-{path}",
            method=typed.pop("method", method),
            metric="acc",
            mode="max",
            **typed,
            **options,
        )
        assert pathlib.Path(path).read_bytes() == pathlib.Path(f"alone-{path}").read_bytes()
        assert one.report.checkpoints == alone.checkpoints
        assert one.report.figures == alone.figures
        assert one.report.tensors == alone.tensors


def type_of(name):
    return float if name in ("decay", "sigma_rel") else int


@pytest.mark.parametrize("suffix", [".pt", "/"])
def test_other_formats(run, suffix):
    settings = AverageSettings(max_shard_size=200_000 if suffix == "/" else None)
    found = average_sweep(run, "{last}" + suffix, ["last=2,5"], settings=settings)
    for one in found.outputs:
        alone = f"alone-{one.values['last']}{suffix}"
        average(run, alone, last=int(one.values["last"]), max_shard_size=settings.max_shard_size)
        assert swatool.diff(one.report.output.path, alone).identical


def test_inputs_are_read_once(run):
    def read(axes, template):
        return average_sweep(run, template, axes, settings=AverageSettings()).outputs[0].report.bytes_read

    assert read(["last=10,9,8"], "{last}") == read([], "alone")


def test_wide_sums_of_one_change_nothing_of_the_others():
    os.mkdir("two")
    for step in (0, 1):
        save_file({"w": torch.randn(1000) + step}, f"two/{step}.safetensors")
    settings = AverageSettings(method="extrapolate")
    found = average_sweep("two", "{factor}", ["factor=0.1,50"], settings=settings)
    assert [one.report.figures.l1 > 20 for one in found.outputs] == [False, True]
    average("two", "alone", method="extrapolate", factor=0.1)
    average("two", "alone-50", method="extrapolate", factor=50.0)
    assert pathlib.Path("0.1").read_bytes() == pathlib.Path("alone").read_bytes()
    assert pathlib.Path("50").read_bytes() == pathlib.Path("alone-50").read_bytes()
    wide = (
        load_file("two/1.safetensors")["w"].double() * 51 - load_file("two/0.safetensors")["w"].double() * 50
    )
    assert torch.equal(load_file("50")["w"], wide.float())


def test_a_failure_publishes_none(run, monkeypatch):
    publish = average_module.publish_all

    def fail_at_the_last(pending):
        original = pending[-1].publish

        def fails():
            raise OutputError("no more")

        pending[-1].publish = fails
        try:
            return publish(pending)
        finally:
            pending[-1].publish = original

    monkeypatch.setattr(average_module, "publish_all", fail_at_the_last)
    with pytest.raises(OutputError, match="no more"):
        average_sweep(run, "{last}.pt", ["last=2,3,4"], settings=AverageSettings())
    assert os.listdir() == ["run"]
    with pytest.raises(OutputError, match="no more"):
        average_sweep(run, "{last}/", ["last=2,3,4"], settings=AverageSettings())
    assert os.listdir() == ["run"]


def test_one_output_that_exists_stops_all(run):
    open("3.pt", "w").close()
    with pytest.raises(UsageError, match=r"'3\.pt' exists"):
        average_sweep(run, "{last}.pt", ["last=2,3"], settings=AverageSettings())
    assert sorted(os.listdir()) == ["3.pt", "run"]


def test_names_that_differ(run):
    torch.save({"state_dict": {"other": torch.ones(3)}, "step": 10}, "run/ckpt-10.pt")
    settings = AverageSettings(match="union")
    with pytest.raises(MismatchError, match="several averages at a time"):
        average_sweep(run, "{last}.pt", ["last=2,3"], settings=settings)
    assert os.listdir() == ["run"]


def test_a_dry_run_plans_all(run):
    plans = []
    found = average_sweep(
        run, "{last}.pt", ["last=2,3"], settings=AverageSettings(dry_run=True), on_plan=plans.append
    )
    assert found.dry_run
    assert [len(one.report.checkpoints) for one in found.outputs] == [2, 3]
    assert plans == [found]
    assert os.listdir() == ["run"]


EVALUATIONS = """
from safetensors.torch import load_file

def size(path):
    return {"first": float(load_file(path)["w"][0]), "other": 1.0}

def fails_on_4(path):
    if "4" in path:
        raise ValueError("four")
    return 1.0
"""


@pytest.fixture
def numbers(folder):
    os.mkdir("numbers")
    for step in range(5):
        save_file({"w": torch.full((3,), float(step))}, f"numbers/{step}.safetensors")
    (folder / "evaluations.py").write_text(EVALUATIONS)
    return "numbers"


@pytest.mark.parametrize(
    ("mode", "order", "best"), [("max", ["2", "3", "5"], "2.st"), ("min", ["5", "3", "2"], "5.st")]
)
@pytest.mark.parametrize("keep", ["best", "all"])
def test_the_best_comes_first_and_is_kept(numbers, mode, order, best, keep):
    scoring = Scoring(evaluate="evaluations.py:size", metric="first", mode=mode)
    told = []
    found = average_sweep(
        numbers,
        "{last}.st",
        ["last=3,5,2"],
        settings=AverageSettings(format="safetensors"),
        scoring=scoring,
        keep=keep,
        on_score=told.append,
    )
    assert [one.values["last"] for one in found.outputs] == order
    assert [one.values["last"] for one in told] == ["3", "5", "2"]
    assert [one.kept for one in found.outputs] == [True, keep == "all", keep == "all"]
    kept = sorted(name for name in os.listdir() if name.endswith(".st"))
    assert kept == ([best] if keep == "best" else ["2.st", "3.st", "5.st"])
    assert found.outputs[0].metrics == {"first": found.outputs[0].value, "other": 1.0}


def test_a_command_evaluates_too(numbers):
    command = f"{sys.executable} -c \"import sys; print(sys.argv[1].split('.')[0])\" {{path}}"
    found = average_sweep(
        numbers,
        "{last}.safetensors",
        ["last=3,5,2"],
        settings=AverageSettings(),
        scoring=Scoring(evaluate=command, mode="min"),
    )
    assert [one.value for one in found.outputs] == [2.0, 3.0, 5.0]


def test_an_evaluation_that_fails_keeps_all(numbers):
    scoring = Scoring(evaluate="evaluations.py:fails_on_4", mode="max")
    with pytest.raises(CheckFailedError, match=r"ValueError: four; .*all 2 averages are kept"):
        average_sweep(numbers, "{last}.pt", ["last=3,4"], settings=AverageSettings(), scoring=scoring)
    assert {"3.pt", "4.pt"} <= set(os.listdir())


def test_a_folder_is_removed_whole(numbers):
    scoring = Scoring(
        evaluate=f'{sys.executable} -c "import sys; print(sys.argv[1][0])" {{path}}', mode="max"
    )
    average_sweep(numbers, "{last}/", ["last=3,2"], settings=AverageSettings(), scoring=scoring)
    assert "3" in os.listdir()
    assert "2" not in os.listdir()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"keep": "some"}, "--keep must be one of best, all"),
        ({"axes": ["weights=1"]}, "weights cannot be swept"),
        ({"axes": ["dtype=float32"]}, "dtype cannot be swept"),
        ({"axes": ["last=2,3"], "output": "out.pt"}, "needs {last}"),
    ],
)
def test_what_is_refused(options, said):
    options = {"axes": ["last=2,3"], "output": "{last}.pt", **options}
    axes, output = options.pop("axes"), options.pop("output")
    with pytest.raises(UsageError, match=said):
        average_sweep("run", output, axes, settings=AverageSettings(), **options)


def test_axes_may_be_a_mapping(run):
    settings = AverageSettings(method="ema", decay=0.9)
    found = average_sweep(run, "{last}-{debias}", {"last": [2, 5], "debias": [True]}, settings=settings)
    assert [one.values for one in found.outputs] == [
        *({"last": "2", "debias": "true"}, {"last": "5", "debias": "true"})
    ]
    assert sorted(name for name in os.listdir() if name.endswith("-true")) == ["2-true", "5-true"]
