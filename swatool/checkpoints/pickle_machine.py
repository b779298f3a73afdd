"""The state of a pickle that is being interpreted: the stacks, the memo, the names met so far.

The pickle itself is held piece by piece, so that one of a gigabyte takes no more room than its values.
"""

from __future__ import annotations

from collections.abc import Callable, Container

from swatool.checkpoints.contents import Opaque
from swatool.checkpoints.pickle_attacks import is_attack
from swatool.checkpoints.pickle_costs import ALLOWED_BY_RECORD, ALLOWED_BY_TENSOR, allowed
from swatool.checkpoints.pickle_globals import MalformedError, storage
from swatool.errors import CheckpointError, printable

__all__ = ["PIECE", "CutError", "PickleMachine"]

PIECE = 2 << 20  # bytes of the pickle that are held at once; no opcode needs more than half of them

MAX_NAME = 255  # characters of a module's or a class's name
MAX_NAMES = 10_000  # different ones: m modules and n classes could be combined to m x n long names
FAR_ENTRY = 128  # bytes
NAME_ENTRY = 512


class CutError(MalformedError):
    """A value goes on beyond the piece of the pickle that is held."""


class PickleMachine:
    """The state of one run: as in Python's own unpickler, a mark sets the current stack aside.

    Attributes:
        data: the piece that is held.
        begin: where in the file it begins.
        held: bytes that the values take, by what they cost (`pickle_costs`).
        described: tensors and records among them.
        persistent: makes a value of a persistent id.
        records: classes whose objects are kept as a Record.
    """

    __slots__ = (
        *("begin", "data", "described", "far", "held", "memo", "names", "outer_stacks", "persistent"),
        *("records", "stack", "where", "_end", "_earning", "_read"),
    )

    def __init__(
        self,
        read: Callable[[int, int], bytes],
        span: tuple[int, int],
        where: str,
        *,
        records: Container[str] = (),
        persistent: Callable[[object], object] = storage,
        earning: int = 0,
    ) -> None:
        """Prepare to interpret a pickle.

        Args:
            read: gives bytes of the file, by their position and number.
            span: where the pickle begins, and where it ends at the latest.
            where: the file, for messages.
            records: see above.
            persistent: see above.
            earning: for how many tensors and records the values may take more room.
        """
        self.where = where
        self.records = records
        self.persistent = persistent
        self.begin, self._end = span
        self._read = read
        self._earning = earning
        self.data = self._piece()
        self.held = self.described = 0
        self.stack: list[object] = []
        self.outer_stacks: list[list[object]] = []
        # Honest picklers number what they store one after the other, for which a list takes a tenth of a
        # dict's memory; what is numbered otherwise is kept apart, so that a large number costs nothing.
        self.memo: list[object] = []
        self.far: dict[int, object] = {}
        self.names: dict[tuple[str, str], Opaque] = {}

    def _piece(self) -> bytes:
        return self._read(self.begin, min(PIECE, self._end - self.begin))

    def advance(self, position: int) -> bool:
        """Hold the piece that begins here; False if it would be the same, or there is none."""
        if position == 0 or self.begin + len(self.data) >= self._end:
            return False
        self.begin += position
        self.data = self._piece()
        return True

    def check_held(self) -> None:
        """Refuse a pickle whose values take more room than its tensors can need."""
        by_each = ALLOWED_BY_RECORD if self.records else ALLOWED_BY_TENSOR
        if self.held > allowed(min(self.described, self._earning), by_each):
            raise MalformedError("holds far more than its tensors need")

    def store(self, index: int) -> None:
        """Keep the value on the top of the stack under a number."""
        if index == len(self.memo):
            self.memo.append(self.stack[-1])
            self.far.pop(index, None)  # kept there before, it would be counted twice
        elif index < len(self.memo):
            self.memo[index] = self.stack[-1]
        else:
            self.held += FAR_ENTRY
            self.far[index] = self.stack[-1]

    def recall(self, index: int) -> None:
        """Push the value that was kept under a number."""
        self.stack.append(self.memo[index] if index < len(self.memo) else self.far[index])

    def since_mark(self) -> list[object]:
        """Return the values pushed since the last mark, and take up the stack that the mark set aside."""
        items = self.stack
        self.stack = self.outer_stacks.pop()
        return items

    def inside(self, end: int) -> int:
        """Return where a value ends that is stepped over, if its bytes are there."""
        if self.begin + end > self._end:
            raise MalformedError("ends within a value")
        return end

    def at_hand(self, end: int) -> int:
        """Return where a value ends that is wanted, if its bytes are held."""
        if end > len(self.data):
            raise CutError("ends within a value")
        return end

    def line(self, position: int) -> tuple[str, int]:
        """Return the short line of text that begins here, and where the next one begins."""
        end = self.data.find(b"\n", position, position + 4 * MAX_NAME + 1)
        if end < 0:
            kind = CutError if position + 4 * MAX_NAME + 1 > len(self.data) else MalformedError
            raise kind("holds a line without an end")
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
            self.held += NAME_ENTRY + 4 * len(qualified)
            known = self.names[module, name] = Opaque(qualified)
        return known
