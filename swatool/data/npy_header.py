"""The header of an .npy array, by an own reader that runs nothing and believes nothing.

Format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html. Object arrays, which hold
pickles, structured types and arrays in Fortran order are refused.
"""

from __future__ import annotations

import ast
import math
import re
import sys
import tokenize
import warnings
from typing import NamedTuple

from swatool.errors import DataError, printable
from swatool.tensors import DTYPES, DType

__all__ = ["MAX_BEGINNING", "NpyHeader", "read_npy_header"]

MAGIC = b"\x93NUMPY"
LENGTHS = {1: 2, 2: 4, 3: 4}  # bytes of the header's length, by version
MAX_TEXT = 10_000  # what NumPy itself reads of a stranger's file; a plain array needs 118
MAX_BEGINNING = len(MAGIC) + 2 + 4 + MAX_TEXT
MAX_RANK = 64
MAX_LENGTH = 2**63
KEYS = {"descr", "fortran_order", "shape"}
KINDS = {"f": "float", "i": "int", "u": "uint", "b": "bool"}
OTHER_ORDER = ">" if sys.byteorder == "little" else "<"


class NpyHeader(NamedTuple):
    """What is known of an array without reading it.

    Attributes:
        dtype: element type.
        swapped: whether its bytes are in the other order than this machine's.
        shape: length of each dimension, in C order.
        begin: where the elements begin, in bytes from the beginning of the header.
    """

    dtype: DType
    swapped: bool
    shape: tuple[int, ...]
    begin: int

    @property
    def end(self) -> int:
        """Where the elements end, in bytes from the beginning of the header."""
        return self.begin + math.prod(self.shape) * self.dtype.itemsize


def read_npy_header(beginning: bytes, where: str) -> NpyHeader:
    """Read a header; DataError if it is damaged or describes an array that cannot be read row by row.

    Args:
        beginning: the first MAX_BEGINNING bytes of the array, or all of it if there are fewer.
        where: what to call it in messages.
    """
    text, begin = _text(beginning, where)
    fields = _fields(text, where)
    dtype, swapped = _dtype(fields["descr"], where)
    shape = _shape(fields["shape"], where)
    if fields["fortran_order"] is not False and fields["fortran_order"] is not True:
        raise _damaged(where, "its fortran_order is neither True nor False")
    if fields["fortran_order"] and len(shape) > 1:
        raise DataError(
            f"{where} is in Fortran order, so that its samples do not lie in one piece: save it by "
            "np.save(file, np.ascontiguousarray(array))"
        )
    return NpyHeader(dtype, swapped, shape, begin)


def _damaged(where: str, what: str) -> DataError:
    return DataError(f"{where} is damaged or no .npy array: {what}; save it again by np.save")


def _text(beginning: bytes, where: str) -> tuple[str, int]:
    """Return the header's text, and where it ends."""
    if not beginning.startswith(MAGIC):
        raise _damaged(where, f"it begins with {printable(beginning[:6])}")
    version = tuple(beginning[len(MAGIC) : len(MAGIC) + 2])
    if len(version) != 2 or version[0] not in LENGTHS or version[1] != 0:
        raise _damaged(where, f"format version {'.'.join(map(str, version))} is unknown")
    start = len(MAGIC) + 2 + LENGTHS[version[0]]
    length = int.from_bytes(beginning[len(MAGIC) + 2 : start], "little")
    if length > MAX_TEXT:
        raise _damaged(where, f"its header claims {length:,} bytes, and at most {MAX_TEXT:,} are read")
    if len(beginning) < start + length:
        raise _damaged(where, "it ends within its header")
    try:
        text = beginning[start : start + length].decode("utf-8" if version[0] == 3 else "latin-1")
    except UnicodeDecodeError:
        raise _damaged(where, "its header is not UTF-8") from None
    return text, start + length


def _fields(text: str, where: str) -> dict[str, object]:
    try:
        with warnings.catch_warnings():  # Python warns of odd literals when it parses them
            warnings.simplefilter("ignore")
            fields = ast.literal_eval(text)
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError, tokenize.TokenError):
        raise _damaged(where, "its header is not a dictionary of plain values") from None
    if not isinstance(fields, dict) or fields.keys() != KEYS:
        raise _damaged(where, "its header must have exactly the keys descr, fortran_order and shape")
    return fields


def _dtype(descr: object, where: str) -> tuple[DType, bool]:
    if not isinstance(descr, str):
        raise DataError(f"{where} has a structured type: save the field that holds the samples alone")
    if "O" in descr:
        raise DataError(
            f"{where} is an object array, which is a pickle and would run code: "
            "save it as numbers, by np.save(file, np.stack(list(array)))"
        )
    match = re.fullmatch(r"([<>|])([fiub])([1248])", descr)
    order, kind, itemsize = match.groups() if match else ("", "", "0")
    name = "bool" if kind == "b" and itemsize == "1" else f"{KINDS.get(kind, '')}{8 * int(itemsize)}"
    dtype = DTYPES.get(name)
    if dtype is None or (order == "|") != (itemsize == "1"):
        raise DataError(
            f"{where} has the type {printable(descr)}; float16, float32, float64, integers and bool are read "
            "(bfloat16 from safetensors files)"
        )
    return dtype, order == OTHER_ORDER


def _shape(shape: object, where: str) -> tuple[int, ...]:
    # By type, because True and False are ints to Python.
    if not isinstance(shape, tuple) or not set(map(type, shape)) <= {int} or len(shape) > MAX_RANK:
        raise _damaged(where, f"its shape is not a tuple of at most {MAX_RANK} lengths")
    if shape and (min(shape) < 0 or max(shape) >= MAX_LENGTH):
        raise _damaged(where, "its shape has a length that no array can have")
    return shape
