"""What a file of weights is worth on the validation images, for `swatool run` and `--eval`."""

from pathlib import Path

import torch
from data import load_split
from evaluation import evaluate
from model import build
from safetensors.torch import load_file


def validation(path: str) -> dict[str, float]:
    """Return accuracy and loss of an average, or of a checkpoint by train.py, on the validation images."""
    if Path(path).suffix == ".safetensors":
        weights = load_file(path)
    else:
        weights = torch.load(path, weights_only=True)["model"]
    model = build()
    model.load_state_dict(weights, strict=True)
    score = evaluate(model, load_split().validation)
    return {"accuracy": score.accuracy, "loss": score.loss}
