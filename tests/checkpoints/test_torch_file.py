"""Files by torch.save: the same tensors as torch.load gives, and a clear refusal of every lie."""

import argparse
import io
import random
import struct
import zipfile

import pytest
import torch
from hostile.pickles import changed_afterwards, program, storage_id, text
from hostile.pickles import tensor as pickled
from hostile.zips import central_headers, described, edited, repacked, zip_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swatool.checkpoints.contents import Opaque, TensorDescriptor, UnsupportedTensor
from swatool.checkpoints.files import LocalFile
from swatool.checkpoints.torch_file import read_torch_file
from swatool.errors import CheckpointError
from swatool.tensors import DTYPES, StoredTensor

PROTOCOLS = (2, 3, 4, 5)


class Bytes:
    """A source in memory."""

    def __init__(self, data, path="x.pt"):
        self.data = data
        self.path = path
        self.size = len(data)
        self.reads = []

    def read(self, offset, nbytes):
        if offset < 0 or nbytes < 0 or offset + nbytes > self.size:
            raise CheckpointError(f"'{self.path}' is truncated")
        self.reads.append((offset, nbytes))
        return self.data[offset : offset + nbytes]

    def read_into(self, buffers, offset):
        for buffer in buffers:
            buffer[:] = self.read(offset, len(buffer))
            offset += len(buffer)


def saved(value, protocol=2):
    file = io.BytesIO()
    torch.save(value, file, pickle_protocol=protocol)
    return file.getvalue()


def read(data):
    return read_torch_file(Bytes(data))


def rebuilt(stored):
    """The tensor that the extents hold, made by torch from bytes read through the source."""
    dtype = getattr(torch, stored.dtype.name)
    if not stored.extents:
        assert stored.numel == 0
        return torch.empty(stored.shape, dtype=dtype)
    (extent,) = stored.extents
    buffer = bytearray(extent.nbytes)
    extent.source.read_into([buffer], extent.offset)
    flat = torch.frombuffer(buffer, dtype=torch.uint8).view(dtype)
    if stored.strides is None:
        assert extent.nbytes == stored.nbytes
        return flat.view(stored.shape)
    return flat.as_strided(stored.shape, stored.strides)


def same(left, right):
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    left, right = (
        torch.empty_like(value, memory_format=torch.contiguous_format).copy_(value) for value in (left, right)
    )
    return torch.equal(left.flatten().view(torch.uint8), right.flatten().view(torch.uint8))


def check_round_trip(value, protocol=2):
    data = saved(value, protocol)
    # torch's restricted unpickler knows only protocol 2; the file is our own.
    expected = torch.load(io.BytesIO(data), weights_only=protocol == 2)
    contents = read(data)
    assert contents.format == "torch zip"
    assert dict(contents.metadata) == {}
    assert list(contents.root) == list(expected)
    for name, tensor in expected.items():
        assert same(rebuilt(contents.locate(contents.root[name])), tensor), name


def located(data):
    contents = read(data)
    return contents.locate(contents.root["w"])


def refusal(data, *, locate=False):
    with pytest.raises(CheckpointError) as caught:
        located(data) if locate else read(data)
    message = str(caught.value)
    assert "'x.pt'" in message
    assert "\n" not in message
    return message


def with_record(data, name, body):
    return repacked(data, lambda old, found: (old, body if old == name else found))


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
            "transposed": base.transpose(1, 3),
            "sliced": base[1:, :, ::2, 1:3],
            "rows": base[1],
            "scalar": base[1, 2, 3, 4],
            "empty": base[:0],
            "empty on its own": torch.empty(0, 3, dtype=base.dtype),
            "expanded": base[0, 0, :, :1].expand(4, 7),
            "shared": base,
            "length one": base[:, :1, :, :1].transpose(1, 3),
        },
        protocol,
    )


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_modules_parameters_and_optimizers_beside_them(protocol):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 2), torch.nn.BatchNorm2d(4)).to(
        memory_format=torch.channels_last
    )
    check_round_trip(model.state_dict(), protocol)
    check_round_trip(dict(model.named_parameters()), protocol)
    contents = read(
        saved({"model": model.state_dict(), "args": argparse.Namespace(lr=0.1), "epoch": 3}, protocol)
    )
    assert contents.root["args"] == Opaque("argparse.Namespace")
    assert contents.root["epoch"] == 3
    weight = contents.locate(contents.root["model"]["0.weight"])
    assert weight.strides == model[0].weight.stride()
    assert same(rebuilt(weight), model[0].weight)


def test_numpy_scalars_beside_the_weights():
    numpy = pytest.importorskip("numpy")
    contents = read(saved({"loss": numpy.float32(2), "w": torch.arange(3)}))
    assert isinstance(contents.root["loss"], Opaque)
    assert same(rebuilt(contents.locate(contents.root["w"])), torch.arange(3))


@st.composite
def views(draw):
    shape = draw(st.lists(st.integers(0, 5), max_size=4))
    dtype = draw(
        st.sampled_from(["float32", "bfloat16", "int64", "bool", "uint16", "float8_e4m3fn", "complex64"])
    )
    size = DTYPES[dtype].itemsize
    count = torch.Size(shape).numel()
    raw = bytearray(index % 3 % 2 for index in range(count * size))
    flat = torch.frombuffer(raw, dtype=torch.uint8) if raw else torch.empty(0, dtype=torch.uint8)
    value = flat.view(getattr(torch, dtype)).view(shape)
    value = value.permute(draw(st.permutations(range(len(shape)))))
    for dimension, length in enumerate(value.shape):
        start = draw(st.integers(0, length))
        value = value[(slice(None),) * dimension + (slice(start, None, draw(st.integers(1, 3))),)]
    return value


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(value=views(), protocol=st.sampled_from(PROTOCOLS))
def test_any_view_has_the_values_of_torch_load(value, protocol):
    check_round_trip({"w": value}, protocol)


def test_tensors_in_c_order_have_no_strides_and_just_their_bytes():
    base = torch.arange(24.0).view(4, 6)
    contents = read(saved({"w": base[1:3], "t": base[:, 1], "one": base[2:3, :].T}))
    stored = {name: contents.locate(tensor) for name, tensor in contents.root.items()}
    assert stored["w"].strides is None
    assert stored["w"].extents[0].nbytes == 48
    assert stored["t"].strides == (6,)
    assert stored["t"].extents[0].nbytes == 4 * (3 * 6 + 1)
    assert stored["one"].strides is None
    assert contents.locate(stored["w"]) is stored["w"]


def test_only_what_describes_the_tensors_is_read():
    source = Bytes(saved({"w": torch.zeros(100_000), "v": torch.zeros(100_000)}))
    contents = read_torch_file(source)
    contents.locate(contents.root["w"])
    contents.locate(contents.root["w"])
    assert sum(nbytes for _, nbytes in source.reads) < 5_000
    before = len(source.reads)
    contents.locate(contents.root["v"])
    assert len(source.reads) == before + 1


def test_a_local_file_is_read_like_bytes_in_memory(tmp_path):
    path = tmp_path / "model.pt"
    torch.save({"w": torch.arange(5)}, path)
    file = LocalFile(path)
    contents = read_torch_file(file)
    assert same(rebuilt(contents.locate(contents.root["w"])), torch.arange(5))
    file.close()


def test_files_of_more_than_4_gib_are_read(tmp_path):
    path = tmp_path / "large.pt"
    with torch.serialization.skip_data():
        torch.save({"w": torch.empty(5 << 30, dtype=torch.uint8), "v": torch.empty(2)}, path)
    file = LocalFile(path)
    contents = read_torch_file(file)
    large, small = (contents.locate(contents.root[name]).extents[0] for name in "wv")
    assert large.nbytes == 5 << 30
    assert small.offset > 5 << 30
    assert large.offset % 64 == small.offset % 64 == 0
    file.close()


def test_64_bit_sizes_may_stand_behind_other_extra_fields():
    data = repacked(saved({"w": torch.arange(3)}))
    record = next(p for p in central_headers(data) if data[p + 46 :].startswith(b"archive/data/0"))
    extra = struct.pack("<HHIHHQ", 7, 4, 0, 1, 8, 24)
    place = record + 46 + len("archive/data/0")
    wide = edited(edited(data, record + 24, "<I", 0xFFFFFFFF), record + 30, "<H", len(extra))
    end = wide.rindex(b"PK\5\6")
    size = struct.unpack_from("<I", wide, end + 12)[0] + len(extra)
    wide = edited(wide, end + 12, "<I", size)
    assert same(rebuilt(located(wide[:place] + extra + wide[place:])), torch.arange(3))


def test_records_rewritten_by_zipfile_and_older_files_are_read():
    data = saved({"w": torch.arange(3)})
    old = repacked(data, lambda name, body: None if "byteorder" in name or "/." in name else (name, body))
    for candidate in (repacked(data), old):
        contents = read(candidate)
        assert same(rebuilt(contents.locate(contents.root["w"])), torch.arange(3))


def test_files_without_checksums_are_read():
    data = bytearray(saved({"w": torch.arange(3)}))
    for position in central_headers(data):
        data[position + 16 : position + 20] = bytes(4)
    assert isinstance(read(bytes(data)).root["w"], TensorDescriptor)


def test_unsupported_tensors_do_not_hide_the_others():
    contents = read(saved({"s": torch.eye(2).to_sparse(), "w": torch.ones(2)}))
    assert isinstance(contents.root["s"], UnsupportedTensor)
    assert same(rebuilt(contents.locate(contents.root["w"])), torch.ones(2))


def test_the_root_may_be_any_object():
    assert read(saved(argparse.Namespace(a=1))).root == Opaque("argparse.Namespace")


# Other zip files, and files that torch would misread.


def test_a_torchscript_archive_is_refused_by_name():
    for records in (
        [("m/data.pkl", b"."), ("m/constants.pkl", b".")],
        [("m/data.pkl", b"."), ("m/code/__torch__.py", b"")],
    ):
        message = refusal(zip_of(records))
        assert "TorchScript" in message
        assert "state_dict" in message


def test_other_zip_files_are_named():
    assert "NumPy archive" in refusal(zip_of([("w.npy", b"x")]))
    assert "without torch's data.pkl" in refusal(zip_of([("a.txt", b"x")]))
    assert "without torch's data.pkl" in refusal(zip_of([("data.pkl", b"N.")]))
    assert "without torch's data.pkl" in refusal(zip_of([("a/b/data.pkl", b"N.")]))
    assert "without torch's data.pkl" in refusal(zip_of([]))
    assert "2 pickles" in refusal(zip_of([("a/data.pkl", b"N."), ("b/data.pkl", b"N.")]))


@pytest.mark.parametrize("version", [b"1", b"3\n", b"10\n"])
def test_reads_the_versions_that_torch_reads(version):
    data = with_record(saved({"w": torch.ones(2)}), "archive/version", version)
    assert torch.load(io.BytesIO(data))["w"].shape == (2,)
    assert read(data).format == "torch zip"


@pytest.mark.parametrize("version", [b"0\n", b"11\n", b"99\n", b"-3\n", b"", b"three", b"0" * 16 + b"99"])
def test_refuses_the_versions_that_torch_refuses(version):
    data = with_record(saved({"w": torch.ones(2)}), "archive/version", version)
    with pytest.raises((RuntimeError, ValueError)):
        torch.load(io.BytesIO(data))
    assert "of torch's format, and at most 10 is read" in refusal(data)


@pytest.mark.parametrize(
    ("order", "word"), [(b"big", "big-endian"), (b"middle", "unknown"), (b"little!", "unknown")]
)
def test_other_byte_orders_are_refused(order, word):
    assert word in refusal(with_record(saved({}), "archive/byteorder", order))


def test_the_pickle_must_match_its_checksum():
    data = saved({"w": torch.ones(2), "note": "abcdef"})
    assert "checksum" in refusal(data.replace(b"abcdef", b"abcdeg"))


def test_a_huge_pickle_is_refused_before_it_is_read(monkeypatch):
    monkeypatch.setattr("swatool.checkpoints.torch_file.MAX_PICKLE", 50)
    assert "more than 50" in refusal(saved({"w": torch.ones(2)}))


def test_a_missing_record_is_refused():
    data = repacked(
        saved({"w": torch.ones(2)}), lambda name, body: None if "/data/" in name else (name, body)
    )
    assert "'archive/data/0' of 'x.pt' is not in the file" in refusal(data, locate=True)


@pytest.mark.parametrize("body", [b"", bytes(4), bytes(12), bytes(9)])
def test_a_record_of_another_length_is_refused(body):
    data = with_record(saved({"w": torch.ones(2)}), "archive/data/0", body)
    assert "instead of 8" in refusal(data, locate=True)


@pytest.mark.parametrize("numel", [0, 5, 7, 1 << 40])
def test_a_storage_that_lies_about_its_length_is_refused(numel):
    assert "instead of" in refusal(described((2, 3), (3, 1), numel=numel), locate=True)


def test_a_storage_of_another_type_is_refused():
    assert "instead of 48" in refusal(described((2, 3), (3, 1), kind="DoubleStorage"), locate=True)


@pytest.mark.parametrize(
    ("shape", "strides", "offset"),
    [
        ((2, 3), (3, 1), 1),
        ((2, 3), (4, 1), 0),
        ((7,), (1,), 0),
        ((1,), (1,), 6),
        ((), (), 6),
        ((2,), (1 << 62,), 0),
        ((1 << 62, 1 << 62), (0, 1), 0),
        ((1,), (1,), (1 << 63) - 1),
    ],
)
def test_a_view_beyond_its_storage_is_refused(shape, strides, offset):
    assert "of 6" in refusal(described(shape, strides, offset), locate=True)


@pytest.mark.parametrize(("shape", "strides"), [((1 << 40,), (0,)), ((1 << 20, 2), (0, 1)), ((4, 3), (1, 1))])
def test_a_view_of_far_more_elements_than_its_storage_is_refused(shape, strides):
    assert ".contiguous()" in refusal(described(shape, strides), locate=True)


def test_what_lies_inside_the_storage_is_accepted():
    for shape, strides, offset in [
        ((1 << 20,), (0,), 5),
        ((0, 1 << 62), (1, 1), 1 << 62),
        ((), (), 5),
        ((6,), (1,), 0),
    ]:
        contents = read(described(shape, strides, offset))
        assert isinstance(contents.locate(contents.root["w"]), StoredTensor)


# The zip itself.


WEIGHTS = {"w": torch.arange(50.0)}


def test_compressed_records_are_refused():
    data = repacked(saved(WEIGHTS), compression=zipfile.ZIP_DEFLATED)
    assert "compressed" in refusal(data)
    data = saved(WEIGHTS)
    assert "compressed" in refusal(edited(data, central_headers(data)[0] + 10, "<H", 8))


def test_encrypted_records_are_refused():
    data = saved(WEIGHTS)
    first = central_headers(data)[0]
    assert "encrypted" in refusal(edited(data, first + 8, "<H", 0x801))
    assert "patch" in refusal(edited(data, first + 8, "<H", 0x828))


@pytest.mark.parametrize(("how", "body"), changed_afterwards().items())
def test_tensors_that_get_other_values_after_they_were_made_are_refused(how, body):
    """No reader that only looks where a tensor was made would see what torch.load gives."""
    records = [("archive/version", b"3\n"), ("archive/data.pkl", program(b"}" + text("w") + body + b"s"))]
    floats = [struct.pack("<6f", *[value] * 6) for value in (1.0, 2.0)]
    data = zip_of([*records, *((f"archive/data/{key}", raw) for key, raw in enumerate(floats))])
    loaded = torch.load(io.BytesIO(data), weights_only=True)["w"].resolve_neg()
    assert (loaded != 1).all()
    if how == "by its metadata":
        assert read(data).root["w"] == UnsupportedTensor("conjugate or negative view")
    else:
        assert ("wrapped already" if "beside" in how else "changes the values of a tensor") in refusal(data)


def test_a_storage_is_named_alike_each_time():
    """Torch takes it as it is named first, whatever type a later tensor names."""
    body = b"}(" + text("a") + pickled() + text("w") + pickled(storage_id(kind="torch.IntStorage")) + b"u"
    data = zip_of([("archive/data.pkl", program(body)), ("archive/data/0", bytes(24))])
    assert "two types or lengths" in refusal(data)


@pytest.mark.parametrize(
    "name", ["archive/BYTEORDER", "archive/DATA.PKL", "archive/data/A", "archive/data/0\0x"]
)
def test_names_that_torch_takes_for_others_are_refused(name):
    records = [("archive/data.pkl", program(b"}")), ("archive/data/0", b"a"), ("archive/data/a", b"a")]
    read(zip_of(records))
    data = zip_of([*records, (name.replace("\0", "_"), b"big")])
    assert "damaged" in refusal(data.replace(name.replace("\0", "_").encode(), name.encode()))


def test_duplicate_records_are_refused():
    records = [("archive/data.pkl", b"\x80\x02N."), ("archive/data/0", b"a"), ("archive/data/1", b"b")]
    data = zip_of(records).replace(b"archive/data/1", b"archive/data/0")
    assert "'archive/data/0' is there twice" in refusal(data)


def test_a_record_inside_another_is_refused():
    data = saved(WEIGHTS)
    headers = central_headers(data)
    record = next(p for p in headers if data[p + 46 :].startswith(b"archive/data/0"))
    (offset,) = struct.unpack_from("<I", data, record + 42)
    assert "overlaps" in refusal(edited(data, headers[-1] + 42, "<I", offset + 70))
    assert "overlaps" in refusal(edited(data, headers[-1] + 42, "<I", offset))
    grown = edited(edited(data, record + 20, "<I", 2000), record + 24, "<I", 2000)
    assert "overlaps" in refusal(grown)


def test_records_that_torch_takes_for_folders_are_refused():
    """torch.load says nothing and gives what lay in memory before."""
    data = saved(WEIGHTS)
    record = next(p for p in central_headers(data) if data[p + 46 :].startswith(b"archive/data/0"))
    assert "marked as a folder" in refusal(edited(data, record + 38, "<B", 0x10))
    assert "part of another file" in refusal(edited(data, record + 34, "<H", 1))


def test_sizes_that_disagree_are_refused():
    data = saved(WEIGHTS)
    assert "compressed" in refusal(edited(data, central_headers(data)[0] + 20, "<I", 1))


def test_a_local_header_that_contradicts_the_directory_is_refused():
    data = saved(WEIGHTS)
    record = data.index(b"archive/data/0")
    header = record - 30
    extra = struct.unpack_from("<H", data, header + 28)[0]
    plain = edited(data, header + 6, "<H", 0x800)
    for lie in (
        edited(data, record + 13, "<B", ord("1")),
        edited(data, header, "<B", ord("Q")),
        edited(data, header + 6, "<H", 0x809),
        edited(data, header + 8, "<H", 8),
        edited(data, header + 22, "<I", 1),
        edited(data, header + 26, "<H", 13),
        edited(data, header + 28, "<H", extra + 300),
        edited(plain, header + 18, "<I", 199),
    ):
        assert "contradicts" in refusal(lie, locate=True)


def test_bytes_before_after_or_beside_the_archive_are_refused():
    data = saved(WEIGHTS)
    for junk in (b"junk" + data, data + b"junk", data + bytes(100)):
        refusal(junk)
    assert "directory" in refusal(repacked(data) + b"x" * 30)
    end = data.rindex(b"PK\5\6")
    assert "directory" in refusal(edited(data, end + 20, "<H", 4) + b"note")
    assert "directory" in refusal(edited(data, end + 20, "<H", 4))


def test_the_first_record_begins_the_file():
    data = zip_of([("archive/data.pkl", b"\x80\x02N.")])
    directory = data.index(b"PK\1\2")
    shifted = edited(b"junk" + data, 4 + directory + 42, "<I", 4)
    assert "first byte" in refusal(edited(shifted, len(shifted) - 6, "<I", directory + 4))


def test_lies_at_the_end_of_the_archive_are_refused():
    data = saved(WEIGHTS)
    wide = data.rindex(b"PK\6\6")
    locator = data.rindex(b"PK\6\7")
    end = data.rindex(b"PK\5\6")
    lies = [
        edited(data, wide, "<B", 0),
        edited(data, wide + 4, "<Q", 45),
        edited(data, wide + 16, "<I", 1),
        edited(data, wide + 24, "<Q", 1),
        edited(data, wide + 32, "<Q", 1 << 40),
        edited(data, wide + 40, "<Q", 10),
        edited(data, wide + 48, "<Q", 0),
        edited(data, locator, "<B", 0),
        edited(data, locator + 8, "<Q", 0),
        edited(data, end + 10, "<H", 1),
        edited(data, end + 12, "<I", 1),
        edited(data, end + 16, "<I", 1),
        edited(edited(data, wide + 24, "<Q", 10**6), wide + 32, "<Q", 10**6),
    ]
    for lie in lies:
        refusal(lie)
    short = repacked(data)
    end = short.rindex(b"PK\5\6")
    for position, layout in ((4, "<H"), (8, "<H"), (12, "<I"), (16, "<I")):
        refusal(edited(short, end + position, layout, 1))
    refusal(edited(edited(short, end + 8, "<H", 0xFFFF), end + 10, "<H", 0xFFFF))


@pytest.mark.parametrize(("change", "reason"), [(-1, "more than it claims"), (1, "too early")])
def test_a_wrong_number_of_records_is_refused(change, reason):
    data = repacked(saved(WEIGHTS))
    end = data.rindex(b"PK\5\6")
    count = len(central_headers(data)) + change
    assert reason in refusal(edited(edited(data, end + 8, "<H", count), end + 10, "<H", count))


def test_a_zip64_locator_without_its_end_is_refused():
    end = b"PK\5\6" + bytes(18)
    assert "cut off" in refusal(bytes(8) + b"PK\6\7" + bytes(16) + end)


def test_too_many_records_are_refused_before_the_directory_is_read():
    data = saved(WEIGHTS)
    end = data.rindex(b"PK\5\6")
    wide = data.rindex(b"PK\6\6")
    many = edited(edited(data, wide + 24, "<Q", 200_001), wide + 32, "<Q", 200_001)
    many = edited(edited(many, end + 8, "<H", 0xFFFF), end + 10, "<H", 0xFFFF)
    assert "200,001" in refusal(many)


def test_names_that_are_not_utf8_and_lost_64_bit_sizes_are_refused():
    data = saved(WEIGHTS)
    first = central_headers(data)[0]
    assert "UTF-8" in refusal(edited(data, first + 46, "<B", 0xFF))
    assert "64-bit" in refusal(edited(data, first + 24, "<I", 0xFFFFFFFF))
    assert "directory" in refusal(edited(data, first + 28, "<H", 0xFFFF))


def test_a_truncated_file_is_refused_wherever_it_ends():
    data = saved(WEIGHTS)
    for end in range(0, len(data), 7):
        refusal(data[:end])
    short = repacked(data)
    for end in range(len(short) - 60, len(short)):
        refusal(short[:end])


def test_random_damage_raises_nothing_but_checkpoint_errors():
    dice = random.Random(99)
    seeds = [saved(WEIGHTS), repacked(saved({"w": torch.ones(3), "n": argparse.Namespace()}))]
    outcomes = {"refused": 0, "accepted": 0}
    for _ in range(1500):
        data = bytearray(dice.choice(seeds))
        # Half of the damage strikes the directory, which decides where everything lies.
        first = data.index(b"PK\1\2") if dice.random() < 0.5 else 0
        for _ in range(dice.randint(1, 3)):
            position = dice.randrange(first, len(data))
            if dice.random() < 0.8:
                data[position] = dice.choice((0, 1, 0xFF, dice.randrange(256)))
            else:
                del data[position : position + dice.randint(1, 30)]
        try:
            contents = read(bytes(data))
            weight = contents.root.get("w") if type(contents.root) is dict else None
            if isinstance(weight, TensorDescriptor):
                rebuilt(contents.locate(weight))
        except CheckpointError:
            outcomes["refused"] += 1
        else:
            outcomes["accepted"] += 1
    assert outcomes["refused"] > 500
    assert outcomes["accepted"] > 100
