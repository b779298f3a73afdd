"""The data that the benchmark averages: shaped like real models, written by the real libraries."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from safetensors.torch import save_file

Shapes = Mapping[str, tuple[int, ...]]


def gpt2(scale: int) -> Shapes:
    """GPT-2 small: 148 tensors, 124 million parameters; `scale` divides its widths."""
    width, vocabulary, positions = 768 // scale, 50257 // scale, 1024 // scale
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (vocabulary, width), "wpe.weight": (positions, width)}
    for layer in range(12):
        shapes |= {
            f"h.{layer}.ln_1.weight": (width,),
            f"h.{layer}.ln_1.bias": (width,),
            f"h.{layer}.attn.c_attn.weight": (width, 3 * width),
            f"h.{layer}.attn.c_attn.bias": (3 * width,),
            f"h.{layer}.attn.c_proj.weight": (width, width),
            f"h.{layer}.attn.c_proj.bias": (width,),
            f"h.{layer}.ln_2.weight": (width,),
            f"h.{layer}.ln_2.bias": (width,),
            f"h.{layer}.mlp.c_fc.weight": (width, 4 * width),
            f"h.{layer}.mlp.c_fc.bias": (4 * width,),
            f"h.{layer}.mlp.c_proj.weight": (4 * width, width),
            f"h.{layer}.mlp.c_proj.bias": (width,),
        }
    return shapes | {"ln_f.weight": (width,), "ln_f.bias": (width,)}


def resnet50(scale: int) -> Shapes:
    """ResNet-50 with its BatchNorm buffers; names that end in num_batches_tracked are integers."""
    shapes: dict[str, tuple[int, ...]] = {}

    def convolution(name: str, inputs: int, outputs: int, kernel: int) -> None:
        shapes[f"{name}.weight"] = (outputs, inputs, kernel, kernel)
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}_bn.{part}"] = (outputs,)
        shapes[f"{name}_bn.num_batches_tracked"] = ()

    base = 64 // scale
    convolution("conv1", 3, base, 7)
    inputs = base
    for stage, depth in enumerate((3, 4, 6, 3)):
        width = base * 2**stage
        for block in range(depth):
            name = f"layer{stage + 1}.{block}"
            convolution(f"{name}.conv1", inputs, width, 1)
            convolution(f"{name}.conv2", width, width, 3)
            convolution(f"{name}.conv3", width, 4 * width, 1)
            if block == 0:
                convolution(f"{name}.downsample", inputs, 4 * width, 1)
            inputs = 4 * width
    return shapes | {"fc.weight": (1000, inputs), "fc.bias": (1000,)}


def small_tensors(scale: int) -> Shapes:
    """20,000 tensors of 1 to 4 KB each."""
    return {f"block.{i // 8}.part.{i % 8}": (256 + 256 * (i % 4),) for i in range(20_000 // scale)}


def few_large_tensors(scale: int) -> Shapes:
    """The same bytes as `small_tensors` in five tensors."""
    total = sum(shape[0] for shape in small_tensors(scale).values())
    return {f"part.{i}": (total // 5,) for i in range(5)}


@dataclass(frozen=True)
class Case:
    """One data set: checkpoints of one shape, type and format."""

    name: str
    shapes: Callable[[int], Shapes]
    dtype: torch.dtype
    suffix: str
    count: int

    def write(self, folder: str, scale: int) -> list[str]:
        """Write the checkpoints and return their paths."""
        os.makedirs(folder, exist_ok=True)
        shapes = self.shapes(scale)
        generator = torch.Generator().manual_seed(0)
        start = {name: self._start(name, shape, generator) for name, shape in shapes.items()}
        paths = []
        for step in range(self.count):
            state = {name: self._moved(tensor, step) for name, tensor in start.items()}
            paths.append(os.path.join(folder, f"ckpt-{step}{self.suffix}"))
            if self.suffix == ".pt":
                torch.save({"model": state, "step": step}, paths[-1])
            else:
                save_file(state, paths[-1])
        return paths

    def _start(self, name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
        if name.endswith("num_batches_tracked"):
            return torch.tensor(1000)
        return torch.randn(shape, generator=generator).mul_(0.02)

    def _moved(self, tensor: torch.Tensor, step: int) -> torch.Tensor:
        if not tensor.is_floating_point():
            return tensor + step
        return (tensor * (1 + 0.01 * step)).to(self.dtype)
