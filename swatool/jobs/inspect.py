"""`inspect`: what a checkpoint holds, from its descriptions alone; on request what its values are like."""

from __future__ import annotations

import os
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from swatool.checkpoints.contents import Contents
from swatool.checkpoints.files import LocalFiles
from swatool.checkpoints.opening import Checkpoint, Reading, choose_state_dict, read_contents
from swatool.checkpoints.selection import expand
from swatool.checkpoints.state_dicts import Candidate, list_state_dicts
from swatool.errors import SwatoolError
from swatool.jobs.inspect_report import (
    BATCHNORM,
    PARAMETER,
    InspectReport,
    StateDictReport,
    TensorReport,
    Total,
)
from swatool.jobs.running import Workers, uncollected
from swatool.tensors import StoredTensor

if TYPE_CHECKING:
    from swatool.averaging.measures import Statistics

__all__ = ["Failure", "InspectSettings", "inspect", "inspect_each"]

MEASURED_BY_BATCHNORM = ("running_mean", "running_var")
LONGEST = 64  # bits
BATCHNORM_BUFFERS = (*MEASURED_BY_BATCHNORM, "num_batches_tracked")


@dataclass(frozen=True, kw_only=True)
class InspectSettings(Reading, Workers):
    """Everything that can be chosen about an inspection; the command line's options are these fields.

    Attributes:
        stats: read the values, too, and say what they are like.
    """

    stats: bool = False

    def __post_init__(self) -> None:
        for group in (Reading, Workers):
            group.__post_init__(self)


def inspect(
    checkpoint: str | os.PathLike[str],
    *,
    settings: InspectSettings | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    **options: object,
) -> InspectReport:
    """Say what a checkpoint holds.

    >>> report = inspect("run/ckpt-100.pt")
    >>> report.key, report.fields, [tensor.name for tensor in report.tensors]

    Args:
        checkpoint: a file, or a folder that holds one checkpoint.
        settings: what is chosen; or give its fields as keywords.
        on_progress: with `stats`, is told ten times a second how many bytes have been read, and of how many.
        options: fields of `InspectSettings`.

    Returns:
        What was found. If nothing tells which of several state dicts is meant, that is no error: `key` is
        None, `tensors` is empty, and `state_dicts` lists them.

    Raises:
        UsageError: the request is refused.
        CheckpointError: the checkpoint is bad, or has no state dict under the key that was asked for.
        MismatchError: a prefix that should be taken off is not on every name.
    """
    if settings is None:
        settings = InspectSettings(**options)  # type: ignore[arg-type]
    elif options:
        raise TypeError("give either settings or single options, not both")
    files = LocalFiles()
    path = os.fspath(checkpoint)
    try:
        with uncollected():
            contents = read_contents(path, files, settings.variant)
            candidates, remaining = list_state_dicts(contents)
            if candidates and len(remaining) != 1 and settings.key is None:
                return _undecided(contents, candidates, path, files)
            opened = choose_state_dict(contents, path, files, settings)
            return _report(opened, candidates, _statistics(opened, settings, on_progress))
    finally:
        files.close()


class Failure(NamedTuple):
    """A checkpoint that could not be inspected, and why not."""

    path: str
    error: SwatoolError


def inspect_each(
    checkpoints: Iterable[str | os.PathLike[str]],
    settings: InspectSettings,
    on_progress: Callable[[int, int], None] | None = None,
) -> Iterator[InspectReport | Failure]:
    """Inspect one checkpoint after the other, the rest of them also where one is bad.

    Args:
        checkpoints: files, glob patterns and folders.
        settings: for all of them.
        on_progress: as `inspect` takes it.
    """
    for given in checkpoints:
        try:
            paths = expand([given])
        except SwatoolError as error:
            yield Failure(os.fspath(given), error)
            continue
        for path in paths:
            try:
                yield inspect(path, settings=settings, on_progress=on_progress)
            except SwatoolError as error:
                yield Failure(path, error)


def _undecided(
    contents: Contents, candidates: Sequence[Candidate], path: str, files: LocalFiles
) -> InspectReport:
    return InspectReport(
        path=path,
        format=contents.format,
        bytes=files.size,
        files=len(files.keys),
        key=None,
        prefix="",
        state_dicts=tuple(StateDictReport(c.key, c.tensors, c.nbytes, False) for c in candidates),
        fields=_plain(contents.fields),
        metadata=contents.metadata,
        tensors=(),
        totals=Total(),
        dtypes={},
        kinds={},
        skipped=(),
        opaque=(),
        warnings=contents.warnings,
    )


def _report(
    opened: Checkpoint, candidates: Sequence[Candidate], statistics: Mapping[str, Statistics]
) -> InspectReport:
    tensors = tuple(_tensors(opened.tensors, statistics))
    untied = [tensor for tensor in tensors if tensor.tied_with is None]
    return InspectReport(
        path=opened.path,
        format=opened.format,
        bytes=opened.files.size,
        files=len(opened.files.keys),
        key=opened.key,
        prefix=opened.prefix,
        state_dicts=tuple(
            StateDictReport(c.key, c.tensors, c.nbytes, c.key == opened.key) for c in candidates
        ),
        fields=_plain(opened.fields),
        metadata=opened.metadata,
        tensors=tensors,
        totals=_total(untied),
        dtypes=_totals((tensor.dtype, tensor) for tensor in untied),
        kinds=_totals((tensor.kind, tensor) for tensor in untied),
        skipped=opened.skipped,
        opaque=opened.opaque,
        warnings=opened.warnings,
    )


def _plain(fields: Mapping[str, int | float]) -> dict[str, int | float]:
    """Leave out integers of absurd lengths, which Python refuses to print."""
    return {
        name: value
        for name, value in fields.items()
        if isinstance(value, float) or value.bit_length() <= LONGEST
    }


def _tensors(
    stored: Mapping[str, StoredTensor], statistics: Mapping[str, Statistics]
) -> Iterable[TensorReport]:
    first: dict[tuple[object, ...], str] = {}
    for name, tensor in stored.items():
        # Extents hold open files, which compare by identity: equal ones are the same bytes.
        known = first.setdefault(tensor.extents, name) if tensor.extents else name
        dtype, elements = tensor.dtype, tensor.numel
        yield TensorReport(
            name,
            dtype.name,
            tensor.shape,
            elements,
            elements * dtype.itemsize,
            kind=_kind(name, tensor, stored),
            tied_with=None if known == name else known,
            stats=statistics.get(name),
        )


def _kind(name: str, tensor: StoredTensor, stored: Mapping[str, StoredTensor]) -> str:
    last = name.rpartition(".")[2]
    if last in BATCHNORM_BUFFERS:
        above = name.removesuffix(last)
        if all(above + statistic in stored for statistic in MEASURED_BY_BATCHNORM):
            return BATCHNORM
    return PARAMETER if tensor.dtype.averageable else tensor.dtype.kind


def _total(tensors: Iterable[TensorReport]) -> Total:
    count = elements = nbytes = 0
    for tensor in tensors:
        count += 1
        elements += tensor.elements
        nbytes += tensor.bytes
    return Total(count, elements, nbytes)


def _totals(sorted_by: Iterable[tuple[str, TensorReport]]) -> dict[str, Total]:
    groups: defaultdict[str, list[TensorReport]] = defaultdict(list)
    for kind, tensor in sorted_by:
        groups[kind].append(tensor)
    return {kind: _total(tensors) for kind, tensors in groups.items()}


def _statistics(
    opened: Checkpoint, settings: InspectSettings, on_progress: Callable[[int, int], None] | None
) -> Mapping[str, Statistics]:
    if not settings.stats:
        return {}
    with warnings.catch_warnings():
        # Without NumPy, torch says so when it is imported; swatool does not need it.
        warnings.filterwarnings("ignore", message="Failed to initialize NumPy")
        from swatool.averaging.measures import plan_measuring
        from swatool.averaging.measuring import measure_statistics

    measuring = plan_measuring((opened,), tuple(opened.tensors))
    found = measure_statistics(
        measuring,
        threads=settings.workers(),
        progress=None if on_progress is None else lambda done: on_progress(done, measuring.nbytes),
    )
    opened.files.check_unchanged()
    return found
