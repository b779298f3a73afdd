"""What is raised here: errors of swatool that are also what torch raises for the same mistake.

So `except ValueError` around torch's calls goes on working, and so does `except SwatoolError`.
"""

from __future__ import annotations

from swatool.errors import MismatchError, UsageError

__all__ = ["ArgumentError", "ArgumentTypeError", "ConflictError", "PairingError"]


class ArgumentError(UsageError, ValueError):
    """An argument has a value that makes no sense."""


class ArgumentTypeError(UsageError, TypeError):
    """An argument, or what a given function returns, is of the wrong type."""


class ConflictError(UsageError, AssertionError):
    """Several averaging functions are given where one is possible; torch raises AssertionError."""


class PairingError(MismatchError, ValueError, RuntimeError):
    """The tensors of a model are not those of its average.

    torch raises ValueError where the numbers of buffers differ, and RuntimeError where their shapes do.
    """
