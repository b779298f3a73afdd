"""The mode `torch`: bit for bit what `torch.optim.swa_utils.update_bn` computes, and nothing else changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from swatool.batchnorm.batches import Batch
from swatool.batchnorm.layers import Layer
from swatool.batchnorm.passes import Outcome, Run, hooked, run_pass
from swatool.errors import DataError, printable

__all__ = ["recalibrate_like_torch"]


class _Counter:
    """Counts what the layers see, and checks what torch makes of it. A Watch."""

    def __init__(self) -> None:
        self.uses: Counter[Layer] = Counter()
        self.values: Counter[Layer] = Counter()
        self._number = 0
        self._fresh: set[Layer] = set()

    def begin(self, _: Batch, number: int) -> None:
        self._number = number
        self._fresh.clear()

    def see(self, layer: Layer, args: tuple[object, ...], kwargs: Mapping[str, object]) -> None:
        """Count an input; a layer that its model keeps in evaluation mode takes no statistics."""
        values = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
        if values is None or not layer.module.training or values.dim() < 2:
            return
        count = len(values) if layer.per_instance else values.numel() // max(1, values.shape[1])
        single = values[0, 0].numel() == 1 if layer.per_instance and values.numel() else count == 1
        if single:
            raise DataError(
                f"layer {printable(layer.name)} sees a single value per channel in batch {self._number}, of "
                "which torch takes no statistics: choose a batch size that leaves no single sample at the "
                "end, or another mode"
            )
        self.uses[layer] += 1
        self.values[layer] += count
        self._fresh.add(layer)

    def end(self) -> None:
        for layer in sorted(self._fresh, key=lambda layer: layer.index):
            if not all(bool(buffer.isfinite().all()) for buffer in layer.running):
                raise DataError(
                    f"batch {self._number} makes the statistics of layer {printable(layer.name)} NaN or Inf: "
                    "look for extreme values in the data or the weights"
                )

    def settled(self) -> bool:
        return False


def recalibrate_like_torch(run: Run) -> tuple[list[Outcome], int, int, int]:
    """Run the whole model in training mode; return the outcomes and the numbers of passes, batches, samples.

    The order of the steps, and the moments at which random numbers are drawn, are those of `update_bn`.
    """
    run.on_passes(1)
    normalising = [layer for layer in run.layers if isinstance(layer.module, _BatchNorm)]
    for layer in normalising:
        layer.module.reset_running_stats()
    run.model.train()
    for layer in normalising:
        layer.module.momentum = None
    for layer in run.skipped:
        layer.module.eval()
    counter = _Counter()
    with hooked(run.layers, counter.see):
        batches, samples = run_pass(run, counter, run.batches)
    outcomes = []
    for layer in run.layers:
        if counter.uses[layer]:
            mean, variance = layer.running
            tracked = layer.module.num_batches_tracked
            outcomes.append(
                Outcome(
                    layer,
                    mean,
                    variance,
                    0 if tracked is None else int(tracked),
                    counter.values[layer],
                    counter.uses[layer],
                    batches,
                )
            )
    return outcomes, 1, batches, samples
