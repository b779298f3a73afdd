"""Which checkpoints are averaged, and in which order: by training step, not as the shell lists them."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from swatool.checkpoints.opening import Checkpoint
from swatool.errors import CheckpointError, UsageError, printable

__all__ = ["SORTS", "DatedCheckpoint", "Selection", "expand", "select", "step_in_name"]

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".tar")
STEP_FIELDS = ("step", "global_step", "iteration", "iter", "num_updates", "n_iter", "epoch")
# `it` only as a word of its own: ViT-16 is no step.
STEP_WORD = re.compile(r"(?:step|iteration|iter|updates?|(?<![a-z])it)[-_=.]?(\d+)", re.IGNORECASE)
EPOCH_WORD = re.compile(r"epoch[-_=.]?(\d+)", re.IGNORECASE)
INTEGER = re.compile(r"(?<!\d)(?<!\d\.)\d+(?!\.?\d)")
SORTS = ("step", "name", "mtime", "given")


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which of the given checkpoints are averaged.

    Attributes:
        sort: `step` (the one stored in the checkpoint, else the one in its name), `name`, `mtime`, `given`.
        min_step: leave out earlier ones.
        max_step: leave out later ones.
        every: of each so many keep one, counted back from the newest.
        first: then keep so many of the oldest.
        last: then keep so many of the newest.
    """

    sort: str = "step"
    min_step: int | None = None
    max_step: int | None = None
    every: int | None = None
    first: int | None = None
    last: int | None = None

    def __post_init__(self) -> None:
        if self.sort not in SORTS:
            raise UsageError(f"--sort must be one of {', '.join(SORTS)}, not {printable(self.sort)}")
        for name in ("every", "first", "last"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name} must be at least 1, not {value}")
        if self.min_step is not None and self.max_step is not None and self.min_step > self.max_step:
            raise UsageError(f"--min-step {self.min_step} is above --max-step {self.max_step}")


class DatedCheckpoint(NamedTuple):
    """A checkpoint and its training step, if any is known."""

    checkpoint: Checkpoint
    step: int | None


def expand(inputs: Iterable[str | os.PathLike[str]]) -> list[str]:
    """Turn files, quoted glob patterns and folders into the paths of files.

    A folder stands for the checkpoint files in it, by suffix, not for those in folders below.

    Raises:
        CheckpointError: a pattern matches nothing, a folder cannot be listed or holds no checkpoint.
    """
    paths: list[str] = []
    for given in inputs:
        path = os.fspath(given)
        if os.path.isdir(path):
            paths += _files_in(path)
        elif os.path.lexists(path) or not glob.has_magic(path):
            paths.append(path)
        else:
            matches = sorted(glob.glob(path, recursive=True))
            if not matches:
                raise CheckpointError(f"no file matches {printable(path)}")
            for match in matches:
                paths += _files_in(match) if os.path.isdir(match) else [match]
    return paths


def _files_in(folder: str) -> list[str]:
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise CheckpointError(f"cannot list {printable(folder)}: {error.strerror}") from error
    found = [
        os.path.join(folder, name) for name in names if name.endswith(SUFFIXES) and not name.startswith(".")
    ]
    found = [path for path in found if not os.path.isdir(path)]
    if not found:
        raise CheckpointError(f"{printable(folder)} holds no checkpoints ({', '.join(SUFFIXES)})")
    return found


def select(checkpoints: Sequence[Checkpoint], selection: Selection) -> tuple[DatedCheckpoint, ...]:
    """Order the checkpoints, oldest first, and keep those that are asked for.

    Raises:
        UsageError: steps are asked for and not known.
    """
    steps = _steps(checkpoints)
    dated = [DatedCheckpoint(c, s) for c, s in zip(checkpoints, steps, strict=True)]
    dated.sort(key=_sort_key(selection.sort, known=None not in steps))
    if selection.min_step is not None or selection.max_step is not None:
        dated = [d for d in dated if _in_range(d, selection)]
    if selection.every is not None:
        dated = dated[:: -selection.every][::-1]
    if selection.first is not None:
        dated = dated[: selection.first]
    if selection.last is not None:
        dated = dated[-selection.last :]
    return tuple(dated)


def _sort_key(sort: str, known: bool) -> Callable[[DatedCheckpoint], tuple[object, ...]]:
    if sort == "given":
        return lambda _: ()
    if sort == "mtime":
        return lambda dated: (dated.checkpoint.files.mtime_ns, *natural_key(dated.checkpoint.path))
    if sort == "step" and known:
        return lambda dated: (dated.step, *natural_key(dated.checkpoint.path))
    return lambda dated: natural_key(dated.checkpoint.path)


def _in_range(dated: DatedCheckpoint, selection: Selection) -> bool:
    if dated.step is None:
        raise UsageError(
            f"--min-step and --max-step need a step, and {printable(dated.checkpoint.path)} has none, "
            "neither stored nor in its name"
        )
    return (selection.min_step is None or dated.step >= selection.min_step) and (
        selection.max_step is None or dated.step <= selection.max_step
    )


def natural_key(path: str) -> tuple[object, ...]:
    """Sort key in which `ckpt-9` comes before `ckpt-10`."""
    parts = re.split(r"(\d+)", path)
    # Every second part is a number; asking isdigit() instead would take superscripts for numbers.
    return tuple((1, int(part), "") if index % 2 else (0, 0, part) for index, part in enumerate(parts))


def _steps(checkpoints: Sequence[Checkpoint]) -> list[int | None]:
    """Steps from one source for all, because a step and an epoch number do not compare.

    The first field that every checkpoint has and that tells them apart; else the numbers in the names.
    """
    for field in STEP_FIELDS:
        stored = [_whole(checkpoint.fields, field) for checkpoint in checkpoints]
        if None not in stored and (len(set(stored)) > 1 or len(stored) == 1):
            return stored
    return [step_in_name(checkpoint.path) for checkpoint in checkpoints]


def _whole(fields: Mapping[str, int | float], name: str) -> int | None:
    value = fields.get(name)
    return int(value) if value is not None and value == value // 1 and abs(value) < 2**63 else None


def step_in_name(path: str) -> int | None:
    """Return the training step that a file's name tells, or None.

    A number after `step` or `iter` counts before one after `epoch`, and those before the last whole number;
    decimals (`val_loss=0.21`) are no steps.
    """
    stem = os.path.basename(path)
    while os.path.splitext(stem)[1] in SUFFIXES:
        stem = os.path.splitext(stem)[0]
    for word in (STEP_WORD, EPOCH_WORD, INTEGER):
        found = word.findall(stem)
        if found:
            return int(found[-1][-18:])
    return None
