"""What jobs have in common: where and how they run, and how those that write an output sign their work."""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from swatool.choices import PATTERN
from swatool.errors import SettingError, printable

__all__ = ["METADATA_KEY", "Running", "Workers", "uncollected"]

METADATA_KEY = "swatool"  # in an output's metadata, for where it comes from
MOST_THREADS = 1024  # what systems and OpenMP surely survive
DEVICE = re.compile(r"cpu|cuda(:[0-9]{1,3})?|auto")


@dataclass(frozen=True, kw_only=True)
class Workers:
    """By how many threads a job is done.

    Attributes:
        threads: number of workers; None is as many as there are cores to use.
    """

    threads: int | None = None

    def __post_init__(self) -> None:
        if self.threads is not None and not 1 <= self.threads <= MOST_THREADS:
            raise SettingError("threads", f"must be from 1 to {MOST_THREADS:,}, not {self.threads:,}")

    def workers(self) -> int:
        """Return how many threads work."""
        if self.threads is not None:
            return self.threads
        if hasattr(os, "sched_getaffinity"):
            return len(os.sched_getaffinity(0))
        return os.cpu_count() or 1


@dataclass(frozen=True, kw_only=True)
class Running(Workers):
    """Where and how a job runs that writes an output.

    Attributes:
        device: where the arithmetic is done: `cpu`, `cuda`, `cuda:N`, or `auto`.
        overwrite: replace an existing output.
        dry_run: plan, check everything, and write nothing.
        checksum: record SHA-256 of what is read in the output, and that of the output beside it; and compare
            the records of torch files with the checksums that they hold.
    """

    device: str = field(default="cpu", metadata={PATTERN: DEVICE.pattern})
    overwrite: bool = False
    dry_run: bool = False
    checksum: bool = False

    def __post_init__(self) -> None:
        if not DEVICE.fullmatch(self.device):
            raise SettingError("device", f"must be cpu, cuda, cuda:N or auto, not {printable(self.device)}")
        Workers.__post_init__(self)


@contextmanager
def uncollected() -> Iterator[None]:
    """Stop the search for garbage cycles, which would walk the descriptions of all tensors in vain."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
