"""An interpreter of pickles that describes what they hold and does nothing of what they say.

It imports no name, calls nothing, builds no tensor, and does not recurse, so that a stranger's file can do no
more than be refused. Work and memory are bounded by the number of opcodes: values are shared, never copied,
and byte strings and overlong texts are stepped over.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from swatool.checkpoints.pickle_globals import MalformedError
from swatool.checkpoints.pickle_machine import PickleMachine
from swatool.checkpoints.pickle_opcodes import HANDLERS, EndOfPickle
from swatool.errors import CheckpointError

__all__ = ["load_descriptors"]

MAX_OPCODES = 5_000_000

# Checking before every access would double the time of a run, so the exceptions are the check.
DAMAGE: Mapping[type[Exception], str] = {
    IndexError: "ends too early or takes a value that is not there",
    KeyError: "refers to a value that it has not stored",
    struct.error: "ends within a number",
    UnicodeDecodeError: "holds a text that is not UTF-8",
}


def load_descriptors(data: bytes, where: str) -> object:
    """Return what a pickle of protocol 2 to 5 describes.

    Args:
        data: the whole pickle.
        where: the file, fit to be printed, for messages.

    Returns:
        dicts (OrderedDict and defaultdict too; keys str and 32-bit int, other entries are dropped), lists,
        tuples (torch.Size too), str, int, float, bool, None, TensorDescriptor, UnsupportedTensor, and Opaque
        for everything else. It may be cyclic and of any depth.

    Raises:
        CheckpointError: the pickle is damaged, is not one that torch.save writes, or names what only an
            attack names.
    """
    machine = PickleMachine(data, where)
    handlers = HANDLERS
    position = 0
    try:
        try:
            for _ in range(MAX_OPCODES):
                position = handlers[data[position]](machine, position + 1)
        except EndOfPickle:
            return _result(machine, position + 1)
        raise MalformedError(f"has more than {MAX_OPCODES:,} opcodes")
    except MalformedError as error:
        reason = str(error)
    except tuple(DAMAGE) as error:
        reason = DAMAGE[type(error)]
    raise CheckpointError(
        f"{where} is damaged or was not written by torch.save: its pickle {reason}, near byte {position}"
    )


def _result(machine: PickleMachine, end: int) -> object:
    if len(machine.stack) != 1 or machine.outer_stacks:
        raise MalformedError("does not end with one value")
    if end != len(machine.data):
        raise MalformedError("goes on after its end")
    return machine.stack[0]
