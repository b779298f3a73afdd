"""Hostile files in the formats of torch.save."""

import functools
import io
import struct
import zipfile

import torch

from hostile import models
from hostile.cases import of_bytes
from hostile.legacy import identifier, legacy, view_of
from hostile.pickles import (
    changed_afterwards,
    deep,
    doubling,
    named,
    number,
    program,
    storage_id,
    strided,
    tensor,
    text,
    tuple_of,
)
from hostile.zips import central_headers, described, edited, repacked, zip_of

ZIP = "bad.pt"
LEGACY = "bad-legacy.pt"
SOUND = [identifier("0", 4)]
INERT = {"*": 0}


def saved(value, **options):
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def state_pickle(**beside):
    """The pickle of a state dict of the vector model beside other values, and its file."""
    data = saved({"model": models.state()})
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        pickle = archive.read("archive/data.pkl")
    more = b"".join(text(name) + value + b"s" for name, value in beside.items())
    pickle = pickle[:-1] + more + b"."
    return repacked(data, lambda name, body: (name, pickle if name.endswith("data.pkl") else body))


def with_pickle(body, protocol=2):
    """A zip file of this pickle and a storage of six floats."""
    return zip_of([("archive/data.pkl", program(body, protocol)), ("archive/data/0", bytes(24))])


def holding(weight):
    return with_pickle(b"}" + text("w") + weight + b"s")


WEIGHTS = saved({"w": torch.arange(50.0)})
SHORT = repacked(WEIGHTS)
HEADERS = central_headers(WEIGHTS)
RECORD = next(p for p in HEADERS if WEIGHTS[p + 46 :].startswith(b"archive/data/0"))
LOCAL = WEIGHTS.index(b"archive/data/0") - 30
END, WIDE, LOCATOR = (WEIGHTS.rindex(b"PK" + kind) for kind in (b"\5\6", b"\6\6", b"\6\7"))
SHORT_END = SHORT.rindex(b"PK\5\6")


def pickles():
    """Bodies of pickles by the row, with what is said of them."""
    unsupported = named("torch._tensor._rebuild_from_type_v2")
    yield "P1", "INST", b"(" + text("id") + b"ios\nsystem\n", "opcode 0x69"
    yield "P1", "OBJ", b"(" + named("a.B") + text("id") + b"o", "opcode 0x6f"
    yield "P1", "EXT1", b"\x82\x01", "opcode 0x82"
    yield "P1", "PERSID", b"Pos.system\n", "opcode 0x50"
    yield "P1", "nested persistent ids", storage_id() + b"Q", "persistent id"
    for how, weight in changed_afterwards().items():
        if how != "by its metadata":
            said = "changes the values|wrapped already"
            yield "P1", f"values changed {how}", b"}" + text("w") + weight + b"s", said
    yield "P1", "a state that hides the entries", b"}}" + text("items") + named("torch.Size") + b"sb", "dict"
    yield "P2", "protocol 6", b"\x80\x06N", "protocol 6"
    yield "P2", "protocol 0", b"S'text'\n", "opcode 0x53"
    yield "P4", "a memo bomb", b"]0" * 600_000 + b"N", "far more than its tensors need"
    yield "P4", "a large memo index", b"Nr\xff\xff\xff\x7f", "no state dict|no tensors|holds"
    yield "P4", "a deep tuple", deep(300_000)[2:-1], "no state dict|holds"
    yield "P4", "a deep key", b"}" + b"N" + b"\x85" * 300_000 + b"Ns", "dict|holds"
    yield "P4", "a doubling key", b"}" + doubling(200) + b"Ns", "dict|holds"
    yield "P4", "a doubling persistent id", doubling(200) + b"Q", "persistent id"
    yield "P4", "a doubling shape", tensor(shape=doubling(200)), "dimensions|shape"
    yield "P4", "deep lists", b"]" * 300_000 + b"a" * 299_999, "holds|dict"
    yield "P4", "a list in itself", b"]q\0h\0a", "holds|dict"
    yield "P4", "a dict in itself", b"}q\0" + text("model") + b"h\0s", "holds|dict"
    yield "P4", "deep dicts", b"}" + (text("a") + b"}") * 100_000 + b"s" * 100_000, "holds|dict"
    yield "P4", "3 GiB of bytes", named("builtins.bytearray") + number(3 << 30) + b"\x85R", "holds|dict"
    yield "P4", "a text of 4 GiB", b"X\xff\xff\xff\xffa", "within a value"
    yield (
        "P4",
        "keys that collide",
        b"}(" + b"".join(number(i * (2**61 - 1)) + b"N" for i in range(1, 20_000)) + b"u",
        "holds|dict",
    )
    yield (
        "P4",
        "names that multiply",
        b"".join(text(f"{i:0200d}") + b"q" + bytes([i]) + b"0" for i in range(150))
        + b"".join(b"h%ch%c\x930" % (i, j) for i in range(150) for j in range(150))
        + b"N",
        "names more than",
    )
    yield "P4", "no value", b"", "one value"
    yield "P4", "two values", b"NN", "one value"
    yield "P4", "no stack", b"0", "not there"
    yield "P4", "an unknown memo", b"h\x05", "not stored"
    yield "P4", "a text that is no UTF-8", b"X\x02\0\0\0\xff\xfe", "UTF-8"
    yield "P4", "after the end", b"N.N", "after its end"
    yield (
        "P10",
        "a subclass",
        b"}"
        + text("w")
        + unsupported
        + tuple_of(
            named("torch._utils._rebuild_tensor_v2"),
            named("a.Mine"),
            tuple_of(storage_id(), number(0), tuple_of(number(6)), tuple_of(number(1)), b"\x89}"),
            b"}",
        )
        + b"Rs",
        r"a\.Mine",
    )
    for kind in ("sparse_tensor", "qtensor", "meta_tensor_no_storage", "nested_tensor"):
        function = named(f"torch._utils._rebuild_{kind}")
        said = {"qtensor": "quantized"}.get(kind, kind.partition("_")[0])
        yield "P10", said, b"}" + text("w") + function + b")Rs", said
    yield "P10", "an empty root", b"N", "holds|dict"  # fmt: skip


def layouts():
    """Tensors that lie about their storage of six floats."""
    for numel in (0, 5, 7, 1 << 40):
        yield "P5", f"{numel} elements claimed", described((2, 3), (3, 1), numel=numel), "instead of"
    yield "P5", "doubles claimed", described((2, 3), (3, 1), kind="DoubleStorage"), "instead of 48"
    yield "P5", "a negative storage", holding(tensor(storage=storage_id(-1))), "impossible length"
    yield "P5", "a storage of 2^63", holding(tensor(storage=storage_id(1 << 63))), "impossible length"
    other = text("v") + tensor(storage=storage_id(3, "torch.DoubleStorage")) + b"s"
    yield "P5", "one storage of two types", holding(tensor() + b"s" + other[:-1]), "two types"
    for name, shape, strides, offset in (
        ("10^12 elements of stride 0", (10**12,), (0,), 0),
        ("overlapping windows", (4, 3), (1, 1), 0),
        ("an offset beyond", (2, 3), (3, 1), 1),
        ("an offset of 2^63", (1,), (1,), (1 << 63) - 1),
        ("a stride beyond", (2, 3), (4, 1), 0),
        ("a shape beyond", (7,), (1,), 0),
        ("a shape that overflows", (1 << 62, 1 << 62), (0, 1), 0),
    ):
        yield "P6", name, described(shape, strides, offset), "of 6|contiguous"
    yield "P6", "a negative stride", holding(strided(storage_id(), (2,), (-1,))), "non-negative"
    yield "P6", "a negative offset", holding(strided(storage_id(), (2,), (1,), -1)), "non-negative"
    yield "P6", "a negative length", holding(strided(storage_id(), (-2,), (1,))), "non-negative"
    yield "P6", "65 dimensions", holding(strided(storage_id(), (1,) * 65)), "65 dimensions"
    yield "P6", "dimensions without strides", holding(strided(storage_id(), (2, 3), (1,))), "1 strides"


def zips():
    """Damaged containers."""
    packed = {"compression": zipfile.ZIP_DEFLATED}
    many = edited(edited(WEIGHTS, WIDE + 24, "<Q", 200_001), WIDE + 32, "<Q", 200_001)
    many = edited(edited(many, END + 8, "<H", 0xFFFF), END + 10, "<H", 0xFFFF)
    grown = edited(edited(WEIGHTS, RECORD + 20, "<I", 2000), RECORD + 24, "<I", 2000)
    twice = [("archive/data.pkl", b"\x80\x02N."), ("archive/data/0", b"a"), ("archive/data/1", b"b")]
    (offset,) = struct.unpack_from("<I", WEIGHTS, RECORD + 42)
    yield "packed", repacked(WEIGHTS, **packed), "compressed"
    yield "a bomb", lambda: bomb(), "compressed"
    yield "packed by its directory only", edited(WEIGHTS, HEADERS[0] + 10, "<H", 8), "compressed"
    yield "encrypted", edited(WEIGHTS, HEADERS[0] + 8, "<H", 0x801), "encrypted"
    yield "marked as a folder", edited(WEIGHTS, RECORD + 38, "<B", 0x10), "marked as a folder"
    yield "a part of another file", edited(WEIGHTS, RECORD + 34, "<H", 1), "part of another file"
    yield "two sizes", edited(WEIGHTS, RECORD + 20, "<I", 1), "compressed"
    yield "a record that is there twice", zip_of(twice).replace(b"data/1", b"data/0"), "is there twice"
    yield "a record inside another", edited(WEIGHTS, HEADERS[-1] + 42, "<I", offset + 70), "overlaps"
    yield "a record that reaches into the next", grown, "overlaps"
    yield "another name in the local header", edited(WEIGHTS, LOCAL + 43, "<B", ord("1")), "contradicts"
    yield "another method in the local header", edited(WEIGHTS, LOCAL + 8, "<H", 8), "contradicts"
    yield "another size in the local header", edited(WEIGHTS, LOCAL + 22, "<I", 1), "contradicts"
    yield "an extra field that hides bytes", edited(WEIGHTS, LOCAL + 28, "<H", 9000), "contradicts"
    yield "200,001 records", many, "200,001"
    yield "bytes before it", b"junk" + WEIGHTS, "no checkpoint|directory"
    yield "bytes behind it", WEIGHTS + b"junk", "directory"
    yield "a comment", edited(WEIGHTS, END + 20, "<H", 4) + b"note", "directory"
    yield "a zip64 end that lies", edited(WEIGHTS, WIDE + 48, "<Q", 0), "contradict"
    yield "a zip64 end elsewhere", edited(WEIGHTS, LOCATOR + 8, "<Q", 0), "zip64|directory"
    yield "a directory elsewhere", edited(SHORT, SHORT_END + 16, "<I", 1), "directory"
    yield (
        "one record too many",
        edited(edited(SHORT, SHORT_END + 8, "<H", 9), SHORT_END + 10, "<H", 9),
        "directory",
    )
    yield "a name that is no UTF-8", edited(WEIGHTS, HEADERS[0] + 46, "<B", 0xFF), "UTF-8"
    yield "no 64-bit size", edited(WEIGHTS, HEADERS[0] + 24, "<I", 0xFFFFFFFF), "64-bit"
    yield "two pickles", zip_of([("a/data.pkl", b"N."), ("b/data.pkl", b"N.")]), "2 pickles"
    yield "cut", WEIGHTS[:-40], "does not end with a zip directory"
    yield "cut in its data", WEIGHTS[:400], "does not end with a zip directory"
    missing = repacked(WEIGHTS, lambda n, b: None if n.endswith("/data/0") else (n, b))
    yield "a missing record", missing, "not in the file"


@functools.cache
def bomb():
    return zip_of(
        [("a/data.pkl", program(b"}")), ("a/data/0", bytes(100 << 20))], compression=zipfile.ZIP_DEFLATED
    )


def legacies():
    """Files of before torch 1.6."""
    parts = [identifier("r", 6, view=view_of("a", 3, 4))]
    yield "P9", "no storages listed", legacy(SOUND, []), "is not in the file"
    yield "P9", "no storages listed, none there", legacy(SOUND, [], []), "is not in the file"
    yield "P9", "a storage that no tensor uses", legacy(SOUND, ["0", "1"], [4, 4]), "no tensor uses"
    yield "P9", "a storage listed twice", legacy(SOUND, ["0", "0"], [4, 4]), "lists a storage twice"
    yield "P9", "a tuple of storages", legacy(SOUND, ("0",)), "lists no storages"
    yield "P9", "keys that are no texts", legacy(SOUND, [["0"]]), "lists no storages"
    yield "P9", "fewer elements", legacy(SOUND, ["0"], [3], end=bytes(4)), "has 3 elements instead of 4"
    yield "P9", "negative elements", legacy(SOUND, ["0"], [-4], end=bytes(16)), "has -4 elements"
    yield "P9", "2^60 elements", legacy(SOUND, ["0"], [1 << 60], end=bytes(16)), "instead of 4"
    yield "P9", "2^60 elements named", legacy([identifier("0", 1 << 60)], ["0"]), "truncated or damaged"
    yield "P9", "a negative storage", legacy([identifier("0", -4)], ["0"]), "impossible length"
    yield "P9", "an unknown type", legacy([identifier("0", 4, "torch.FooStorage")], ["0"]), "unknown type"
    yield "P9", "two lengths", legacy([*SOUND, identifier("0", 5)], ["0"]), "two types or lengths"
    yield "P9", "trailing bytes", legacy(SOUND, ["0"], end=b"\0"), "after its last storage"
    yield "P9", "cut", legacy(SOUND, ["0"])[:-1], "truncated or damaged"
    yield "P9", "cut in a pickle", legacy(SOUND, ["0"])[:100], "damaged"
    yield "P9", "a part beyond its storage", legacy(parts, ["r"], [6]), "impossible place"
    yield "P9", "an identifier of a zip file", legacy([storage_id(4)], ["0"]), "persistent id"
    yield "P9", "another magic number", legacy(SOUND, ["0"], magic=7), "plain pickle|other values"
    yield "P9", "another version", legacy(SOUND, ["0"], version=1002), "version '1002'"
    yield "P9", "the tar format", tar_of_old_torch(), "tar format of before 2018"
    yield (
        "P4",
        "a legacy deep key",
        legacy(body=b"}N" + b"\x85" * 300_000 + b"Ns", keys=[], counts=[]),
        "dict|holds",
    )
    yield (
        "P4",
        "a legacy memo bomb",
        legacy(body=b"]0" * 600_000 + b"N", keys=[]),
        "far more than its tensors",
    )
    yield (
        "P6",
        "a legacy tensor beyond",
        legacy(body=b"}" + text("w") + strided(SOUND[0], [5]) + b"s", keys=["0"]),
        "reaches element 5 of 4",
    )
    yield "P11", "a legacy big-endian file", legacy(SOUND, ["0"], little=False), "big-endian"  # fmt: skip


def tar_of_old_torch():
    from hostile.tars import tarred

    return tarred(("sys_info", b"\x80\2}."), ("pickle", b"N."))


def others():
    order = repacked(WEIGHTS, lambda n, b: (n, b"big" if n.endswith("byteorder") else b))
    odd = repacked(WEIGHTS, lambda n, b: (n, b"middle" if n.endswith("byteorder") else b))
    later = repacked(WEIGHTS, lambda n, b: (n, b"99\n" if n.endswith("/version") else b))
    yield "P11", "a version of the future", later, "version '99'"
    yield "P11", "a big-endian file", order, "big-endian"
    yield "P11", "a file of odd byte order", odd, "unknown byte order"
    crc = saved({"note": "abcdef", "w": torch.ones(2)}).replace(b"abcdef", b"abcdeg")
    yield "P8", "a pickle that was changed", crc, "does not match its checksum"
    size = central_headers(WEIGHTS)[0] + 16
    yield "P8", "another checksum in the directory", edited(WEIGHTS, size, "<I", 1), "does not match"


def decimal(text):
    """A whole number of many digits, or of another sign."""
    raw = int(text).to_bytes(int(text).bit_length() // 8 + 1, "little", signed=True)
    return b"\x8b" + len(raw).to_bytes(4, "little") + raw


def inert():
    """What honest files hold beside their weights: nobody minds it, and nobody makes it."""
    yield "a Namespace", named("argparse.Namespace") + b")\x81}" + text("lr") + number(1) + b"sb"
    yield "a NumPy scalar", named("numpy._core.multiarray.scalar") + named("numpy.dtype") + b"\x85R"
    yield "a partial", named("functools.partial") + named("builtins.getattr") + b"\x85R"
    yield "an enum", named("my.Colour") + number(1) + b"\x85R"
    yield "a set", b"\x8f"
    yield "a number of 400 digits", decimal("9" * 400)
    yield "a negative number of 400 digits", decimal("-" + "9" * 400)


def cases():
    for row, name, body, said in pickles():
        codes = {"*": 3}
        yield of_bytes(row, f"pickle: {name}", ZIP, with_pickle(body), said, codes=codes)
    for row, name, data, said in layouts():
        yield of_bytes(row, f"layout: {name}", ZIP, data, said)
    for name, data, said in zips():
        yield of_bytes("P7", f"zip: {name}", ZIP, data, said)
    for row, name, data, said in legacies():
        yield of_bytes(row, f"legacy: {name}", LEGACY, data, said)
    for row, name, data, said in others():
        yield of_bytes(row, name, ZIP, data, said)
    for name, body in inert():
        beside = {"x": body, "step": body} if name.endswith("digits") else {"x": body}
        yield of_bytes("P3", f"inert: {name}", ZIP, state_pickle(**beside), "", codes=INERT)
    yield from named_for_terminals()


def named_for_terminals():
    """Names from the file that would drive a terminal, or lead somewhere."""
    for name in ("\x1b[2J\x1b]0;owned\x07", "a\nerror: b", "\u202eevil", "../../etc/passwd", "x" * 100_000):
        entry = b"}" + text(name) + strided(storage_id(7), (7,)) + b"s"
        yield of_bytes("P5", f"a tensor named {name[:20]!a}", ZIP, with_pickle(entry), "instead of")
        call = with_pickle(text("os") + text(name[:200]) + b"\x93")
        yield of_bytes("P1", f"a function named {name[:20]!a}", ZIP, call, r"would call os\.")
