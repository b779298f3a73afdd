"""swatool: turns the saved checkpoints of a training run into one better model.

The public names are loaded when they are first used, so that `import swatool` does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from swatool.version import __version__

if TYPE_CHECKING:
    from swatool.batchnorm.recalibrate import recalibrate_bn
    from swatool.batchnorm.report import BatchNormReport
    from swatool.errors import (
        CheckFailedError,
        CheckpointError,
        DataError,
        MismatchError,
        OutputError,
        SettingError,
        SwatoolError,
        UsageError,
    )
    from swatool.jobs.average import AverageSettings, average
    from swatool.jobs.diff import DiffSettings, diff
    from swatool.jobs.diff_report import DiffReport
    from swatool.jobs.inspect import InspectSettings, inspect
    from swatool.jobs.inspect_report import InspectReport
    from swatool.jobs.recalibrate import recalibrate_checkpoint
    from swatool.jobs.recalibrate_report import RecalibrationReport
    from swatool.jobs.recalibrate_settings import RecalibrateSettings
    from swatool.jobs.recipe_report import RecipeReport
    from swatool.jobs.recipes import run_recipe
    from swatool.jobs.scoring import Scoring
    from swatool.jobs.soup import SoupSettings, soup
    from swatool.jobs.soup_report import SoupReport
    from swatool.jobs.sweep_average import average_sweep
    from swatool.jobs.verify import VerifySettings, verify
    from swatool.jobs.verify_report import VerifyReport
    from swatool.report import Report, SweepReport

__all__ = [
    "AverageSettings",
    "BatchNormReport",
    "CheckFailedError",
    "CheckpointError",
    "DataError",
    "DiffReport",
    "DiffSettings",
    "InspectReport",
    "InspectSettings",
    "MismatchError",
    "OutputError",
    "RecalibrateSettings",
    "RecalibrationReport",
    "RecipeReport",
    "Report",
    "Scoring",
    "SettingError",
    "SoupReport",
    "SoupSettings",
    "SwatoolError",
    "SweepReport",
    "UsageError",
    "VerifyReport",
    "VerifySettings",
    "__version__",
    "average",
    "average_sweep",
    "diff",
    "inspect",
    "recalibrate_bn",
    "recalibrate_checkpoint",
    "run_recipe",
    "soup",
    "verify",
]

HOME = {
    "AverageSettings": "swatool.jobs.average",
    "BatchNormReport": "swatool.batchnorm.report",
    "DiffReport": "swatool.jobs.diff_report",
    "DiffSettings": "swatool.jobs.diff",
    "InspectReport": "swatool.jobs.inspect_report",
    "InspectSettings": "swatool.jobs.inspect",
    "RecalibrateSettings": "swatool.jobs.recalibrate_settings",
    "RecalibrationReport": "swatool.jobs.recalibrate_report",
    "RecipeReport": "swatool.jobs.recipe_report",
    "Report": "swatool.report",
    "Scoring": "swatool.jobs.scoring",
    "SoupReport": "swatool.jobs.soup_report",
    "SoupSettings": "swatool.jobs.soup_settings",
    "SweepReport": "swatool.report",
    "VerifyReport": "swatool.jobs.verify_report",
    "VerifySettings": "swatool.jobs.verify",
    "average": "swatool.jobs.average",
    "average_sweep": "swatool.jobs.sweep_average",
    "diff": "swatool.jobs.diff",
    "inspect": "swatool.jobs.inspect",
    "recalibrate_bn": "swatool.batchnorm.recalibrate",
    "recalibrate_checkpoint": "swatool.jobs.recalibrate",
    "run_recipe": "swatool.jobs.recipes",
    "soup": "swatool.jobs.soup",
    "verify": "swatool.jobs.verify",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'swatool' has no attribute {name!r}")
    return getattr(importlib.import_module(HOME.get(name, "swatool.errors")), name)
