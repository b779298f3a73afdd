"""What `inspect` found in a checkpoint, as data, for people and for machines."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from swatool.jobs.running import METADATA_KEY
from swatool.json_text import JsonError, parse_json

if TYPE_CHECKING:
    from swatool.averaging.measures import Statistics

__all__ = ["BATCHNORM", "PARAMETER", "InspectReport", "StateDictReport", "TensorReport", "Total"]

SCHEMA = 1
BATCHNORM = "BatchNorm buffer"
PARAMETER = "parameter"


class StateDictReport(NamedTuple):
    """A dict with tensors in the checkpoint, which `--key` could choose.

    Attributes:
        key: where it is; empty for the whole file.
        tensors: how many it holds itself.
        bytes: of those.
        chosen: whether it is the one that the rest of the report is about.
    """

    key: str
    tensors: int
    bytes: int
    chosen: bool


class TensorReport(NamedTuple):
    """A tensor of the state dict.

    Attributes:
        name: without the prefix.
        dtype: torch's name of it.
        shape: length of each dimension.
        elements: their number.
        bytes: of the elements.
        kind: `parameter` (any float or complex tensor that is not one of the others), `BatchNorm buffer`,
            `integer` or `bool`.
        tied_with: the first name that shows the same bytes; None for that one itself and for all others.
        stats: what its values are like, if that was asked for.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    elements: int
    bytes: int
    kind: str
    tied_with: str | None
    stats: Statistics | None = None


class Total(NamedTuple):
    """A sum over tensors; what is tied is counted once."""

    tensors: int = 0
    elements: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class InspectReport:
    """What a checkpoint holds.

    Attributes:
        path: the file or folder.
        format: its format's name for people.
        bytes: of its files.
        files: how many of them were opened.
        key: where the state dict was found, empty for the whole file; None if several could be it, and then
            there are no `tensors`.
        prefix: what was taken off every name.
        state_dicts: all that `--key` could choose.
        fields: numbers beside the state dict: steps, epochs, metrics.
        metadata: texts that the format keeps beside the tensors.
        tensors: of the state dict.
        totals: over all tensors.
        dtypes: the same by type.
        kinds: the same by kind.
        skipped: entries of the state dict that are no tensors.
        opaque: entries beside it whose values are of a class that was not looked up.
        warnings: sentences that deserve attention.
    """

    path: str
    format: str
    bytes: int
    files: int
    key: str | None
    prefix: str
    state_dicts: tuple[StateDictReport, ...]
    fields: Mapping[str, int | float]
    metadata: Mapping[str, str]
    tensors: tuple[TensorReport, ...]
    totals: Total
    dtypes: Mapping[str, Total]
    kinds: Mapping[str, Total]
    skipped: tuple[str, ...]
    opaque: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def provenance(self) -> Mapping[str, object] | None:
        """What swatool says in the metadata of its outputs; None if somebody else wrote this, or nobody."""
        try:
            said = parse_json(self.metadata.get(METADATA_KEY, "null"))
        except JsonError:
            return None
        return said if isinstance(said, dict) else None

    def as_json(self) -> dict[str, object]:
        """Return the report as plain data for JSON, which has no NaN and no Inf: those are null."""
        data: dict[str, object] = {"schema": SCHEMA, **vars(self)}
        data["state_dicts"] = [one._asdict() for one in self.state_dicts]
        data["fields"] = {name: _number(value) for name, value in self.fields.items()}
        data["metadata"] = dict(self.metadata)
        data["tensors"] = [_tensor(one) for one in self.tensors]
        data["totals"] = self.totals._asdict()
        for name in ("dtypes", "kinds"):
            data[name] = {kind: total._asdict() for kind, total in getattr(self, name).items()}
        return data


def _tensor(tensor: TensorReport) -> dict[str, object]:
    data = tensor._asdict()
    if tensor.stats is None:
        del data["stats"]
    else:
        data["stats"] = {name: _number(value) for name, value in tensor.stats._asdict().items()}
    return data


def _number(value: float | int | None) -> float | int | None:
    return value if value is None or isinstance(value, int) or math.isfinite(value) else None
