"""An assembler of safetensors files, and headers that are damaged or lie."""

import json


def assembled(header, data):
    if not isinstance(header, bytes):
        header = (header if isinstance(header, str) else json.dumps(header)).encode()
    return len(header).to_bytes(8, "little") + header + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8), **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}


def one(**fields):
    """A file of one tensor whose entry is honest but for these fields."""
    return assembled({"w": entry() | fields}, b"\0" * 8)


def text(raw):
    """A file of one tensor whose entry is this JSON text."""
    return assembled('{"w":' + raw + "}", b"\0" * 8)


def two(first, second, data=b"\0" * 8):
    return assembled({"a": entry(shape=[1], offsets=first), "b": entry(shape=[1], offsets=second)}, data)


HONEST = '{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'


VALID = assembled(
    {
        "__metadata__": {"step": "12"},
        "a.weight": entry(shape=[2, 3], offsets=(0, 24)),
        "b.weight": entry("BF16", [2, 3], (24, 36)),
        "c.bias": entry("I64", [], (36, 44)),
        "d": entry("U8", [0], (44, 44)),
    },
    bytes(range(44)),
)


BAD = {
    "no bytes": b"",
    "seven bytes": b"\x10\0\0\0\0\0\0",
    "only a length": (100).to_bytes(8, "little"),
    "header of no length": bytes(8),
    "header of no length, data": bytes(100),
    "header longer than the file": (1000).to_bytes(8, "little") + b"{}",
    "header longer by one byte": (3).to_bytes(8, "little") + b"{}",
    "header of 2^63 bytes": (2**63).to_bytes(8, "little") + b"{}",
    "header of 2^64-1 bytes": b"\xff" * 8 + b"{}",
    "header too long": assembled(b"{" + b" " * 25_000_000 + b"}", b""),
    "not JSON": assembled(b"{hello}", b""),
    "JSON cut off": assembled('{"w":' + HONEST, b"\0" * 8),
    "two JSON texts": assembled("{}{}", b""),
    "NUL after the JSON": assembled(b"{}\0", b""),
    "deep lists": assembled('{"w":' + "[" * 200_000 + "]" * 200_000 + "}", b""),
    "deep objects": assembled('{"w":' * 200_000 + "1" + "}" * 200_000, b""),
    "rather deep dtype": text(HONEST.replace('"F32"', '{"a":' * 600 + "1" + "}" * 600)),
    "rather deep list as dtype": text(HONEST.replace('"F32"', "[" * 900 + "]" * 900)),
    "list as root": assembled(b"[1]", b""),
    "string as root": assembled(b'"w"', b""),
    "number as root": assembled(b"12", b""),
    "space before the brace": assembled(b' {"w":' + HONEST.encode() + b"}", b"\0" * 8),
    "byte order mark": assembled(b"\xef\xbb\xbf{}", b""),
    "UTF-16": assembled("{}".encode("utf-16"), b""),
    "invalid UTF-8": assembled(b'{"\xff":' + HONEST.encode() + b"}", b"\0" * 8),
    "surrogate in UTF-8": assembled(b'{"\xed\xa0\x80":' + HONEST.encode() + b"}", b"\0" * 8),
    "lone surrogate as a name": assembled('{"\\ud800":' + HONEST + "}", b"\0" * 8),
    "lone surrogate in metadata": assembled('{"__metadata__":{"a":"\\udc00"},"w":' + HONEST + "}", b"\0" * 8),
    "control character in a name": assembled(b'{"a\nb":' + HONEST.encode() + b"}", b"\0" * 8),
    "empty name": assembled({"": entry()}, b"\0" * 8),
    "NUL in a name": assembled({"a\0b/../c": entry()}, b"\0" * 8),
    "name twice": assembled('{"w":' + HONEST + ',"w":' + HONEST + "}", b"\0" * 8),
    "name twice, differently escaped": assembled('{"w":' + HONEST + ',"\\u0077":' + HONEST + "}", b"\0" * 8),
    "name twice, another dtype": assembled(
        '{"w":' + HONEST + ',"w":' + HONEST.replace("F32", "I32") + "}", b"\0" * 8
    ),
    "field twice": text('{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}'),
    "field twice, other offsets": text(
        '{"dtype":"F32","shape":[2],"data_offsets":[0,8],"data_offsets":[0,4]}'
    ),
    "metadata twice": assembled('{"__metadata__":{},"__metadata__":{}}', b""),
    "key twice in metadata": assembled('{"__metadata__":{"a":"1","a":"1"}}', b""),
    "number in metadata": assembled({"__metadata__": {"step": 7}}, b""),
    "object in metadata": assembled({"__metadata__": {"step": {}}}, b""),
    "list as metadata": assembled({"__metadata__": ["a"]}, b""),
    "null as metadata": assembled({"__metadata__": None}, b""),
    "unknown field": one(extra=1),
    "unknown field instead of another": text('{"dtype":"F32","shape":[2],"offsets":[0,8]}'),
    "no dtype": text('{"shape":[2],"data_offsets":[0,8]}'),
    "no shape": text('{"dtype":"F32","data_offsets":[0,8]}'),
    "no offsets": text('{"dtype":"F32","shape":[2]}'),
    "entry without fields": text("{}"),
    "null as entry": text("null"),
    "list as entry": text('["F32",[2],[0,8]]'),
    "string as entry": text('"F32"'),
    "unknown dtype": one(dtype="F33"),
    "empty dtype": one(dtype=""),
    "dtype in lower case": one(dtype="f32"),
    "dtype by torch's name": one(dtype="float32"),
    "F4": one(dtype="F4", shape=[16]),
    "F6_E2M3": one(dtype="F6_E2M3", shape=[8], data_offsets=[0, 6]),
    "F6_E3M2": one(dtype="F6_E3M2", shape=[8], data_offsets=[0, 6]),
    "number as dtype": one(dtype=32),
    "list as dtype": one(dtype=["F32"]),
    "object as dtype": one(dtype={"name": "F32"}),
    "null as dtype": one(dtype=None),
    "NaN in the shape": text('{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}'),
    "infinity in the shape": text('{"dtype":"F32","shape":[1e999],"data_offsets":[0,8]}'),
    "negative length": one(shape=[-2]),
    "two negative lengths": one(shape=[-1, -2]),
    "float as length": one(shape=[2.0]),
    "bool as length": one(shape=[True, 2]),
    "string as length": one(shape=["2"]),
    "null as shape": one(shape=None),
    "number as shape": one(shape=2),
    "object as shape": one(shape={}),
    "shape too small": one(shape=[1]),
    "shape too large": one(shape=[3]),
    "shape that overflows 64 bits": one(shape=[2**62, 2**62, 2]),
    "shape that overflows to the right size": one(shape=[2, 2**61 + 1]),
    "length of 2^63": assembled({"w": entry(shape=[0, 2**63], offsets=(0, 0))}, b""),
    "huge integer in the shape": text(f'{{"dtype":"F32","shape":[0,{10**4000}],"data_offsets":[0,8]}}'),
    "integer of too many digits": text('{"dtype":"F32","shape":[' + "9" * 5000 + '],"data_offsets":[0,8]}'),
    "rank 65": one(shape=[2] + [1] * 64),
    "rank 1,000,000": one(shape=[2] + [1] * 999_999),
    "negative offset": one(data_offsets=[-8, 0]),
    "negative end": one(data_offsets=[0, -8]),
    "float as offset": one(data_offsets=[0.0, 8]),
    "float as end": one(data_offsets=[0, 8.0]),
    "bool as offset": one(data_offsets=[False, 8]),
    "NaN as offset": text('{"dtype":"F32","shape":[2],"data_offsets":[NaN,8]}'),
    "string as offset": one(data_offsets=["0", "8"]),
    "one offset": one(data_offsets=[8]),
    "three offsets": one(data_offsets=[0, 8, 8]),
    "no offset": one(data_offsets=[]),
    "null as offsets": one(data_offsets=None),
    "object as offsets": one(data_offsets={"0": 0, "1": 8}),
    "offsets reversed": one(data_offsets=[8, 0]),
    "huge offsets": one(data_offsets=[2**62, 2**62 + 8]),
    "offsets of 2^64": one(data_offsets=[2**64, 2**64 + 8]),
    "same bytes twice": two((0, 4), (0, 4), b"\0" * 4),
    "same bytes twice, a hole after": two((0, 4), (0, 4)),
    "partial overlap": two((0, 4), (2, 6), b"\0" * 6),
    "hole": two((0, 4), (8, 12), b"\0" * 12),
    "hole at the beginning": two((4, 8), (8, 12), b"\0" * 12),
    "empty tensor inside another": assembled(
        {"a": entry(), "b": entry(shape=[0], offsets=(4, 4))}, b"\0" * 8
    ),
    "empty tensor beyond the end": assembled(
        {"a": entry(), "b": entry(shape=[0], offsets=(9, 9))}, b"\0" * 8
    ),
    "trailing byte": assembled({"w": entry()}, b"\0" * 9),
    "trailing byte, no tensor": assembled({}, b"\0"),
    "one byte short": assembled({"w": entry()}, b"\0" * 7),
    "no data": assembled({"w": entry()}, b""),
}
