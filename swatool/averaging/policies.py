"""What is done where the checkpoints, or the types of their tensors, leave a choice."""

from __future__ import annotations

from dataclasses import dataclass

from swatool.errors import UsageError, printable

__all__ = ["CHOICES", "Policies"]

CHOICES = {
    "match": ("exact", "intersection", "union"),
    "integers": ("last", "first", "equal"),
    "tied": ("keep", "drop"),
    "dtype": ("same", "float32", "bfloat16", "float16"),
    "accumulate": ("auto", "float32", "float64"),
}


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

    match: str = "exact"
    integers: str = "last"
    tied: str = "keep"
    exclude: tuple[str, ...] = ()
    dtype: str = "same"
    accumulate: str = "auto"
    allow_nonfinite: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.exclude, str):
            raise UsageError("exclude must be a tuple of patterns, not one text")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise UsageError(
                    f"--{name} must be one of {', '.join(choices)}, not {printable(getattr(self, name))}"
                )
