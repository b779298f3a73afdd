"""What particular training libraries put into a checkpoint, beyond what the structure of a state dict tells.

Apart from `state_dicts`, whose rules hold for files of any origin; each function here knows one library.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from swatool.checkpoints.contents import TensorDescriptor
from swatool.errors import CheckpointError, printable
from swatool.tensors import StoredTensor

__all__ = ["check_gathered", "take_count", "updates"]

Leaf = TensorDescriptor | StoredTensor

# How torch.optim.swa_utils.AveragedModel names the number of models in it, and the average; it may itself be
# wrapped for several devices or compiled.
COUNT = "n_averaged"
AVERAGE = "module."
WRAPPED_COUNT = re.compile(r"((?:(?:module|_orig_mod)\.)*)n_averaged")


def take_count(leaves: dict[str, Leaf]) -> dict[str, Leaf]:
    """Take the number of models out of an AveragedModel's state dict, and return it under its plain name."""
    counts = [name for name in leaves if WRAPPED_COUNT.fullmatch(name) and not leaves[name].shape]
    if not counts or len(leaves) == 1:
        return {}
    name = min(counts, key=len)
    average = name.removesuffix(COUNT) + AVERAGE
    if not all(other.startswith(average) for other in leaves if other != name):
        return {}
    return {COUNT: leaves.pop(name)}


def check_gathered(root: Mapping[object, object], leaves: Mapping[str, Leaf], path: str) -> None:
    """Refuse the file of one rank of DeepSpeed's ZeRO-3, which names every tensor and holds none.

    Args:
        root: the whole file.
        leaves: the state dict that was found in it.
        path: the file, for messages.
    """
    if "param_shapes" in root and leaves and all(0 in leaf.shape for leaf in leaves.values()):
        raise CheckpointError(
            f"{printable(path)} was saved by one rank of DeepSpeed with ZeRO-3 and holds none of the "
            "weights: put them together with the zero_to_fp32.py that DeepSpeed leaves beside it, and give "
            "what it writes"
        )


def updates(nodes: Sequence[Mapping[object, object]]) -> dict[str, int | float]:
    """Return the number of updates that fairseq keeps in the last entry of its optimizer's history.

    Args:
        nodes: the dicts around the state dict.
    """
    for node in nodes:
        history = node.get("optimizer_history")
        last = history[-1] if isinstance(history, list) and history else None
        count = last.get("num_updates") if isinstance(last, dict) else None
        if isinstance(count, int) and not isinstance(count, bool):
            return {"num_updates": count}
    return {}
