"""What an averaging scheme is: the interfaces of its two forms, and the way from one to the other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, Protocol

__all__ = ["Described", "OnlineScheme", "Scheme", "Steps", "unrolled"]

Steps = Sequence[int | None]


class Scheme(Protocol):
    """The rule that gives each checkpoint its coefficient.

    A scheme is a frozen dataclass whose fields are its parameters; it checks itself when it is made. One that
    takes numbers from the checkpoints also has `informed(steps, checkpoints)`, one with something to say
    about its fit has `remarks(steps)`, and one whose averages say of themselves what they are `notes(steps)`.
    """

    name: ClassVar[str]
    formula: ClassVar[str]
    source: ClassVar[str]

    def coefficients(self, steps: Steps) -> tuple[float, ...]:
        """Return one coefficient per checkpoint, oldest first; a step is None where none is known."""


class OnlineScheme(Protocol):
    """A scheme that needs nothing but the average so far and the number of models in it."""

    name: ClassVar[str]
    formula: ClassVar[str]
    source: ClassVar[str]

    def coefficients(self, steps: Steps) -> tuple[float, ...]:
        """Return one coefficient per checkpoint, oldest first."""

    def weight(self, n: int) -> float:
        """Return the weight, in [0, 1], of the next model when n are in the average; 1 for n = 0."""


class Described(Protocol):
    """What a scheme may learn of a checkpoint besides its step; an open checkpoint is one."""

    @property
    def path(self) -> str:
        """The name of the file."""

    @property
    def fields(self) -> Mapping[str, int | float]:
        """Numbers that stand beside the weights."""

    @property
    def metadata(self) -> Mapping[str, str]:
        """Strings that the format keeps beside the weights."""


def unrolled(weights: Iterable[float]) -> tuple[float, ...]:
    """Return the coefficients that updates with these weights, oldest first, amount to.

    c_i = w_i (1-w_{i+1}) ... (1-w_N); the first weight counts as 1, because the first model is copied.
    """
    coefficients: list[float] = []
    left = 1.0  # what the updates after this one leave of it
    for weight in reversed([1.0, *list(weights)[1:]]):
        coefficients.append(weight * left)
        left *= 1 - weight
    return tuple(reversed(coefficients))
