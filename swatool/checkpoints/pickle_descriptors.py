"""An interpreter of pickles that describes what they hold and does nothing of what they say.

It imports no name, calls nothing, builds no tensor, and does not recurse, so that a stranger's file can do no
more than be refused. Work and memory are bounded: values are shared, never copied, byte strings and overlong
texts are stepped over, each opcode has a price (`pickle_costs`), and the pickle is read piece by piece.
"""

from __future__ import annotations

import gc
import pickle
import struct
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager

from swatool.checkpoints.pickle_costs import COSTS
from swatool.checkpoints.pickle_globals import MalformedError, storage
from swatool.checkpoints.pickle_machine import CutError, PickleMachine
from swatool.checkpoints.pickle_opcodes import HANDLERS, EndOfPickle
from swatool.errors import CheckpointError

__all__ = ["load_descriptors", "next_descriptors"]

MAX_EARNING = 200_000
CHECK_EVERY = 16_384  # opcodes
ONE_BYTE_FOLLOWS = frozenset((*pickle.BININT1, *pickle.BINGET, *pickle.PROTO))

# Checking before every access would double the time of a run, so the exceptions are the check.
DAMAGE: Mapping[type[Exception], str] = {
    IndexError: "ends too early or takes a value that is not there",
    KeyError: "refers to a value that it has not stored",
    struct.error: "ends within a number",
    UnicodeDecodeError: "holds a text that is not UTF-8",
}


def load_descriptors(
    data: bytes, where: str, *, records: Container[str] = (), earning: int = MAX_EARNING
) -> object:
    """Return what a pickle of protocol 2 to 5 describes.

    Args:
        data: the whole pickle.
        where: the file, fit to be printed, for messages.
        records: classes, with their modules, whose objects are wanted with what they hold.
        earning: how many tensors and records there may be before the memory for all values is bounded.

    Returns:
        dicts (OrderedDict and defaultdict too; keys str and 32-bit int, other entries are dropped), lists,
        tuples (torch.Size too), str, int, float, bool, None, TensorDescriptor, UnsupportedTensor, Record for
        the classes in `records`, also as a key, and Opaque for everything else. It may be cyclic and of any
        depth.

    Raises:
        CheckpointError: the pickle is damaged, is not one that torch.save writes, holds far more than the
            tensors that it describes need, or names what only an attack names.
    """

    def read(offset: int, nbytes: int) -> bytes:
        return data[offset : offset + nbytes]

    machine = PickleMachine(read, (0, len(data)), where, records=records, earning=earning)
    value, end = _run(machine)
    if end != len(data):
        raise _damaged(where, "goes on after its end", end)
    return value


def next_descriptors(
    read: Callable[[int, int], bytes],
    span: tuple[int, int],
    where: str,
    *,
    records: Container[str] = (),
    persistent: Callable[[object], object] = storage,
    earning: int = MAX_EARNING,
) -> tuple[object, int]:
    """Return what the pickle that begins here describes, and where it ends; it is read piece by piece.

    Args:
        read: gives bytes of the file, by their position and number.
        span: where the pickle begins, and where it ends at the latest.
        where: the file, fit to be printed, for messages.
        records: as for `load_descriptors`.
        persistent: makes a value of a persistent id; MalformedError if it is none.
        earning: as for `load_descriptors`.

    Raises:
        CheckpointError: as `load_descriptors`, and those of `read`.
    """
    machine = PickleMachine(read, span, where, records=records, persistent=persistent, earning=earning)
    return _run(machine)


def _run(machine: PickleMachine) -> tuple[object, int]:
    """Interpret the pickle until it says that it is complete."""
    position = 0
    first = machine.begin
    try:
        with _without_collection():
            while True:
                position, ended = _some_opcodes(machine, position)
                machine.check_held()
                if ended:
                    return _result(machine), machine.begin + position
    except _StoppedError as error:
        reason, position = str(error), error.position
    except MalformedError as error:
        reason = str(error)
    raise _damaged(machine.where, reason, machine.begin - first + position)


class _StoppedError(Exception):
    """What is wrong, and with the opcode at which position of the piece."""

    def __init__(self, reason: str, position: int) -> None:
        super().__init__(reason)
        self.position = position


def _some_opcodes(machine: PickleMachine, position: int) -> tuple[int, bool]:
    """Interpret the opcodes from here, as far as the piece goes and at most so many as are worth a check.

    Returns:
        the position of the next opcode in the piece that is held then, and whether the pickle has ended.
    """
    data, handlers, costs = machine.data, HANDLERS, COSTS
    held = 0
    try:
        for _ in range(CHECK_EVERY):
            opcode = data[position]
            held += costs[opcode]
            position = handlers[opcode](machine, position + 1)
    except EndOfPickle:
        return position + 1, True
    except MalformedError as error:
        if not (isinstance(error, CutError) and machine.advance(position)):
            raise _StoppedError(str(error), position) from None
        position = 0
    except tuple(DAMAGE) as error:
        if not (_is_cut(error, data, position) and machine.advance(position)):
            raise _StoppedError(DAMAGE[type(error)], position) from None
        position = 0
    finally:
        machine.held += held
    return position, False


def _is_cut(error: Exception, data: bytes, position: int) -> bool:
    """Tell whether an opcode failed for nothing but the end of the piece, before it did anything."""
    if isinstance(error, IndexError):
        after = position + 1
        return after > len(data) or (after == len(data) and data[position] in ONE_BYTE_FOLLOWS)
    return isinstance(error, struct.error)


def _result(machine: PickleMachine) -> object:
    if len(machine.stack) != 1 or machine.outer_stacks:
        raise MalformedError("does not end with one value")
    return machine.stack[0]


def _damaged(where: str, reason: str, position: int) -> CheckpointError:
    return CheckpointError(
        f"{where} is damaged or was not written by torch.save: its pickle {reason}, near byte {position}"
    )


@contextmanager
def _without_collection() -> Iterator[None]:
    """Keep Python from looking for garbage in what grows: there is none, and it would do so often."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
