"""swatool: turns the saved checkpoints of a training run into one better model.

The public names are loaded when they are first used, so that `import swatool` does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from swatool.version import __version__

if TYPE_CHECKING:
    from swatool.errors import (
        CheckFailedError,
        CheckpointError,
        DataError,
        MismatchError,
        OutputError,
        SwatoolError,
        UsageError,
    )
    from swatool.jobs.average import AverageSettings, average
    from swatool.report import Report

__all__ = [
    "AverageSettings",
    "CheckFailedError",
    "CheckpointError",
    "DataError",
    "MismatchError",
    "OutputError",
    "Report",
    "SwatoolError",
    "UsageError",
    "__version__",
    "average",
]

HOME = {
    "AverageSettings": "swatool.jobs.average",
    "Report": "swatool.report",
    "average": "swatool.jobs.average",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'swatool' has no attribute {name!r}")
    return getattr(importlib.import_module(HOME.get(name, "swatool.errors")), name)
