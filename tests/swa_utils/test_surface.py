"""The names, signatures and classes of torch's module, and nothing of torch's behind them."""

import ast
import inspect
import pathlib
import subprocess
import sys

import pytest
import torch
from torch.optim import lr_scheduler
from torch.optim import swa_utils as theirs

from swatool import swa_utils as ours
from swatool.errors import SwatoolError

KINDS = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def parameters(function):
    return list(inspect.signature(function).parameters.values())


def test_torchs_names_come_first():
    assert ours.__all__[: len(theirs.__all__)] == theirs.__all__
    assert "PARAM_LIST" in ours.__all__
    assert len(set(ours.__all__)) == len(ours.__all__)
    assert all(hasattr(ours, name) for name in ours.__all__)


def test_nothing_is_torchs():
    for name in theirs.__all__:
        assert getattr(ours, name) is not getattr(theirs, name)
        assert getattr(ours, name).__module__.startswith("swatool.swa_utils")
    assert not issubclass(ours.AveragedModel, theirs.AveragedModel)
    assert issubclass(ours.SWALR, lr_scheduler.LRScheduler)
    assert not issubclass(ours.SWALR, theirs.SWALR)
    assert ours.PARAM_LIST == theirs.PARAM_LIST


@pytest.mark.parametrize(
    "name",
    [
        *("AveragedModel", "AveragedModel.forward", "AveragedModel.update_parameters", "update_bn"),
        *("SWALR", "SWALR.get_lr", "SWALR.state_dict", "SWALR.load_state_dict", "SWALR._set_anneal_func"),
        *("SWALR._linear_anneal", "SWALR._cosine_anneal", "SWALR._get_initial_lr"),
        *("get_ema_multi_avg_fn", "get_swa_multi_avg_fn", "get_ema_avg_fn", "get_swa_avg_fn"),
    ],
)
def test_signatures_begin_with_torchs(name):
    find = lambda module: __import__("functools").reduce(getattr, name.split("."), module)  # noqa: E731
    expected, found = parameters(find(theirs)), parameters(find(ours))
    for one, other in zip(expected, found, strict=False):
        assert (one.name, one.default, one.kind) == (other.name, other.default, other.kind)
    for extra in found[len(expected) :]:
        assert extra.kind is inspect.Parameter.KEYWORD_ONLY
        assert extra.default is not inspect.Parameter.empty


def test_static_methods_are_static():
    for name in ("_linear_anneal", "_cosine_anneal", "_get_initial_lr"):
        assert isinstance(inspect.getattr_static(ours.SWALR, name), staticmethod)


@pytest.mark.parametrize(
    ("error", "bases"),
    [
        (ours.ArgumentError, (ValueError,)),
        (ours.ArgumentTypeError, (TypeError,)),
        (ours.ConflictError, (AssertionError,)),
        (ours.MissingRateError, (KeyError,)),
        (ours.PairingError, (ValueError, RuntimeError)),
    ],
)
def test_errors_are_swatools_and_torchs(error, bases):
    assert issubclass(error, SwatoolError)
    assert all(issubclass(error, base) for base in bases)
    assert str(error("a sentence")) == "a sentence"


def test_attributes_are_torchs():
    model = torch.nn.Linear(2, 2)
    mine, reference = ours.AveragedModel(model), theirs.AveragedModel(model)
    assert set(vars(reference)) <= set(vars(mine))
    assert list(mine.state_dict()) == list(reference.state_dict())
    for name in ("avg_fn", "multi_avg_fn", "use_buffers", "training"):
        assert getattr(mine, name) == getattr(reference, name)
    assert mine.n_averaged.dtype is torch.int64
    assert mine.n_averaged.shape == ()


def test_importing_swatool_alone_does_not_import_torch():
    code = "import sys, swatool; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_nothing_is_taken_from_torchs_module_and_private_kernels_stay_in_one_file():
    package = pathlib.Path(ours.__file__).parent
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in getattr(node, "names", ()) if isinstance(alias, ast.alias)]
            assert "swa_utils" not in str(getattr(node, "module", "")).removeprefix("swatool.swa_utils"), path
            assert not any(name.startswith("torch.optim.swa_utils") for name in names), path
            assert not getattr(node, "attr", "").startswith(("_foreach_", "_group_tensors", "_C")), path
