"""How good a model is on some images."""

from dataclasses import dataclass

import torch
from data import Images
from torch import nn
from torch.nn.functional import cross_entropy


@dataclass(frozen=True)
class Score:
    """Accuracy, a fraction of the images, and mean cross-entropy in nats."""

    accuracy: float
    loss: float


@torch.no_grad()
def evaluate(model: nn.Module, images: Images) -> Score:
    """Score the model in evaluation mode; leaves it in that mode."""
    logits = model.eval()(images.pixels)
    accuracy = (logits.argmax(dim=1) == images.labels).double().mean()
    return Score(accuracy.item(), cross_entropy(logits, images.labels).item())
