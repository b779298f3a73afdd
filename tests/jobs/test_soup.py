"""The greedy soup against a simulation of it, and what it leaves behind when something goes wrong."""

import json
import os
import pathlib
import shutil
import sys

import pytest
import torch
from hanging import no_hang
from safetensors.torch import load_file, save_file

import swatool
from swatool.errors import CheckFailedError, CheckpointError, MismatchError, OutputError, UsageError
from swatool.jobs import soup as soup_job
from swatool.jobs.scoring import Scoring
from swatool.jobs.soup import SoupSettings, soup
from swatool.jobs.soup_candidates import Candidates
from swatool.jobs.soup_work import work_folder

# How far the weights are from a target, in steps, so that there are ties; and every path that was asked for.
EVALUATIONS = """
import os
import torch
from safetensors.torch import load_file

STEP = 0.05

def weights(path):
    if os.path.isdir(path):
        path += "/model.safetensors"
    if path.endswith((".pt", ".ckpt")):
        found = torch.load(path, weights_only=True)
        return found.get("state_dict", found)
    return load_file(path)

def distance(path):
    with open("calls", "a") as log:
        log.write(path + "\\n")
    found = round(float(weights(path)["w"].double().square().mean()) / STEP) * STEP
    return {"distance": found, "closeness": -found}

def fails_on_candidates(path):
    if "candidate-2" in path and not os.path.exists("repaired"):
        raise ValueError("no candidates")
    return distance(path)

def fails(path):
    raise ValueError("never")
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda _: None)  # nothing here is lost by a power cut
    (tmp_path / "evaluations.py").write_text(EVALUATIONS)
    return tmp_path


def scoring(mode="min", function="distance", **options):
    metric = "distance" if mode == "min" else "closeness"
    return Scoring(evaluate=f"evaluations.py:{function}", **{"metric": metric, "mode": mode, **options})


def make_members(seed=0, count=7, dtype=torch.float32, save=None):
    """Members around a target of zero that err in different directions and by different amounts."""
    generator = torch.Generator().manual_seed(seed)
    os.makedirs("run", exist_ok=True)
    members = []
    for step in range(count):
        scale, shift = torch.rand(2, generator=generator)
        state = {
            "w": (torch.randn(30, generator=generator) * (0.5 + scale) + shift * 0.3).to(dtype),
            "buffer": torch.tensor([step, 7]),
        }
        (save or torch.save)(state, f"run/m-{step}.pt")
        members.append(state)
    return members


def calls():
    return pathlib.Path("calls").read_text().splitlines() if os.path.exists("calls") else []


def value(weights, mode):
    distance = round(float(weights.double().square().mean()) / 0.05) * 0.05
    return distance if mode == "min" else -distance


def simulate(members, mode, min_gain=0.0, most=None):
    """Wortsman et al. 2022, recipe 1, with everything in memory: order, accepted, values along the way."""
    sign = 1 if mode == "max" else -1
    own = [sign * value(member["w"], mode) for member in members]
    order = sorted(range(len(members)), key=lambda one: (own[one], one), reverse=True)
    accepted, current, trace = [order[0]], own[order[0]], [own[order[0]]]
    for one in order[1:]:
        if len(accepted) == most:
            break
        mean = torch.stack([members[k]["w"].double() for k in [*accepted, one]]).mean(0)
        found = sign * value(mean.to(members[0]["w"].dtype), mode)
        trace.append(found)
        if found >= current + min_gain:
            accepted.append(one)
            current = found
    return order, accepted, [sign * one for one in trace]


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize(
    ("seed", "options"),
    [
        *((seed, {}) for seed in range(5)),
        *((seed, {"min_gain": 0.1}) for seed in (0, 1)),
        (2, {"max_members": 2}),
        (3, {"max_members": 1}),
    ],
)
def test_order_and_decisions_are_those_of_the_simulation(seed, mode, options):
    members = make_members(seed)
    order, accepted, trace = simulate(members, mode, options.get("min_gain", 0.0), options.get("max_members"))
    found = soup("run", "soup.safetensors", scoring=scoring(mode), **options)
    assert [one.path for one in found.members] == [f"run/m-{one}.pt" for one in order]
    assert [one.path for one in found.members if one.accepted] == [f"run/m-{one}.pt" for one in accepted]
    values = [one.value for one in found.members if one.accepted is not None]
    assert values == pytest.approx(trace, abs=1e-12)
    assert (found.best, found.value) == (values[0], [o.value for o in found.members if o.accepted][-1])
    assert found.evaluations == len(calls()) == len(members) + len(trace) - 1
    if len(accepted) > 1:
        swatool.average([f"run/m-{one}.pt" for one in accepted], "average.safetensors")
        assert (
            pathlib.Path("average.safetensors").read_bytes() == pathlib.Path("soup.safetensors").read_bytes()
        )
    assert torch.equal(load_file("soup.safetensors")["buffer"], torch.tensor([max(accepted), 7]))
    assert not os.path.exists(work_folder("soup.safetensors"))


def test_the_simulation_meets_ties_rejections_and_soups_of_several():
    kinds = set()
    for seed in range(5):
        members = make_members(seed)
        _, accepted, trace = simulate(members, "min")
        own = [value(member["w"], "min") for member in members]
        kinds |= {"tie"} if len(set(own)) < len(own) else set()
        kinds |= {"rejected"} if len(accepted) < len(members) else set()
        kinds |= {"many"} if len(accepted) > 3 else set()
        kinds |= {"level"} if len({*trace}) < len(trace) else set()
    assert kinds == {"tie", "rejected", "many", "level"}


DTYPES = (torch.bfloat16, torch.float16, torch.float64, torch.complex64, torch.complex128)


def rich_state(step, generator, untied):
    """Tensors of all kinds, some shared, some strided; `untied` parts what the others share."""
    state = {f"t{i}": torch.randn(7, 5 + i, generator=generator).to(d) for i, d in enumerate(DTYPES)}
    state["w"] = torch.randn(40, 30, generator=generator).t()
    state["tied"] = state["w"].clone() if untied else state["w"]
    state["skipped"] = torch.randn(3, generator=generator)
    state["count"] = torch.tensor(step)
    state["empty"] = torch.empty(0, 3)
    return state


def plain_mean(paths, states, name, settings):
    """What the average of some members has under a name, by torch alone; copies are the last's or first's."""
    chosen = sorted(paths)
    values = [states[path][name] for path in chosen]
    if not values[0].is_floating_point() and not values[0].is_complex():
        return values[0 if settings.get("integers") == "first" else -1]
    if name in settings.get("exclude", ()):
        return values[-1]
    wide = torch.complex128 if values[0].is_complex() else torch.float64
    mean = torch.stack([one.to(wide) for one in values]).mean(0)
    wanted = settings.get("dtype")
    if wanted is None:
        return mean.to(values[0].dtype)
    return mean.to(torch.complex64 if mean.is_complex() else getattr(torch, wanted))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"dtype": "bfloat16"},
        {"integers": "first", "exclude": ("skipped",)},
        {"accumulate": "float64"},
        {"threads": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("untied", [(), (1, 3)])
def test_candidates_are_the_averages_of_their_members(settings, untied):
    os.mkdir("run")
    generator = torch.Generator().manual_seed(1)
    states = {}
    for step in range(6):
        states[f"run/m-{step}.pt"] = rich_state(step, generator, step in untied)
        torch.save(states[f"run/m-{step}.pt"], f"run/m-{step}.pt")
    made = []
    original = Candidates.write

    def write(self, accepted, member, number):
        path = original(self, accepted, member, number)
        paths = [self.checkpoints[one].path for one in (*accepted, member)]
        made.append(paths)
        found = torch.load(path, weights_only=True)
        assert set(found) == set(states["run/m-0.pt"])
        for name, tensor in found.items():
            expected = plain_mean(paths, states, name, settings)
            assert tensor.dtype is expected.dtype
            if name == "count" or name in settings.get("exclude", ()):
                assert torch.equal(tensor, expected)
                continue
            narrow = tensor.dtype in (torch.bfloat16, torch.float16)
            torch.testing.assert_close(tensor, expected, rtol=1e-2 if narrow else 1e-6, atol=1e-6)
        return path

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Candidates, "write", write)
        found = soup("run", "soup.pt", scoring=scoring("min"), **settings)
    assert [len(one) for one in made] == [2, 3, 4, 5, 6]  # noise averages out, so all are accepted
    swatool.average("run", "average.pt", **settings)
    assert pathlib.Path("average.pt").read_bytes() == pathlib.Path("soup.pt").read_bytes()
    assert found.average.checkpoints[0].coefficient == pytest.approx(1 / 6)


def test_float64_sums_are_kept_in_float64(monkeypatch):
    os.mkdir("run")
    for step in range(5):
        # What float32 has not: the members differ by less than its rounding.
        weights = 1 + torch.arange(20, dtype=torch.float64) * 2**-40 * (step + 1)
        torch.save({"w": weights}, f"run/m-{step}.pt")
    last = []
    original = Candidates.write

    def write(self, accepted, member, number):
        path = original(self, accepted, member, number)
        last[:] = [load_file(path)["w"]]
        return path

    monkeypatch.setattr(Candidates, "write", write)
    soup("run", "soup.safetensors", scoring=scoring("min"))
    torch.testing.assert_close(last[0], 1 + torch.arange(20.0).double() * 2**-40 * 3, rtol=0, atol=1e-15)


@pytest.mark.parametrize("match", ["intersection", "union"])
def test_names_that_only_some_members_have(match):
    os.mkdir("run")
    generator = torch.Generator().manual_seed(2)
    states = []
    for step in range(5):
        state = {"w": torch.randn(300, generator=generator)}
        if step in (1, 4):
            state["some"] = torch.randn(8, generator=generator)
        torch.save(state, f"run/m-{step}.pt")
        states.append(state)
    found = soup("run", "soup.safetensors", scoring=scoring("min"), match=match)
    assert all(one.accepted for one in found.members)
    swatool.average("run", "average.safetensors", match=match)
    assert pathlib.Path("average.safetensors").read_bytes() == pathlib.Path("soup.safetensors").read_bytes()
    with pytest.raises(MismatchError, match="'some' is missing"):
        soup("run", "soup-2.safetensors", scoring=scoring("min"))
    assert not os.path.exists(work_folder("soup-2.safetensors"))


def test_mixed_formats_and_types():
    os.mkdir("run")
    generator = torch.Generator().manual_seed(3)
    for step, dtype in enumerate((torch.bfloat16, torch.float32, torch.float64, torch.bfloat16)):
        state = {"w": torch.randn(400, generator=generator).to(dtype)}
        if step % 2:
            save_file(state, f"run/m-{step}.safetensors")
        else:
            torch.save({"state_dict": state}, f"run/m-{step}.pt")
    found = soup("run", "soup/", scoring=scoring("min"), dtype="float32")
    assert [one.accepted for one in found.members] == [True] * 4
    swatool.average("run", "average/", dtype="float32")
    assert sorted(os.listdir("soup")) == sorted(os.listdir("average"))
    assert torch.equal(load_file("soup/model.safetensors")["w"], load_file("average/model.safetensors")["w"])
    assert {os.path.dirname(one) for one in calls() if "candidate" in one} == {"soup.soup.incomplete"}
    with pytest.raises(MismatchError, match="name the output's type with --dtype"):
        soup("run", "other/", scoring=scoring("min"))


@pytest.mark.parametrize(
    ("output", "options", "suffix"),
    [
        ("soup.safetensors", {}, ".safetensors"),
        ("soup.ckpt", {}, ".ckpt"),
        ("soup.pt", {"format": "safetensors"}, ".pt"),
        ("soup", {"format": "hf"}, ""),
    ],
)
def test_candidates_are_of_the_outputs_kind(output, options, suffix, monkeypatch):
    make_members(count=4)
    kinds = []
    original = Candidates.write

    def write(self, accepted, member, number):
        path = original(self, accepted, member, number)
        kinds.append((os.path.splitext(path)[1], swatool.inspect(path).format))
        return path

    function = scoring("min")
    if output == "soup.pt":
        function = Scoring(evaluate=f"{sys.executable} -c 'print(1)' {{path}}", mode="min")
    monkeypatch.setattr(Candidates, "write", write)
    soup("run", output, scoring=function, **options)
    assert kinds == [(suffix, swatool.inspect(output).format)] * 3


def test_only_integers_are_a_soup_too():
    os.mkdir("run")
    for step in range(4):
        torch.save({"n": torch.tensor([step])}, f"run/m-{step}.pt")
    always = Scoring(evaluate=f"{sys.executable} -c 'print(1)' {{path}}", mode="min")
    found = soup("run", "soup.safetensors", scoring=always)
    assert [one.path for one in found.members] == [f"run/m-{step}.pt" for step in (3, 2, 1, 0)]
    assert load_file("soup.safetensors")["n"].tolist() == [3]


def test_a_soup_of_one_is_the_best_in_the_outputs_type():
    make_members(count=3)
    always = f'{sys.executable} -c "import sys; print(len(sys.argv[1]))" {{path}}'  # candidates are longer
    found = soup("run", "soup.safetensors", scoring=Scoring(evaluate=always, mode="min"), dtype="bfloat16")
    assert [one.accepted for one in found.members] == [True, False, False]
    best = torch.load(found.members[0].path, weights_only=True)
    assert torch.equal(load_file("soup.safetensors")["w"], best["w"].bfloat16())
    assert not any("alone has" in warning for warning in found.warnings)


def test_known_numbers_order_the_members():
    make_members(count=4)
    pathlib.Path("t.csv").write_text("checkpoint,acc\nm-0.pt,3\nm-1.pt,1\nm-2.pt,4\nm-3.pt,3\n")
    found = soup("run", "soup.pt", scoring=scoring("max"), order_by="acc", metrics="t.csv", max_members=2)
    assert [one.path for one in found.members] == [f"run/m-{step}.pt" for step in (2, 3, 0, 1)]
    assert [one.own for one in found.members] == [4, 3, 3, 1]
    assert calls()[0] == "run/m-2.pt"
    assert all("candidate" in one for one in calls()[1:])
    assert found.evaluations == len(calls())
    assert found.order_by == "acc"


def test_a_dry_run_evaluates_and_writes_nothing():
    make_members(count=3)
    before = sorted(os.listdir())
    plans = []
    found = soup("run", "soup.pt", scoring=scoring(), dry_run=True, on_plan=plans.append)
    assert (found.dry_run, found.value, found.evaluations) == (True, None, 5)
    assert plans == [found]
    assert sorted(os.listdir()) == before
    json.dumps(found.as_json(), allow_nan=False)


def test_each_evaluation_is_told():
    make_members(count=4)
    told = []
    found = soup("run", "soup.pt", scoring=scoring(), on_step=told.append)
    assert [(one.done, one.most) for one in told] == [(n, 7) for n in range(1, 8)]
    assert tuple(one.member for one in told[4:]) == found.members[1:]


def disk(folder):
    return sum(os.path.getsize(os.path.join(top, n)) for top, _, names in os.walk(folder) for n in names)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_work_folder_is_bounded(dtype, monkeypatch):
    os.mkdir("run")
    generator = torch.Generator().manual_seed(5)
    for step in range(6):
        torch.save({"w": torch.randn(20_000, generator=generator).to(dtype)}, f"run/m-{step}.pt")
    most = []
    original = os.replace

    def replace(*args, **kwargs):
        original(*args, **kwargs)
        most.append(disk(work_folder("soup.safetensors")))

    monkeypatch.setattr(os, "replace", replace)
    found = soup("run", "soup.safetensors", scoring=scoring())
    assert sum(one.accepted for one in found.members) == 6
    slack = 20_000  # the state and headers
    assert 120_000 < max(most) <= found.work_bytes + slack
    assert found.work_bytes == pytest.approx(160_000, abs=1000)


def stop_at(number):
    """Make a command fail at an evaluation, once, by what it was asked for."""
    return scoring("min", "fails_on_candidates") if number == "candidate" else scoring("min", "fails")


def test_a_failing_evaluation_keeps_what_was_found():
    make_members(count=5)
    broken = stop_at("candidate")
    with pytest.raises(CheckFailedError, match="ValueError: no candidates") as caught:
        soup("run", "soup.pt", scoring=broken)
    assert "what was found is kept in 'soup.pt.soup.incomplete', and the same command goes on" in str(
        caught.value
    )
    assert not os.path.exists("soup.pt")
    before = calls()
    pathlib.Path("repaired").touch()
    found = soup("run", "soup.pt", scoring=broken)
    assert found.resumed
    assert len(calls()) == found.evaluations == 9
    assert calls()[: len(before)] == before
    assert not os.path.exists(work_folder("soup.pt"))
    shutil.copy("soup.pt", "resumed.pt")
    fresh = soup("run", "soup.pt", scoring=broken, overwrite=True)
    assert fresh.members == found.members
    assert pathlib.Path("soup.pt").read_bytes() == pathlib.Path("resumed.pt").read_bytes()


def test_where_nothing_was_found_nothing_is_left():
    make_members(count=3)
    with pytest.raises(CheckFailedError, match=r"ValueError: never; -v shows where$"):
        soup("run", "soup.pt", scoring=stop_at("first"))
    assert not os.path.exists(work_folder("soup.pt"))
    with pytest.raises(UsageError, match="there is no 'nothing' in it"):
        soup("run", "soup.pt", scoring=scoring("min", "nothing"))
    assert not os.path.exists(work_folder("soup.pt"))


@pytest.fixture
def stopped():
    """Leave a soup half made."""
    make_members(count=5)
    with pytest.raises(CheckFailedError):
        soup("run", "soup.pt", scoring=stop_at("candidate"))
    pathlib.Path("repaired").touch()
    return {"scoring": stop_at("candidate")}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"scoring": scoring("min", "distance")}, "--eval was '.*candidates' and is '.*distance'"),
        (
            {"scoring": scoring("max", "fails_on_candidates", metric="distance")},
            "--mode was 'min' and is 'max'",
        ),
        ({"dtype": "bfloat16"}, "--dtype was 'same' and is 'bfloat16'"),
        ({"min_gain": 0.5}, "--min-gain was '0.0' and is '0.5'"),
        ({"last": 4}, "its members were others"),
    ],
    ids=lambda one: next(iter(one), "") if isinstance(one, dict) else "",
)
def test_another_request_is_refused(stopped, change, said):
    with pytest.raises(UsageError, match=f"{said}: give what it was begun with to go on, or --restart"):
        soup("run", "soup.pt", **{**stopped, **change})
    found = soup("run", "soup.pt", **{**stopped, **change}, restart=True)
    assert not found.resumed
    assert not os.path.exists(work_folder("soup.pt"))


def test_a_member_that_changed_is_refused(stopped):
    os.utime("run/m-3.pt", ns=(1, 1))
    with pytest.raises(UsageError, match=r"'/.*run/m-3\.pt' has changed since: .*--restart"):
        soup("run", "soup.pt", **stopped)
    assert os.path.exists(work_folder("soup.pt"))


def test_what_changes_nothing_may_change(stopped):
    assert soup(sorted(pathlib.Path("run").iterdir()), "soup.pt", **stopped, threads=1).resumed


def test_known_numbers_that_changed_are_refused():
    make_members(count=5)
    table = pathlib.Path("t.csv")
    table.write_text("checkpoint,acc\n" + "".join(f"m-{step}.pt,{step}\n" for step in range(5)))
    options = {"scoring": stop_at("candidate"), "order_by": "acc", "metrics": "t.csv"}
    with pytest.raises(CheckFailedError):
        soup("run", "soup.pt", **options)
    table.write_text(table.read_text().replace("m-0.pt,0", "m-0.pt,9"))
    with pytest.raises(UsageError, match="the numbers of 'acc' have changed since"):
        soup("run", "soup.pt", **options)


def test_the_work_folder_is_no_member(stopped):
    """Whatever the output's folder is: a pattern of a shell finds what an earlier run left there."""
    os.unlink("repaired")
    with pytest.raises(CheckFailedError):
        soup("run", "run/soup.pt", **stopped)
    pathlib.Path("repaired").touch()
    given = [f"run/{name}" for name in os.listdir("run")]
    assert work_folder("run/soup.pt") in given
    assert len(soup(given, "run/soup.pt", **stopped).members) == 5


@pytest.mark.parametrize("text", ["", "{}", "[1]", "null", '{"schema": 1}', "[" * 100_000, "\ud800"])
def test_a_damaged_state_is_refused(stopped, text):
    pathlib.Path("soup.pt.soup.incomplete/state.json").write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(UsageError, match=r"state\.json' is damaged, .*--restart"):
        soup("run", "soup.pt", **stopped)
    assert soup("run", "soup.pt", **stopped, restart=True).value is not None


@pytest.mark.parametrize("name", ["identity", "own", "order", "tried", "publishing"])
@pytest.mark.parametrize("wrong", [None, 1, "x", [1], [{}], {"members": 3}, [99], [{"member": "a"}]], ids=str)
def test_a_state_that_lacks_something_is_refused(stopped, name, wrong):
    path = pathlib.Path("soup.pt.soup.incomplete/state.json")
    data = json.loads(path.read_text())
    if name == "publishing":
        del data[name]
    else:
        data[name] = wrong
    path.write_text(json.dumps(data))
    with pytest.raises(UsageError, match="is damaged"):
        soup("run", "soup.pt", **stopped)


@pytest.mark.usefixtures("stopped")
def test_a_damaged_sum_is_refused():
    os.unlink("repaired")
    broken = scoring("min", "fails_on_candidates")
    assert "sum-2.safetensors" in os.listdir(work_folder("soup.pt"))
    save_file({"other": torch.ones(3)}, "soup.pt.soup.incomplete/sum-2.safetensors")
    with pytest.raises(CheckpointError, match=r"sum-2\.safetensors' is damaged: it has no tensor 'w'"):
        soup("run", "soup.pt", scoring=broken)
    os.unlink("soup.pt.soup.incomplete/sum-2.safetensors")
    pathlib.Path("repaired").touch()
    assert soup("run", "soup.pt", scoring=broken).resumed


def test_somebody_elses_folder_is_left_alone():
    make_members(count=3)
    os.mkdir("soup.pt.soup.incomplete")
    pathlib.Path("soup.pt.soup.incomplete/notes").touch()
    with pytest.raises(UsageError, match=r"holds 'notes' and no state\.json"):
        soup("run", "soup.pt", scoring=scoring())
    soup("run", "soup.pt", scoring=scoring(), restart=True)
    assert os.listdir("soup.pt.soup.incomplete") == ["notes"]
    shutil.rmtree("soup.pt.soup.incomplete")
    pathlib.Path("soup.pt.soup.incomplete").touch()
    for restart in (False, True):
        with pytest.raises(UsageError, match=r"soup\.incomplete' is no folder"):
            soup("run", "soup.pt", scoring=scoring(), overwrite=True, restart=restart)


def test_two_at_a_time_are_refused(folder):
    make_members(count=3)
    inner = """
def again(path):
    from swatool.errors import UsageError
    from swatool.jobs.soup import soup
    from swatool.jobs.scoring import Scoring
    try:
        soup("run", "soup.pt", scoring=Scoring(evaluate="other.py:again", mode="min"))
    except UsageError as error:
        assert "another process is making a soup" in str(error), error
        return 1.0
"""
    (folder / "other.py").write_text(inner)
    assert soup("run", "soup.pt", scoring=Scoring(evaluate="other.py:again", mode="min")).value == 1


def test_nan_is_refused_and_told_of():
    members = make_members(count=4)
    members[1]["w"][3] = float("nan")
    torch.save(members[1], "run/m-1.pt")
    pathlib.Path("t.csv").write_text("checkpoint,acc\n" + "".join(f"m-{n}.pt,{n}\n" for n in range(4)))
    with pytest.raises(
        CheckpointError, match=r"'w' is not finite: there is NaN or Inf in it in 'run/m-1\.pt'"
    ):
        soup("run", "soup.pt", scoring=scoring("max"), order_by="acc", metrics="t.csv")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_members": 0}, "--max-members must be at least 1"),
        ({"min_gain": -1.0}, "--min-gain must be a number from 0"),
        ({"min_gain": float("nan")}, "--min-gain must be a number from 0"),
        ({"metrics": "t.csv"}, "--metrics needs --order-by"),
        ({"last": 1}, "a soup needs at least two checkpoints, and 1 is left of 3"),
        ({"dtype": "int8"}, "--dtype must be one of"),
        ({"order_by": "acc"}, "'acc' is not known of every checkpoint"),
        ({"format": "pt", "max_shard_size": "5MB"}, "--max-shard-size does not belong"),
    ],
)
def test_what_is_refused(options, said):
    make_members(count=3)
    with pytest.raises((UsageError, MismatchError), match=said):
        soup("run", "soup.pt", scoring=scoring(), **options)
    assert not calls()
    assert not os.path.exists(work_folder("soup.pt"))


def test_an_output_that_exists_is_refused_before_anything_is_evaluated():
    make_members(count=3)
    pathlib.Path("soup.pt").touch()
    with pytest.raises(UsageError, match=r"'soup\.pt' exists"):
        soup("run", "soup.pt", scoring=scoring())
    assert not calls()
    with pytest.raises(TypeError, match="either settings or single options"):
        soup("run", "soup.pt", scoring=scoring(), settings=SoupSettings(), last=3)


def test_a_disk_that_is_too_small_is_told_before_anything_is_evaluated(monkeypatch):
    make_members(count=3)
    status = os.statvfs(".")

    class Full:
        f_bavail, f_frsize, f_blocks = 1, 500, status.f_blocks

    monkeypatch.setattr("swatool.output.unfinished.os.statvfs", lambda _: Full)
    with pytest.raises(OutputError, match="bytes are needed and 500 are free"):
        soup("run", "soup.safetensors", scoring=scoring())
    assert not calls()


def test_a_restart_forgets_the_sums(stopped):
    save_file({"w": torch.full((30,), 1e6)}, "soup.pt.soup.incomplete/sum-2.safetensors")
    found = soup("run", "soup.pt", **stopped, restart=True)
    assert found.members == soup("run", "again.pt", **stopped).members
    assert sum(one.accepted for one in found.members) > 2


def test_a_failing_evaluation_reports_what_was_found():
    make_members(count=5)
    with pytest.raises(CheckFailedError) as caught:
        soup("run", "soup.pt", scoring=stop_at("candidate"))
    report = caught.value.report
    assert (report.dry_run, report.average.dry_run) == (False, True)
    assert report.evaluations == len(calls()) == 6
    assert [one.accepted is None for one in report.members] == [False, False, True, True, True]
    assert all(one.own is not None for one in report.members)
    assert report.best == report.members[0].own
    assert report.value == report.members[1 if report.members[1].accepted else 0].value
    assert "no candidates" in report.failures[0]
    assert report.as_json()["failures"] == report.failures


def test_different_numbers_are_not_compared():
    make_members(count=3)
    pathlib.Path("flip.py").write_text(
        "import os\ndef score(path):\n    return {'acc' if os.path.dirname(path) == 'run' else 'loss': 0.5}\n"
    )
    with pytest.raises(CheckFailedError, match=r"gives 'acc' of 'run/m-\d\.pt' and 'loss' of .* cannot be"):
        soup("run", "soup.pt", scoring=Scoring(evaluate="flip.py:score", mode="max"))
    assert not os.path.exists("soup.pt")


def test_a_state_that_is_a_pipe_is_refused_and_not_waited_for():
    make_members(count=3)
    os.mkdir(work_folder("soup.pt"))
    os.mkfifo(os.path.join(work_folder("soup.pt"), "state.json"))
    with no_hang(), pytest.raises(UsageError, match=r"state\.json' is damaged, or was not written"):
        soup("run", "soup.pt", scoring=scoring())
    soup("run", "soup.pt", scoring=scoring(), restart=True)
    assert not os.path.exists(work_folder("soup.pt"))


@pytest.mark.parametrize("leads_to", ["elsewhere", "nowhere"])
@pytest.mark.parametrize("options", [{}, {"restart": True}, {"dry_run": True}])
def test_a_link_in_place_of_the_work_folder_is_refused_and_not_followed(leads_to, options):
    make_members(count=3)
    os.mkdir("elsewhere")
    os.symlink(leads_to, work_folder("soup.pt"))
    with pytest.raises(UsageError, match=r"soup\.incomplete' is a link, and a soup keeps there"):
        soup("run", "soup.pt", scoring=scoring(), **options)
    assert os.listdir("elsewhere") == []


@pytest.mark.parametrize("moment", ["published", "removing"])
def test_a_soup_that_is_stopped_when_its_output_is_there_leaves_nothing_else(monkeypatch, moment):
    make_members(count=3)

    owner, name = (soup_job, "average_all") if moment == "published" else (soup_job.SoupWork, "clear")
    function, stopped = getattr(owner, name), []

    def stopping(*args, **kwargs):
        found = function(*args, **kwargs)
        if os.path.exists("soup.pt") and not stopped:
            stopped.append(True)
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(owner, name, stopping)
    with pytest.raises(KeyboardInterrupt) as caught:
        soup("run", "soup.pt", scoring=scoring())
    assert os.path.exists("soup.pt")
    assert not os.path.exists(work_folder("soup.pt"))
    assert not getattr(caught.value, "__notes__", [])


def test_what_a_soup_leaves_that_was_killed_at_its_very_end_is_in_nobodys_way(monkeypatch):
    make_members(count=4)
    with monkeypatch.context() as patch:
        patch.setattr(soup_job.SoupWork, "remove", lambda _: None)
        first = soup("run", "soup.pt", scoring=scoring())
    assert os.path.exists(work_folder("soup.pt"))
    os.unlink("run/m-0.pt")
    found = soup("run", "soup.pt", scoring=scoring(), overwrite=True)
    assert not found.resumed
    assert len(found.members) == len(first.members) - 1
    assert not os.path.exists(work_folder("soup.pt"))


def test_another_request_is_refused_while_a_soup_is_not_published(monkeypatch):
    make_members(count=4)
    with monkeypatch.context() as patch:
        patch.setattr(soup_job.SoupWork, "remove", lambda _: None)
        soup("run", "soup.pt", scoring=scoring())
    os.unlink("soup.pt")
    os.unlink("run/m-0.pt")
    with pytest.raises(UsageError, match="its members were others"):
        soup("run", "soup.pt", scoring=scoring())


def test_an_infinite_number_is_no_order():
    make_members(count=3)
    first, *others = sorted(os.listdir("run"))
    with open("t.csv", "w") as file:
        file.write("".join(["file,acc\n", f"{first},inf\n", *(f"{name},1\n" for name in others)]))
    with pytest.raises(UsageError, match="the best value would be inf, that of"):
        soup("run", "soup.pt", scoring=scoring("max"), order_by="acc", metrics="t.csv")
