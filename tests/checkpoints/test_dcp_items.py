"""The torch files inside `.distcp` files: each change of a byte is judged as if the item were alone."""

import io
import zipfile

import pytest
import torch
from hostile.zips import central_headers, edited, zip_of

from swatool.checkpoints import dcp_items
from swatool.checkpoints.dcp_items import ItemReader
from swatool.checkpoints.dcp_parts import Item
from swatool.checkpoints.files import LocalFiles, LocalFolder
from swatool.checkpoints.torch_file import read_torch_file
from swatool.errors import CheckpointError
from swatool.models.weights import read_tensor


def item(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def folder_of(tmp_path, *items):
    """A folder with these items in one file, and where each of them lies."""
    tmp_path.mkdir(exist_ok=True)
    (tmp_path / "a.distcp").write_bytes(b"".join(items))
    ends = [sum(map(len, items[: i + 1])) for i in range(len(items))]
    places = [Item("a.distcp", end - len(one), len(one)) for end, one in zip(ends, items, strict=True)]
    return LocalFolder(tmp_path, LocalFiles()), places


@pytest.fixture
def full_readings(monkeypatch):
    """Counts the items that are taken apart."""
    seen = []

    def counting(source):
        seen.append(source)
        return read_torch_file(source)

    monkeypatch.setattr(dcp_items, "read_torch_file", counting)
    return seen


def test_reads_items_one_after_the_other(tmp_path):
    values = [torch.rand(3, 4), torch.arange(5), torch.rand(6, 2).t(), torch.rand(1000), torch.rand(())]
    folder, places = folder_of(tmp_path, *map(item, values))
    reader = ItemReader(folder, {})
    for value, place in zip(values, places, strict=True):
        assert torch.equal(read_tensor(reader.locate(place, value.shape)), value)


def test_items_that_are_alike_are_not_taken_apart_again(tmp_path, full_readings):
    values = [torch.rand(3, 4) for _ in range(50)]
    folder, places = folder_of(tmp_path, *map(item, values))
    reader = ItemReader(folder, {})
    for value, place in zip(values, places, strict=True):
        assert torch.equal(read_tensor(reader.locate(place, value.shape)), value)
    assert len(full_readings) == 1


def test_items_as_long_that_hold_something_else_are_taken_apart(tmp_path, full_readings):
    values = [torch.rand(3, 4), torch.rand(4, 3), torch.rand(12).to(torch.int32).view(3, 4), torch.rand(3, 4)]
    folder, places = folder_of(tmp_path, *map(item, values))
    assert len({place.nbytes for place in places}) == 1
    reader = ItemReader(folder, {})
    for value, place in zip(values, places, strict=True):
        assert torch.equal(read_tensor(reader.locate(place, "the same for all")), value)
    assert len(full_readings) == 3


def outcome(folder, place, before=None):
    reader = ItemReader(folder, {})
    if before is not None:
        reader.locate(before, "key")
    try:
        return raw(read_tensor(reader.locate(place, "key")))
    except CheckpointError as error:
        return str(error)


def raw(tensor):
    return tensor.dtype, tensor.shape, bytes(tensor.reshape(-1).view(torch.uint8).tolist())


def test_a_changed_byte_is_judged_as_if_the_item_were_alone(tmp_path):
    """Nothing that the comparison leaves out may change what an item holds."""
    original = item(torch.rand(2, 3))
    changed = [bytearray(original) for _ in original]
    for position, one in enumerate(changed):
        one[position] ^= 0x41
    folder, (first, *others) = folder_of(tmp_path, original, *changed)
    for position, place in enumerate(others):
        assert outcome(folder, place, first) == outcome(folder, place), position


def test_what_cannot_be_averaged_is_not_called_damaged(tmp_path):
    folder, (place,) = folder_of(tmp_path, item(torch.complex(torch.ones(2), torch.ones(2)).conj()))
    with pytest.raises(
        CheckpointError, match=r"conjugate or negative view\): save it as a plain dense tensor"
    ):
        ItemReader(folder, {}).locate(place, None)


def with_the_pickle_behind(data):
    """The same item with its elements first, and nothing recorded of its pickle's checksum."""
    names = ("data/0", "data.pkl", "byteorder", "version")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        found = zip_of([(f"archive/{name}", archive.read(f"archive/{name}")) for name in names])
    return edited(found, central_headers(found)[1] + 16, "<I", 0)


def test_a_pickle_that_follows_the_elements_is_read_of_each_item(tmp_path, full_readings):
    values = [torch.arange(4.0).view(2, 2), torch.arange(4.0).view(2, 2).t()]
    items = [with_the_pickle_behind(item(value)) for value in values]
    assert len(items[0]) == len(items[1])
    assert all(torch.equal(torch.load(io.BytesIO(one)), v) for one, v in zip(items, values, strict=True))
    folder, places = folder_of(tmp_path, *items)
    reader = ItemReader(folder, {})
    for value, place in zip(values, places, strict=True):
        assert torch.equal(read_tensor(reader.locate(place, "the same for both")), value)
    assert len(full_readings) == 2


def test_items_without_elements_are_told_apart_by_their_pickles(tmp_path):
    values = [torch.zeros(0, 4), torch.zeros(4, 0), torch.zeros(0, 4)]
    items = []
    for value in values:
        data = item(value)
        (pickled,) = (at for at in central_headers(data) if data[at + 46 :].startswith(b"archive/data.pkl"))
        items.append(edited(data, pickled + 16, "<I", 0))
    folder, places = folder_of(tmp_path, *items)
    reader = ItemReader(folder, {})
    for value, place in zip(values, places, strict=True):
        assert read_tensor(reader.locate(place, "the same for all")).shape == value.shape


@pytest.mark.parametrize("value", [{"w": torch.ones(2)}, [torch.ones(2)], "text"])
def test_refuses_what_is_no_tensor(tmp_path, value):
    folder, (place,) = folder_of(tmp_path, item(value))
    with pytest.raises(CheckpointError, match=r"the part at byte 0 of it is no tensor"):
        ItemReader(folder, {}).locate(place, None)


def test_reads_nothing_beside_the_item(tmp_path):
    """The directory of an item may not lead into its neighbour."""
    data = item(torch.rand(3))
    folder, (first, second) = folder_of(tmp_path, data, data)
    for offset, nbytes in ((10, len(data)), (0, len(data) - 1), (len(data) // 2, len(data))):
        with pytest.raises(CheckpointError):
            ItemReader(folder, {}).locate(Item(first.file, offset, nbytes), None)
    both = Item(first.file, 0, first.nbytes + second.nbytes)
    with pytest.raises(CheckpointError):
        ItemReader(folder, {}).locate(both, None)


def test_few_reads_for_each_item(tmp_path):
    values = [torch.rand(64, 64) for _ in range(40)]
    folder, places = folder_of(tmp_path, *map(item, values))
    source = folder.open("a.distcp")
    reads = []
    original = source.read
    source.read = lambda offset, nbytes: reads.append(nbytes) or original(offset, nbytes)
    reader = ItemReader(folder, {})
    for place in places:
        reader.locate(place, None)
    assert len(reads) <= 2 * len(places) + 8
    assert max(reads) <= dcp_items.WINDOW
