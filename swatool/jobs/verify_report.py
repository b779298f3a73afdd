"""What `verify` found about an output, as data, for people and for machines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

__all__ = ["ComparedSources", "VerifyReport"]

SCHEMA = 1


@dataclass(frozen=True)
class ComparedSources:
    """How an output compares with the average that it claims to be.

    Attributes:
        method: that it claims.
        parameters: of the method.
        settings: which choices about reading and tensors it claims, where they are not the default.
        recorded: how many sources it claims.
        found: how many of them were among those that were given, with the size and the checksum that are
            recorded.
        unused: how many were given besides.
        hashed: for how many a checksum is recorded.
        compared: how many tensors were made again, and compared byte by byte.
        copied: how many of those are no averages, but one checkpoint's.
        recalibrated: how many were not, because their statistics were recomputed on data.
        not_compared: names of those that were not.
        differing: names of tensors that have other bytes.
    """

    method: str
    parameters: Mapping[str, object]
    settings: Mapping[str, object]
    recorded: int
    found: int = 0
    unused: int = 0
    hashed: int = 0
    compared: int = 0
    copied: int = 0
    recalibrated: int = 0
    not_compared: tuple[str, ...] = ()
    differing: tuple[str, ...] = ()


@dataclass(frozen=True)
class VerifyReport:
    """What was found about one output.

    Attributes:
        version: of swatool.
        command: always `verify`.
        path: the output.
        format: of it, for people.
        bytes: of its files.
        key: where in it the state dict is.
        tensors: how many it holds.
        checksum: the checksum file that it was compared with; None: none is recorded.
        records: how many records of torch files match the CRC-32 that they hold.
        nonfinite: names of tensors in which there is NaN or Inf.
        sources: how it compares with its sources; None if that was not asked for, or it claims none.
        failures: a sentence for each check that does not hold.
        threads: number of workers.
        seconds: the whole call.
        bytes_read: from the output and the sources.
        peak_rss_bytes: the process's peak resident memory so far.
        warnings: sentences that deserve attention.
    """

    version: str
    command: str
    path: str
    format: str
    bytes: int
    key: str
    tensors: int
    checksum: str | None
    records: int
    nonfinite: tuple[str, ...]
    sources: ComparedSources | None
    failures: tuple[str, ...]
    threads: int
    seconds: float
    bytes_read: int
    peak_rss_bytes: int
    warnings: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether every check holds."""
        return not self.failures

    def as_json(self) -> dict[str, object]:
        """Return the report as plain data for JSON."""
        return {"schema": SCHEMA, **asdict(self), "passed": self.passed}
