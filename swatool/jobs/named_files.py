"""Files that the user names besides the checkpoints, such as programs: no output may take their place."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress

from swatool.errors import UsageError, printable

__all__ = ["files_named_in", "refuse_evaluation_as_output"]


def files_named_in(*specs: str | None) -> Iterator[tuple[int, int]]:
    """Yield device and inode of the files that the user names besides the checkpoints."""
    for spec in specs:
        for text in {spec or "", (spec or "").rpartition(":")[0], (spec or "").partition(":")[2]} - {""}:
            with suppress(OSError, ValueError):
                for path in (text, *glob.glob(text)):
                    if os.path.isfile(path):
                        status = os.stat(path)
                        yield status.st_dev, status.st_ino


def refuse_evaluation_as_output(outputs: Iterable[str], evaluate: str) -> None:
    """Refuse outputs that would replace the program or the function that is to judge them.

    Raises:
        UsageError: one of them would.
    """
    named = set(files_named_in(evaluate, *evaluate.split()))
    for path in outputs:
        if named.intersection(files_named_in(path)):
            raise UsageError(f"{printable(path)} is named by --eval: choose another -o")
