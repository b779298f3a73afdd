"""The checkpoint again, byte for byte, but with other BatchNorm statistics in their places."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from swatool.averaging.plan import make_plan
from swatool.checkpoints.opening import Checkpoint
from swatool.errors import DataError, printable
from swatool.jobs.average_output import LayoutSettings, lay_out_average
from swatool.jobs.hashing import hash_checkpoints
from swatool.jobs.running import METADATA_KEY
from swatool.json_text import JsonError, parse_json
from swatool.output.checksums import with_sums
from swatool.output.writing import writing
from swatool.version import __version__

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["STATISTICS", "Written", "new_statistics", "own_metadata", "write_recalibrated"]

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def new_statistics(model: nn.Module, layers: tuple[str, ...], checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Return the layers' statistics under every name that the checkpoint has for them, in its types.

    Raises:
        DataError: the checkpoint's type is too narrow for a value.
    """
    import torch

    recalibrated = {id(model.get_submodule(name)) for name in layers}
    found: dict[str, Tensor] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if id(module) not in recalibrated:
            continue
        for statistic in STATISTICS:
            name, value = f"{path}.{statistic}".lstrip("."), getattr(module, statistic)
            if value is None or name not in checkpoint.tensors:
                continue
            stored = checkpoint.tensors[name]
            found[name] = value.detach().cpu().to(getattr(torch, stored.dtype.name))
            if not bool(found[name].to(torch.float64).isfinite().all()):
                raise DataError(
                    f"{printable(name)} has a value that is too large for {stored.dtype.name}, its type in "
                    f"{printable(checkpoint.path)}: convert the checkpoint to a wider type first"
                )
    return found


class Written(NamedTuple):
    """What was written.

    Attributes:
        nbytes: of all files.
        sha256: of each file by name; nothing if that was not asked for.
    """

    nbytes: int
    sha256: Mapping[str, str]


def write_recalibrated(
    checkpoint: Checkpoint,
    statistics: Mapping[str, Tensor],
    provenance: Mapping[str, object],
    output: str,
    *,
    overwrite: bool,
    checksum: bool,
    threads: int,
) -> Written:
    """Copy the checkpoint, the statistics replaced.

    Args:
        checkpoint: what is copied.
        statistics: what is put into its place, by name, of the same shape and type as there.
        provenance: said of the recalibration in the output's metadata, beside what the checkpoint says there.
        output: the file or folder, in the format that its name tells; it appears whole or not at all.
        overwrite: replace it if it exists.
        checksum: record SHA-256 of the checkpoint and of the output.
        threads: number of workers.

    Raises:
        CheckpointError: the checkpoint cannot be read, or changed.
        OutputError: the output cannot be written.
    """
    import torch

    from swatool.averaging.stream import Target, stream

    # To leave everything out of the average is to copy it.
    settings = LayoutSettings(exclude=("*",) if checkpoint.tensors else ())
    plan = make_plan([checkpoint], [[1.0]], settings)
    if checksum:
        (digest,) = hash_checkpoints([checkpoint], threads)
        provenance = {**provenance, "sha256": digest}
    signed = {**own_metadata(checkpoint), "version": __version__, "recalibrated": provenance}
    said = {**checkpoint.metadata, METADATA_KEY: json.dumps(signed)}
    layout, _ = lay_out_average(plan, settings, output, checkpoint, said)
    layout = with_sums(layout) if checksum else layout
    with writing(layout, output, overwrite=overwrite, checksum=checksum, threads=threads) as pending:
        # Whether a value is finite is not asked of what is only copied.
        stream(plan, [Target(layout, pending.write)], device=torch.device("cpu"), threads=threads)
        for name, values in statistics.items():
            place = layout.offsets.get(name)  # of a tie, some formats have one place only
            pending.write(layout.offsets[plan.ties[name]] if place is None else place, _bytes(values))
        pending.seal()
        checkpoint.files.check_unchanged()
        pending.publish()
        return Written(layout.size, pending.digests)


def own_metadata(checkpoint: Checkpoint) -> Mapping[str, object]:
    """Return what an earlier run of swatool said of the checkpoint."""
    try:
        found = parse_json(checkpoint.metadata.get(METADATA_KEY, "{}"))
    except JsonError:
        return {}
    return found if isinstance(found, dict) else {}


def _bytes(values: Tensor) -> memoryview:
    import torch

    from swatool.averaging.memory import bytes_of

    return bytes_of(values.contiguous().view(-1).view(torch.uint8))
