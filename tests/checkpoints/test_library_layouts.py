"""Checkpoints as the training libraries lay them out: each opens with no option, and gives the weights."""

import argparse
import collections
import enum
import pathlib

import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from swatool.checkpoints.opening import Reading, open_checkpoint
from swatool.errors import CheckpointError


class Precision(enum.Enum):
    MIXED = "16-mixed"


class Omega:
    """Stands for a configuration object of a library that is not installed."""

    def __init__(self, **content):
        self.__dict__["_content"] = content
        self.__dict__["_metadata"] = {"ref_type": Omega, "object_type": dict, "flags": {"struct": True}}


class Sharded(torch.nn.Module):
    """Wraps a model and names its parameters as DistributedDataParallel does."""

    def __init__(self, module):
        super().__init__()
        self.module = module


def network():
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))


def compiled(module):
    return torch.compile(module, backend="eager")


MODEL = network()
OPTIMIZER = torch.optim.Adam(MODEL.parameters())
MODEL(torch.ones(5, 3)).square().sum().backward()
OPTIMIZER.step()
STATE = {name: value.clone() for name, value in MODEL.state_dict().items()}
OTHER = {name: value + 1 for name, value in STATE.items()}


def values(checkpoint):
    found = {}
    for name, stored in checkpoint.tensors.items():
        raw = b"".join(extent.source.read(extent.offset, extent.nbytes) for extent in stored.extents)
        found[name] = torch.frombuffer(bytearray(raw), dtype=getattr(torch, stored.dtype.name)).view(
            stored.shape
        )
    return found


def opened(path, key=None):
    checkpoint = open_checkpoint(path, Reading(key=key))
    found = values(checkpoint)
    checkpoint.close()
    return checkpoint, found


def assert_opens(path, root, key, state=STATE, given=None):
    for legacy in (False, True):
        torch.save(root, path, _use_new_zipfile_serialization=not legacy)
        checkpoint, found = opened(path, given)
        assert checkpoint.key == key
        assert list(found) == list(state)
        for name, tensor in state.items():
            assert found[name].dtype == tensor.dtype
            assert torch.equal(found[name], tensor), name
    return checkpoint


def numpy_scalar():
    """A loss as trainers leave it: NumPy's number where NumPy is installed."""
    try:
        import numpy
    except ImportError:
        return 0.5
    return numpy.float32(0.5)


def lightning():
    return {
        "epoch": 4,
        "global_step": 1250,
        "pytorch-lightning_version": "2.5.1",
        "state_dict": collections.OrderedDict(STATE),
        "loops": {
            "fit_loop": {
                "state_dict": {},
                "epoch_loop.state_dict": {"_batches_that_stepped": 1250},
                "epoch_loop.batch_progress": {"total": {"ready": 1250}, "is_last_batch": True},
                "epoch_progress": {"total": {"ready": 5, "completed": 4}},
            },
            "validate_loop": {"state_dict": {}},
        },
        "callbacks": {
            "ModelCheckpoint{'monitor': 'val_loss', 'mode': 'min'}": {
                "monitor": "val_loss",
                "best_model_score": torch.tensor(0.25),
                "best_model_path": "runs/epoch=3.ckpt",
                "best_k_models": {"runs/epoch=3.ckpt": torch.tensor(0.25)},
                "dirpath": pathlib.PurePosixPath("runs"),
            },
            "EarlyStopping": {"wait_count": 0, "best_score": torch.tensor(0.25)},
        },
        "optimizer_states": [OPTIMIZER.state_dict()],
        "lr_schedulers": [{"last_epoch": 4, "_last_lr": [0.001]}],
        "MixedPrecision": {"scale": 65536.0, "growth_tracker": 3},
        "hparams_name": "kwargs",
        "hyper_parameters": {"lr": 0.001, "precision": Precision.MIXED, "net": Omega(depth=3)},
        "datamodule_hyper_parameters": {"batch_size": 32},
    }


def deepspeed(**changes):
    shapes = collections.OrderedDict((name, value.shape) for name, value in MODEL.named_parameters())
    return {
        "module": collections.OrderedDict(STATE),
        "buffer_names": ["1.running_mean", "1.running_var", "1.num_batches_tracked"],
        "optimizer": None,
        "param_shapes": [shapes],
        "frozen_param_shapes": None,
        "shared_params": {},
        "frozen_param_fragments": None,
        "lr_scheduler": {"last_batch_iteration": 499},
        "data_sampler": None,
        "random_ltd": None,
        "sparse_tensor_module_names": set(),
        "skipped_steps": 2,
        "global_steps": 500,
        "global_samples": 16000,
        "dp_world_size": 8,
        "mp_world_size": 1,
        "ds_config": {"train_batch_size": 32, "zero_optimization": {"stage": 1}},
        "ds_version": "0.16.4",
        "epoch": 2,
        **changes,
    }


def fairseq():
    return {
        "args": argparse.Namespace(arch="transformer", lr=[0.0005]),
        "cfg": {"_name": None, "common": {"seed": 1, "fp16": True}, "model": Omega(arch="transformer")},
        "model": dict(STATE),
        "criterion": None,
        "optimizer_history": [
            {"criterion_name": "CrossEntropy", "optimizer_name": "FairseqAdam", "num_updates": 900},
            {
                "criterion_name": "CrossEntropy",
                "optimizer_name": "FairseqAdam",
                "lr_scheduler_state": {"best": None},
                "num_updates": 1800,
            },
        ],
        "task_state": {"symbols": [f"w{n}" for n in range(100)]},
        "extra_state": {
            "train_iterator": {"epoch": 3, "iterations_in_epoch": 100, "shuffle": True, "len": 900},
            "val_loss": 3.25,
            "best": 3.0,
            "metrics": [("default", [[0, "loss", "AverageMeter", {"val": torch.tensor(2.5), "sum": 7.5}]])],
            "previous_training_time": 12.5,
            "ema_fp32_params": dict(OTHER),
        },
        "last_optimizer_state": OPTIMIZER.state_dict(),
    }


def timm():
    return {
        "epoch": 7,
        "arch": "resnet18",
        "state_dict": dict(STATE),
        "optimizer": OPTIMIZER.state_dict(),
        "version": 2,
        "args": argparse.Namespace(model="resnet18", lr=0.1, mean=(0.5, 0.5), amp=True),
        "amp_scaler": {"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 11},
        "state_dict_ema": dict(OTHER),
        "metric": numpy_scalar(),
    }


def espnet():
    return {
        "model": dict(STATE),
        "reporter": {
            "stats": {1: {"train": {"loss": 2.5, "time": 12.0}, "valid": {"acc": numpy_scalar()}}},
            "epoch": 1,
        },
        "optimizers": [OPTIMIZER.state_dict()],
        "schedulers": [{"last_epoch": 100, "_step_count": 101}],
        "scaler": {"scale": 65536.0},
    }


LAYOUTS = {
    "lightning": (lightning, "state_dict", {"epoch": 4, "global_step": 1250}),
    "deepspeed": (deepspeed, "module", {"global_steps": 500, "dp_world_size": 8, "epoch": 2}),
    "fairseq": (fairseq, "model", {"num_updates": 1800}),
    "timm": (timm, "state_dict", {"epoch": 7, "version": 2}),
    "espnet": (espnet, "model", {}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_checkpoint_opens_with_no_option(tmp_path, layout):
    make, key, fields = LAYOUTS[layout]
    checkpoint = assert_opens(tmp_path / "x.ckpt", make(), key)
    assert fields.items() <= checkpoint.fields.items()


@pytest.mark.parametrize(
    ("make", "key"), [(timm, "state_dict_ema"), (fairseq, "extra_state.ema_fp32_params")]
)
def test_the_average_beside_the_weights_is_read_when_it_is_asked_for(tmp_path, make, key):
    assert_opens(tmp_path / "x.pt", make(), key, OTHER, given=key)


def test_a_model_of_espnet_is_the_state_dict_itself(tmp_path):
    assert_opens(tmp_path / "valid.acc.best.pth", collections.OrderedDict(STATE), "")


WRAPPED = {
    "data parallel": Sharded,
    "compiled": compiled,
    "data parallel and compiled": lambda model: compiled(Sharded(model)),
    "compiled and data parallel": lambda model: Sharded(compiled(model)),
}


@pytest.mark.parametrize("layout", [None, "lightning", "timm"])
@pytest.mark.parametrize("wrapping", WRAPPED)
def test_names_of_wrapped_models_are_those_of_the_model(tmp_path, wrapping, layout):
    state = WRAPPED[wrapping](MODEL).state_dict()
    assert all(name not in STATE for name in state)
    if layout is None:
        assert_opens(tmp_path / "x.pt", state, "")
    else:
        assert_opens(tmp_path / "x.pt", LAYOUTS[layout][0]() | {"state_dict": state}, "state_dict")


def averaged(wrap=lambda model: model, outside=lambda model: model, updates=3):
    """The state dict of torch's AveragedModel."""
    average = AveragedModel(wrap(MODEL), multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
    for _ in range(updates):
        average.update_parameters(wrap(MODEL))
    return outside(average).state_dict()


INNER = {"plain": lambda model: model, **WRAPPED}
OUTER = {"plain": lambda model: model, "compiled": compiled, "data parallel": Sharded}


@pytest.mark.parametrize("outer", OUTER)
@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("key", ["", "ema", "swa_model", "state_dict"])
def test_the_counter_of_an_averaged_model_is_dropped_and_its_names_are_the_models(
    tmp_path, key, inner, outer
):
    state = averaged(INNER[inner], OUTER[outer])
    assert sum(name.endswith("n_averaged") for name in state) == 1
    root = {key: state, "epoch": 1} if key else state
    checkpoint = assert_opens(tmp_path / "x.pt", root, key)
    assert checkpoint.fields["n_averaged"] == 3
    assert checkpoint.skipped == ()


def test_an_averaged_model_beside_the_model_is_not_taken(tmp_path):
    root = {"model": OTHER, "swa": averaged(), "n": 1}
    checkpoint = assert_opens(tmp_path / "x.pt", root, "model", OTHER)
    assert "n_averaged" not in checkpoint.fields
    assert_opens(tmp_path / "x.pt", root, "swa", given="swa")


@pytest.mark.parametrize(
    "state",
    [
        {"n_averaged": torch.tensor(3)},
        {"n_averaged": torch.tensor(3), "module.w": torch.ones(2), "head.w": torch.ones(2)},
        {"n_averaged": torch.ones(2), "module.w": torch.ones(2)},
        {"n_averaged": torch.tensor(3), "w": torch.ones(2)},
        {"net.n_averaged": torch.tensor(3), "net.module.w": torch.ones(2)},
    ],
)
def test_a_tensor_that_is_only_called_like_the_counter_stays(tmp_path, state):
    checkpoint = assert_opens(tmp_path / "x.pt", state, "", state)
    assert checkpoint.fields == {}


def test_many_names_like_the_counter_take_no_time(tmp_path):
    state = {"module." * depth + "n_averaged": torch.tensor(1) for depth in range(1000)}
    torch.save(state, tmp_path / "x.pt")
    _, found = opened(tmp_path / "x.pt")
    assert len(found) == 1000 - 1


def test_a_rank_of_zero_3_is_refused_with_what_to_do(tmp_path):
    empty = {name: torch.empty(0, dtype=value.dtype) for name, value in STATE.items()}
    torch.save(deepspeed(module=empty), tmp_path / "x.pt")
    with pytest.raises(
        CheckpointError, match=r"x\.pt' was saved by one rank of DeepSpeed .* zero_to_fp32\.py"
    ):
        open_checkpoint(tmp_path / "x.pt")


@pytest.mark.parametrize(
    "history",
    [None, [], [None], [{}], [{"num_updates": None}], [{"num_updates": True}], {"num_updates": 3}, 7],
)
def test_an_odd_history_gives_no_step(tmp_path, history):
    checkpoint = assert_opens(tmp_path / "x.pt", {"model": STATE, "optimizer_history": history}, "model")
    assert "num_updates" not in checkpoint.fields
