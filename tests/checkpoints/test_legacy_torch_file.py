"""Files by torch.save before torch 1.6: the tensors that torch.load gives, and a refusal of every lie."""

import argparse
import io
import math
import random
import struct
import warnings

import pytest
import torch
from hostile.legacy import identifier, legacy, view_of
from hostile.pickles import number, strided, text
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swatool.checkpoints.contents import Opaque, TensorDescriptor
from swatool.checkpoints.file_formats import read_file
from swatool.checkpoints.files import LocalFile
from swatool.checkpoints.legacy_torch_file import read_legacy_torch_file
from swatool.errors import CheckpointError
from swatool.tensors import DTYPES

PROTOCOLS = (2, 3, 4, 5)
# torch writes these into such files, and then does not read them.
WRITTEN_AND_NOT_READ = {
    *(torch.uint16, torch.uint32, torch.uint64, torch.float8_e5m2, torch.float8_e4m3fn),
    *(torch.float8_e5m2fnuz, torch.float8_e4m3fnuz, torch.float8_e8m0fnu),
}


class Bytes:
    """A source in memory that counts what is read."""

    path = "x.pt"

    def __init__(self, data):
        self.data = data
        self.size = len(data)
        self.got = 0

    def read(self, offset, nbytes):
        if offset < 0 or nbytes < 0 or offset + nbytes > self.size:
            raise CheckpointError(f"'{self.path}' is truncated")
        self.got += nbytes
        return self.data[offset : offset + nbytes]


def saved(value, protocol=2):
    file = io.BytesIO()
    torch.save(value, file, pickle_protocol=protocol, _use_new_zipfile_serialization=False)
    return file.getvalue()


def rebuilt(stored):
    dtype = getattr(torch, stored.dtype.name)
    if not stored.extents:
        assert stored.numel == 0
        return torch.empty(stored.shape, dtype=dtype)
    (extent,) = stored.extents
    buffer = bytearray(extent.source.read(extent.offset, extent.nbytes))
    flat = torch.frombuffer(buffer, dtype=torch.uint8).view(dtype)
    return (
        flat.view(stored.shape) if stored.strides is None else flat.as_strided(stored.shape, stored.strides)
    )


def same(left, right):
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    left, right = (
        torch.empty_like(value, memory_format=torch.contiguous_format).copy_(value) for value in (left, right)
    )
    return torch.equal(left.flatten().view(torch.uint8), right.flatten().view(torch.uint8))


def assert_same(contents, found, expected, where=""):
    """Compare a tree of descriptors with what torch.load gives for it."""
    if isinstance(expected, torch.Tensor):
        assert same(rebuilt(contents.locate(found)), expected), where
    elif isinstance(expected, dict):
        assert list(found) == list(expected), where
        for name, value in expected.items():
            assert_same(contents, found[name], value, f"{where}.{name}")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), where
        for index, value in enumerate(expected):
            assert_same(contents, found[index], value, f"{where}[{index}]")
    else:
        assert found == expected, where


def check_round_trip(value, protocol=2):
    data = saved(value, protocol)
    expected = value
    if not any(tensor.dtype in WRITTEN_AND_NOT_READ for tensor in value.values() if torch.is_tensor(tensor)):
        # torch's restricted unpickler knows only protocol 2; the file is our own.
        expected = torch.load(io.BytesIO(data), weights_only=protocol == 2)
    contents = read_file(Bytes(data))
    assert contents.format == "torch legacy"
    assert_same(contents, contents.root, expected)
    return contents


def refusal(data):
    with pytest.raises(CheckpointError) as caught:
        read_legacy_torch_file(Bytes(data))
    message = str(caught.value)
    assert "'x.pt'" in message
    assert message.isprintable()
    return message


# The same values as torch.load.


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_and_layout_has_the_values_of_torch_load(dtype, protocol):
    count = 2 * 3 * 4 * 5
    generator = torch.Generator().manual_seed(1)
    raw = torch.randint(0, 2, (count * DTYPES[dtype].itemsize,), dtype=torch.uint8, generator=generator)
    base = raw.view(getattr(torch, dtype)).view(2, 3, 4, 5)
    check_round_trip(
        {
            "plain": base.clone(),
            "channels_last": base.clone(memory_format=torch.channels_last),
            "transposed": base.clone().transpose(1, 3),
            "sliced": base.clone()[1:, :, ::2, 1:3],
            "scalar": base.clone()[1, 2, 3, 4],
            "scalar of its own": base[1, 1, 1, 1].clone(),
            "empty": base.clone()[:0],
            "empty on its own": torch.empty(0, 3, dtype=base.dtype),
            "expanded": base.clone()[0, 0, :, :1].expand(4, 7),
        },
        protocol,
    )


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_tensors_on_one_storage_share_its_bytes(protocol):
    base = torch.arange(24.0).view(4, 6)
    contents = check_round_trip({"a": base, "b": base, "row": base[2], "column": base[:, 1]}, protocol)
    found = {name: contents.locate(leaf) for name, leaf in contents.root.items()}
    assert found["a"] == found["b"]
    assert found["row"].extents[0].offset == found["a"].extents[0].offset + 2 * 6 * 4


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_training_checkpoint_is_read_whole(protocol):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 2), torch.nn.BatchNorm2d(4))
    model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(2, 3, 4, 4)).square().sum().backward()
    optimizer.step()
    root = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "parameters": dict(model.named_parameters()),
        "epoch": 3,
        "losses": [1.5, 0.25],
    }
    contents = check_round_trip(root, protocol)
    weight = contents.locate(contents.root["model"]["0.weight"])
    assert weight.strides == model[0].weight.stride()


@st.composite
def views(draw):
    shape = draw(st.lists(st.integers(0, 5), max_size=4))
    dtype = draw(
        st.sampled_from(["float32", "bfloat16", "int64", "bool", "uint16", "float8_e4m3fn", "complex64"])
    )
    count = math.prod(shape)
    raw = bytearray(index % 3 % 2 for index in range(count * DTYPES[dtype].itemsize))
    flat = torch.frombuffer(raw, dtype=torch.uint8) if raw else torch.empty(0, dtype=torch.uint8)
    value = flat.view(getattr(torch, dtype)).view(shape)
    value = value.permute(draw(st.permutations(range(len(shape)))))
    for dimension, length in enumerate(value.shape):
        start = draw(st.integers(0, length))
        value = value[(slice(None),) * dimension + (slice(start, None, draw(st.integers(1, 3))),)]
    return value


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(values=st.lists(views(), max_size=4), protocol=st.sampled_from(PROTOCOLS))
def test_any_views_have_the_values_of_torch_load(values, protocol):
    check_round_trip({f"w{index}": value for index, value in enumerate(values)}, protocol)


def test_unknown_objects_and_pickled_modules_leave_the_weights_readable():
    root = {"args": argparse.Namespace(lr=0.1), "net": torch.nn.Linear(2, 2), "w": torch.ones(2)}
    contents = read_file(Bytes(saved(root)))
    assert contents.root["args"] == Opaque("argparse.Namespace")
    assert contents.root["net"] == Opaque("torch.nn.modules.linear.Linear")
    assert same(rebuilt(contents.locate(contents.root["w"])), torch.ones(2))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_quantized_tensors_do_not_hide_the_others():
    values = torch.arange(6.0)
    root = {f"q{n}": torch.quantize_per_tensor(values, 0.1, 3, t) for n, t in enumerate(QUANTIZED)}
    contents = read_file(Bytes(saved(root | {"w": values})))
    assert same(rebuilt(contents.locate(contents.root["w"])), values)
    assert contents.root["q0"].kind == "quantized"


QUANTIZED = (torch.qint8, torch.quint8, torch.qint32)


def test_a_bare_storage_does_not_hide_the_others():
    contents = read_file(Bytes(saved({"s": torch.arange(3.0).untyped_storage(), "w": torch.ones(2)})))
    assert same(rebuilt(contents.locate(contents.root["w"])), torch.ones(2))


def test_a_local_file_is_read_and_only_its_description(tmp_path):
    path = tmp_path / "x.pt"
    root = {f"w{index}": torch.full((1 << 18,), float(index)) for index in range(8)}
    path.write_bytes(saved(root))
    file = LocalFile(path)
    contents = read_file(file)
    assert all(same(rebuilt(contents.locate(contents.root[name])), root[name]) for name in root)
    file.close()
    source = Bytes(path.read_bytes())
    read_legacy_torch_file(source)
    assert source.got < source.size  # the piece that holds the pickle reaches into the first storages


def test_a_sparse_file_of_many_gigabytes_takes_no_time(tmp_path):
    elements = 3 << 30
    data = legacy(keys=["0", "1"], counts=[4, elements], ids=[identifier("0", 4), identifier("1", elements)])
    path = tmp_path / "x.pt"
    path.write_bytes(data[:-8])  # a file that ends where the second storage has its length
    with path.open("ab") as file:
        file.write(struct.pack("<q", elements))
        file.truncate(file.tell() + 4 * elements)
    source = LocalFile(path)
    contents = read_legacy_torch_file(source)
    stored = contents.locate(contents.root["1"])
    assert stored.extents[0].offset + 4 * elements == source.size
    source.close()


# Files that torch.save does not write.


SOUND = [identifier("0", 4)]


def test_the_assembler_writes_sound_files():
    assert read_legacy_torch_file(Bytes(legacy(SOUND, ["0"]))).root["0"].shape == (2,)
    torch.load(io.BytesIO(legacy(SOUND, ["0"])), weights_only=True)


def test_python_2_pickles_are_read():
    def word(value):
        return b"U" + bytes([len(value)]) + value.encode()

    body = b"}q\x00(" + word("w") + strided(identifier("7", 4, word=word), [4]) + b"u"
    keys = b"\x80\x02]q\x00" + word("7") + b"a."
    data = legacy(body=body, keys=["7"], counts=[])
    data = data[: data.rindex(b"\x80\x02")] + keys + struct.pack("<q4f", 4, 1, 2, 3, 4)
    contents = read_legacy_torch_file(Bytes(data))
    expected = torch.load(io.BytesIO(data), weights_only=True)
    assert_same(contents, contents.root, expected)
    assert expected["w"].tolist() == [1, 2, 3, 4]


def of_views(*identifiers, counts=(6,), shape=(2,), offset=0):
    items = [text(str(n)) + strided(found, shape, offset=offset) for n, found in enumerate(identifiers)]
    data = legacy(body=b"}(" + b"".join(items) + b"u", keys=["r"], counts=[])
    return data + b"".join(struct.pack(f"<q{n}f", n, *range(n)) for n in counts)


def test_views_of_a_storage_have_the_values_of_torch_load():
    data = of_views(
        identifier("r", 6, view=view_of("a", 1, 4)),
        identifier("r", 6, view=view_of("b", 0, 6)),
        identifier("r", 6, view=view_of("a", 1, 4)),
        identifier("r", 6),
        offset=2,
    )
    contents = read_legacy_torch_file(Bytes(data))
    expected = torch.load(io.BytesIO(data), weights_only=True)
    assert_same(contents, contents.root, expected)
    assert [value.tolist() for value in expected.values()] == [[3, 4], [2, 3], [3, 4], [2, 3]]


# Lies.


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (legacy(SOUND, []), "storage '0' of 'x.pt' is not in the file"),
        (legacy(SOUND, [], []), "storage '0' of 'x.pt' is not in the file"),
        (legacy(SOUND, ["1"]), "storage '1' of 'x.pt', which no tensor uses"),
        (legacy(SOUND, ["0", "1"], [4, 4]), "storage '1' of 'x.pt', which no tensor uses"),
        (legacy(SOUND, ["0", "0"], [4, 4]), "lists a storage twice"),
        (legacy(SOUND, ("0",)), "lists no storages"),
        (legacy(SOUND, [0]), "lists no storages"),
        (legacy(SOUND, [["0"]]), "lists no storages"),
        (legacy(SOUND, None), "lists no storages"),
        (legacy(SOUND, ["0"], [3], end=bytes(4)), "storage '0' of 'x.pt' has 3 elements instead of 4"),
        (legacy(SOUND, ["0"], [-4], end=bytes(16)), "has -4 elements instead of 4"),
        (
            legacy(SOUND, ["0"], [1 << 60], end=bytes(16)),
            "has 1,152,921,504,606,846,976 elements instead of 4",
        ),
        (legacy([identifier("0", 5)], ["0"]), "the file is truncated or damaged"),
        (legacy([identifier("0", 1 << 60)], ["0"]), "the file is truncated or damaged"),
        (legacy([identifier("0", -4)], ["0"]), "gives storage '0' an impossible length"),
        (legacy([identifier("0", 1 << 63)], ["0"]), "gives storage '0' an impossible length"),
        (legacy([identifier("0", 4, "torch.DoubleStorage")], ["0"]), "the file is truncated or damaged"),
        (
            legacy([identifier("0", 4, "torch.HalfStorage")], ["0"]),
            "goes on for 8 bytes after its last storage",
        ),
        (legacy([identifier("0", 4, "torch.FooStorage")], ["0"]), "of the unknown type 'torch.FooStorage'"),
        (legacy([identifier("0", 4), identifier("0", 5)], ["0"]), "two types or lengths"),
        (legacy([identifier("0", 4), identifier("0", 4, "torch.IntStorage")], ["0"]), "two types or lengths"),
        (legacy(SOUND, ["0"], end=b"\0"), "goes on for 1 bytes after its last storage"),
        (legacy(SOUND, ["0"], []), "the file is truncated or damaged"),
        (legacy(SOUND, ["0"])[:-1], "the file is truncated or damaged"),
        (legacy(SOUND, ["0"], magic=7), "begins with other values"),
        (legacy(SOUND, ["0"], magic="x"), "begins with other values"),
        (legacy(SOUND, ["0"], version="1001"), "begins with other values"),
        (legacy(SOUND, ["0"], version=1002), "has version '1002' of torch's format, not 1001"),
        (legacy(SOUND, ["0"], version=1 << 900), "of torch's format, not 1001"),
        (legacy(SOUND, ["0"], little=False), "big-endian"),
        (legacy(SOUND, ["0"], little=1), "big-endian or of unknown byte order"),
        (legacy(body=b"cposix\nsystem\n" + text("id") + b"\x85R"), "would call posix.system"),
        (legacy(body=b"cbuiltins\neval\n" + text("1") + b"\x85R"), "would call builtins.eval"),
        (legacy(body=b"NQ"), "persistent id that is not one of torch.save"),
        (legacy(body=b"(" + text("storage") * 6 + b"tQ"), "persistent id that is not one of torch.save"),
        (legacy(body=b"(" + text("module") * 4 + b"tQ"), "persistent id that is not one of torch.save"),
        (legacy(body=b"N" * 5), "does not end with one value"),
    ],
)
def test_lies_are_refused_in_one_sentence(data, reason):
    assert reason in refusal(data)


def test_a_zip_identifier_is_no_legacy_one():
    five = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + number(4) + b"tQ"
    assert "persistent id" in refusal(legacy([five], ["0"]))


def test_identifiers_stand_in_the_object_only():
    data = legacy(SOUND, ["0"])
    keys = data.rindex(b"\x80\x02")
    assert "persistent id" in refusal(data[:keys] + b"\x80\x02" + identifier("0", 4) + b".")
    assert "persistent id" in refusal(b"\x80\x02" + identifier("0", 4) + b"." + data)


@pytest.mark.parametrize(
    ("views", "offset"),
    [
        ([view_of("a", 3, 4)], 0),
        ([view_of("a", -1, 4)], 0),
        ([view_of("a", 0, -1)], 0),
        ([view_of("a", 0, 7)], 0),
        ([view_of("a", 0, 1)], 0),
        ([view_of("a", 0, 4)], 3),
        ([view_of("r", 0, 6)], 0),
        ([view_of("a", 0, 4), view_of("a", 1, 4)], 0),
        ([b"(" + text("a") + text("b") + number(1) + b"t"], 0),
        ([b"(" + text("a") + number(0) + b"t"], 0),
        ([b"]"], 0),
        ([text("a")], 0),
    ],
)
def test_views_that_lie_elsewhere_are_refused(views, offset):
    data = of_views(*(identifier("r", 6, view=view) for view in views), offset=offset)
    assert "near byte" in refusal(data)


def test_a_view_of_bytes_is_refused():
    found = identifier("r", 24, "torch.storage.UntypedStorage", view=view_of("a", 0, 8))
    assert "impossible place" in refusal(of_views(found))


def test_a_tensor_beyond_its_storage_is_refused():
    contents = read_legacy_torch_file(Bytes(legacy(body=strided(SOUND[0], [5]), keys=["0"])))
    with pytest.raises(CheckpointError, match=r"storage '0' of 'x\.pt' reaches element 5 of 4"):
        contents.locate(contents.root)


def test_a_file_is_refused_wherever_it_ends():
    for protocol in PROTOCOLS:
        data = saved({"w": torch.arange(3.0), "n": [1.5, "x"]}, protocol)
        for end in range(len(data)):
            refusal(data[:end])


def test_a_pickle_without_an_end_is_refused_before_gigabytes_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr("swatool.checkpoints.legacy_torch_file.MAX_PICKLE", 4 << 20)
    path = tmp_path / "x.pt"
    beginning = legacy(SOUND, ["0"])
    beginning = beginning[: beginning.index(b"\x80\x02}(")]
    # Each text of three megabytes is stepped over.
    path.write_bytes(beginning + b"\x80\x02]")
    with path.open("r+b") as file:
        file.truncate(3 << 30)
        file.seek(len(beginning) + 3)
        for _ in range(100):
            file.write(b"X" + struct.pack("<I", 3 << 20))
            file.seek(3 << 20, io.SEEK_CUR)
            file.write(b"a")
    source = LocalFile(path)
    with pytest.raises(CheckpointError, match=r"has more than 4,194,304 bytes: save the state dict alone"):
        read_legacy_torch_file(source)
    source.close()


# Random damage.


def leaves(value):
    pending, found = [value], []
    while pending and len(found) < 100:
        value = pending.pop()
        if isinstance(value, dict):
            pending += value.values()
        elif isinstance(value, list | tuple):
            pending += value
        else:
            found.append(value)
    return found


def damaged(dice, data):
    data = bytearray(data)
    for _ in range(dice.randint(1, 3)):
        position = dice.randrange(len(data))
        if dice.random() < 0.8:
            data[position] = dice.choice((0, 1, 0xFF, dice.randrange(256)))
        else:
            del data[position : position + dice.randint(1, 30)]
    return bytes(data)


def test_what_damage_leaves_readable_has_the_values_of_torch_load():
    dice = random.Random(17)
    base = torch.arange(6.0)
    seed = saved({"w": base, "v": base[2:5], "b": torch.arange(3, dtype=torch.int16), "n": [1, "x", 2.5]})
    outcomes = {"refused": 0, "accepted": 0, "compared": 0}
    for _ in range(2000):
        data = damaged(dice, seed)
        try:
            contents = read_legacy_torch_file(Bytes(data))
            found = [leaf for leaf in leaves(contents.root) if isinstance(leaf, TensorDescriptor)]
            values = [rebuilt(contents.locate(leaf)) for leaf in found]
        except CheckpointError:
            outcomes["refused"] += 1
            continue
        outcomes["accepted"] += 1
        try:
            with warnings.catch_warnings(action="ignore"):
                loaded = torch.load(io.BytesIO(data), weights_only=True)
        except Exception:  # noqa: BLE001 - torch.load raises a dozen kinds
            continue
        expected = [leaf for leaf in leaves(loaded) if isinstance(leaf, torch.Tensor)]
        assert len(values) == len(expected)
        assert all(map(same, values, expected))
        outcomes["compared"] += 1
    assert outcomes["refused"] > 500
    assert outcomes["compared"] > 100
