"""Where NumPy is not installed, torch says so once, at its first tensor: here, before warnings are errors.

And safetensors' own writer, which needs it, is replaced by a plain one, so that tests can write files.
"""

import ctypes
import importlib.util
import json
import warnings

import safetensors.torch
import torch

from swatool.tensors import DTYPES

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch.zeros(1).tolist()

if importlib.util.find_spec("numpy") is None:

    def save_file(tensors, filename, metadata=None):
        """Do what safetensors' own function does, which needs NumPy."""
        header, position = {"__metadata__": metadata} if metadata else {}, 0
        for name, tensor in tensors.items():
            end = position + tensor.numel() * tensor.element_size()
            code = CODES[str(tensor.dtype)[6:]]
            header[name] = {"dtype": code, "shape": list(tensor.shape), "data_offsets": [position, end]}
            position = end
        text = json.dumps(header).encode()
        with open(filename, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for tensor in tensors.values():
                whole = tensor.detach().contiguous()
                file.write(ctypes.string_at(whole.data_ptr(), whole.numel() * whole.element_size()))

    CODES = {name: dtype.code for name, dtype in DTYPES.items()}
    safetensors.torch.save_file = save_file
