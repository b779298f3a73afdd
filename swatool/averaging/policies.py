"""What is done where the checkpoints, or the types of their tensors, leave a choice."""

from __future__ import annotations

from dataclasses import dataclass

from swatool.choices import check_choices, choice
from swatool.errors import UsageError

__all__ = ["DTYPES", "Policies"]

DTYPES = ("same", "float32", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True)
class Policies:
    """What is done where the checkpoints, or the types of their tensors, leave a choice.

    Attributes:
        match: names that only some checkpoints have: `exact` refuses them, `intersection` drops them, `union`
            averages them over the checkpoints that have them.
        integers: integer and bool tensors are never averaged: `last` and `first` copy that checkpoint's,
            `equal` demands that all agree.
        tied: tensors that share their bytes: `keep` writes them under each name, `drop` under the first and
            notes the other names as safetensors' own `save_model` does.
        exclude: glob patterns of names that are copied from the last checkpoint instead of averaged.
        dtype: type in which averages are written; `same` is each tensor's own. Checkpoints whose types
            differ can only be averaged with a type named here. Complex tensors become complex64.
        accumulate: type of the sums; `auto` is float64 for float64 and complex128 tensors, else float32.
        allow_nonfinite: write NaN and Inf instead of refusing them.
    """

    match: str = choice(("exact", "intersection", "union"), default="exact")
    integers: str = choice(("last", "first", "equal"), default="last")
    tied: str = choice(("keep", "drop"), default="keep")
    exclude: tuple[str, ...] = ()
    dtype: str = choice(DTYPES, default="same")
    accumulate: str = choice(("auto", "float32", "float64"), default="auto")
    allow_nonfinite: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.exclude, str):
            raise UsageError("exclude must be a tuple of patterns, not one text")
        check_choices(self)
