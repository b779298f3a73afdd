"""What a case of the corpus is: something hostile, what reads it, and what swatool must say of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

# The rows of the table of threats; and tables of metrics (M1), lists of checksums (V1), what lies beside the
# weights in a folder (H3), and what a soup has found (W1).
ROWS = (
    *(f"P{number}" for number in range(1, 12)),
    *("S1", "S2", "H1", "H2", "D1", "D2", "D3", "D4", "D5", "T1", "T2", "U1", "C1"),
    *("N1", "N2", "N3", "X1", "X2", "M1", "V1", "H3", "W1"),
)
BAD_INPUT = 3
LIKE = {"recipe": "average", "source": "verify"}  # commands that do what others do


@dataclass(frozen=True)
class Case:
    """A hostile input.

    Attributes:
        row: the threat, by its row in the table of threats.
        name: what is wrong, unique among all cases.
        target: the file or folder that is made, in an empty folder.
        make: makes it, given its path.
        said: a regular expression that the sentence must match.
        kind: what it is given as.
        codes: exit codes by command, where they are not 3; `*` stands for all other commands.
        during: what happens to the file when its values are first read.
        spec: how `--data` names the target.
        model: which model it is for, of `hostile.models`.
        memory: bytes that it may take above those of an idle process.
        sample: whether it is one of the checkpoints that all commands read also when time is short.
    """

    row: str
    name: str
    target: str
    make: Callable[[Path], object]
    said: str
    kind: Literal["checkpoint", "data", "recipe", "table", "sums", "sidecar", "work"] = "checkpoint"
    codes: Mapping[str, int] = field(default_factory=dict)
    during: Literal["", "truncate", "rewrite", "replace", "fail"] = ""
    spec: str = "{}"
    model: str = "vector"
    memory: int = 64 << 20
    sample: bool = False

    def code(self, command):
        """Return the exit code that is right; negative if the command is not tried."""
        like = LIKE.get(command, command)
        return self.codes.get(command, self.codes.get(like, self.codes.get("*", BAD_INPUT)))


def of_bytes(row, name, target, data, said, **options):
    """A case of one file with these bytes, or those that a function gives."""

    def make(path):
        path.write_bytes(data() if callable(data) else data)

    return Case(row, name, target, make, said, **options)
