"""The loop that a user writes today: load each file, torch's own running average, save. Run as a script."""

from __future__ import annotations

import sys
import warnings

import torch
from safetensors.torch import load_file, save_file
from torch.optim.swa_utils import get_swa_multi_avg_fn


def load(path: str) -> dict[str, torch.Tensor]:
    """Load a checkpoint in the usual way."""
    if path.endswith(".pt"):
        return torch.load(path, map_location="cpu", weights_only=True)["model"]  # type: ignore[no-any-return]
    return load_file(path)


def main(output: str, paths: list[str]) -> None:
    """Average the files."""
    update = get_swa_multi_avg_fn()
    average = load(paths[0])
    names = [name for name, tensor in average.items() if tensor.is_floating_point()]
    for count, path in enumerate(paths[1:], start=1):
        state = load(path)
        update([average[name] for name in names], [state[name] for name in names], count)
    save_file(average, output)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    main(sys.argv[1], sys.argv[2:])
