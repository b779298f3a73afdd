"""Images by code, for the tests of what decodes them."""

import io
import struct
import zlib

import pytest
import torch


class Pictures:
    """Makes images; needs Pillow."""

    @staticmethod
    def drawn(height, width, seed=0):
        """An RGB image, [3, height, width], uint8."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)

    @staticmethod
    def image(pixels):
        from PIL import Image

        height, width = pixels.shape[1:]
        raw = bytes(pixels.permute(1, 2, 0).reshape(-1).tolist())
        return Image.frombytes("RGB", (width, height), raw)

    @classmethod
    def encoded(cls, pixels, kind="PNG", **options):
        file = io.BytesIO()
        cls.image(pixels).save(file, kind, **options)
        return file.getvalue()

    @staticmethod
    def bomb(width, height):
        """A PNG of any size in a hundred bytes."""

        def chunk(kind, data):
            return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

        head = struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)
        parts = (chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(bytes(100))), chunk(b"IEND", b""))
        return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.fixture
def pictures():
    pytest.importorskip("PIL")
    return Pictures
