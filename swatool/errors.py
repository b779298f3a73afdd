"""Every error that swatool raises on purpose, sorted by what the caller can do about it.

    SwatoolError             anything below; `exit_code` is what the command line returns
    ├── UsageError        2  the request itself is refused: change the arguments
    │   └── SettingError  2  one setting does not take the value that it was given
    ├── CheckpointError   3  an input is bad, or changed while it was read: replace the file
    ├── DataError         3  the data set is bad or gives no statistics: repair it, or give more
    ├── MismatchError     4  the inputs do not match each other or the model: choose other inputs
    ├── OutputError       5  the output or the system failed: make room, change permissions
    └── CheckFailedError  6  a check that was asked for did not hold

Each message is one sentence that says what is wrong, in which file and tensor, and what to do.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

__all__ = [
    "CheckFailedError",
    "CheckpointError",
    "DataError",
    "MismatchError",
    "OutputError",
    "SettingError",
    "SwatoolError",
    "UsageError",
    "few",
    "listed",
    "printable",
]

SHOWN_DIFFERENCES = 20
SHOWN_CHARACTERS = 160
SHOWN_NAMES = 5


class SwatoolError(Exception):
    """Base of all errors that swatool raises on purpose.

    Attributes:
        exit_code: what the command line returns.
        report: of what was done until then, where something was: as the job returns it otherwise.
    """

    exit_code: ClassVar[int] = 1
    report: object = None


class UsageError(SwatoolError):
    """The request cannot be carried out as it was made."""

    exit_code = 2


class SettingError(UsageError):
    """One setting does not take the value that it was given.

    Attributes:
        field: its name among the settings.
        what: the end of a sentence that begins with the setting.
    """

    def __init__(self, field: str, what: str) -> None:
        self.field = field
        self.what = what
        super().__init__(f"--{field.replace('_', '-')} {what}")


class CheckpointError(SwatoolError):
    """An input file is missing, damaged, hostile, of another format, or changed while it was read."""

    exit_code = 3


class DataError(SwatoolError):
    """A data set cannot be read, or what the model makes of it has no finite statistics."""

    exit_code = 3


class MismatchError(SwatoolError):
    """The inputs do not match each other or the model.

    Attributes:
        differences: every difference that was found, one sentence each; the message shows the first 20.
    """

    exit_code = 4

    def __init__(self, summary: str, differences: Sequence[str] = ()) -> None:
        self.differences = tuple(differences)
        shown = self.differences[:SHOWN_DIFFERENCES]
        hidden = len(self.differences) - len(shown)
        lines = [summary, *(f"  {difference}" for difference in shown)]
        if hidden:
            lines.append(f"  ... and {hidden} more")
        super().__init__("\n".join(lines))


class OutputError(SwatoolError):
    """The output could not be written, or the system failed while it was."""

    exit_code = 5


class CheckFailedError(SwatoolError):
    """A check that the caller asked for did not hold."""

    exit_code = 6


def printable(text: object) -> str:
    """Return a name in quotes, with what is not printable escaped and the middle cut out if it is long.

    Names come from files, and must not be able to drive a terminal.
    """
    shown = repr(str(text))
    if len(shown) > SHOWN_CHARACTERS:
        half = SHOWN_CHARACTERS // 2 - 2
        shown = f"{shown[:half]}...{shown[-half:]}"
    return shown


def listed(names: Iterable[object]) -> str:
    """Return the first few of many names, each printable, and how many more there are."""
    return few(map(printable, names))


def few(shown: Iterable[str]) -> str:
    """Return the first few of many words, and how many more there are.

    Files decide how many there are, and a message must not grow with them.
    """
    every = list(shown)
    more = f" and {len(every) - SHOWN_NAMES:,} more" if len(every) > SHOWN_NAMES else ""
    return ", ".join(every[:SHOWN_NAMES]) + more
