"""What each opcode of a pickle may make the process hold, in bytes, and how much of it a pickle is allowed.

Apart from what the opcodes do, because only together do these figures say something: nothing that a stranger
writes costs more memory than is counted here, and time goes with the count as every opcode has a price.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping

__all__ = ["ALLOWED_BY_RECORD", "ALLOWED_BY_TENSOR", "COSTS", "allowed"]

# A pickle may hold so much, or what its tensors or records allow it, whichever is more. A tensor in a state
# dict costs 1,500 to 2,000, a parameter the most, of which it takes about 800; a record of a distributed
# checkpoint costs 1,250 to 1,450, of which it takes about 500.
ALLOWED = 56_000_000
ALLOWED_BY_TENSOR = 2_400
ALLOWED_BY_RECORD = 1_600

# A slot on the stack, in the memo or in a container; also what is left of an opcode that holds nothing.
SLOT = 20
HELD: Mapping[bytes, int] = {
    pickle.BININT: 32,
    pickle.BININT2: 32,
    pickle.INT: 48,
    pickle.LONG1: 48,
    pickle.LONG4: 48,
    pickle.BINFLOAT: 24,
    **dict.fromkeys((pickle.SHORT_BINUNICODE, pickle.BINUNICODE, pickle.BINUNICODE8), 56),
    **dict.fromkeys((pickle.SHORT_BINSTRING, pickle.BINSTRING), 56),
    pickle.EMPTY_LIST: 64,
    pickle.EMPTY_DICT: 64,
    pickle.MARK: 64,
    pickle.TUPLE: 56,
    pickle.TUPLE1: 48,
    pickle.TUPLE2: 56,
    pickle.TUPLE3: 64,
    pickle.APPEND: 32,
    pickle.APPENDS: 32,
    pickle.SETITEM: 160,
    pickle.SETITEMS: 160,
    pickle.REDUCE: 96,
    pickle.NEWOBJ: 96,
    pickle.BINPERSID: 80,
}
COSTS = tuple(SLOT + HELD.get(bytes([opcode]), 0) for opcode in range(256))


def allowed(described: int, by_each: int) -> int:
    """Return how many bytes a pickle may hold that describes so many tensors or records."""
    return max(ALLOWED, by_each * described)
