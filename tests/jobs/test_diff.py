import json
import math
import pathlib

import pytest
import safetensors.torch
import torch

import swatool
from swatool.errors import CheckFailedError, CheckpointError, UsageError
from swatool.jobs.diff import DiffSettings, check


@pytest.fixture
def write(tmp_path):
    def save(name, state, **metadata):
        path = tmp_path / name
        if path.suffix == ".safetensors":
            safetensors.torch.save_file(state, path)
        else:
            torch.save({"model": state, **metadata} if metadata else state, path)
        return path

    return save


@pytest.fixture
def state():
    torch.manual_seed(0)
    return {"w": torch.randn(30, 40), "v": torch.randn(50), "n": torch.tensor(7)}


def test_identical_whatever_the_format_and_the_wrapper(write, state):
    a = write("a.pt", {f"module.{n}": t for n, t in state.items()}, step=3)
    b = write("b.safetensors", state)
    report = swatool.diff(a, b)
    assert report.bit_identical
    assert (report.identical, report.passed) == (3, None)
    assert report.a == (str(a), "torch zip", a.stat().st_size, "model", "module.", 3)
    assert report.b[3:] == ("", "", 3)
    assert report.bytes_read == 2 * sum(t.nbytes for t in state.values())
    assert not report.beyond
    assert {one.name: one.difference.rel_l2 for one in report.tensors} == {"w": 0.0, "v": 0.0, "n": 0.0}


def test_the_worst_comes_first(write, state):
    other = {"w": state["w"] * 1.01, "v": state["v"] * 1.5, "n": state["n"]}
    report = swatool.diff(write("a.pt", state), write("b.pt", other))
    assert [one.name for one in report.tensors] == ["v", "w", "n"]
    v, w, _ = (one.difference for one in report.tensors)
    assert v.rel_l2 == pytest.approx(0.5, rel=1e-6)
    assert w.rel_l2 == pytest.approx(0.01, rel=1e-5)
    assert not report.bit_identical
    assert report.identical == 1
    x, y = (torch.cat([s["w"].flatten(), s["v"]]).double() for s in (state, other))
    assert report.total.rel_l2 == pytest.approx(((x - y).norm() / x.norm()).item(), rel=1e-12)
    assert [one.name for one in report.beyond] == ["v", "w"]


def test_names_shapes_and_types_that_differ_are_findings(write, state):
    other = {"w": state["w"].bfloat16(), "v": torch.ones(5, 10), "x": torch.ones(2)}
    report = swatool.diff(write("a.pt", state), write("b.pt", other), tolerance=0.1)
    assert (report.only_in_a, report.only_in_b) == (("n",), ("x",))
    assert report.shapes == (("v", (50,), (5, 10)),)
    assert report.dtypes == (("w", "float32", "bfloat16"),)
    assert [one.name for one in report.tensors] == ["w"]
    expected = (state["w"].double() - other["w"].double()).norm() / state["w"].double().norm()
    assert report.tensors[0].difference.rel_l2 == pytest.approx(expected.item(), rel=1e-12)
    assert report.passed is False
    assert not report.beyond
    with pytest.raises(
        CheckFailedError, match="names only in A: 1; names only in B: 1; shapes that differ: 1"
    ):
        check(report)


def test_types_alone_are_no_failure(write, state):
    other = {name: tensor.double() for name, tensor in state.items()}
    report = swatool.diff(write("a.pt", state), write("b.pt", other), tolerance=0)
    assert (report.passed, report.bit_identical, len(report.dtypes)) == (True, False, 3)
    check(report)


@pytest.mark.parametrize(("tolerance", "passed"), [(None, None), (0.011, True), (0.009, False), (0.0, False)])
def test_tolerance(write, state, tolerance, passed):
    other = {**state, "w": state["w"] * 1.01}
    report = swatool.diff(write("a.pt", state), write("b.pt", other), tolerance=tolerance)
    assert report.passed is passed
    if passed is False:
        with pytest.raises(CheckFailedError, match="1 of 3 tensors, the worst 'w' by 0") as caught:
            check(report)
        assert caught.value.exit_code == 6
    else:
        check(report)


def test_a_tolerance_of_zero_takes_differences_that_no_norm_shows(write):
    a = write("a.pt", {"w": torch.tensor([1e300, 0.0], dtype=torch.float64)})
    b = write("b.pt", {"w": torch.tensor([1e300, 5e-324], dtype=torch.float64)})
    report = swatool.diff(a, b, tolerance=0)
    assert (report.tensors[0].difference.rel_l2, report.passed) == (0.0, False)
    assert [one.name for one in report.beyond] == ["w"]


def test_nan_in_one_exceeds_any_tolerance(write):
    a = write("a.pt", {"w": torch.tensor([1.0, 2.0])})
    b = write("b.pt", {"w": torch.tensor([1.0, math.nan])})
    assert swatool.diff(a, b, tolerance=1e300).passed is False
    assert swatool.diff(b, b, tolerance=0).passed is True


def test_exclude(write, state):
    other = {"w": state["w"], "v": state["v"] + 1, "n": state["n"] + 1, "extra.x": torch.ones(1)}
    report = swatool.diff(
        write("a.pt", state), write("b.pt", other), exclude=("[vn]", "extra.*"), tolerance=0
    )
    assert (report.excluded, report.only_in_b, report.passed) == (("v", "n", "extra.x"), (), True)
    with pytest.raises(UsageError, match=r"'nothing\*' matches no tensor"):
        swatool.diff(write("a.pt", state), write("b.pt", other), exclude=("nothing*",))


def test_keys(tmp_path, state):
    changed = {**state, "v": state["v"] + 1}
    torch.save({"one": state, "two": changed}, tmp_path / "a.pt")
    torch.save({"three": state, "two": state}, tmp_path / "b.pt")
    a, b = tmp_path / "a.pt", tmp_path / "b.pt"
    assert swatool.diff(a, b, key="two").identical == 2
    assert swatool.diff(a, b, key="one", key_b="three").bit_identical
    assert swatool.diff(a, a, key="one", key_b="two").identical == 2
    with pytest.raises(CheckpointError, match="--key"):
        swatool.diff(a, b)


def test_nothing_in_common(write):
    report = swatool.diff(write("a.pt", {"a": torch.ones(1)}), write("b.pt", {"b": torch.ones(1)}))
    assert (report.tensors, report.bit_identical, report.total.elements) == ((), False, 0)


def test_empty_tensors_of_different_types_are_not_bit_identical(write):
    a, b = write("a.pt", {"e": torch.ones(0)}), write("b.pt", {"e": torch.ones(0).double()})
    assert swatool.diff(a, a).bit_identical
    assert not swatool.diff(a, b).bit_identical
    assert swatool.diff(a, b, tolerance=0).passed


def test_the_json_is_json_and_complete(write):
    a = write("a.pt", {"w": torch.tensor([0.0, 2.0]), "s": torch.ones(2), "d": torch.ones(1)})
    b = write("b.pt", {"w": torch.tensor([0.0, math.inf]), "s": torch.ones(3), "d": torch.ones(1).double()})
    report = swatool.diff(a, b, tolerance=0.5)
    data = json.loads(json.dumps(report.as_json(), allow_nan=False))
    assert set(data) == {"schema", *type(report).__dataclass_fields__}
    assert data["schema"] == 1
    assert data["shapes"] == [{"name": "s", "a": [2], "b": [3]}]
    assert data["dtypes"] == [{"name": "d", "a": "float32", "b": "float64"}]
    assert data["tensors"][0] == {
        "name": "w",
        "elements": 2,
        "differing": 1,
        "max_abs": None,
        "rel_l2": None,
        "cosine": None,
        "nan": [0, 0],
        "inf": [0, 1],
        "same_bits": False,
    }
    assert data["passed"] is False


def test_progress_and_the_plan_are_told(write, state):
    told = []
    a = write("a.pt", state)
    report = swatool.diff(a, a, on_plan=told.append, on_progress=told.append)
    assert told[0] == told[-1] == report.bytes_read


def test_the_number_of_threads_changes_nothing(write):
    torch.manual_seed(1)
    a = write("a.pt", {f"t{i}": torch.randn(5_000 * i) for i in range(40)})
    b = write("b.safetensors", {f"t{i}": torch.randn(5_000 * i) for i in range(40)})
    reports = [swatool.diff(a, b, threads=threads) for threads in (1, 2, 7)]
    assert len({(r.tensors, r.total) for r in reports}) == 1


def test_large_transposed_tensors_are_warned_of(write):
    a = write("a.pt", {"w": torch.zeros(4096, 1100).t()})
    b = write("b.pt", {"w": torch.zeros(1100, 4096)})
    (warning,) = swatool.diff(a, b, tolerance=0).warnings
    assert "stored transposed" in warning


def test_bad_input(write, state, tmp_path):
    good = write("a.pt", state)
    before = len(list(pathlib.Path("/proc/self/fd").iterdir()))
    (tmp_path / "bad.pt").write_bytes(b"GGUF")
    for pair in ((good, tmp_path / "bad.pt"), (tmp_path / "bad.pt", good), (good, tmp_path / "none.pt")):
        with pytest.raises(CheckpointError):
            swatool.diff(*pair)
    assert len(list(pathlib.Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize("tolerance", [-1e-9, math.nan, math.inf])
def test_tolerances_that_are_refused(tolerance):
    with pytest.raises(UsageError, match="tolerance"):
        DiffSettings(tolerance=tolerance)


def test_settings():
    with pytest.raises(UsageError, match="exclude"):
        DiffSettings(exclude="a")
    with pytest.raises(UsageError, match="threads"):
        DiffSettings(threads=0)
    with pytest.raises(TypeError, match="not both"):
        swatool.diff("x", "y", settings=DiffSettings(), tolerance=1.0)
