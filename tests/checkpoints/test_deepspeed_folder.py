"""Folders that DeepSpeed saved: the model's file is read, and what it does not hold whole is refused."""

import pytest
import torch

from swatool.checkpoints.deepspeed_folder import recognises
from swatool.checkpoints.opening import open_checkpoint
from swatool.checkpoints.selection import Selection, select
from swatool.errors import CheckpointError

STATE = {"fc.weight": torch.arange(12.0).reshape(3, 4), "fc.bias": torch.arange(3.0).to(torch.bfloat16)}
SHARDS = [f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in range(2)]


def folder(path, *models, state=STATE, step=500):
    """A folder with these model files, beside the shards of the optimizer."""
    path.mkdir()
    for name in models:
        root = {"module": state, "global_steps": step, "ds_version": "0.16.4", "param_shapes": []}
        torch.save(root, path / name)
    for name in SHARDS:
        (path / name).write_bytes(b"is not read")
    return path


def refusal(path):
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    message = str(caught.value)
    assert repr(str(path)) in message
    assert message.isprintable()
    return message


def test_the_model_is_read_from_its_file(tmp_path):
    checkpoint = open_checkpoint(folder(tmp_path / "global_step500", "mp_rank_00_model_states.pt"))
    assert (checkpoint.format, checkpoint.key) == ("DeepSpeed", "module")
    assert checkpoint.fields["global_steps"] == 500
    for name, tensor in STATE.items():
        (extent,) = checkpoint.tensors[name].extents
        raw = bytearray(extent.source.read(extent.offset, extent.nbytes))
        assert torch.equal(torch.frombuffer(raw, dtype=tensor.dtype).view(tensor.shape), tensor)
    checkpoint.close()


def test_folders_are_ordered_by_their_steps(tmp_path):
    found = [
        open_checkpoint(folder(tmp_path / f"x{step}", "mp_rank_00_model_states.pt", step=step))
        for step in (90, 1000, 500)
    ]
    assert [dated.step for dated in select(found, Selection())] == [90, 500, 1000]
    for checkpoint in found:
        checkpoint.close()


def test_tensor_parallel_ranks_are_refused(tmp_path):
    path = folder(tmp_path / "x", "mp_rank_00_model_states.pt", "mp_rank_01_model_states.pt")
    assert "from 2 tensor-parallel ranks, of which each file holds slices" in refusal(path)


@pytest.mark.parametrize("beside", [(), ("mp_rank_00_model_states.pt",)])
def test_zero_3_is_refused_with_what_to_do(tmp_path, beside):
    names = [f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt" for rank in range(2)]
    message = refusal(folder(tmp_path / "x", *names, *beside))
    assert "ZeRO-3" in message
    assert "zero_to_fp32.py" in message


@pytest.mark.parametrize(
    "other",
    [
        "layer_00-model_00-model_states.pt",
        "layer_01-model_states.pt",
        "layer_0_expert_3_mp_rank_00_model_states.pt",
        "expert_0_mp_rank_00_model_states.pt",
    ],
)
def test_stages_and_experts_in_files_of_their_own_are_refused(tmp_path, other):
    message = refusal(folder(tmp_path / "x", "mp_rank_00_model_states.pt", other))
    assert f"such as '{other}': save the whole model in one file" in message


def test_a_damaged_model_file_is_named(tmp_path):
    path = folder(tmp_path / "x")
    (path / "mp_rank_00_model_states.pt").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"x/mp_rank_00_model_states\.pt' is no checkpoint"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    ("names", "known"),
    [
        (["mp_rank_00_model_states.pt"], True),
        (["latest", "mp_rank_07_model_states.pt"], True),
        (["zero_pp_rank_0_mp_rank_00_model_states.pt"], True),
        (SHARDS, False),
        (
            ["mp_rank_00_model_states.pt.bak", "my_mp_rank_00_model_states.pt", "mp_rank_x_model_states.pt"],
            False,
        ),
        ([], False),
    ],
)
def test_a_folder_is_known_by_the_names_in_it(names, known):
    assert recognises(names) is known
