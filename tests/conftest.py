"""Where NumPy is not installed, torch says so once, at its first tensor: here, before warnings are errors."""

import warnings

import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch.zeros(1).tolist()
