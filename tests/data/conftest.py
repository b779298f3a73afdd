"""Images by code, for the tests of what decodes them."""

import io

import pytest
import torch
from hostile.arrays import png


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

    bomb = staticmethod(png)


@pytest.fixture
def pictures():
    pytest.importorskip("PIL")
    return Pictures
