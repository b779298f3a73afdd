"""An assembler of zip files as torch.save writes them, and of those that it does not write."""

import io
import struct
import zipfile

from hostile.pickles import program, storage_id, strided, text


def zip_of(records, **options):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", **options) as archive:
        for name, body in records:
            archive.writestr(name, body)
    return file.getvalue()


def repacked(data, change=lambda name, body: (name, body), **options):
    """The same records written by zipfile; `change` gives other names or bytes, or None to leave one out."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(file, "w", **options) as new:
        for name in old.namelist():
            changed = change(name, old.read(name))
            if changed is not None:
                new.writestr(*changed)
    return file.getvalue()


def central_headers(data):
    """Positions of the central directory's entries."""
    found = []
    position = data.find(b"PK\1\2")
    while position >= 0:
        found.append(position)
        position = data.find(b"PK\1\2", position + 4)
    return found


def edited(data, position, layout, value):
    changed = bytearray(data)
    struct.pack_into(layout, changed, position, value)
    return bytes(changed)


def described(shape, strides, offset=0, numel=6, kind="FloatStorage", record=24):
    """A file whose only tensor claims all this of a record of 24 bytes."""
    weight = strided(storage_id(numel, f"torch.{kind}"), shape, strides, offset)
    return zip_of(
        [("archive/data.pkl", program(b"}" + text("w") + weight + b"s")), ("archive/data/0", bytes(record))]
    )
