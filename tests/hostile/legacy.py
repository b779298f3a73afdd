"""An assembler of files as torch.save wrote them before torch 1.6."""

import pickle
import struct

from hostile.pickles import number, strided, text


def identifier(key, numel, kind="torch.FloatStorage", view=b"N", word=text):
    module, _, name = kind.rpartition(".")
    kind = f"c{module}\n{name}\n".encode()
    return b"(" + word("storage") + kind + word(key) + word("cpu") + number(numel) + view + b"tQ"


def view_of(key, first, length):
    return b"(" + text(key) + number(first) + number(length) + b"t"


def legacy(
    ids=(),
    keys=("0",),
    counts=(4,),
    body=None,
    magic=0x1950A86A20F9469CFC6C,
    version=1001,
    little=True,
    end=b"",
):
    """A file of one tensor for each storage of float32, with every part of it to be replaced."""
    preamble = [magic, version, {"protocol_version": 1001, "little_endian": little, "type_sizes": {}}]
    if body is None:
        items = [text(str(n)) + strided(found, [2]) for n, found in enumerate(ids)]
        body = b"}(" + b"".join(items) + b"u"
    pickles = [pickle.dumps(value, 2) for value in preamble] + [
        b"\x80\x02" + body + b".",
        pickle.dumps(keys, 2),
    ]
    storages = b"".join(
        struct.pack("<q", count) + (bytes(4 * count) if 0 <= count < 99 else b"") for count in counts
    )
    return b"".join(pickles) + storages + end
