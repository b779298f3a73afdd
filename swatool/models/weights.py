"""From a checkpoint's tensors to those of a model: what is missing, what does not fit, and the copying."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from swatool.checkpoints.opening import Checkpoint
from swatool.errors import CheckpointError, MismatchError, printable
from swatool.tensors import Extent, StoredTensor

__all__ = ["differing_names", "load_weights", "read_tensor"]

# Versions of BatchNorm before torch 0.4.1 do not count their batches.
OPTIONAL = "num_batches_tracked"


def read_tensor(stored: StoredTensor) -> Tensor:
    """Read a tensor from its checkpoint, in its own type and shape, C-ordered or as it is stored.

    Raises:
        CheckpointError: it cannot be read, or has no elements and lengths that torch cannot multiply.
    """
    dtype = getattr(torch, stored.dtype.name)
    if not stored.numel:
        try:
            return torch.empty(stored.shape, dtype=dtype)
        except RuntimeError as error:
            raise CheckpointError(
                f"an empty tensor of shape {list(stored.shape)} is no tensor to torch"
            ) from error
    if stored.boxes is None:
        return _as_stored(stored.extents, dtype, stored.shape, stored.strides)
    whole = torch.empty(stored.shape, dtype=dtype)
    for box, extent in zip(stored.boxes, stored.extents, strict=True):
        inside = tuple(slice(o, o + n) for o, n in zip(box.offsets, box.lengths, strict=True))
        whole[inside] = _as_stored((extent,), dtype, box.lengths, box.strides)
    return whole


def _as_stored(
    extents: Sequence[Extent], dtype: torch.dtype, shape: Sequence[int], strides: Sequence[int] | None
) -> Tensor:
    """Read elements as they lie in the files."""
    data = bytearray(sum(extent.nbytes for extent in extents))
    view, position = memoryview(data), 0
    for source, offset, nbytes in extents:
        source.read_into([view[position : position + nbytes]], offset)
        position += nbytes
    values = torch.frombuffer(data, dtype=torch.uint8).view(dtype)
    return values.view(shape) if strides is None else values.as_strided(shape, strides)


def load_weights(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Copy a checkpoint's tensors into a model, converted to the model's types.

    One tensor is held at a time beside the model. Lazy modules are given theirs all at once.

    Raises:
        MismatchError: names or shapes do not match; it carries every difference, and nothing was copied.
        CheckpointError: the checkpoint cannot be read.
    """
    targets = {name: t for name, t in model.state_dict(keep_vars=True).items() if isinstance(t, Tensor)}
    sources = {name: _source(name, checkpoint) for name in targets}
    differences = list(_differences(targets, sources, checkpoint))
    if differences:
        raise MismatchError(
            f"{printable(checkpoint.path)} does not fit the model ({len(differences)} differences):",
            differences,
        )
    found = {name: stored for name, stored in sources.items() if stored is not None}
    if any(map(is_lazy, targets.values())):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # lazy modules tell that they are a new feature
            model.load_state_dict({name: read_tensor(stored) for name, stored in found.items()}, strict=False)
        return
    with torch.no_grad():
        for name, stored in found.items():
            targets[name].copy_(read_tensor(stored))


def _source(name: str, checkpoint: Checkpoint) -> StoredTensor | None:
    """Find a tensor, under the name that safetensors' metadata gives as another one of it if need be."""
    return checkpoint.tensors.get(name) or checkpoint.tensors.get(checkpoint.metadata.get(name, ""))


def _differences(
    targets: dict[str, Tensor], sources: dict[str, StoredTensor | None], checkpoint: Checkpoint
) -> Iterator[str]:
    found = {name for name, stored in sources.items() if stored is not None}
    yield from differing_names(targets, {*found, *checkpoint.tensors})
    for name, target in targets.items():
        stored = sources[name]
        if stored is None or is_lazy(target):
            continue
        if stored.shape != tuple(target.shape):
            yield (
                f"{printable(name)} has shape {list(stored.shape)} in the checkpoint, "
                f"{list(target.shape)} in the model"
            )
        elif stored.dtype.averageable != (target.is_floating_point() or target.is_complex()):
            yield (
                f"{printable(name)} is {stored.dtype.name} in the checkpoint, "
                f"{str(target.dtype).removeprefix('torch.')} in the model"
            )


def differing_names(model: Iterable[str], checkpoint: Collection[str]) -> Iterator[str]:
    """Yield sentences about tensors that only a model has, or only a checkpoint."""
    known = dict.fromkeys(model)
    for name in known:
        if name not in checkpoint and not name.endswith(OPTIONAL):
            yield f"{printable(name)} of the model is missing in the checkpoint"
    for name in checkpoint:
        if name not in known:
            yield f"{printable(name)} of the checkpoint is missing in the model"
