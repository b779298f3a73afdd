"""Everything that can be chosen about a recalibration, checked."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from swatool.checkpoints.files import last_name
from swatool.checkpoints.opening import Reading
from swatool.choices import check_choices, choice
from swatool.data.options import DataOptions
from swatool.errors import SettingError, UsageError
from swatool.jobs.average_output import FILE_SUFFIXES
from swatool.jobs.running import Running

__all__ = ["RecalibrateSettings", "default_output"]

MODES = ("batch", "exact", "torch")
DTYPES = ("float32", "float64", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True)
class RecalibrateSettings(Reading, DataOptions, Running):
    """Everything that can be chosen about a recalibration; the command line's options are these fields.

    Attributes:
        mode: `batch` pools the moments that the layers see in one pass in which each normalises by its own
            batch, as in training; `exact` gives what inference will really see, layer after layer; `torch` is
            what `torch.optim.swa_utils.update_bn` computes, bit for bit.
        skip: glob patterns of layers that keep their statistics.
        model_arguments: keyword arguments for the model's factory.
        forward: `module:function` that is called with the model and a batch in place of the model.
        evaluate: `module:function` that is called with the model before and after, and returns a number or a
            mapping of numbers.
        higher_is_better: which way the (first) number is better, to warn where it got worse; None: do not.
        dtype: type in which the model runs; None is its own, or float32 where that is a 16-bit one.
        tolerance: stop a pass early when the standard errors of all means, in standard deviations, and of all
            variances, relative to them, are this small.
        strict: refuse a model without layers to recalibrate, and one whose layers the data does not reach.
    """

    mode: str = choice(MODES, default="batch")
    skip: tuple[str, ...] = ()
    model_arguments: Mapping[str, object] = field(default_factory=dict)
    forward: str | None = None
    evaluate: str | None = None
    higher_is_better: bool | None = None
    dtype: str | None = choice(DTYPES, default=None)
    tolerance: float | None = None
    strict: bool = False

    def __post_init__(self) -> None:
        for group in (Reading, DataOptions, Running):
            group.__post_init__(self)
        if isinstance(self.skip, str):
            raise UsageError("skip must be a tuple of patterns, not one text")
        check_choices(self)
        if self.tolerance is not None and not 0 < self.tolerance < math.inf:
            raise SettingError("tolerance", f"must be a number greater than 0, not {self.tolerance}")
        if self.tolerance is not None and self.mode == "torch":
            raise UsageError("--tolerance cannot be used with --mode torch, which takes all batches")
        if self.higher_is_better is not None and self.evaluate is None:
            raise UsageError(
                "--higher-is-better and --lower-is-better say how to read --eval: give that, too"
            )


def default_output(checkpoint: str | os.PathLike[str]) -> str:
    """Return the checkpoint's name with `-bn` before its extension; of a folder, a safetensors file's."""
    name = last_name(checkpoint)
    if os.path.isdir(checkpoint):
        return f"{name}-bn.safetensors"
    suffix = next((one for one in FILE_SUFFIXES if name.endswith(one)), None)
    if suffix is None:
        return f"{os.path.splitext(name)[0]}-bn.safetensors"
    return f"{name.removesuffix(suffix)}-bn{suffix}"
