"""The digits of scikit-learn, split once and for all into training, validation and test images.

data.py run/train.npz writes the training images, unshifted, as the array `x`.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

SPLIT_SEED = 0
VALIDATION_IMAGES = 200
TEST_IMAGES = 600
CLASSES = 10


@dataclass(frozen=True)
class Images:
    """Grey images, float32 of shape (n, 1, 8, 8) in [0, 1], and their labels, int64 of shape (n,)."""

    pixels: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Split:
    """Three disjoint parts: 997 images to train on, 200 to tune on, 600 to be looked at last."""

    training: Images
    validation: Images
    test: Images


def load_split() -> Split:
    """Load the 1,797 digits; the split depends on SPLIT_SEED alone, never on the seed of a run."""
    digits = load_digits()
    pixels = torch.from_numpy(digits.images).float().div(16).unsqueeze(1)
    labels = torch.from_numpy(digits.target).long()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(SPLIT_SEED))
    parts = order.split([len(order) - VALIDATION_IMAGES - TEST_IMAGES, VALIDATION_IMAGES, TEST_IMAGES])
    return Split(*(Images(pixels[part], labels[part]) for part in parts))


def main() -> None:
    """Read the options and write the training images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("file", type=Path, help="the .npz file to write")
    file = parser.parse_args().file
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez(file, x=load_split().training.pixels.numpy())


if __name__ == "__main__":
    main()
