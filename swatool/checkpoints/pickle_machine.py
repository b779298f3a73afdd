"""The state of a pickle that is being interpreted: the stacks, the memo, the names met so far."""

from __future__ import annotations

from swatool.checkpoints.contents import Opaque
from swatool.checkpoints.pickle_attacks import is_attack
from swatool.checkpoints.pickle_globals import MalformedError
from swatool.errors import CheckpointError, printable

__all__ = ["PickleMachine"]

MAX_NAME = 255  # characters of a module's or a class's name
MAX_NAMES = 10_000  # different ones: m modules and n classes could be combined to m x n long names


class PickleMachine:
    """The state of one run: as in Python's own unpickler, a mark sets the current stack aside."""

    __slots__ = ("data", "far", "memo", "names", "outer_stacks", "stack", "where")

    def __init__(self, data: bytes, where: str) -> None:
        self.data = data
        self.where = where
        self.stack: list[object] = []
        self.outer_stacks: list[list[object]] = []
        # Honest picklers number what they store one after the other, for which a list takes a tenth of a
        # dict's memory; what is numbered otherwise is kept apart, so that a large number costs nothing.
        self.memo: list[object] = []
        self.far: dict[int, object] = {}
        self.names: dict[tuple[str, str], Opaque] = {}

    def store(self, index: int) -> None:
        """Keep the value on the top of the stack under a number."""
        if index == len(self.memo):
            self.memo.append(self.stack[-1])
        elif index < len(self.memo):
            self.memo[index] = self.stack[-1]
        else:
            self.far[index] = self.stack[-1]

    def recall(self, index: int) -> None:
        """Push the value that was kept under a number."""
        self.stack.append(self.memo[index] if index < len(self.memo) else self.far[index])

    def since_mark(self) -> list[object]:
        """Return the values pushed since the last mark, and take up the stack that the mark set aside."""
        items = self.stack
        self.stack = self.outer_stacks.pop()
        return items

    def checked(self, end: int) -> int:
        """Return where a value ends if its bytes are there."""
        if end > len(self.data):
            raise MalformedError("ends within a value")
        return end

    def line(self, position: int) -> tuple[str, int]:
        """Return the short line of text that begins here, and where the next one begins."""
        end = self.data.find(b"\n", position, position + 4 * MAX_NAME + 1)
        if end < 0:
            raise MalformedError("holds a line without an end")
        return self.data[position:end].decode(), end + 1

    def name(self, module: object, name: object) -> Opaque:
        """Return the inert stand-in of a name, the same for the same name."""
        if type(module) is not str or type(name) is not str or max(len(module), len(name)) > MAX_NAME:
            raise MalformedError("names something by other than two short texts")
        known = self.names.get((module, name))
        if known is None:
            qualified = f"{module}.{name}"
            if is_attack(module, name):
                shown = printable(qualified)[1:-1]
                raise CheckpointError(f"{self.where} would call {shown} when unpickled: refused")
            if len(self.names) == MAX_NAMES:
                raise MalformedError(f"names more than {MAX_NAMES:,} functions and classes")
            known = self.names[module, name] = Opaque(qualified)
        return known
