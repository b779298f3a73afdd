"""The opcodes of a pickle that push a plain value: numbers, texts, byte strings, constants.

Lengths are compared with what is left of the file before anything is made; what is long stays where it is.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable

from swatool.checkpoints.contents import Opaque
from swatool.checkpoints.pickle_globals import MalformedError
from swatool.checkpoints.pickle_machine import PickleMachine

__all__ = [
    "BYTES",
    "Handler",
    "byte",
    "byte_string",
    "constant",
    "long_integer",
    "number",
    "python2_string",
    "reader",
    "text",
    "text_integer",
]

MAX_TEXT = 1 << 20  # longer texts are not materialised; a piece of the pickle holds two of them
MAX_INTEGER = 255  # bytes; longer integers are not materialised
SHORT_TEXT = 16  # characters of one byte that the opcode's own cost pays for
SHORT_TEXT_SIZE = 48  # bytes that it pays for, less what an allocator rounds up

LONG_TEXT = Opaque("builtins.str")
LONG_INTEGER = Opaque("builtins.int")
BYTES = Opaque("builtins.bytes")

# Takes the machine and where the opcode's argument begins; returns where the next opcode begins.
Handler = Callable[[PickleMachine, int], int]


def constant(value: object) -> Handler:
    """Return a handler that pushes this value."""

    def push(machine: PickleMachine, position: int) -> int:
        machine.stack.append(value)
        return position

    return push


def byte(machine: PickleMachine, position: int) -> int:
    """Push one unsigned byte."""
    machine.stack.append(machine.data[position])
    return position + 1


def number(layout: str) -> Handler:
    """Return a handler that pushes a number of this `struct` layout."""
    read, size = reader(layout)

    def push(machine: PickleMachine, position: int) -> int:
        machine.stack.append(read(machine.data, position)[0])
        return position + size

    return push


def text(layout: str) -> Handler:
    """Return a handler that pushes UTF-8 text after its length, which has this layout."""
    read, size = reader(layout)

    def push(machine: PickleMachine, position: int) -> int:
        data = machine.data
        length = read(data, position)[0]
        start = position + size
        end = start + length
        if length > MAX_TEXT:
            machine.inside(end)
            machine.stack.append(LONG_TEXT)
            return end
        if end > len(data):
            machine.at_hand(end)
        value = data[start:end].decode()
        if length > SHORT_TEXT or not value.isascii():
            machine.held += sys.getsizeof(value) - SHORT_TEXT_SIZE
        machine.stack.append(value)
        return end

    return push


def python2_string(layout: str) -> Handler:
    """Return a handler for texts or bytes: Python 2 did not tell them apart."""
    push_text = text(layout)
    push_bytes = byte_string(layout, BYTES)

    def push(machine: PickleMachine, position: int) -> int:
        try:
            return push_text(machine, position)
        except UnicodeDecodeError:
            return push_bytes(machine, position)

    return push


def byte_string(layout: str, stand_in: Opaque) -> Handler:
    """Return a handler that steps over bytes after their length, and pushes a stand-in for them."""
    read, size = reader(layout)

    def push(machine: PickleMachine, position: int) -> int:
        end = machine.inside(position + size + read(machine.data, position)[0])
        machine.stack.append(stand_in)
        return end

    return push


def long_integer(layout: str) -> Handler:
    """Return a handler that pushes an integer of any width after its number of bytes."""
    read, size = reader(layout)

    def push(machine: PickleMachine, position: int) -> int:
        start = position + size
        length = read(machine.data, position)[0]
        if length > MAX_INTEGER:
            end = machine.inside(start + length)
            machine.stack.append(LONG_INTEGER)
            return end
        end = machine.at_hand(start + length)
        machine.held += length
        machine.stack.append(int.from_bytes(machine.data[start:end], "little", signed=True))
        return end

    return push


def text_integer(machine: PickleMachine, position: int) -> int:
    """Push what Python 2 wrote for integers of more than 32 bits."""
    line, position = machine.line(position)
    digits = line.removeprefix("-")
    # With a zero before others, some readers take it for octal, and 01 for True.
    if len(line) > 20 or not (line.isascii() and digits.isdigit()) or (digits[0] == "0" and len(digits) > 1):
        raise MalformedError("holds a number that is none")
    machine.stack.append(int(line))
    return position


def reader(layout: str) -> tuple[Callable[[bytes, int], tuple[int, ...]], int]:
    """Return what reads this `struct` layout at a position, and its size."""
    packed = struct.Struct(layout)
    return packed.unpack_from, packed.size
