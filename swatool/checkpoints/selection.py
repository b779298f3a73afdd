"""Which checkpoints are averaged, and in which order: by training step, not as the shell lists them."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from swatool.checkpoints.files import named_path
from swatool.checkpoints.folder_formats import is_checkpoint
from swatool.checkpoints.opening import Checkpoint
from swatool.choices import check_choices, choice
from swatool.errors import CheckpointError, SettingError, UsageError, printable

__all__ = [
    "SORTS",
    "DatedCheckpoint",
    "Selection",
    "expand",
    "is_pattern",
    "passed_over",
    "select",
    "step_in_name",
]

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".tar")
STEP_FIELDS = ("step", "global_step", "global_steps", "iteration", "iter", "num_updates", "n_iter", "epoch")
# `it` only as a word of its own: ViT-16 is no step.
STEP_WORD = re.compile(r"(?:step|iteration|iter|updates?|(?<![a-z])it)[-_=.]?(\d+)", re.IGNORECASE)
EPOCH_WORD = re.compile(r"epoch[-_=.]?(\d+)", re.IGNORECASE)
INTEGER = re.compile(r"(?<!\d)(?<!\d\.)\d+(?!\.?\d)")
# What a run's folders are called, by step.
NAMED_BY_STEP = re.compile(r"(?:checkpoint|ckpt|(?:global_?)?step|epoch|iteration|iter)[-_=]?(\d+)")
# The folder of one part of a checkpoint, whose number is not a step.
PART = re.compile(r"pytorch_model_fsdp(?:_\d+)?")
# What a training run saves beside the weights, under suffixes that they have, too.
NO_WEIGHTS = re.compile(
    r"training_args\.bin|(?:optimizer|scheduler|scaler|sampler)(?:_\d+)?\.(?:pt|bin)|rng_state.*\.pth"
    r"|.*optim_states\.pt"
)
BESIDE_THE_WEIGHTS = ("optim", "scheduler", "sampler")
# `**/` before another `**` means nothing more, but each finds all that the next finds once again.
REPEATED = re.compile(r"(^|/)(?:\*\*/+)+(?=\*\*(?:/|$))")
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

    sort: str = choice(SORTS, default="step")
    min_step: int | None = None
    max_step: int | None = None
    every: int | None = None
    first: int | None = None
    last: int | None = None

    def __post_init__(self) -> None:
        check_choices(self)
        for name in ("every", "first", "last"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise SettingError(name, f"must be a whole number of at least 1, not {value}")
        for name in ("min_step", "max_step"):
            value = getattr(self, name)
            if value is not None and type(value) is not int:
                raise SettingError(name, f"must be a whole number, not {value}")
        if self.min_step is not None and self.max_step is not None and self.min_step > self.max_step:
            raise UsageError(f"--min-step {self.min_step} is above --max-step {self.max_step}")


class DatedCheckpoint(NamedTuple):
    """A checkpoint and its training step, if any is known."""

    checkpoint: Checkpoint
    step: int | None


def expand(inputs: Iterable[str | os.PathLike[str]]) -> list[str]:
    """Turn files, quoted glob patterns and folders into the paths of checkpoints: files, and folders of one.

    A folder is a checkpoint, or stands for the folders in it that are, such as `checkpoint-500`, or for the
    checkpoint files in it, by suffix; not for those further below.

    Raises:
        CheckpointError: a pattern matches nothing, a folder cannot be listed or holds no checkpoint.
    """
    return [path for found in _expanded(inputs) for path in found.paths]


def passed_over(inputs: Iterable[str | os.PathLike[str]]) -> tuple[str, ...]:
    """Return sentences about models that are left out, because of checkpoints in folders beside them."""
    return tuple(
        f"of the run {printable(found.folder)}, only folders named by a step are taken; left out: "
        f"{', '.join(map(printable, found.left_out[:5]))}{', ...' if len(found.left_out) > 5 else ''}"
        for found in _expanded(inputs)
        if found.left_out
    )


class Found(NamedTuple):
    """What one input stands for.

    Attributes:
        paths: the checkpoints.
        folder: the folder that they were found in; empty for a file.
        left_out: the models that it holds besides, itself included if it is one.
    """

    paths: list[str]
    folder: str = ""
    left_out: tuple[str, ...] = ()


def _expanded(inputs: Iterable[str | os.PathLike[str]]) -> Iterator[Found]:
    for given in inputs:
        path = os.fspath(given)
        if os.path.isdir(path):
            yield _found_in(path)
        elif not is_pattern(path):
            yield Found([path])
        else:
            matches = sorted(glob.glob(REPEATED.sub(r"\1", path), recursive=True))
            matches = [match for match in matches if not (os.path.isdir(match) and _is_temporary(match))]
            if not matches:
                raise CheckpointError(f"no file matches {printable(path)}")
            yield from (_found_in(match) if os.path.isdir(match) else Found([match]) for match in matches)


def is_pattern(path: str) -> bool:
    """Tell whether an input is a glob pattern, and not the name of something that is there."""
    return glob.has_magic(path) and not os.path.lexists(path)


class Listing(NamedTuple):
    """What lies in a folder: all names, sorted, and the paths of the folders and of the files among them."""

    names: list[str]
    folders: list[str]
    files: list[str]


def _list(folder: str) -> Listing:
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    listing = Listing([entry.name for entry in found], [], [])
    for entry in found:
        if not _is_temporary(entry.name):
            (listing.folders if entry.is_dir() else listing.files).append(os.path.join(folder, entry.name))
    return listing


def _found_in(folder: str) -> Found:
    try:
        listing = _list(folder)
    except OSError as error:
        raise CheckpointError(f"cannot list {printable(folder)}: {error.strerror}") from error
    files = [path for path in listing.files if path.endswith(SUFFIXES) and not _is_no_weights(path)]
    below = [found for path in listing.folders if (found := _checkpoint_in(path))]
    own = [folder] if is_checkpoint(listing.names) else files
    run = [path for path in below if _named_by_step(path, folder)]
    if own == [folder] and len(run) == 1 and os.path.basename(run[0]).startswith("global"):
        run = []  # DeepSpeed's part of this checkpoint
    if run:
        others = [path for path in below if path not in run]
        return Found(run, folder, tuple(own + others))
    if not (own or below):
        raise CheckpointError(
            f"{printable(folder)} holds no checkpoints ({', '.join(SUFFIXES)}, or folders that are one)"
        )
    return Found(own or below, folder)


def _checkpoint_in(path: str) -> str | None:
    """Return the folder if it is a checkpoint, or the only one in it that is, as FSDP leaves them."""
    with suppress(OSError):
        listing = _list(path)
        if is_checkpoint(listing.names):
            return path
        found = [inner for inner in listing.folders if _is_model(inner)]
        return found[0] if len(found) == 1 else None
    return None


def _is_model(path: str) -> bool:
    with suppress(OSError):
        return is_checkpoint(os.listdir(path)) and not os.path.basename(path).startswith(BESIDE_THE_WEIGHTS)
    return False


def _is_no_weights(path: str) -> bool:
    return NO_WEIGHTS.fullmatch(os.path.basename(path)) is not None


def _is_temporary(path: str) -> bool:
    name = os.path.basename(os.path.normpath(path))
    return name.startswith((".", "tmp-")) or name.endswith((".tmp", ".incomplete"))


def _named_by_step(path: str, folder: str) -> bool:
    return NAMED_BY_STEP.fullmatch(os.path.relpath(path, folder).split(os.sep)[0]) is not None


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
    """Return the training step that the name of a file or folder tells, or None.

    A number after `step` or `iter` counts before one after `epoch`, and those before the last whole number;
    decimals (`val_loss=0.21`) are no steps. A name without a number may lie in a folder such as
    `checkpoint-500`.
    """
    folder, stem = os.path.split(named_path(path))
    while os.path.splitext(stem)[1] in SUFFIXES:
        stem = os.path.splitext(stem)[0]
    for word in (STEP_WORD, EPOCH_WORD, INTEGER):
        found = word.findall(stem)
        if found and not PART.fullmatch(stem):
            return int(found[-1][-18:])
    above = NAMED_BY_STEP.fullmatch(os.path.basename(folder))
    return int(above[1][-18:]) if above else None
