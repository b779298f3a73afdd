"""Data sets of the Hugging Face hub, with a stand-in for its package; and with the real one where it is."""

import importlib.util
import sys
from types import ModuleType

import pytest
import torch

from swatool.data.opening import open_data
from swatool.data.options import DataOptions
from swatool.errors import DataError, UsageError


class Image:
    def __init__(self, decode=True):
        self.decode = decode


class Value:
    def __init__(self, dtype):
        self.dtype = dtype


class List:
    def __init__(self, feature):
        self.feature = feature


class Array3D:
    dtype = "uint8"


class ClassLabel:
    dtype = "int64"


class Table:
    def __init__(self, features, rows):
        self.features, self.rows = features, rows

    def select_columns(self, columns):
        return Table({key: self.features[key] for key in columns}, self.rows)

    def cast_column(self, column, feature):
        assert not feature.decode, "images are decoded by swatool"
        return Table({**self.features, column: feature}, self.rows)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, positions):
        return {key: [self._value(position, key) for position in positions] for key in self.features}

    def _value(self, position, key):
        decoded = isinstance(self.features[key], Image) and self.features[key].decode
        return object() if decoded else self.rows[position][key]


@pytest.fixture
def hub(monkeypatch):
    """A package `datasets` that knows one data set."""

    def holding(table):
        module = ModuleType("datasets")
        module.Image = Image
        module.asked = []

        def load(name, split=None):
            module.asked.append((name, split))
            if isinstance(table, Exception):
                raise table
            return table

        module.load_dataset = load
        module.load_from_disk = load
        monkeypatch.setitem(sys.modules, "datasets", module)
        return module

    return holding


def arrays(count=5, features=None):
    rows = [{"pixel_values": [[[n, 7]]], "label": n, "text": "x"} for n in range(count)]
    return Table(
        features or {"label": ClassLabel(), "pixel_values": Array3D(), "text": Value("string")}, rows
    )


def opened(spec="hf:some/name", **options):
    return open_data(spec, DataOptions(**options))


def test_arrays_have_the_type_of_the_column(hub):
    module = hub(arrays())
    data = opened(batch_size=3, shuffle=False)
    assert module.asked == [("some/name", "train")]
    assert data.samples == 5
    batches = list(data)
    assert [batch.shape for batch in batches] == [(3, 1, 1, 2), (2, 1, 1, 2)]
    assert batches[0].dtype is torch.uint8
    assert torch.cat(batches)[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("feature", "dtype"),
    [
        (List(List(Value("float64"))), torch.float64),
        ([Value("int8")], torch.int8),
        (List(Value("unheard")), torch.int64),
    ],
    ids=["nested", "list", "unknown"],
)
def test_lists_have_the_type_of_their_items(hub, feature, dtype):
    hub(Table({"pixel_values": feature}, [{"pixel_values": [1, 2]}, {"pixel_values": [3, 4]}]))
    assert next(iter(opened())).dtype is dtype


def test_images_are_decoded_here(hub, pictures, tmp_path):
    pixels = [pictures.drawn(4, 4, seed) for seed in range(3)]
    (tmp_path / "x.png").write_bytes(pictures.encoded(pixels[1]))
    values = [
        {"bytes": pictures.encoded(pixels[0]), "path": None},
        {"bytes": None, "path": str(tmp_path / "x.png")},
        {"bytes": pictures.encoded(pixels[2]), "path": "nowhere.png"},
    ]
    hub(Table({"image": Image()}, [{"image": value} for value in values]))
    assert next(iter(opened(shuffle=False))).equal(torch.stack(pixels) / 255)
    assert next(iter(opened(size=2))).shape == (3, 3, 2, 2)


def test_unreadable_ones_are_named_by_their_row(hub, pictures):  # noqa: ARG001 - it needs Pillow
    hub(Table({"image": Image()}, [{"image": {"bytes": b"x", "path": None}}, {"image": None}]))
    with pytest.raises(DataError, match=r"(?s)'row 0': it is none of.*'row 1': there is no image"):
        list(opened(shuffle=False))


class TestColumn:
    def test_the_usual_names_come_first(self, hub):
        hub(Table({"other": Array3D(), "pixel_values": Array3D()}, arrays().rows))
        assert len(next(iter(opened()))) == 5

    def test_one_can_be_named(self, hub):
        rows = [{"a": [1.0], "b": [2.0]}]
        hub(Table({"a": List(Value("float32")), "b": List(Value("float32"))}, rows))
        assert next(iter(opened("hf:some/name:b"))).tolist() == [[2.0]]
        with pytest.raises(UsageError, match=r"no such column: it has 'a' \(List\), 'b' \(List\)"):
            opened("hf:some/name:c")
        with pytest.raises(UsageError, match="name one, as in hf:NAME:COLUMN"):
            opened("hf:some/name")

    def test_a_column_without_arrays(self, hub):
        hub(arrays())
        with pytest.raises(DataError, match=r"'row 0': it is no array"):
            list(opened("hf:some/name:text", shuffle=False))

    def test_size_is_for_images(self, hub):
        hub(arrays())
        with pytest.raises(UsageError, match="--size cannot be used"):
            opened(size=3)


class TestLoading:
    def test_a_folder_is_not_looked_for_on_the_hub(self, hub, tmp_path):
        module = hub(arrays())
        opened(f"hf:{tmp_path}")
        assert module.asked == [(str(tmp_path), None)]

    def test_the_training_split_is_taken(self, hub, tmp_path):
        hub({"test": arrays(2), "train": arrays(3)})
        assert opened(f"hf:{tmp_path}").samples == 3
        hub({"only": arrays(2)})
        assert opened(f"hf:{tmp_path}").samples == 2
        hub({"a": arrays(2), "b": arrays(2)})
        with pytest.raises(DataError, match="no split 'train'"):
            opened(f"hf:{tmp_path}")

    def test_what_the_package_raises(self, hub):
        hub(ConnectionError("no network\nmore"))
        with pytest.raises(DataError, match=r"'some/name' cannot be loaded: ConnectionError: no network$"):
            opened()

    def test_an_empty_one(self, hub):
        hub(arrays(0))
        with pytest.raises(DataError, match="holds no samples"):
            opened()

    def test_a_missing_package(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "datasets", None)
        with pytest.raises(UsageError, match=r"needs the package datasets, .*pip install datasets"):
            opened()

    def test_a_broken_package(self, tmp_path, monkeypatch):
        (tmp_path / "datasets.py").write_text("raise RuntimeError('built for another torch')")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "datasets", raising=False)
        with pytest.raises(UsageError, match="RuntimeError: built for another torch"):
            opened()


@pytest.mark.skipif(importlib.util.find_spec("datasets") is None, reason="needs the package datasets")
@pytest.mark.filterwarnings("ignore")
def test_the_real_package(pictures, tmp_path):
    import datasets

    pixels = [pictures.drawn(4, 4, seed) for seed in range(6)]
    columns = {"image": [pictures.image(one) for one in pixels], "x": [[[1.0, n]] for n in range(6)]}
    table = datasets.Dataset.from_dict(
        columns,
        features=datasets.Features({"image": datasets.Image(), "x": datasets.Array2D((1, 2), "float32")}),
    )
    table.save_to_disk(tmp_path / "set")
    assert torch.cat(list(opened(f"hf:{tmp_path}/set", shuffle=False))).equal(torch.stack(pixels) / 255)
    found = torch.cat(list(opened(f"hf:{tmp_path}/set:x", shuffle=False, batch_size=4)))
    assert found.dtype is torch.float32
    assert found[:, 0, 1].tolist() == [0, 1, 2, 3, 4, 5]
