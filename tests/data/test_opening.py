"""What `--data` names; and one data set of real images, read in every form, gives the same samples."""

import io
import sys
import tarfile
from importlib.util import find_spec

import pytest
import torch

from swatool.data.opening import FORMS, DataOptions, open_data
from swatool.errors import DataError, UsageError

needs_numpy = pytest.mark.skipif(find_spec("numpy") is None, reason="NumPy's own writer is the reference")
IN_ORDER = DataOptions(shuffle=False)


@pytest.mark.parametrize(
    "spec",
    ["", "x", "x.tar", "x.pt", "folder/", "s3://bucket/x", "imagefolder:", "wds:", "hf:", "a-b:c", ":"],
)
def test_an_unknown_form_is_answered_by_all_known_ones(spec):
    with pytest.raises(UsageError, match="is of no known form; these are:") as caught:
        open_data(spec)
    for form, example, _ in FORMS:
        assert form in str(caught.value)
        assert example in str(caught.value)


@pytest.mark.parametrize(
    "spec", ["no.npy", "no.npz:x", "no.safetensors:x", "imagefolder:no", "wds:no*.tar", "dir/no.NPZ"]
)
def test_what_does_not_exist_is_named(spec, tmp_path, monkeypatch):
    if not spec.startswith("no"):
        pytest.importorskip("PIL")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="no"):
        open_data(spec)


def test_a_module_that_does_not_exist(monkeypatch):
    monkeypatch.setattr("sys.path", [*sys.path])
    with pytest.raises(UsageError, match="there is no module 'nowhere_at_all'"):
        open_data("nowhere_at_all:x")


def array(values):
    text = b"{'descr': '|u1', 'fortran_order': False, 'shape': (%d,), }" % len(values)
    return b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text + bytes(values)


def test_names_with_colons_and_endings_in_the_middle(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a:b.npy", "a.npz:c.npy", "x.NPY"):
        (tmp_path / name).write_bytes(array([1, 2]))
        assert next(iter(open_data(name, IN_ORDER))).tolist() == [1, 2]


def test_every_example_is_of_its_form(monkeypatch):
    """The examples in the list are recognised, whatever is missing here."""
    monkeypatch.setattr("sys.path", [*sys.path])
    monkeypatch.setitem(sys.modules, "datasets", None)  # which would look at the network
    for _, example, _ in FORMS:
        with pytest.raises((UsageError, DataError)) as caught:
            open_data(example)
        assert "no known form" not in str(caught.value)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The 1797 handwritten digits of scikit-learn, [1797, 8, 8], uint8, in every form that is read."""
    datasets = pytest.importorskip("sklearn.datasets")
    numpy = pytest.importorskip("numpy")
    safetensors = pytest.importorskip("safetensors.numpy")
    image = pytest.importorskip("PIL.Image")
    folder = tmp_path_factory.mktemp("digits")
    values = (datasets.load_digits().images * 15).astype(numpy.uint8)
    numpy.save(folder / "x.npy", values)
    numpy.savez(folder / "x.npz", labels=datasets.load_digits().target, x=values)
    numpy.savez_compressed(folder / "packed.npz", x=values)
    safetensors.save_file({"x": values}, folder / "x.safetensors")
    with tarfile.open(folder / "x.tar", "w") as shard:
        for number, one in enumerate(values):
            file = io.BytesIO()
            image.fromarray(one).save(file, "PNG")
            path = folder / "images" / f"{number // 1000}" / f"{number:04}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(file.getvalue())
            info = tarfile.TarInfo(f"{number:04}.png")
            info.size = len(file.getvalue())
            shard.addfile(info, io.BytesIO(file.getvalue()))
    (folder / "code.py").write_text(
        "import os, numpy, torch\n"
        "def batches():\n"
        "    path = os.path.join(os.path.dirname(__file__), 'x.npy')\n"
        "    yield from torch.from_numpy(numpy.load(path)).split(256)\n"
    )
    return folder, torch.from_numpy(values)


@needs_numpy
@pytest.mark.parametrize("name", ["x.npy", "x.npz:x", "packed.npz", "x.safetensors", "x.safetensors:x"])
@pytest.mark.parametrize("shuffle", [False, None])
def test_real_images_as_arrays(digits, name, shuffle):
    folder, values = digits
    data = open_data(f"{folder}/{name}", DataOptions(shuffle=shuffle, batch_size=500))
    found = torch.cat(list(data))
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    assert found.equal(values if shuffle is False else values[order])
    assert data.samples == 1797
    data.close()


@needs_numpy
@pytest.mark.parametrize("form", ["imagefolder:{}/images", "wds:{}/x.tar"])
def test_real_images_as_files(digits, form):
    folder, values = digits
    data = open_data(form.format(folder), IN_ORDER)
    found = torch.cat(list(data))
    assert found.shape == (1797, 3, 8, 8)
    assert found.equal((values / 255)[:, None].expand(-1, 3, -1, -1))


@needs_numpy
def test_real_images_by_code(digits, monkeypatch):
    folder, values = digits
    monkeypatch.setattr("sys.path", [*sys.path])
    data = open_data(f"{folder}/code.py:batches")
    for _ in range(2):
        assert torch.cat(list(data)).equal(values)
