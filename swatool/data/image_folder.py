"""A folder of images as a data set: every image in it and below it, in the order of the paths."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial

from torch import Tensor

from swatool.data.decoding import Decoder, Encoded
from swatool.data.images import SUFFIXES, check_pillow, decode_image, read_bytes
from swatool.data.indexed import IndexedData
from swatool.data.options import DataOptions
from swatool.errors import DataError, printable

__all__ = ["open_image_folder"]


def open_image_folder(name: str, folder: str, options: DataOptions) -> IndexedData:
    """Find the images of a folder; none is decoded before the first batch.

    Raises:
        UsageError: Pillow is missing.
        DataError: the folder is missing, or holds no images.
    """
    check_pillow()
    if not os.path.isdir(folder):
        raise DataError(f"the data {printable(folder)} is not a folder: give one that holds images")
    paths = sorted(_images(folder))
    if not paths:
        raise DataError(
            f"{printable(folder)} holds no images, that is, files named {', '.join(sorted(SUFFIXES))}"
        )
    decoder = Decoder(name, options)

    def encoded(position: int) -> Encoded:
        return Encoded(paths[position], partial(_decode, paths[position], options), image=True)

    return IndexedData(
        name,
        len(paths),
        lambda positions: decoder.batch([*map(encoded, positions)]),
        options,
        bad=decoder.bad,
    )


def _decode(path: str, options: DataOptions) -> Tensor:
    return decode_image(read_bytes(path), options)


def _images(folder: str) -> Iterator[str]:
    """Give the paths of the images; links, as class folders often are, are followed, but in no circle."""
    seen: set[tuple[int, int]] = set()
    for parent, folders, names in os.walk(folder, onerror=_fail, followlinks=True):
        status = os.stat(parent)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders.sort()  # which of two links to one folder is taken must not depend on the file system
        for name in names:
            # Hidden files are not images: macOS leaves '._x.jpg' beside x.jpg.
            if os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith("."):
                yield os.path.join(parent, name)


def _fail(error: OSError) -> None:
    raise DataError(f"cannot read the folder {printable(error.filename)}: {error.strerror}") from error
