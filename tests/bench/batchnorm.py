"""How fast BatchNorm statistics are recalibrated, as ratios to torch's own in one process. Run as a script.

`batch` is compared with `torch.optim.swa_utils.update_bn`, in images per second (higher is better), and
`exact` with half as many plain forward passes as there are layers (lower is better). Both sides run in turn;
the median of the ratios round by round is printed.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from swatool.batchnorm.recalibrate import recalibrate_bn

warnings.filterwarnings("ignore", message="Failed to initialize NumPy")


class Block(nn.Module):
    """Two convolutions and a way around them."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.around: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.around = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        inner = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(inner + self.around(x))


def resnet18(width: int) -> nn.Module:
    """ResNet-18 as for images of 32 x 32; the usual width is 64."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    inputs = width
    for stage, outputs in enumerate((width, 2 * width, 4 * width, 8 * width)):
        layers += [Block(inputs, outputs, 2 if stage else 1), Block(outputs, outputs, 1)]
        inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))


def digits_net() -> nn.Module:
    """A small net for grey images of 8 x 8."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, 1, 1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(512, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10)),
    )


@dataclass(frozen=True)
class Case:
    """A model and its data."""

    name: str
    model: nn.Module
    shape: tuple[int, ...]
    batch_size: int
    batches: int

    def data(self) -> list[Tensor]:
        """Return batches of random images."""
        generator = torch.Generator().manual_seed(0)
        shape = (self.batch_size, *self.shape)
        return [torch.randn(shape, generator=generator) for _ in range(self.batches)]


def cases(short: bool) -> list[Case]:
    """Return what is measured."""
    width = 16 if short else 64
    return [
        Case(f"ResNet-18, width {width}, 32x32, batch 256", resnet18(width), (3, 32, 32), 256, 1),
        Case(f"ResNet-18, width {width}, 32x32, batch 64", resnet18(width), (3, 32, 32), 64, 4),
        Case("digits net, 8x8, batch 256", digits_net(), (1, 8, 8), 256, 8),
        Case("digits net, 8x8, batch 64", digits_net(), (1, 8, 8), 64, 32),
    ]


def seconds(work: Callable[[], object]) -> float:
    """Return how long some work takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def median_ratio(one: Callable[[], object], other: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Return the median of seconds of the first over seconds of the second, and the second's median."""
    ratios, others = [], []
    for turn in range(rounds + 1):
        first, second = seconds(one), seconds(other)
        if turn:  # the first one warms up
            ratios.append(first / second)
            others.append(second)
    return statistics.median(ratios), statistics.median(others)


def plain_passes(model: nn.Module, data: Sequence[Tensor]) -> None:
    """Run the model over the data."""
    model.eval()
    with torch.no_grad():
        for batch in data:
            model(batch)


def check(case: Case, data: Sequence[Tensor]) -> None:
    """Compare statistics of `batch` with those of torch's update_bn."""
    ours, theirs = copy.deepcopy(case.model), copy.deepcopy(case.model)
    recalibrate_bn(ours, data)
    update_bn(data, theirs)
    found, expected = dict(ours.named_buffers()), dict(theirs.named_buffers())
    for name in expected:
        if name.endswith("running_mean"):
            torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5)
        elif name.endswith("running_var"):  # of all batches together; torch's is the mean over the batches
            torch.testing.assert_close(found[name], expected[name], rtol=5e-2, atol=1e-4)


def measure(case: Case, rounds: int) -> str:
    """Return a line with both ratios."""
    model, data = case.model, case.data()
    check(case, data)
    batch, torch_seconds = median_ratio(
        lambda: recalibrate_bn(model, data), lambda: update_bn(data, model), rounds
    )
    images = case.batch_size * case.batches / torch_seconds
    layers = sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    exact, _ = median_ratio(
        lambda: recalibrate_bn(model, data, mode="exact"),
        lambda: plain_passes(model, data),
        max(1, rounds // 2),
    )
    return (
        f"{case.name:42} batch {1 / batch:5.2f} x update_bn ({images:7.0f} images/s)   "
        f"exact {exact / (layers / 2):5.2f} x L/2 forward passes (L = {layers})"
    )


def main() -> None:
    """Print the ratios of all cases."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="narrower models and fewer rounds")
    parser.add_argument("--rounds", type=int, help="how often everything is measured")
    options = parser.parse_args()
    torch.manual_seed(0)
    for case in cases(options.short):
        print(measure(case, options.rounds or (3 if options.short else 9)), flush=True)


if __name__ == "__main__":
    main()
