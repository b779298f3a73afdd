"""`--like`: a torch file laid out as another checkpoint is, so that the program that wrote that takes it.

Kept is what leads a loader to the weights: the keys that wrap the state dict, and the prefix and the order of
its names. Of what stands beside it only what such loaders ask for before they come to the weights is kept:
numbers, texts, None, and a few entries by name, as far as they are plain values. Lightning reads
`pytorch-lightning_version` and, of old files, `epoch` and `global_step`, and makes the model from
`hyper_parameters`; fairseq reads `cfg`, `optimizer_history` and `extra_state`. All else, such as the state of
the optimizer, belongs to one step of the training and not to an average.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from swatool.checkpoints.files import LocalFiles
from swatool.checkpoints.opening import Checkpoint, Reading, choose_state_dict, read_contents
from swatool.checkpoints.state_dicts import list_state_dicts
from swatool.errors import MismatchError, printable
from swatool.output.layout import Layout, OutputTensor
from swatool.output.torch_file import lay_out_torch
from swatool.output.torch_pickle import Plain

__all__ = ["Likeness", "lay_out_like", "read_likeness"]

# Containers that are kept: Lightning's, then fairseq's.
KEPT = ("hyper_parameters", "cfg", "optimizer_history", "extra_state")
MAX_DEPTH = 16
MAX_COST = 100_000  # values, and texts by so many characters
CHARACTERS = 64
MAX_INTEGER_BITS = 64
MOST_LOST = 100  # names that are remembered
COUNT = "n_averaged"  # how many models an AveragedModel has seen


@dataclass(frozen=True, slots=True)
class Likeness:
    """What an output takes over from another checkpoint.

    Attributes:
        path: how the user named it.
        wrapper: the keys that lead to the state dict; none where the file is the state dict itself.
        beside: plain values beside the first of these keys.
        prefix: what stands before every name there.
        shapes: the tensors' shapes by name, without the prefix, in the checkpoint's order.
        warnings: what a loader may miss.
    """

    path: str
    wrapper: tuple[str, ...]
    beside: Mapping[str, Plain]
    prefix: str
    shapes: Mapping[str, tuple[int, ...]]
    warnings: tuple[str, ...] = ()


def read_likeness(path: str | os.PathLike[str], reading: Reading | None = None) -> Likeness:
    """Read how a checkpoint of any format is laid out; raises what `open_checkpoint` raises."""
    path = os.fspath(path)
    reading = reading or Reading()
    files = LocalFiles()
    try:
        contents = read_contents(path, files, reading.variant)
        checkpoint = choose_state_dict(contents, path, files, reading)
        candidates, _ = list_state_dicts(contents)
    finally:
        files.close()
    wrapper = next((one.path for one in candidates if one.key == checkpoint.key), ())
    beside, lost = _beside(contents.root, wrapper[0]) if wrapper else ({}, [])
    return Likeness(
        path=path,
        wrapper=wrapper,
        beside=beside,
        prefix=checkpoint.prefix,
        shapes=_shapes(checkpoint),
        warnings=tuple(_warnings(path, lost, counted=COUNT in checkpoint.fields and bool(checkpoint.prefix))),
    )


def _warnings(path: str, lost: Sequence[str], *, counted: bool) -> Iterator[str]:
    if lost:
        names = ", ".join(map(printable, lost[:5])) + (", ..." if len(lost) > 5 else "")
        yield (
            f"of what stands beside the weights in {printable(path)}, these are no plain values and are left "
            f"out, so that a loader that needs them takes its own: {names}"
        )
    if counted:
        yield (f"{COUNT} of {printable(path)} is left out: load the average into the model itself, or add it")


def lay_out_like(
    like: Likeness, tensors: Iterable[OutputTensor], ties: Mapping[str, str], metadata: Mapping[str, str]
) -> Layout:
    """Return the layout of a torch file that holds the tensors as `like` would.

    Args:
        like: what it is made like.
        tensors: every name, without a prefix, those of ties among them, in any order.
        ties: for a name that shares another tensor's bytes, that tensor's name.
        metadata: said of the file.

    Raises:
        MismatchError: `like` has other names or shapes, so that its loader would refuse the file.
    """
    named = {tensor.name: tensor for tensor in tensors}
    differences = [
        *(f"{printable(name)} is not in the average" for name in like.shapes if name not in named),
        *(f"{printable(name)} is only in the average" for name in named if name not in like.shapes),
        *(
            f"{printable(name)} has shape {list(named[name].shape)} in the average, {list(shape)} there"
            for name, shape in like.shapes.items()
            if name in named and named[name].shape != shape
        ),
    ]
    if differences:
        raise MismatchError(
            f"the average does not have the tensors of {printable(like.path)}, which --like asks for; choose "
            f"one of the averaged checkpoints ({len(differences)} differences):",
            differences,
        )
    ordered = [named[name] for name in like.shapes]
    return lay_out_torch(
        ordered, ties, metadata, wrapper=like.wrapper, beside=like.beside, prefix=like.prefix
    )


def _shapes(checkpoint: Checkpoint) -> Mapping[str, tuple[int, ...]]:
    return {name: tensor.shape for name, tensor in checkpoint.tensors.items()}


def _beside(root: object, wrapper: str) -> tuple[Mapping[str, Plain], list[str]]:
    """Return what is kept of what stands beside the key that leads to the weights, and what is not."""
    kept: dict[str, Plain] = {}
    lost: list[str] = []
    single = _PlainPart(MAX_COST)
    for name, value in root.items() if isinstance(root, dict) else ():
        container = isinstance(value, dict | list | tuple)
        if isinstance(name, str) and name != wrapper and (name in KEPT or not container):
            taker = _PlainPart(MAX_COST) if container else single
            part = taker.of(value, (name,))
            if not isinstance(part, _NotPlain):
                kept[name] = part
            if name in KEPT:
                lost += taker.lost
    return kept, lost


class _NotPlain:
    """Stands for a value that is not kept."""


class _PlainPart:
    """Takes the plain values from a tree, which may be cyclic, of any depth, or one list a thousand times.

    Attributes:
        lost: the names, dotted, of what was not taken.
    """

    def __init__(self, cost: int) -> None:
        self._left = cost
        self.lost: list[str] = []

    def of(self, value: object, place: tuple[str, ...]) -> Plain | _NotPlain:
        """Return a value without the entries of dicts that are not plain; lists are kept whole or not."""
        self._left -= 1 + (len(value) // CHARACTERS if isinstance(value, str) else 0)
        if self._left < 0 or len(place) > MAX_DEPTH:
            return self._not_taken(place)
        if value is None or isinstance(value, str | float):
            return value
        if isinstance(value, int) and value.bit_length() <= MAX_INTEGER_BITS:
            return value
        if isinstance(value, dict):
            entries = [(key, self.of(inner, (*place, str(key)))) for key, inner in value.items()]
            kept = {k: v for k, v in entries if isinstance(k, str | int) and not isinstance(v, _NotPlain)}
            return kept if kept or not value else _NotPlain()
        if isinstance(value, list | tuple):
            items = [self.of(item, (*place, "...")) for item in value]
            plain = [item for item in items if not isinstance(item, _NotPlain)]
            whole = plain if isinstance(value, list) else tuple(plain)
            return whole if len(plain) == len(items) else _NotPlain()
        return self._not_taken(place)

    def _not_taken(self, place: tuple[str, ...]) -> _NotPlain:
        if len(self.lost) < MOST_LOST:
            self.lost.append(".".join(place))
        return _NotPlain()
