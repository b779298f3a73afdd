"""Hostile data sets and YAML texts."""

import os
import zlib

from hostile.arrays import BAD_ARCHIVES, DEFLATED, npy, png, zipped
from hostile.cases import Case, of_bytes
from hostile.pickles import call, program
from hostile.tars import BAD_TARS, member, tarred

PICKLE = program(call("os.system", "mkdir canary", 4), 4)


def header(text, data=b"", version=b"\1\0"):
    """An .npy file of this header."""
    return b"\x93NUMPY" + version + len(text).to_bytes(2, "little") + text.encode() + data


def described(descr="'<f4'", order="False", shape="(2, 2)"):
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}}}"


def arrays():
    for name, data, said in (
        ("a shape of 2^33", header(described(shape=f"({2**33},)"), bytes(16)), "truncated or damaged"),
        ("a shape of 2^63", header(described(shape=f"({2**63},)")), "no array can have"),
        ("a shape that overflows", header(described(shape=f"({2**32}, {2**32})")), "truncated or damaged"),
        ("a negative shape", header(described(shape="(-2, 2)"), bytes(16)), "no array can have"),
        ("a bool as length", header(described(shape="(True, 2)"), bytes(8)), "not a tuple"),
        ("65 dimensions", header(described(shape=f"({'1, ' * 65})"), bytes(4)), "at most 64"),
        ("objects", header(described("'|O'"), PICKLE), "object array"),
        ("a structure", header(described("[('a', '<f4')]"), bytes(16)), "structured"),
        ("Fortran order", header(described(order="True"), bytes(16)), "Fortran order"),
        ("an odd order", header(described(order="1"), bytes(16)), "fortran_order"),
        ("an unknown type", header(described("'<f9'")), "type '<f9'"),
        ("deep brackets", header("[" * 9000), "plain values"),
        ("a call", header("{'descr': __import__('os').mkdir('canary')}"), "plain values"),
        ("a comprehension", header("[x for x in range(10**9)]"), "plain values"),
        ("a power", header(described(shape="(9**9**9,)")), "plain values"),
        ("missing keys", header("{}"), "exactly the keys"),
        ("a header beyond its end", b"\x93NUMPY\1\0\xff\xff{", "claims 65,535 bytes"),
        ("a header of 4 GiB", b"\x93NUMPY\2\0\xff\xff\xff\xff{", "claims 4,294,967,295 bytes"),
        ("version 9", b"\x93NUMPY\x09\0" + bytes(99), "version 9.0 is unknown"),
        ("cut", header(described(), bytes(15)), "truncated or damaged"),
        ("too long", header(described(), bytes(17)), "truncated or damaged"),
        ("empty", b"", "damaged or no .npy array"),
        ("a pickle", PICKLE, "damaged or no .npy array"),
        ("a name for the terminal", header(described("'\\x1b[2J'")), r"type '\\\\x1b|type"),
    ):
        yield of_bytes("N1", f"npy: {name}", "bad.npy", data, said, kind="data")
    for name, (data, said) in BAD_ARCHIVES.items():
        yield of_bytes(
            "N1",
            f"npz: {name}",
            "bad.npz",
            bytes(data),
            said.replace("x\\.npz", "bad"),
            kind="data",
            spec="{}:x",
        )
    yield of_bytes("N1", "npz: a bomb", "bad.npz", bomb, "only a bomb", kind="data", spec="{}:x")


def bomb():
    return bytes(zipped(("x.npy", npy((100_000_000,), bytes(100_000_000), "|u1")), method=DEFLATED))


def folder_of(name, data):
    def make(folder):
        folder.mkdir()
        if data is not None:
            (folder / name).write_bytes(data)

    return make


def images():
    sound = png(4, 4, zlib.compress(b"".join(b"\0" + bytes(range(n, n + 12)) for n in range(0, 80, 20))))
    yield "a bomb", "x.png", png(100_000, 100_000), "pixels"
    yield "a bomb that Pillow warns of", "x.png", png(10_000, 10_000), "pixels"
    yield (
        "a packed bomb",
        "x.png",
        lambda: png(9000, 9000, zlib.compress(bytes(9000 * 27001))[:200_000]),
        "9000 x 9000 pixels, and at most",
    )
    yield (
        "a whole bomb",
        "x.png",
        lambda: png(5700, 5700, zlib.compress(bytes(5700 * 17101))),
        "256 images of 5700 x 5700 pixels have .* bytes, more than",
    )
    yield "no size", "x.png", png(0, 0), "unreadable"
    yield "truncated", "x.png", sound[:50], "unreadable"
    yield "a pickle", "x.jpg", PICKLE, "is none of"
    yield "a truncated JPEG", "x.jpg", b"\xff\xd8\xff\xe0\0\x10JFIF\0" + bytes(20), "unreadable"
    yield "PostScript", "x.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is none of"
    yield "an empty image", "x.png", b"", "is none of"
    yield "a PPM that lies", "x.ppm", b"P6 99999 99999 255\n", "pixels"
    yield "a name for the terminal", "\x1b[2J\n.png", b"", "is none of"
    yield "no images", "x.txt", b"", "holds no images"


def tars():
    yield from ((name, data, said) for name, (data, said) in BAD_TARS.items())
    for suffix in ("pyd", "pickle", "pkl", "pth", "pt"):
        yield f"a .{suffix}", tarred((f"0.{suffix}", PICKLE)), "holds no samples"
    yield "an object array", tarred(("0.npy", npy((1,), PICKLE, "|O"))), "object array"
    yield "a way out", tarred(("../../canary.npy", b"what")), "damaged or no .npy array"
    yield "a name for the terminal", tarred(("\x1b[2J0.npy", b"what")), "damaged or no .npy array"
    yield "a device named as an image", tarred((member("0.png", b"3"), b"")), "not a regular file"


def data_sets():
    for name, file, data, said in images():
        make = folder_of(file, data() if callable(data) else data)
        codes = {"*": 2} if name == "a whole bomb" else {}  # a batch of fewer would do
        spec = "imagefolder:{}"
        yield Case(
            "N2", f"images: {name}", "bad", make, said, kind="data", spec=spec, model="image", codes=codes
        )
    yield Case(
        "N2",
        "images: a FIFO",
        "bad",
        fifo,
        "not a regular file",
        kind="data",
        spec="imagefolder:{}",
        model="image",
    )
    for name, data, said in tars():
        yield of_bytes("N3", f"tar: {name}", "bad.tar", data, said, kind="data", spec="wds:{}")


def fifo(folder):
    folder.mkdir()
    os.mkfifo(folder / "x.png")


REFUSED = {"run": 2, "*": 3}


def texts():
    layers = "\n".join(
        f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join(['*' + chr(97 + n)] * 9)}]" for n in range(20)
    )
    yield "a billion laughs", f"a: &a [x, x]\n{layers}", "aliases|anchors"
    yield "an alias in itself", "a: &a [*a]", "aliases|anchors"
    yield "deep lists", "[" * 10_000, "nested|YAML|line 1"
    yield "deep mappings", "{a: " * 10_000, "nested|YAML|line 1"
    yield "a call", "!!python/object/apply:os.system ['mkdir canary']", "tags"
    yield "a name", "a: !!python/name:os.system", "tags"
    yield "a key twice", "a: 1\na: 2", "stands twice"
    yield "two documents", "a: 1\n---\nb: 2", "second document"
    yield "merging", "a: 1\n<<: {b: 2}", "merging"
    yield "a list as key", "? [a]\n: b", "plain text"
    yield "2 MB", "a: " + "x" * (2 << 20), "more than (1,048,576|131,072)"
    yield "a number of 100,000 digits", "a: " + "9" * 100_000, ""
    yield "noise", "\x00\x01", "YAML|line 1"
    yield "a tab", "a:\n\t- b", "line 2"
    yield "a key for the terminal", '"\\e[2J\\u202e": 1\n"\\e[2J\\u202e": 2', "stands twice"
    yield "a percent sign", "%TAG ! tag:x,2000:\n--- !a b", "tags"


def recipes():
    """Yield texts that are no recipes; as a table of metrics, they are damaged files."""
    for name, body, said in texts():
        yield of_bytes("C1", f"yaml: {name}", "bad.yaml", body.encode(), said, kind="recipe", codes=REFUSED)
    yield of_bytes("C1", "yaml: no UTF-8", "bad.yaml", b"a: \xff\xfe", "UTF-8", kind="recipe", codes=REFUSED)


def cases():
    yield from arrays()
    yield from data_sets()
    yield from recipes()
