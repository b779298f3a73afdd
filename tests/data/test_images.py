"""One image: pixels as Pillow reads them, sizes as torchvision makes them, and no bomb."""

import io
import os
import sys
import zlib
from contextlib import suppress

import pytest
import torch
from hanging import no_hang

from swatool.data import images
from swatool.data.images import check_pillow, decode_image, read_bytes
from swatool.data.options import DataOptions
from swatool.errors import DataError, UsageError

PLAIN = DataOptions()


def as_bytes(tensor):
    return (tensor * 255).round().to(torch.uint8)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_deflate"}),
        ("PPM", {}),
        ("WEBP", {"lossless": True}),
    ],
    ids=str,
)
def test_lossless_formats_give_the_pixels(pictures, kind, options):
    pixels = pictures.drawn(5, 7)
    found = decode_image(pictures.encoded(pixels, kind, **options), PLAIN)
    assert (found.dtype, found.is_contiguous()) == (torch.float32, True)
    assert found.equal(pixels.to(torch.float32) / 255)


def test_jpeg_is_what_pillow_decodes(pictures):
    from PIL import Image

    data = pictures.encoded(pictures.drawn(16, 24), "JPEG")
    expected = Image.open(io.BytesIO(data)).tobytes()
    assert bytes(as_bytes(decode_image(data, PLAIN)).permute(1, 2, 0).reshape(-1).tolist()) == expected


def test_a_palette_with_transparency_is_read_without_a_warning(pictures):
    file = io.BytesIO()
    pixels = torch.tensor([[[255, 0]], [[0, 0]], [[0, 255]]], dtype=torch.uint8)
    pictures.image(pixels).convert("P").save(file, "PNG", transparency=bytes([0, 128]))
    check_pillow()
    assert as_bytes(decode_image(file.getvalue(), PLAIN)).equal(pixels)


def test_a_damaged_animation_is_read_without_a_warning(pictures):
    file = io.BytesIO()
    pixels = torch.full((3, 2, 2), 7, dtype=torch.uint8)
    pictures.image(pixels).save(file, "PNG")
    data = file.getvalue()
    control = b"acTL" + bytes(8)  # an animation of no frames
    chunk = (8).to_bytes(4, "big") + control + zlib.crc32(control).to_bytes(4, "big")
    animated = data[:33] + chunk + data[33:]  # behind the header
    with pytest.warns(UserWarning, match="Invalid APNG"):
        decode_image(animated, PLAIN)
    check_pillow()
    assert as_bytes(decode_image(animated, PLAIN)).equal(pixels)


def test_the_first_frame_of_an_animation_is_taken(pictures):
    frames = [pictures.image(torch.full((3, 4, 4), value, dtype=torch.uint8)) for value in (0, 255)]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    assert decode_image(file.getvalue(), PLAIN).equal(torch.zeros(3, 4, 4))


@pytest.mark.parametrize("mode", ["L", "1", "RGBA", "P", "CMYK", "LA"])
def test_other_modes_become_rgb(pictures, mode):
    image = pictures.image(torch.full((3, 2, 3), 255, dtype=torch.uint8)).convert(mode)
    file = io.BytesIO()
    image.save(file, "TIFF")
    assert decode_image(file.getvalue(), PLAIN).equal(torch.ones(3, 2, 3))


@pytest.mark.parametrize("mode", ["I", "F", "I;16"])
def test_deep_pixels_are_refused_instead_of_clipped(mode):
    Image = pytest.importorskip("PIL.Image")  # noqa: N806

    file = io.BytesIO()
    Image.new(mode, (3, 2), 1000).save(file, "TIFF")
    with pytest.raises(DataError, match="more than 8 bits"):
        decode_image(file.getvalue(), PLAIN)


class TestSize:
    @pytest.mark.parametrize("size", [(4, 9), (20, 3)])
    def test_a_pair_is_height_and_width(self, pictures, size):
        from PIL.Image import Resampling

        pixels = pictures.drawn(10, 12)
        found = decode_image(pictures.encoded(pixels), DataOptions(size=size))
        assert found.shape == (3, *size)
        expected = pictures.image(pixels).resize(size[::-1], Resampling.BILINEAR).tobytes()
        assert bytes(as_bytes(found).permute(1, 2, 0).reshape(-1).tolist()) == expected

    @pytest.mark.parametrize("shape", [(10, 10), (10, 15), (15, 10), (7, 29), (200, 9)])
    @pytest.mark.parametrize("size", [1, 5, 10, 16])
    def test_one_side_is_the_shorter_ones_and_the_centre_is_cut_out(self, pictures, shape, size):
        found = decode_image(pictures.encoded(pictures.drawn(*shape)), DataOptions(size=size))
        assert found.shape == (3, size, size)

    def test_the_centre_is_kept(self, pictures):
        pixels = torch.zeros(3, 4, 12, dtype=torch.uint8)
        pixels[:, :, 4:8] = 255
        assert decode_image(pictures.encoded(pixels), DataOptions(size=4)).equal(torch.ones(3, 4, 4))
        tall = pixels.transpose(1, 2).contiguous()
        assert decode_image(pictures.encoded(tall), DataOptions(size=(4,))).equal(torch.ones(3, 4, 4))

    @pytest.mark.parametrize(
        ("shape", "size", "width", "left"),
        [((30, 47), 16, 25, 4), ((30, 47), 17, 26, 4), ((4, 15), 4, 15, 6)],
    )
    def test_torchvision_makes_the_same_of_it(self, pictures, shape, size, width, left):
        """Its rule: the longer side is cut down to a whole number, the corner of the cut rounded to even."""
        pixels = pictures.drawn(*shape)
        image = pictures.image(pixels).resize((width, size), 2)
        expected = image.crop((left, 0, left + size, size)).tobytes()
        found = decode_image(pictures.encoded(pixels), DataOptions(size=size))
        assert bytes(as_bytes(found).permute(1, 2, 0).reshape(-1).tolist()) == expected

    def test_a_strip_is_not_blown_up(self, pictures):
        data = pictures.encoded(pictures.drawn(1, 60_000))
        with pytest.raises(DataError, match="pixels"):
            decode_image(data, DataOptions(size=224))


class TestHostile:
    @pytest.mark.parametrize(
        ("width", "height"), [(10_000, 9000), (6000, 5600), (20_000, 10_000), (2**31 - 1, 2**31 - 1), (0, 5)]
    )
    def test_a_bomb(self, pictures, width, height):
        with no_hang(), pytest.raises(DataError):
            decode_image(pictures.bomb(width, height), PLAIN)

    def test_the_limit_is_that_of_this_module_whatever_pillows_is(self, pictures, monkeypatch):
        from PIL import Image

        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
        with pytest.raises(DataError, match="10000 x 9000 pixels, and at most"):
            decode_image(pictures.bomb(10_000, 9000), PLAIN)

    def test_a_batch_that_would_be_too_large_is_refused_by_the_first_header(self, pictures):
        data = pictures.bomb(5700, 5700)  # of which nothing but the header is there
        with pytest.raises(UsageError, match="256 images of 5700 x 5700 pixels have"):
            decode_image(data, PLAIN)
        with pytest.raises(UsageError, match="30 images of"):
            decode_image(data, DataOptions(batch_size=30))
        for options in (DataOptions(batch_size=20), DataOptions(size=8)):
            with pytest.raises(DataError):
                decode_image(data, options)

    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
    def test_a_cut_image(self, pictures, kind):
        data = pictures.encoded(pictures.drawn(32, 32), kind)
        for part in (0, 3, 10, len(data) // 2, len(data) - 40):
            with pytest.raises(DataError) as caught:
                decode_image(data[:part], PLAIN)
            assert "0x" not in str(caught.value), "an address says nothing"

    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
    def test_changed_bytes(self, pictures, kind):
        data = pictures.encoded(pictures.drawn(8, 8), kind)
        for place in range(0, min(len(data), 300), 5):
            changed = bytearray(data)
            changed[place] ^= 0x5A
            with suppress(DataError):
                assert decode_image(bytes(changed), DataOptions(size=4)).shape == (3, 4, 4)

    def test_a_format_that_is_not_on_the_list(self, pictures):
        for kind in ("TGA", "ICO", "EPS", "PDF", "SGI"):
            with pytest.raises(DataError, match="none of PNG, JPEG"):
                decode_image(pictures.encoded(pictures.drawn(16, 16), kind), PLAIN)

    def test_a_text(self, pictures):  # noqa: ARG002 - it needs Pillow
        with pytest.raises(DataError, match="it is none of PNG"):
            decode_image(b"hello, I am a picture", PLAIN)


class TestFile:
    def test_a_large_one_is_not_read(self, tmp_path):
        path = tmp_path / "x.png"
        path.touch()
        os.truncate(path, images.MAX_BYTES + 1)
        with pytest.raises(DataError, match="at most 268,435,456 are read"):
            read_bytes(str(path))

    def test_a_fifo_and_nothing(self, tmp_path):
        os.mkfifo(tmp_path / "x.png")
        with pytest.raises(DataError, match="not a regular file"):
            read_bytes(str(tmp_path / "x.png"))
        with pytest.raises(DataError, match="No such file"):
            read_bytes(str(tmp_path / "y.png"))


def test_without_pillow_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(UsageError, match=r"needs Pillow .*pip install 'swatool\[images\]'"):
        check_pillow()
