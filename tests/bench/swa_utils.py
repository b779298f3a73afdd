"""How fast averaging in training is, as ratios to torch's own in one process. Run as a script.

Both sides, and one bare `torch._foreach_lerp_` over the same lists, update in turn; medians over the rounds
of the ratio round by round are printed: how many times as fast as torch ours is, for the default and for EMA;
EMA's time as a multiple of the bare kernel's; and what EMA adds to the bare kernel, per tensor, as a part of
what torch's adds.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable

import torch
from torch import nn
from torch.optim import swa_utils as theirs

from swatool import swa_utils as ours

warnings.filterwarnings("ignore", message="Failed to initialize NumPy")

DECAY = 0.999


class ManySmall(nn.Module):
    """Parameters of 16 numbers each."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.parts = nn.ParameterList([nn.Parameter(torch.randn(16)) for _ in range(count)])


def linear_layers(short: bool) -> nn.Module:
    """24 linear layers, of 4M parameters each."""
    width = 512 if short else 2048
    return nn.Sequential(*(nn.Linear(width, width) for _ in range(24)))


def convolutions(short: bool) -> nn.Module:
    """200 blocks of a convolution and BatchNorm."""
    blocks = range(20 if short else 200)
    return nn.Sequential(
        *(nn.Sequential(nn.Conv2d(64, 64, 3, bias=False), nn.BatchNorm2d(64)) for _ in blocks)
    )


def small_tensors(short: bool) -> nn.Module:
    """20,000 small parameters."""
    return ManySmall(2000 if short else 20_000)


MODELS: dict[str, Callable[[bool], nn.Module]] = {
    "24 Linear, 100M parameters": linear_layers,
    "200 Conv2d + BatchNorm2d": convolutions,
    "20,000 parameters of 16": small_tensors,
}


def contenders(model: nn.Module) -> dict[str, Callable[[], object]]:
    """Return what is measured, each with an average of its own."""
    lists = [p.detach().clone() for p in model.parameters()], [p.detach() for p in model.parameters()]
    work: dict[str, Callable[[], object]] = {"bare": lambda: torch._foreach_lerp_(*lists, 1 - DECAY)}
    for owner, module in (("torch", theirs), ("ours", ours)):
        for name, options in (
            ("default", {}),
            ("ema", {"multi_avg_fn": module.get_ema_multi_avg_fn(DECAY)}),  # type: ignore[attr-defined]
        ):
            averaged = module.AveragedModel(model, **options)  # type: ignore[attr-defined]
            averaged.update_parameters(model)
            work[f"{owner} {name}"] = lambda averaged=averaged: averaged.update_parameters(model)
    return work


def check(name: str, model: nn.Module) -> None:
    """Compare our averages of a model that moves with torch's."""
    averages = [
        (module.AveragedModel(model, **options), kind)  # type: ignore[attr-defined]
        for module in (theirs, ours)
        for kind, options in (
            ("default", {}),
            ("ema", {"multi_avg_fn": module.get_ema_multi_avg_fn(DECAY)}),  # type: ignore[attr-defined]
        )
    ]
    for _ in range(3):
        with torch.no_grad():
            torch._foreach_add_(list(model.parameters()), 0.5)
        for averaged, _ in averages:
            averaged.update_parameters(model)
    expected = {kind: averaged for averaged, kind in averages[:2]}
    for averaged, kind in averages[2:]:
        pairs = zip(averaged.parameters(), expected[kind].parameters(), strict=True)
        if not all(torch.allclose(one, other, atol=1e-5) for one, other in pairs):
            raise SystemExit(f"{name}: {kind} is not torch's average")


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return how long some work takes, to its end on the device."""
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def measure(name: str, model: nn.Module, rounds: int) -> None:
    """Print the row of a model."""
    check(name, model)
    tensors = list(model.parameters())
    work = contenders(model)
    taken: dict[str, list[float]] = {key: [] for key in work}
    for turn in range(rounds + 1):
        for key, one in work.items():
            value = seconds(one, tensors[0].device)
            if turn:  # the first one warms up
                taken[key].append(value)

    def ratio(one: str, other: str) -> float:
        return statistics.median(a / b for a, b in zip(taken[one], taken[other], strict=True))

    def added(key: str) -> float:
        return statistics.median(a - b for a, b in zip(taken[key], taken["bare"], strict=True)) / len(tensors)

    median = {key: statistics.median(values) * 1e3 for key, values in taken.items()}
    print(
        f"{name:28} {median['bare']:7.2f} ms bare   "
        f"default {median['ours default']:7.2f} ms, {ratio('torch default', 'ours default'):5.2f} x torch   "
        f"ema {median['ours ema']:7.2f} ms, {ratio('torch ema', 'ours ema'):5.2f} x torch, "
        f"{ratio('ours ema', 'bare'):5.2f} of bare   added per tensor {added('ours ema') * 1e6:5.2f} us, "
        f"{added('ours ema') / added('torch ema'):5.2f} of torch's",
        flush=True,
    )


def measure_cuda(short: bool, rounds: int) -> None:
    """Print the rows of CUDA and what part of the copy bandwidth is reached, or that there are none."""
    if not torch.cuda.is_available():
        print("CUDA: not run, there is no device")
        return
    for name, build in MODELS.items():
        measure(f"CUDA, {name}", build(short).cuda(), rounds)
    model = linear_layers(short).cuda()
    averaged = ours.AveragedModel(model, multi_avg_fn=ours.get_ema_multi_avg_fn(DECAY))
    averaged.update_parameters(model)
    nbytes = sum(p.numel() * p.element_size() for p in model.parameters())
    source = torch.empty(
        3 * nbytes // 8, dtype=torch.float32, device="cuda"
    )  # read and written: 3 nbytes moved
    target = torch.empty_like(source)
    device = source.device
    ratios = []
    for _ in range(rounds + 1):
        copied = seconds(lambda: target.copy_(source), device)
        ratios.append(copied / seconds(lambda: averaged.update_parameters(model), device))
    print(f"CUDA: an update reaches {statistics.median(ratios[1:]):.0%} of the copy bandwidth (goal 85%)")
    torch.cuda.set_sync_debug_mode("error")
    averaged.update_parameters(model)
    torch.cuda.set_sync_debug_mode("default")
    print("CUDA: an update waits for nothing")


def main() -> None:
    """Print all rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="smaller models and fewer rounds")
    parser.add_argument("--rounds", type=int, help="how often everything is measured")
    options = parser.parse_args()
    torch.manual_seed(0)
    rounds = options.rounds or (3 if options.short else 15)
    for name, build in MODELS.items():
        measure(name + (" (short: a part of it)" if options.short else ""), build(options.short), rounds)
    measure_cuda(options.short, rounds)


if __name__ == "__main__":
    main()
