"""What each opcode of a pickle does to the machine.

Only opcodes that torch.save writes, by Python 3 with protocols 2 to 5 or by Python 2, are known. `pickle` is
imported for their names and nothing else.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Mapping

from swatool.checkpoints.contents import Opaque, TensorDescriptor, Unnamed
from swatool.checkpoints.pickle_globals import (
    CONTAINERS,
    HARMLESS,
    MalformedError,
    Storage,
    call,
    is_key,
)
from swatool.checkpoints.pickle_machine import PickleMachine
from swatool.checkpoints.pickle_records import Record
from swatool.checkpoints.pickle_values import (
    BYTES,
    Handler,
    byte,
    byte_string,
    constant,
    long_integer,
    number,
    python2_string,
    reader,
    text,
    text_integer,
)
from swatool.errors import printable

__all__ = ["HANDLERS", "EndOfPickle"]

MAX_PROTOCOL = 5
FRAME_LENGTH = struct.Struct("<Q")
DICT_SLOT = 32  # bytes for each key and each value

BYTEARRAY = Opaque("builtins.bytearray")
SET = Opaque("builtins.set")
FROZENSET = Opaque("builtins.frozenset")


class EndOfPickle(Exception):  # noqa: N818 - it is no error
    """The pickle has said that it is complete; raised, so that the loop need not ask after each opcode."""


def _store(layout: str) -> Handler:
    read, size = reader(layout)

    def store(machine: PickleMachine, position: int) -> int:
        memo = machine.memo
        index = read(machine.data, position)[0]
        if index == len(memo) and not machine.far:  # what honest picklers do, a dozen times for each tensor
            memo.append(machine.stack[-1])
        else:
            machine.store(index)
        return position + size

    return store


def _memoize(machine: PickleMachine, position: int) -> int:
    if machine.far:
        machine.store(len(machine.memo) + len(machine.far))
    else:
        machine.memo.append(machine.stack[-1])
    return position


def _recall(layout: str) -> Handler:
    read, size = reader(layout)

    def recall(machine: PickleMachine, position: int) -> int:
        memo = machine.memo
        index = read(machine.data, position)[0]
        if index < len(memo):
            machine.stack.append(memo[index])
        else:
            machine.recall(index)
        return position + size

    return recall


def _recall_byte(machine: PickleMachine, position: int) -> int:
    memo = machine.memo
    index = machine.data[position]
    if index < len(memo):
        machine.stack.append(memo[index])
    else:
        machine.recall(index)
    return position + 1


def _mark(machine: PickleMachine, position: int) -> int:
    machine.outer_stacks.append(machine.stack)
    machine.stack = []
    return position


def _pop(machine: PickleMachine, position: int) -> int:
    if machine.stack:
        machine.stack.pop()
    else:
        machine.since_mark()
    return position


def _pop_mark(machine: PickleMachine, position: int) -> int:
    machine.since_mark()
    return position


def _duplicate(machine: PickleMachine, position: int) -> int:
    machine.stack.append(machine.stack[-1])
    return position


def _empty_list(machine: PickleMachine, position: int) -> int:
    machine.stack.append([])
    return position


def _empty_dict(machine: PickleMachine, position: int) -> int:
    machine.stack.append({})
    return position


def _tuple(machine: PickleMachine, position: int) -> int:
    items = tuple(machine.stack)
    machine.stack = machine.outer_stacks.pop()
    machine.stack.append(items)
    return position


def _tuple1(machine: PickleMachine, position: int) -> int:
    stack = machine.stack
    stack[-1] = (stack[-1],)
    return position


def _tuple2(machine: PickleMachine, position: int) -> int:
    stack = machine.stack
    last = stack.pop()
    stack[-1] = (stack[-1], last)
    return position


def _tuple3(machine: PickleMachine, position: int) -> int:
    stack = machine.stack
    last = stack.pop()
    middle = stack.pop()
    stack[-1] = (stack[-1], middle, last)
    return position


def _frozenset(machine: PickleMachine, position: int) -> int:
    machine.since_mark()
    machine.stack.append(FROZENSET)
    return position


def _append(machine: PickleMachine, position: int) -> int:
    item = machine.stack.pop()
    _extend(machine.stack[-1], [item])
    return position


def _appends(machine: PickleMachine, position: int) -> int:
    items = machine.since_mark()
    _extend(machine.stack[-1], items)
    return position


def _extend(target: object, items: list[object]) -> None:
    if type(target) is list:
        target.extend(items)
    elif not isinstance(target, Opaque):
        raise MalformedError("appends to something that is not a list")


def _add_items(machine: PickleMachine, position: int) -> int:
    machine.since_mark()
    if not isinstance(machine.stack[-1], Opaque):
        raise MalformedError("adds to something that is not a set")
    return position


def _set_item(machine: PickleMachine, position: int) -> int:
    value = machine.stack.pop()
    key = machine.stack.pop()
    _update(machine.stack[-1], [key, value])
    return position


def _set_items(machine: PickleMachine, position: int) -> int:
    items = machine.since_mark()
    machine.held += DICT_SLOT * len(items)
    _update(machine.stack[-1], items)
    return position


def _update(target: object, items: list[object]) -> None:
    if len(items) % 2:
        raise MalformedError("sets a key without a value")
    if type(target) is dict:
        for index in range(0, len(items), 2):
            key = items[index]
            if type(key) is str or is_key(key) or type(key) is Record:
                target[key] = items[index + 1]
            elif type(items[index + 1]) is TensorDescriptor:
                target[Unnamed()] = items[index + 1]
    elif not isinstance(target, Opaque):
        raise MalformedError("sets items of something that is not a dict")


def _global(machine: PickleMachine, position: int) -> int:
    module, position = machine.line(position)
    name, position = machine.line(position)
    machine.stack.append(machine.name(module, name))
    return position


def _stack_global(machine: PickleMachine, position: int) -> int:
    name = machine.stack.pop()
    module = machine.stack.pop()
    machine.stack.append(machine.name(module, name))
    return position


def _reduce(machine: PickleMachine, position: int) -> int:
    function = machine.stack[-2]
    # A function that nobody knows may change what it is given, which can be any value of the pickle.
    if (
        machine.records
        and isinstance(function, Opaque)
        and function.name not in machine.records
        and function.name not in HARMLESS
    ):
        raise MalformedError(f"calls {printable(function.name)}, which has no place in it")
    return _make(machine, position)


def _make(machine: PickleMachine, position: int) -> int:
    arguments = machine.stack.pop()
    function = machine.stack[-1]
    if type(arguments) is not tuple or not isinstance(function, Opaque):
        raise MalformedError("calls something that is not a function")
    if function.name in machine.records:
        machine.stack[-1] = Record(function.name, arguments)
        machine.described += 1
        return position
    result = machine.stack[-1] = call(function, arguments)
    if type(result) is TensorDescriptor:
        machine.described += 1
    elif type(result) is dict:
        machine.held += 2 * DICT_SLOT * len(result)
    return position


def _new_object(machine: PickleMachine, position: int) -> int:
    """Make an object as REDUCE does, but that a new container, unlike one that is called, takes no items."""
    arguments, function = machine.stack[-1], machine.stack[-2]
    if arguments and isinstance(function, Opaque) and function.name in CONTAINERS:
        raise MalformedError("makes a container of something that it would not hold")
    return _make(machine, position)


def _new_object_with_keywords(machine: PickleMachine, position: int) -> int:
    machine.stack.pop()
    machine.stack.pop()
    if not isinstance(machine.stack[-1], Opaque):
        raise MalformedError("makes an object of something that is not a class")
    return position


def _build(machine: PickleMachine, position: int) -> int:
    """Drop the state: an Opaque has none, and that of an OrderedDict (`_metadata`) holds no weights.

    That of a tensor or a storage would give it other values; torch.save gives them none. A record gets the
    entries that the state has now: what the pickle does to that dict later is not done to the object.
    """
    state = machine.stack.pop()
    target = machine.stack[-1]
    if type(target) is Record:
        if target.state is not None:
            raise MalformedError("gives an object its values twice")
        if type(state) is dict:
            machine.held += DICT_SLOT * len(state)
            state = dict(state)
        target.state = state
    elif type(target) in (TensorDescriptor, Storage):
        raise MalformedError("changes the values of a tensor that it has made")
    return position


def _persistent(machine: PickleMachine, position: int) -> int:
    machine.stack[-1] = machine.persistent(machine.stack[-1])
    return position


def _stop(_machine: PickleMachine, _position: int) -> int:
    raise EndOfPickle


def _protocol(machine: PickleMachine, position: int) -> int:
    if machine.data[position] > MAX_PROTOCOL:
        raise MalformedError(f"has protocol {machine.data[position]}")
    return position + 1


def _frame(machine: PickleMachine, position: int) -> int:
    machine.inside(position + 8 + FRAME_LENGTH.unpack_from(machine.data, position)[0])
    return position + 8


def _unknown(machine: PickleMachine, position: int) -> int:
    raise MalformedError(f"uses opcode {machine.data[position - 1]:#04x}, which torch.save does not write")


OPCODES: Mapping[bytes, Handler] = {
    pickle.PROTO: _protocol,
    pickle.FRAME: _frame,
    pickle.STOP: _stop,
    pickle.NONE: constant(None),
    pickle.NEWTRUE: constant(True),
    pickle.NEWFALSE: constant(False),
    pickle.BININT: number("<i"),
    pickle.BININT1: byte,
    pickle.BININT2: number("<H"),
    pickle.BINFLOAT: number(">d"),
    pickle.INT: text_integer,
    pickle.LONG1: long_integer("<B"),
    pickle.LONG4: long_integer("<I"),
    pickle.SHORT_BINUNICODE: text("<B"),
    pickle.BINUNICODE: text("<I"),
    pickle.BINUNICODE8: text("<Q"),
    pickle.SHORT_BINSTRING: python2_string("<B"),
    pickle.BINSTRING: python2_string("<I"),
    pickle.SHORT_BINBYTES: byte_string("<B", BYTES),
    pickle.BINBYTES: byte_string("<I", BYTES),
    pickle.BINBYTES8: byte_string("<Q", BYTES),
    pickle.BYTEARRAY8: byte_string("<Q", BYTEARRAY),
    pickle.EMPTY_TUPLE: constant(()),
    pickle.EMPTY_LIST: _empty_list,
    pickle.EMPTY_DICT: _empty_dict,
    pickle.EMPTY_SET: constant(SET),
    pickle.MARK: _mark,
    pickle.POP: _pop,
    pickle.POP_MARK: _pop_mark,
    pickle.DUP: _duplicate,
    pickle.TUPLE: _tuple,
    pickle.TUPLE1: _tuple1,
    pickle.TUPLE2: _tuple2,
    pickle.TUPLE3: _tuple3,
    pickle.FROZENSET: _frozenset,
    pickle.APPEND: _append,
    pickle.APPENDS: _appends,
    pickle.SETITEM: _set_item,
    pickle.SETITEMS: _set_items,
    pickle.ADDITEMS: _add_items,
    pickle.BINPUT: _store("<B"),
    pickle.LONG_BINPUT: _store("<I"),
    pickle.MEMOIZE: _memoize,
    pickle.BINGET: _recall_byte,
    pickle.LONG_BINGET: _recall("<I"),
    pickle.GLOBAL: _global,
    pickle.STACK_GLOBAL: _stack_global,
    pickle.REDUCE: _reduce,
    pickle.NEWOBJ: _new_object,
    pickle.NEWOBJ_EX: _new_object_with_keywords,
    pickle.BUILD: _build,
    pickle.BINPERSID: _persistent,
}
HANDLERS = tuple(OPCODES.get(bytes([opcode]), _unknown) for opcode in range(256))
