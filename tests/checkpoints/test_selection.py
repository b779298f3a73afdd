"""Which checkpoints, in which order: natural, by step, from files, patterns and folders."""

import itertools
import os
import random
import types

import pytest

from swatool.checkpoints.opening import Checkpoint
from swatool.checkpoints.selection import (
    SORTS,
    SUFFIXES,
    Selection,
    expand,
    natural_key,
    passed_over,
    select,
    step_in_name,
)
from swatool.errors import CheckpointError, UsageError


def checkpoint(path, mtime=0, **fields):
    file = types.SimpleNamespace(mtime_ns=mtime)
    return Checkpoint(path, file, "torch zip", "", {}, (), fields, (), {})


def paths(checkpoints, **options):
    return [dated.checkpoint.path for dated in select(checkpoints, Selection(**options))]


def steps(checkpoints, **options):
    return [dated.step for dated in select(checkpoints, Selection(**options))]


def shuffled(values):
    values = list(values)
    random.Random(4).shuffle(values)
    return values


NUMBERED = [checkpoint(f"run/ckpt-{step}.pt") for step in (10, 9, 2, 1, 100, 30)]


def test_nine_comes_before_ten():
    assert steps(NUMBERED) == [1, 2, 9, 10, 30, 100]
    assert paths(NUMBERED, sort="name") == [f"run/ckpt-{step}.pt" for step in (1, 2, 9, 10, 30, 100)]


def test_the_order_does_not_depend_on_the_order_given():
    wanted = paths(NUMBERED)
    for order in itertools.permutations(NUMBERED):
        assert paths(order) == wanted


def test_a_stored_step_beats_the_name():
    given = [checkpoint("a-3.pt", step=10), checkpoint("a-1.pt", step=30), checkpoint("a-2.pt", step=20)]
    assert paths(given) == ["a-3.pt", "a-2.pt", "a-1.pt"]
    assert steps(given) == [10, 20, 30]
    assert steps(given, sort="name") == [30, 20, 10]


@pytest.mark.parametrize(
    "field", ["step", "global_step", "iteration", "iter", "num_updates", "n_iter", "epoch"]
)
def test_every_field_that_holds_a_step_is_known(field):
    given = [checkpoint("a", **{field: 7}), checkpoint("b", **{field: 5.0})]
    assert steps(given) == [5, 7]


def test_a_step_goes_before_an_epoch():
    given = [checkpoint("a", epoch=1, global_step=200), checkpoint("b", epoch=2, global_step=100)]
    assert steps(given) == [100, 200]


def test_a_step_stored_in_some_only_falls_back_to_the_names():
    given = [checkpoint("c-3.pt", step=1), checkpoint("c-2.pt"), checkpoint("c-1.pt", step=3)]
    assert paths(given) == ["c-1.pt", "c-2.pt", "c-3.pt"]
    assert steps(given) == [1, 2, 3]


def test_a_field_that_only_some_have_is_passed_over_for_one_that_all_have():
    given = [checkpoint("a", step=9, epoch=2), checkpoint("b", epoch=1)]
    assert steps(given) == [1, 2]


def test_a_field_that_is_equal_in_all_tells_nothing():
    given = [checkpoint("c-3.pt", step=5), checkpoint("c-2.pt", step=5)]
    assert steps(given) == [2, 3]
    assert steps([checkpoint("c-3.pt", step=5)]) == [5]


@pytest.mark.parametrize("value", [1.5, float("nan"), float("inf"), -float("inf"), 2**63, 1e300, 10**400])
def test_a_number_that_is_no_step_is_passed_over(value):
    assert steps([checkpoint("c-3.pt", step=value), checkpoint("c-2.pt", step=1)]) == [2, 3]


def test_without_any_step_the_names_decide():
    given = [checkpoint(name) for name in ("b10.x", "b9.x", "a", "final")]
    assert paths(given) == ["a", "b9.x", "b10.x", "final"]


def test_a_step_that_one_name_lacks_is_not_sorted_by():
    given = [checkpoint("m-2.pt"), checkpoint("last.pt"), checkpoint("m-10.pt")]
    assert paths(given) == ["last.pt", "m-2.pt", "m-10.pt"]
    assert steps(given) == [None, 2, 10]


def test_equal_steps_are_ordered_by_name():
    given = [checkpoint("r10/c-1.pt"), checkpoint("r9/c-1.pt"), checkpoint("r1/c-2.pt")]
    assert paths(given) == ["r9/c-1.pt", "r10/c-1.pt", "r1/c-2.pt"]


def test_sorting_by_time_of_modification():
    given = [checkpoint("c-1", mtime=30), checkpoint("c-10", mtime=10), checkpoint("c-9", mtime=10)]
    assert paths(given, sort="mtime") == ["c-9", "c-10", "c-1"]


def test_the_given_order_is_kept_on_request():
    given = [checkpoint(name, mtime=mtime) for name, mtime in (("c-3", 2), ("c-1", 3), ("c-2", 1))]
    assert paths(given, sort="given") == ["c-3", "c-1", "c-2"]


@pytest.mark.parametrize("sort", SORTS)
def test_every_sort_keeps_every_checkpoint(sort):
    assert sorted(paths(NUMBERED, sort=sort)) == sorted(c.path for c in NUMBERED)
    assert paths([], sort=sort) == []


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["a10", "a9"], ["a9", "a10"]),
        (["a", "a1", "a0", "1"], ["1", "a", "a0", "a1"]),
        (["x/2", "x/1/5"], ["x/1/5", "x/2"]),
        (["v1.10", "v1.9"], ["v1.9", "v1.10"]),
        (["1²3", "1²2", "x²"], ["1²2", "1²3", "x²"]),
        (["a٣", "a٢"], ["a٢", "a٣"]),
    ],
)
def test_natural_order(names, wanted):
    assert sorted(shuffled(names), key=natural_key) == wanted


STEPS_IN_NAMES = {
    "ckpt-1000.pt": 1000,
    "run-7/ckpt.pt": None,
    "run-7/ckpt-3.pt": 3,
    "epoch=3-val_loss=0.21.ckpt": 3,
    "epoch=3-step=1200.ckpt": 1200,
    "step=1200-epoch=3.ckpt": 1200,
    "epoch=3-step=1200-v1.ckpt": 1200,
    "17epoch.pth": 17,
    "epoch_17.pth": 17,
    "Epoch17.pth": 17,
    "epoch017.pth": 17,
    "checkpoint_1_2000.pt": 2000,
    "checkpoint_best.pt": None,
    "checkpoint12.pt": 12,
    "model.safetensors": None,
    "model-v2.1.pt": None,
    "model-v12.10.pt": None,
    "resnet50-iter_40000.pth": 40000,
    "iter_40000.pth": 40000,
    "it-5.pt": 5,
    "update_7.pt": 7,
    "updates7.pt": 7,
    "iteration.30.bin": 30,
    "global_step500.pt": 500,
    "globalstep500.pt": 500,
    "STEP500.pt": 500,
    "step_5-loss_3.pt": 5,
    "0.999-12.pt": 12,
    "12-0.999.pt": 12,
    "loss1.5.pt": None,
    "model.1000.pt": 1000,
    "model-00001-of-00002.safetensors": 2,
    "run/checkpoint-500": 500,
    "run/checkpoint-500/": 500,
    "run/checkpoint-500//": 500,
    "run/checkpoint-500/model.safetensors": 500,
    "run/checkpoint-500/model.safetensors.index.json": 500,
    "run/checkpoint-500/unet": 500,
    "run/checkpoint-500/pytorch_model_fsdp_0": 500,
    "run/epoch_3/ckpt-100.pt": 100,
    "run/global_step500/": 500,
    "run/my-run-500/model.safetensors": None,
    "run/my-run-500/": 500,
    "checkpoint.pth.tar": None,
    "checkpoint-9.pth.tar": 9,
    "vit16-epoch3.pt": 3,
    "split0_epoch5.pt": 5,
    "ckpt-5": 5,
    "": None,
    ".pt": None,
    ".pt.pt": None,
    "x/.ckpt": None,
    ".safetensors.tar": None,
}


@pytest.mark.parametrize("name", STEPS_IN_NAMES)
def test_the_step_in_a_name(name):
    assert step_in_name(name) == STEPS_IN_NAMES[name]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_step_in_a_name_does_not_depend_on_the_suffix(suffix):
    assert step_in_name(f"a/ckpt-12{suffix}") == 12


def test_a_number_of_many_digits_is_no_burden():
    assert isinstance(step_in_name("9" * 20_000), int)


HUNDRED = [checkpoint(f"c-{step}.pt") for step in shuffled(range(1, 101))]


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"last": 3}, [98, 99, 100]),
        ({"first": 3}, [1, 2, 3]),
        ({"last": 1000}, list(range(1, 101))),
        ({"first": 1000}, list(range(1, 101))),
        ({"every": 1}, list(range(1, 101))),
        ({"every": 30}, [10, 40, 70, 100]),
        ({"every": 99}, [1, 100]),
        ({"every": 1000}, [100]),
        ({"min_step": 98}, [98, 99, 100]),
        ({"max_step": 2}, [1, 2]),
        ({"min_step": 5, "max_step": 7}, [5, 6, 7]),
        ({"min_step": 5, "max_step": 5}, [5]),
        ({"min_step": 101}, []),
        ({"max_step": -1}, []),
        ({"min_step": 0}, list(range(1, 101))),
        ({"max_step": 50, "every": 20}, [10, 30, 50]),
        ({"max_step": 50, "every": 20, "last": 2}, [30, 50]),
        ({"every": 20, "first": 2}, [20, 40]),
        ({"first": 10, "last": 2}, [9, 10]),
        ({"min_step": 11, "max_step": 90, "every": 10, "first": 5, "last": 2}, [50, 60]),
    ],
)
def test_what_is_kept(options, wanted):
    assert steps(HUNDRED, **options) == wanted


@pytest.mark.parametrize("option", ["min_step", "max_step"])
def test_a_range_of_steps_needs_steps(option):
    given = [checkpoint("c-1.pt"), checkpoint("la\nst.pt")]
    with pytest.raises(UsageError, match=r"need a step, and 'la\\nst\.pt' has none"):
        select(given, Selection(**{option: 1}))


def test_a_range_of_steps_does_not_need_the_order_of_steps():
    assert steps(NUMBERED, sort="given", min_step=9, max_step=30) == [10, 9, 30]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sort": "date"}, "--sort must be one of step, name, mtime, given, not 'date'"),
        ({"sort": ""}, "--sort must be"),
        ({"every": 0}, "--every must be a whole number of at least 1, not 0"),
        ({"first": 0}, "--first must be a whole number of at least 1"),
        ({"last": -1}, "--last must be a whole number of at least 1, not -1"),
        ({"min_step": 3, "max_step": 2}, "--min-step 3 is above --max-step 2"),
    ],
)
def test_a_selection_checks_itself(options, message):
    with pytest.raises(UsageError, match=message):
        Selection(**options)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.makedirs("run/below/deep")
    os.makedirs("run/x.pt")
    for suffix in SUFFIXES:
        open(f"run/a{suffix}", "w").close()
    for name in ("run/.hidden.pt", "run/log.txt", "run/ptx", "run/below/b.pt", "run/below/deep/c.pt"):
        open(name, "w").close()
    return "run"


FOUND = sorted(f"run/a{suffix}" for suffix in SUFFIXES)


def test_a_folder_stands_for_the_checkpoints_in_it(folder):
    assert expand([folder]) == FOUND
    assert [os.path.normpath(path) for path in expand([folder + "/"])] == FOUND


@pytest.mark.usefixtures("folder")
def test_files_are_taken_as_they_are_and_in_their_order():
    given = ["run/log.txt", "run/a.pt", "run/.hidden.pt", "missing.pt", "run/a.pt"]
    assert expand(given) == given


@pytest.mark.usefixtures("folder")
def test_a_path_may_be_a_path_object(tmp_path):
    assert expand([tmp_path / "run/a.pt"]) == [str(tmp_path / "run/a.pt")]
    assert expand([tmp_path / "run"]) == [str(tmp_path / path) for path in FOUND]


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        ("run/a.p*", ["run/a.pt", "run/a.pth"]),
        ("run/a.[pc]*t", ["run/a.ckpt", "run/a.pt"]),
        ("run/?.bin", ["run/a.bin"]),
        ("run/**/[bc].pt", ["run/below/b.pt", "run/below/deep/c.pt"]),
        ("r?n/below/*.pt", ["run/below/b.pt"]),
        ("run/**/**//**/[bc].pt", ["run/below/b.pt", "run/below/deep/c.pt"]),
        ("**/**/below/**/**/c.pt", ["run/below/deep/c.pt"]),
    ],
)
def test_a_quoted_pattern_is_expanded(pattern, wanted):
    assert expand([pattern]) == wanted


def test_a_pattern_of_many_wildcards_is_no_burden(tmp_path):
    """Each of them used to multiply what the ones before had found: here, by two millions in all."""
    deep = tmp_path.joinpath(*"abcdefghijkl")
    deep.mkdir(parents=True)
    (deep / "a.pt").touch()
    assert expand([f"{tmp_path}/{'**/' * 12}*.pt"]) == [str(deep / "a.pt")]


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("name", ["a[1].pt", "a*.pt", "what?.pt", "[ab].pt"])
def test_a_file_whose_name_looks_like_a_pattern_is_that_file(name):
    for other in (name, "a1.pt", "ab.pt", "a.pt", "whats.pt"):
        open(other, "w").close()
    assert expand([name]) == [name]


@pytest.mark.usefixtures("folder")
def test_a_dangling_link_is_left_for_the_opening_to_refuse():
    os.symlink("nowhere", "a[1].pt")
    assert expand(["a[1].pt"]) == ["a[1].pt"]


@pytest.mark.usefixtures("folder")
def test_a_folder_whose_name_looks_like_a_pattern_is_that_folder():
    os.mkdir("lr[1]")
    open("lr[1]/a.pt", "w").close()
    assert expand(["lr[1]"]) == ["lr[1]/a.pt"]


@pytest.mark.usefixtures("folder")
def test_several_inputs_are_joined():
    assert expand(["run/below", "run/a.p*", "x"]) == ["run/below/b.pt", "run/a.pt", "run/a.pth", "x"]
    assert expand([]) == []


@pytest.mark.usefixtures("folder")
def test_a_pattern_that_matches_nothing_is_an_error():
    with pytest.raises(CheckpointError, match=r"no file matches 'run/\*\.npz'"):
        expand(["run/a.pt", "run/*.npz"])


@pytest.mark.usefixtures("folder")
def test_a_folder_without_checkpoints_is_an_error():
    os.makedirs("empty/x.pt")
    open("empty/.a.pt", "w").close()
    with pytest.raises(CheckpointError, match=r"'empty' holds no checkpoints \(\.safetensors, \.pt"):
        expand(["empty"])


@pytest.mark.usefixtures("folder")
def test_a_folder_that_cannot_be_listed_is_an_error(monkeypatch):
    def fail(_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", fail)
    with pytest.raises(CheckpointError, match="cannot list 'run': Permission denied"):
        expand(["run"])


def test_a_pattern_that_matches_folders_gives_the_checkpoints_in_them(tmp_path):
    for folder in ("run-1", "run-2"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "ckpt.pt").touch()
    assert expand([f"{tmp_path}/run-*"]) == [f"{tmp_path}/run-1/ckpt.pt", f"{tmp_path}/run-2/ckpt.pt"]


def write(*names):
    for name in names:
        os.makedirs(os.path.dirname(name), exist_ok=True)
        open(name, "w").close()


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


BESIDE = (
    *("training_args.bin", "optimizer.pt", "optimizer.bin", "scheduler.pt", "scheduler.bin", "scaler.pt"),
    *("rng_state.pth", "rng_state_0.pth", "random_states_0.pkl", "sampler_1.bin", "trainer_state.json"),
    "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt",
)


def write_model(folder, *more):
    write(*(f"{folder}/{name}" for name in ("model.safetensors", "config.json", *more)))


@pytest.mark.usefixtures("here")
def test_a_folder_that_is_one_checkpoint_stands_for_itself():
    write_model("run/checkpoint-500", *BESIDE)
    for given in ("run/checkpoint-500", "run/checkpoint-500/"):
        assert expand([given]) == [given]
        assert passed_over([given]) == ()


@pytest.mark.usefixtures("here")
def test_a_run_stands_for_the_checkpoints_in_it():
    for step in (500, 1000):
        write_model(f"run/checkpoint-{step}", *BESIDE)
    write_model("run/tmp-checkpoint-1500")
    write_model("run/checkpoint-1500.tmp")
    write_model("run/.checkpoint-1600")
    write("run/runs/events.out", "run/training_args.bin", "run/README.md")
    wanted = ["run/checkpoint-1000", "run/checkpoint-500"]
    assert expand(["run"]) == wanted
    assert expand(["run/checkpoint-*"]) == wanted
    assert expand(["run/*check*-*0*"]) == wanted
    assert passed_over(["run"]) == ()
    assert [step_in_name(path) for path in expand(["run/"])] == [1000, 500]


@pytest.mark.usefixtures("here")
def test_the_final_model_of_a_run_is_passed_over_and_said_so():
    for step in (500, 1000):
        write_model(f"run/checkpoint-{step}")
    write_model("run", "training_args.bin")
    assert expand(["run"]) == ["run/checkpoint-1000", "run/checkpoint-500"]
    assert passed_over(["run", "run/checkpoint-*"]) == (
        "of the run 'run', only folders named by a step are taken; left out: 'run'",
    )


@pytest.mark.usefixtures("here")
def test_other_models_beside_a_run_s_folders_are_passed_over():
    write_model("run/step_100")
    write("run/a.pt")
    assert expand(["run"]) == ["run/step_100"]
    write_model("run/best")
    assert expand(["run"]) == ["run/step_100"]
    assert passed_over(["run"]) == (
        "of the run 'run', only folders named by a step are taken; left out: 'run/a.pt', 'run/best'",
    )


@pytest.mark.usefixtures("here")
def test_a_folder_below_that_is_no_step_s_does_not_take_a_model_s_place():
    write_model("model")
    write(
        "model/2_Dense/model.safetensors", "files/a-1.pt", "files/a-2.pt", "files/teacher/model.safetensors"
    )
    assert expand(["model"]) == ["model"]
    assert expand(["files"]) == ["files/a-1.pt", "files/a-2.pt"]


@pytest.mark.usefixtures("here")
def test_folders_of_any_name_are_taken_if_there_is_nothing_else():
    write_model("soup/mine")
    write_model("soup/yours")
    assert expand(["soup"]) == ["soup/mine", "soup/yours"]


@pytest.mark.usefixtures("here")
def test_the_only_model_inside_a_step_s_folder_is_that_checkpoint():
    for step in (1, 2):
        write(f"run/checkpoint-{step}/unet/diffusion_pytorch_model.safetensors")
        write(f"run/checkpoint-{step}/optimizer_0/model.safetensors", f"run/checkpoint-{step}/optimizer.bin")
    assert expand(["run"]) == ["run/checkpoint-1/unet", "run/checkpoint-2/unet"]
    assert [step_in_name(path) for path in expand(["run"])] == [1, 2]


@pytest.mark.usefixtures("here")
def test_a_single_global_step_belongs_to_the_model_around_it():
    write_model("run/checkpoint-5")
    write_model("run/checkpoint-5/global_step5")
    assert expand(["run/checkpoint-5"]) == ["run/checkpoint-5"]
    assert expand(["run"]) == ["run/checkpoint-5"]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", BESIDE)
def test_what_is_no_weights_is_not_taken_for_a_checkpoint(name):
    write("run/ckpt-1.pt", f"run/{name}", "run/my-optimizer.pt")
    assert expand(["run"]) == ["run/ckpt-1.pt", "run/my-optimizer.pt"]
    write(f"only/{name}")
    with pytest.raises(CheckpointError, match="'only' holds no checkpoints"):
        expand(["only"])


@pytest.mark.usefixtures("here")
def test_an_index_is_left_to_the_opening():
    write("run/model.safetensors.index.json", "run/model-00001-of-00001.safetensors")
    assert expand(["run/*.index.json"]) == ["run/model.safetensors.index.json"]
    assert expand(["run"]) == ["run"]


@pytest.mark.usefixtures("here")
def test_a_folder_below_that_cannot_be_listed_is_no_checkpoint(monkeypatch):
    write("run/a.pt", "run/step_1/model.safetensors")
    scandir = os.scandir

    def fail_below(path):
        if path == "run/step_1":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", fail_below)
    assert expand(["run"]) == ["run/a.pt"]
