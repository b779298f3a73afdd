"""BatchNorm layers that training left frozen: their statistics are the same bytes in all checkpoints."""

from __future__ import annotations

from collections.abc import Sequence

from swatool.checkpoints.opening import Checkpoint
from swatool.tensors import StoredTensor

__all__ = ["frozen_layers"]

STATISTICS = (".running_mean", ".running_var")


def frozen_layers(checkpoints: Sequence[Checkpoint]) -> tuple[str, ...]:
    """Return the names of layers whose running statistics do not differ between several checkpoints.

    They are a few bytes per channel; layers that were trained are told by the first two checkpoints.
    """
    mean, _ = STATISTICS
    layers = [name.removesuffix(mean) for name in checkpoints[0].tensors if name.endswith(mean)]
    return tuple(name for name in layers if len(checkpoints) > 1 and _is_frozen(name, checkpoints))


def _is_frozen(layer: str, checkpoints: Sequence[Checkpoint]) -> bool:
    first = _statistics(layer, checkpoints[0])
    return None not in first and all(_statistics(layer, one) == first for one in checkpoints[1:])


def _statistics(layer: str, checkpoint: Checkpoint) -> list[bytes | None]:
    return [_bytes(checkpoint.tensors.get(layer + statistic)) for statistic in STATISTICS]


def _bytes(stored: StoredTensor | None) -> bytes | None:
    if stored is None:
        return None
    return b"".join(source.read(offset, nbytes) for source, offset, nbytes in stored.extents)
