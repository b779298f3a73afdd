"""Names without the marks of wrappers, and state dicts that the plain model takes."""

from collections import OrderedDict

import pytest
import torch
from torch import nn

from swatool.swa_utils import AveragedModel, PairingError
from swatool.swa_utils.names import clean_names, clean_state_dict, names_as_usual


def test_names_are_cleaned_where_all_of_them_say_so():
    assert clean_names(["module.a", "module.b.c"]) == {"module.a": "a", "module.b.c": "b.c"}
    assert clean_names(["module.module.a"]) == {"module.module.a": "a"}
    assert clean_names(["module.a", "b"]) == {"module.a": "module.a", "b": "b"}
    assert clean_names(["_orig_mod.a", "x._orig_mod.b"]) == {"_orig_mod.a": "a", "x._orig_mod.b": "x.b"}
    assert clean_names(["_orig_mod.module.a", "module._orig_mod.b"]) == {
        "_orig_mod.module.a": "a",
        "module._orig_mod.b": "b",
    }
    assert clean_names(["my_orig_mod.a", "modules.a"]) == {
        "my_orig_mod.a": "my_orig_mod.a",
        "modules.a": "modules.a",
    }
    assert clean_names([]) == {}


def test_names_that_become_the_same_are_refused():
    with pytest.raises(PairingError, match=r"several tensors have the same name: 'x\.a'$"):
        clean_names(["x.a", "x._orig_mod.a", "y"])


def test_names_are_usual_unless_a_class_gives_them_itself():
    assert names_as_usual(nn.Linear(2, 2))
    for name in ("named_parameters", "named_buffers", "named_modules"):
        own = type("Own", (nn.Linear,), {name: lambda _: iter(())})
        assert not names_as_usual(own(2, 2))


class WithModule(nn.Module):
    """A model with a part that is called as what wrappers wrap."""

    def __init__(self):
        super().__init__()
        self.module = nn.Linear(2, 2)


def compiled(module):
    return torch.compile(module, backend="eager")


def distributed(module):
    """Return what is built as DistributedDataParallel is, without the processes that it needs."""
    wrapper = nn.parallel.DistributedDataParallel.__new__(nn.parallel.DistributedDataParallel)
    nn.Module.__init__(wrapper)
    wrapper.module = module
    return wrapper


WRAPPINGS = {
    "nothing": lambda module: module,
    "compiled": compiled,
    "parallel": nn.DataParallel,
    "parallel and compiled": lambda module: compiled(nn.DataParallel(module)),
    "compiled and parallel": lambda module: nn.DataParallel(compiled(nn.DataParallel(module))),
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_only_wrappers_are_taken_off(wrapping):
    assert list(clean_state_dict(distributed(WRAPPINGS[wrapping](WithModule())))) == [
        "module.weight",
        "module.bias",
    ]
    averaged = AveragedModel(WRAPPINGS[wrapping](WithModule()))
    averaged.update_parameters(WRAPPINGS[wrapping](WithModule()))
    state = averaged.averaged_state_dict()
    assert list(state) == ["module.weight", "module.bias"]
    WithModule().load_state_dict(state)


class Versioned(nn.Linear):
    """Has turned its weight around since version 1."""

    _version = 2

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args):
        if local_metadata.get("version", 1) < 2:
            state_dict[prefix + "weight"] = state_dict[prefix + "weight"].t()
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_versions_of_modules_are_kept(wrapping):
    plain = nn.Sequential(Versioned(2, 2))
    wrapped = WRAPPINGS[wrapping](nn.Sequential(WRAPPINGS["compiled"](plain[0])))
    state = AveragedModel(wrapped).averaged_state_dict()
    assert type(state) is OrderedDict
    assert state._metadata == plain.state_dict()._metadata
    other = nn.Sequential(Versioned(2, 2))
    other.load_state_dict(state)
    assert torch.equal(other[0].weight, plain[0].weight)


def test_state_dicts_without_versions_are_taken_too():
    class Own(nn.Linear):
        def state_dict(self):
            return {"_orig_mod.weight": self.weight}

    state = clean_state_dict(Own(2, 2))
    assert list(state) == ["weight"]
    assert not hasattr(state, "_metadata")


def test_names_of_a_state_that_become_the_same_are_refused():
    inner = nn.Module()
    inner.layer, inner.layer.weight = nn.Module(), nn.Parameter(torch.ones(1))
    inner.layer._orig_mod = nn.Linear(2, 2)
    with pytest.raises(PairingError, match=r"'layer\.weight'"):
        clean_state_dict(inner)
