"""What is raised here: errors of swatool that are also what torch raises for the same mistake.

So `except ValueError` around torch's calls goes on working, and so does `except SwatoolError`.
"""

from __future__ import annotations

from swatool.errors import MismatchError, UsageError

__all__ = ["ArgumentError", "ArgumentTypeError", "ConflictError", "MissingRateError", "PairingError"]


class ArgumentError(UsageError, ValueError):
    """An argument has a value that makes no sense."""


class ArgumentTypeError(UsageError, TypeError):
    """An argument, or what a given function returns, is of the wrong type."""


class ConflictError(UsageError, AssertionError):
    """Several averaging functions are given where one is possible; torch raises AssertionError."""


class MissingRateError(UsageError, KeyError):
    """A scheduler is to go on, and the optimizer does not say from where; torch raises KeyError."""

    def __str__(self) -> str:
        """Return the sentence, which a KeyError would put in quotes."""
        return Exception.__str__(self)


class PairingError(MismatchError, ValueError, RuntimeError):
    """The tensors of a model are not those of its average.

    torch raises ValueError where the numbers of buffers differ, and RuntimeError where their shapes do.
    """
