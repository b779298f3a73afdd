"""One image: from the bytes of a file to a tensor, with Pillow, which is optional.

Only well-known formats are decoded, and an image that would not fit into memory is refused by its header.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from swatool.data.files import open_file, telling_of_data
from swatool.data.options import DEFAULT_BATCH_SIZE, MAX_BATCH, DataOptions
from swatool.data.pixels import BYTE
from swatool.errors import DataError, UsageError, printable

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["SUFFIXES", "check_pillow", "decode_image", "read_bytes"]

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
SUFFIXES = frozenset(
    (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm")
)
MAX_PIXELS = 1 << 25  # more than most cameras give; decoded, with what is made of it, up to 740 MB
MAX_BYTES = 256 << 20  # of a file
BYTES_OF_PIXEL = 12  # three channels in float32
DEEP_MODES = ("I", "F")  # and I;16...: more than 8 bits, which Pillow would clip rather than scale

# What decoders raise for damaged files. Pillow promises little, and its plugins less.
DECODER_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    Warning,
    struct.error,
    zlib.error,
)


def check_pillow() -> None:
    """Raise UsageError if images cannot be decoded here."""
    try:
        import PIL.Image
    except (ImportError, OSError, RuntimeError) as error:  # a broken installation raises what it likes
        raise UsageError(f"reading images needs Pillow ({error}): pip install 'swatool[images]'") from error
    # Of images that swatool refuses in its own words, and of those that are read all the same, without their
    # transparency or a damaged animation; a filter of one thread would be that of all.
    warnings.filterwarnings("ignore", category=PIL.Image.DecompressionBombWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


def read_bytes(path: str) -> bytes:
    """Return what an image file holds; DataError if it cannot be read or is too large."""
    file = open_file(path)
    try:
        if file.size > MAX_BYTES:
            raise DataError(f"it has {file.size:,} bytes, and at most {MAX_BYTES:,} are read")
        with telling_of_data():
            return file.read(0, file.size)
    finally:
        file.close()


def decode_image(data: bytes, options: DataOptions) -> Tensor:
    """Return an image as RGB in 0..1, [3, height, width], float32; DataError, the reason only, if it is bad.

    The EXIF orientation is not applied, as in torchvision and timm. Of an animation the first frame is taken.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_pixels(*image.size)
            if options.size is None:
                _check_batch(*image.size, options)
            if image.mode in DEEP_MODES or image.mode.startswith("I;"):
                raise DataError(f"its pixels have more than 8 bits (mode {image.mode})")
            return _tensor(_resized(image if image.mode == "RGB" else image.convert("RGB"), options.size))
    except Image.DecompressionBombError as error:
        raise DataError(f"it has more than {MAX_PIXELS:,} pixels") from error
    except UnidentifiedImageError as error:  # its own words give the address of a buffer
        raise DataError(f"it is none of {', '.join(FORMATS)}") from error
    except DECODER_ERRORS as error:
        raise DataError(printable(error or type(error).__name__)) from error


def _check_pixels(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise DataError(f"it has {width} x {height} pixels, and at most {MAX_PIXELS:,} are decoded")


def _check_batch(width: int, height: int, options: DataOptions) -> None:
    """Refuse a batch of such images before the first is decoded."""
    count = options.batch_size or DEFAULT_BATCH_SIZE
    nbytes = count * width * height * BYTES_OF_PIXEL
    if nbytes > MAX_BATCH:
        raise UsageError(
            f"{count:,} images of {width} x {height} pixels have {nbytes:,} bytes, more than {MAX_BATCH:,}: "
            "give a smaller --batch-size or a --size"
        )


def _resized(image: Image, size: int | tuple[int, int] | None) -> Image:
    """Resize exactly, or the shorter side and cut out the centre, rounding as torchvision does."""
    from PIL.Image import Resampling

    if size is None:
        return image
    if isinstance(size, tuple) and len(size) == 2:
        height, width = size
        return image.resize((width, height), Resampling.BILINEAR)
    side = size if isinstance(size, int) else size[0]
    shorter = min(image.size)
    width, height = (side if length == shorter else int(side * length / shorter) for length in image.size)
    _check_pixels(width, height)
    image = image.resize((width, height), Resampling.BILINEAR)
    left, top = round((width - side) / 2), round((height - side) / 2)
    return image.crop((left, top, left + side, top + side))


def _tensor(image: Image) -> Tensor:
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    # As bytes first: a second copy of the floats would take four times as much.
    channels = pixels.view(image.height, image.width, 3).permute(2, 0, 1).contiguous()
    return channels.to(torch.float32).div_(BYTE)
