"""`--like`: the loaders of training programs take the output, and what is theirs alone stays behind."""

import argparse
import itertools
import json
import sys
from collections import OrderedDict
from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from swatool.averaging.plan import make_plan
from swatool.averaging.policies import Policies
from swatool.averaging.stream import Target, stream
from swatool.checkpoints.opening import Reading, open_checkpoint
from swatool.errors import CheckpointError, MismatchError
from swatool.jobs import likeness
from swatool.jobs.likeness import lay_out_like, read_likeness
from swatool.output.layout import OutputTensor
from swatool.output.writing import writing


class Model(nn.Module):
    def __init__(self, width=3):
        super().__init__()
        self.encoder = nn.Embedding(5, width)
        self.norm = nn.BatchNorm1d(width)
        self.decoder = nn.Linear(width, 5, bias=False)
        self.decoder.weight = self.encoder.weight


def state_dict(seed, prefix=""):
    torch.manual_seed(seed)
    model = Model()
    for parameter in model.parameters():
        parameter.data.normal_()
    return OrderedDict((prefix + name, tensor) for name, tensor in model.state_dict().items())


def averaged(paths, like, output, reading=None, metadata=None):
    """What the job does with these functions."""
    opened = [open_checkpoint(path, reading) for path in paths]
    plan = make_plan(opened, [[1 / len(paths)] * len(paths)], Policies())
    tensors = {t.name: OutputTensor(t.name, t.treatment.dtype, t.shape) for t in plan.tensors}
    tensors |= {name: tensors[first]._replace(name=name) for name, first in plan.ties.items()}
    layout = lay_out_like(read_likeness(like, reading), tensors.values(), plan.ties, metadata or {})
    with writing(layout, output, overwrite=False) as pending:
        stream(plan, [Target(layout, pending.write)], device=torch.device("cpu"), threads=2)
        pending.publish()
    for checkpoint in opened:
        checkpoint.close()
    return output


def check(found, states):
    """Compare with torch's own arithmetic."""
    assert list(found) == list(states[0])
    for name, tensor in found.items():
        values = [state[name] for state in states]
        expected = torch.stack(values).mean(0) if tensor.is_floating_point() else values[-1]
        torch.testing.assert_close(tensor, expected)


def lightning_checkpoint(state, step):
    return {
        "epoch": step // 10,
        "global_step": step,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": state,
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"current": {"ready": 1}}}},
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.5), "best_model_path": "x"}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(5, 3)}}, "param_groups": [{"lr": 0.1}]}],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": {"width": 3, "loss": argparse.Namespace(name="ce"), "betas": (0.9, 0.999)},
    }


def load_as_lightning_does(path):
    """What load_from_checkpoint looks up, in its order."""
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    assert [int(part) for part in checkpoint["pytorch-lightning_version"].split(".")] >= [1, 0, 0]
    assert checkpoint["global_step"] >= checkpoint["epoch"]
    parameters = dict(checkpoint.setdefault("hyper_parameters", {}))
    model = Model(**{name: value for name, value in parameters.items() if name in ("width",)})
    model.load_state_dict(checkpoint["state_dict"], strict=True)
    return checkpoint


def test_lightning_takes_the_output(tmp_path):
    states = [state_dict(seed) for seed in range(3)]
    paths = [tmp_path / f"{step}.ckpt" for step in (10, 20, 30)]
    for path, state, step in zip(paths, states, (10, 20, 30), strict=True):
        torch.save(lightning_checkpoint(state, step), path)
    metadata = {"swatool": json.dumps({"version": "1"})}
    output = averaged(paths, paths[-1], tmp_path / "out.ckpt", metadata=metadata)
    checkpoint = load_as_lightning_does(output)
    check(checkpoint["state_dict"], states)
    assert {name: value for name, value in checkpoint.items() if name != "state_dict"} == {
        "epoch": 3,
        "global_step": 30,
        "pytorch-lightning_version": "2.5.0",
        "hparams_name": "kwargs",
        "hyper_parameters": {"width": 3, "betas": (0.9, 0.999)},
    }
    tied = checkpoint["state_dict"]
    assert tied["encoder.weight"].data_ptr() == tied["decoder.weight"].data_ptr()
    again = open_checkpoint(output)
    again.close()
    assert (again.key, dict(again.metadata)) == ("state_dict", metadata)


def fairseq_checkpoint(state, step):
    return {
        "args": None,
        "cfg": {"_name": None, "task": {"_name": "translation", "data": "x"}, "model": {"arch": "small"}},
        "model": state,
        "criterion": None,
        "optimizer_history": [
            {"criterion_name": "CE", "optimizer_name": "FairseqAdam", "num_updates": step}
            | {"lr_scheduler_state": {"best": None}, "optimizer": {"exp_avg": torch.ones(5)}}
        ],
        "task_state": {},
        "extra_state": {
            "train_iterator": {"epoch": 2, "iterations_in_epoch": 0, "shuffle": True},
            "val_loss": 1.5,
            "ema": {"encoder.weight": torch.zeros(1)},
            "metrics": OrderedDict(default=[(0, "loss", "AverageMeter", {"val": 1.0})]),
        },
        "last_optimizer_state": {"state": {0: {"exp_avg": torch.ones(5)}}, "param_groups": [{"lr": 0.1}]},
    }


def load_as_fairseq_does(path):
    """What load_checkpoint_to_cpu and load_model_ensemble_and_task look up, in their order."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    assert state["args"] is None
    assert state["cfg"]["task"]["_name"] == "translation"
    last = state["optimizer_history"][-1]
    assert {"optimizer_name", "lr_scheduler_state", "num_updates"} <= set(last)
    assert state["extra_state"]["train_iterator"]["epoch"] == 2
    model = Model()
    model.load_state_dict(state["model"], strict=True)
    return state


def test_fairseq_takes_the_output(tmp_path):
    states = [state_dict(seed) for seed in range(2)]
    paths = [tmp_path / f"checkpoint{step}.pt" for step in (1, 2)]
    for path, state, step in zip(paths, states, (1, 2), strict=True):
        torch.save(fairseq_checkpoint(state, step), path)
    state = load_as_fairseq_does(averaged(paths, paths[-1], tmp_path / "out.pt"))
    check(state["model"], states)
    assert list(state) == ["model", "args", "cfg", "criterion", "optimizer_history", "extra_state"]
    assert "optimizer" not in state["optimizer_history"][0]
    assert list(state["extra_state"]) == ["train_iterator", "val_loss", "metrics"]
    assert state["extra_state"]["metrics"] == {"default": [(0, "loss", "AverageMeter", {"val": 1.0})]}


@pytest.mark.parametrize("prefix", ["module.", "module._orig_mod.", "net."])
def test_names_are_written_with_the_prefix_that_was_taken_off(prefix, tmp_path):
    reading = Reading(strip_prefix=("net.",) if prefix == "net." else ())
    states = [state_dict(seed, prefix) for seed in range(2)]
    paths = [tmp_path / f"{seed}.pt" for seed in range(2)]
    for path, state in zip(paths, states, strict=True):
        torch.save({"net": {"weights": state}}, path)
    loaded = torch.load(averaged(paths, paths[0], tmp_path / "out.pt", reading))
    assert list(loaded) == ["net"]
    check(loaded["net"]["weights"], states)


def test_the_order_of_the_names_is_that_of_the_checkpoint(tmp_path):
    names = [f"w{index}" for index in range(4)]
    for number, order in enumerate(itertools.permutations(names)):
        path = tmp_path / f"{number}.pt"
        torch.save({name: torch.ones(int(name[1]) + 1) for name in order}, path)
        tensors = read_back_shapes(path)
        assert list(lay_out_like(read_likeness(path), tensors, {}, {}).offsets) == list(order)


def read_back_shapes(path):
    checkpoint = open_checkpoint(path)
    checkpoint.close()
    found = [OutputTensor(name, one.dtype, one.shape) for name, one in checkpoint.tensors.items()]
    return sorted(found)


def test_a_file_that_is_the_state_dict_itself_gives_one(tmp_path):
    torch.save(state_dict(0), tmp_path / "a.pt")
    like = read_likeness(tmp_path / "a.pt")
    assert (like.wrapper, like.beside, like.prefix) == ((), {}, "")
    assert list(like.shapes) == list(state_dict(0))


@pytest.mark.skipif(find_spec("numpy") is None, reason="safetensors' own writer needs NumPy")
def test_another_format_may_be_the_model_of_names(tmp_path):
    save_file({"module.b": torch.ones(2), "module.a": torch.ones(3)}, tmp_path / "a.safetensors")
    like = read_likeness(tmp_path / "a.safetensors")
    assert (like.wrapper, like.prefix, set(like.shapes)) == ((), "module.", {"a", "b"})


def test_a_key_with_dots_is_one_key(tmp_path):
    torch.save({"a.b": {"c": state_dict(0)}, "step": 3}, tmp_path / "a.pt")
    like = read_likeness(tmp_path / "a.pt")
    assert (like.wrapper, like.beside) == (("a.b", "c"), {"step": 3})


def test_the_given_key_is_the_wrapper(tmp_path):
    torch.save({"model": state_dict(0), "ema": state_dict(1), "step": 3}, tmp_path / "a.pt")
    like = read_likeness(tmp_path / "a.pt", Reading(key="ema"))
    assert (like.wrapper, like.beside) == (("ema",), {"step": 3})
    torch.save({"model": state_dict(0), "extra_state": {"ema": state_dict(1), "epoch": 3}}, tmp_path / "a.pt")
    like = read_likeness(tmp_path / "a.pt", Reading(key="extra_state.ema"))
    assert (like.wrapper, like.beside) == (("extra_state", "ema"), {})


def test_other_names_or_shapes_than_those_asked_for_are_refused(tmp_path):
    torch.save({"a": torch.ones(2), "b": torch.ones(3), "c": torch.ones(1)}, tmp_path / "a.pt")
    torch.save({"a": torch.ones(2), "b": torch.ones(4), "d": torch.ones(1)}, tmp_path / "b.pt")
    with pytest.raises(MismatchError, match="which --like asks for") as caught:
        lay_out_like(read_likeness(tmp_path / "a.pt"), read_back_shapes(tmp_path / "b.pt"), {}, {})
    assert caught.value.differences == (
        "'c' is not in the average",
        "'d' is only in the average",
        "'b' has shape [4] in the average, [3] there",
    )
    assert "a.pt" in str(caught.value)


def test_a_missing_file_is_refused_and_nothing_stays_open(tmp_path):
    with pytest.raises(CheckpointError, match=r"cannot open .*none\.pt"):
        read_likeness(tmp_path / "none.pt")


def beside(tmp_path, **values):
    torch.save({"model": state_dict(0), **values}, tmp_path / "a.pt")
    return read_likeness(tmp_path / "a.pt").beside


def test_lists_with_something_else_in_them_are_left_out_whole(tmp_path):
    opaque = argparse.Namespace(a=1)
    kept = beside(
        tmp_path,
        cfg={
            "a": [1, opaque],
            "b": (opaque,),
            "c": [[1], (2.0, None)],
            "d": opaque,
            "e": {"f": opaque},
            "g": {},
        },
    )
    assert kept == {"cfg": {"c": [[1], (2.0, None)], "g": {}}}


def test_huge_numbers_are_left_out(tmp_path):
    assert beside(tmp_path, seed=2**63, other=2**80, best=float("inf")) == {
        "seed": 2**63,
        "best": float("inf"),
    }


def test_a_tree_without_end_is_cut(tmp_path):
    cyclic, shared = {"a": 1}, [1]
    cyclic["self"] = cyclic
    for _ in range(60):
        shared = [shared, shared]
    kept = beside(tmp_path, cfg=cyclic, extra_state={"b": 2, "shared": shared})
    depth = 0
    inner = kept["cfg"]
    while "self" in inner:
        inner, depth = inner["self"], depth + 1
    assert 0 < depth <= likeness.MAX_DEPTH < sys.getrecursionlimit() // 10
    assert kept["extra_state"] == {"b": 2}


def test_many_values_and_long_texts_are_left_out_and_nothing_else(tmp_path):
    large, texts = [0] * 100_000, ["x" * 500_000] * 1000
    kept = beside(tmp_path, cfg={"a": [0] * 50_000}, hyper_parameters=large, extra_state=texts, version="1")
    assert len(kept["cfg"]["a"]) == 50_000
    assert list(kept) == ["cfg", "version"]
