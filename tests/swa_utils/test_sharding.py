"""What of a distributed tensor is here; FSDP2 itself is used in test_sharded.py."""

import sys
from types import SimpleNamespace

import torch
from torch import nn

from swatool.swa_utils.sharding import is_distributed, local, placement, reshard


def test_local_gives_others_as_they_are():
    tensor = torch.ones(2)
    assert local(tensor) is tensor


def test_distributed_tensors_are_told_by_what_they_can_do():
    plain, other = torch.ones(2), torch.ones(2)
    other.to_local = lambda: plain
    other.device_mesh, other.placements = "mesh", ("shard",)
    assert [is_distributed(plain), is_distributed(other)] == [False, True]
    assert [placement(plain), placement(other)] == [None, ("mesh", ("shard",))]
    assert local(other) is plain


class Sharded(nn.Linear):
    def reshard(self):
        self.resharded = True


def test_every_sharded_module_is_resharded_and_no_other(monkeypatch):
    class Stranger(nn.Linear):
        def reshard(self):
            raise AssertionError

    model = nn.Sequential(nn.Sequential(Sharded(1, 1)), Stranger(1, 1), Sharded(1, 1))
    monkeypatch.setitem(sys.modules, "torch.distributed.fsdp", SimpleNamespace(FSDPModule=Sharded))
    reshard(model)
    assert model[0][0].resharded
    assert model[2].resharded


def test_without_fsdp_nothing_is_looked_for(monkeypatch):
    monkeypatch.setattr(nn.Module, "modules", None)
    monkeypatch.setitem(sys.modules, "torch.distributed.fsdp", SimpleNamespace())  # as of an old torch
    reshard(nn.Linear(1, 1))
    monkeypatch.delitem(sys.modules, "torch.distributed.fsdp")
    reshard(nn.Linear(1, 1))
