"""A folder that DeepSpeed saved: the model of one rank in one file, beside the optimizer's shards.

Only what one file holds whole is read. Where the weights are spread over ranks, stages or experts, DeepSpeed
knows how to put them together, and swatool does not.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from swatool.checkpoints.contents import Contents
from swatool.checkpoints.file_formats import read_file
from swatool.errors import CheckpointError, printable
from swatool.tensors import Folder

__all__ = ["read", "recognises"]

MODEL = re.compile(r"mp_rank_\d\d+_model_states\.pt")
ZERO_3 = re.compile(r"zero_pp_rank_\d+_mp_rank_\d+_model_states\.pt")
OTHER_WEIGHTS = re.compile(r"(layer|expert)_.*model_states\.pt")


def recognises(names: Sequence[str]) -> bool:
    """Tell from the names in a folder whether DeepSpeed saved a checkpoint there."""
    return any(MODEL.fullmatch(name) or ZERO_3.fullmatch(name) for name in names)


def read(folder: Folder) -> Contents:
    """Describe what the only model file holds.

    Raises:
        CheckpointError: the weights are spread over several files, or that file is damaged or hostile.
    """
    where = printable(folder.path)
    models = [name for name in folder.names if MODEL.fullmatch(name)]
    if any(ZERO_3.fullmatch(name) for name in folder.names):
        raise CheckpointError(
            f"{where} was saved by DeepSpeed with ZeRO-3, which spreads each tensor over the ranks: put them "
            "together with the zero_to_fp32.py that DeepSpeed leaves beside it, and give what it writes"
        )
    others = [name for name in folder.names if OTHER_WEIGHTS.fullmatch(name)]
    if others:
        raise CheckpointError(
            f"{where} was saved by DeepSpeed with stages of a pipeline or experts in files of their "
            f"own, such as {printable(others[0])}: save the whole model in one file"
        )
    if len(models) > 1:
        raise CheckpointError(
            f"{where} was saved by DeepSpeed from {len(models)} tensor-parallel ranks, of which each file "
            "holds slices: save the whole model in one file"
        )
    return replace(read_file(folder.open(models[0])), format="DeepSpeed")
