"""A folder of images: which ones, in which order, and what happens to those that are unreadable."""

import os

import pytest
import torch

from swatool.data.image_folder import open_image_folder
from swatool.data.options import DataOptions
from swatool.errors import DataError, UsageError


@pytest.fixture
def folder(tmp_path, pictures):
    """Six images of 4 x 5 in two folders, whose red channel counts up in the order of the paths."""
    for number, name in enumerate(["a/0.png", "a/1.JPG", "a/deep/2.bmp", "b/3.webp", "b/4.png", "c.ppm"]):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = torch.full((3, 4, 5), 40 * number, dtype=torch.uint8)
        kind = {".JPG": "JPEG"}.get(path.suffix, path.suffix[1:].upper())
        path.write_bytes(pictures.encoded(pixels, kind, **({"lossless": True} if kind == "WEBP" else {})))
    (tmp_path / "a" / "labels.txt").write_text("hello")
    (tmp_path / "a" / "._0.png").write_text("left by macOS")
    return tmp_path


def opened(folder, **options):
    return open_image_folder(f"imagefolder:{folder}", str(folder), DataOptions(**options))


def levels(batches):
    return [(batch[:, 0, 0, 0] * 255 / 40).round().to(torch.int64).tolist() for batch in batches]


def test_all_images_in_the_order_of_the_paths(folder):
    data = opened(folder, shuffle=False, batch_size=4)
    assert data.samples == 6
    assert levels(data) == [[0, 1, 2, 3], [4, 5]]
    batch = next(iter(data))
    assert (batch.shape, batch.dtype) == ((4, 3, 4, 5), torch.float32)
    assert not data.bad


def test_shuffled_by_default_and_the_same_in_every_pass(folder):
    data = opened(folder, batch_size=4, seed=1)
    first = levels(data)
    assert sorted(first[0] + first[1]) == list(range(6))
    assert first[0] + first[1] != list(range(6))
    assert levels(data) == first
    assert levels(data.share(1, 2)) == first[1:]
    assert levels(opened(folder, seed=1, samples=3)) == [(first[0] + first[1])[:3]]


def test_mean_and_std(folder):
    plain = torch.cat(list(opened(folder, shuffle=False)))
    found = torch.cat(list(opened(folder, shuffle=False, mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 4.0))))
    mean, std = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1), torch.tensor([1.0, 2.0, 4.0]).view(3, 1, 1)
    assert torch.allclose(found, (plain - mean) / std)


def test_images_of_several_sizes_need_a_size(folder, pictures):
    (folder / "d.png").write_bytes(pictures.encoded(pictures.drawn(8, 8)))
    with pytest.raises(UsageError, match=r"4x5 for '.*0\.png' and 8x8 for '.*d\.png': give --size"):
        list(opened(folder, shuffle=False))
    with pytest.raises(UsageError, match="8x8"):
        list(opened(folder, shuffle=False, batch_size=3))
    assert torch.cat(list(opened(folder, size=3))).shape == (7, 3, 3, 3)


def test_links_are_followed_but_in_no_circle(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    os.rename(folder / "b", elsewhere / "b")
    os.symlink(elsewhere / "b", folder / "b")
    os.symlink(elsewhere / "b" / "4.png", folder / "zz.png")
    os.symlink(folder, folder / "a" / "circle")
    os.symlink(folder / "nowhere.png", folder / "y.txt")
    assert levels(opened(folder, shuffle=False)) == [[0, 1, 2, 3, 4, 5, 4]]


class TestUnreadable:
    def test_one_is_an_error_that_names_it(self, folder):
        (folder / "b" / "4.png").write_bytes((folder / "b" / "4.png").read_bytes()[:50])
        with pytest.raises(DataError, match=r"(?s)1 sample is unreadable .*tolerates 0.*b/4\.png': '.*trunc"):
            list(opened(folder))

    def test_all_of_a_batch_are_named(self, folder):
        for name in ("a/0.png", "b/3.webp"):
            (folder / name).write_text("text")
        with pytest.raises(DataError, match=r"2 samples are unreadable") as caught:
            list(opened(folder, max_bad=1))
        assert "0.png" in str(caught.value)
        assert "3.webp" in str(caught.value)

    def test_tolerated_ones_are_left_out_and_kept_count_of(self, folder):
        (folder / "a" / "1.JPG").write_text("text")
        (folder / "b" / "4.png").write_text("")
        data = opened(folder, max_bad=2, shuffle=False, batch_size=4)
        for _ in range(2):  # a second pass does not count them again
            assert levels(data) == [[0, 2, 3], [5]]
        assert [os.path.basename(path) for path in data.bad] == ["1.JPG", "4.png"]
        assert data.samples == 6
        with pytest.raises(DataError, match="2 samples are unreadable"):
            list(opened(folder, max_bad=1, shuffle=False, batch_size=4))

    def test_a_batch_of_nothing_else_is_left_out(self, folder):
        for name in ("a/0.png", "a/1.JPG"):
            (folder / name).write_text("text")
        assert levels(opened(folder, max_bad=2, shuffle=False, batch_size=2)) == [[2, 3], [4, 5]]

    def test_the_list_is_cut(self, tmp_path, pictures):  # noqa: ARG002 - it needs Pillow
        for number in range(30):
            (tmp_path / f"{number:02}.png").write_text("text")
        with pytest.raises(DataError, match=r"(?s)^30 samples.*19\.png.*\.\.\. and 10 more$") as caught:
            list(opened(tmp_path, shuffle=False))
        assert "20.png" not in str(caught.value)

    def test_a_bomb_a_fifo_and_a_missing_one(self, folder, pictures):
        (folder / "a" / "0.png").write_bytes(pictures.bomb(20_000, 20_000))
        os.remove(folder / "a" / "1.JPG")
        os.mkfifo(folder / "a" / "1.JPG")
        data = opened(folder, max_bad=3, shuffle=False)
        os.remove(folder / "c.ppm")
        assert levels(data) == [[2, 3, 4]]
        reasons = "\n".join(data.bad.values())
        assert "pixels" in reasons
        assert "not a regular file" in reasons
        assert "No such file" in reasons


def test_no_images_is_an_error(tmp_path, pictures):  # noqa: ARG001 - it needs Pillow
    with pytest.raises(DataError, match=r"holds no images, that is, files named \.bmp"):
        opened(tmp_path)
    with pytest.raises(DataError, match="is not a folder"):
        opened(tmp_path / "nowhere")


def test_a_batch_of_large_images_is_refused(folder, monkeypatch):
    monkeypatch.setattr("swatool.data.decoding.MAX_BATCH", 1000)
    with pytest.raises(UsageError, match="give a smaller --batch-size or a --size"):
        list(opened(folder))
