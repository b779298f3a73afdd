"""What a format is that is damaged at random: how it is written, damaged and read, and by whom."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


def no_reason(_mutant, _ours, _error):
    return None


def nothing(_folder):
    """There is nothing to be made before the mutants are."""


@dataclass(frozen=True)
class Format:
    """A format.

    Attributes:
        mutant: damages a seed; gives bytes.
        write: writes a mutant, and returns what is to be read.
        ours: reads it with swatool.
        theirs: reads a mutant with the reference library.
        difference: says where the two differ.
        reason: says why swatool alone reads it; None if that is not known.
        prepare: makes what the mutants need beside them, in the current folder.
        is_listed: whether refusals list what is refused, a line for each.
    """

    mutant: Callable
    write: Callable
    ours: Callable
    theirs: Callable
    difference: Callable
    reason: Callable = no_reason
    prepare: Callable = nothing
    is_listed: bool = False


def written_to(name):
    def write(mutant):
        Path(name).write_bytes(mutant)
        return name

    return write


def folder_with(name, mutant):
    (Path("folder") / name).write_bytes(mutant)
    return "folder"
