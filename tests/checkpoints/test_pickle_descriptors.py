"""The pickle interpreter: it describes what torch.save writes, and runs nothing of what a stranger wrote."""

import argparse
import collections
import datetime
import decimal
import enum
import gc
import io
import os
import pathlib
import pickle
import random
import struct
import subprocess
import sys
import warnings
import zipfile

import pytest
import torch
from hanging import no_hang
from hostile.pickles import (
    attacks,
    call,
    deep,
    doubling,
    foreign_opcodes,
    named,
    number,
    program,
    storage_id,
    tensor,
    text,
    tuple_of,
)
from hypothesis import given
from hypothesis import strategies as st

from swatool.checkpoints.contents import Opaque, TensorDescriptor, Unnamed, UnsupportedTensor
from swatool.checkpoints.pickle_descriptors import load_descriptors, next_descriptors
from swatool.errors import CheckpointError
from swatool.tensors import DTYPES

PROTOCOLS = (2, 3, 4, 5)
WHERE = "'x.pt'"


class Colour(enum.Enum):
    RED = 1


class Subclass(torch.Tensor):
    pass


def saved_pickle(value, protocol=2):
    file = io.BytesIO()
    torch.save(value, file, pickle_protocol=protocol)
    with zipfile.ZipFile(file) as archive:
        return archive.read("archive/data.pkl")


def describe(value, protocol=2):
    return load_descriptors(saved_pickle(value, protocol), WHERE)


def refusal(data):
    with pytest.raises(CheckpointError) as caught:
        load_descriptors(data, WHERE)
    message = str(caught.value)
    assert message.startswith(WHERE)
    assert "\n" not in message
    assert message.isascii()
    assert "weights_only" not in message
    return message


WEIGHTS = TensorDescriptor(DTYPES["float32"], (2, 3), (3, 1), "0", 24, 0)


# What torch.save writes.


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_every_dtype_is_described(dtype, protocol):
    base = torch.zeros(24 * dtype.itemsize, dtype=torch.uint8).view(getattr(torch, dtype.name))
    view = base.view(4, 6)[1:, ::2]
    expected = TensorDescriptor(dtype, (3, 3), (6, 2), "0", 24 * dtype.itemsize, 6)
    assert describe([view], protocol) == [expected]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_module_is_described_by_its_state_dict(protocol):
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    found = describe(model.state_dict(), protocol)
    assert {name: value.shape for name, value in found.items()} == {
        name: tuple(value.shape) for name, value in model.state_dict().items()
    }
    assert type(found) is dict


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_plain_values_come_out_as_they_are(protocol):
    value = {
        "numbers": [0, 255, 256, 65535, 65536, -1, 2**31, -(2**40), 2**200, 1.5, float("inf")],
        "words": ["", "\u00e9\u4e2d\U0001f600", "x" * 300, None, True, False],
        "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), torch.Size([2, 3])],
        "dicts": [{}, {1: "a", -5: "b"}, collections.OrderedDict(a=1), collections.defaultdict(list, b=[])],
        7: [],
    }
    assert describe(value, protocol) == value


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_is_shared_and_cyclic_stays_so(protocol):
    inner = {"a": 1}
    loop = [inner, inner]
    loop.append(loop)
    pair = ([],)
    pair[0].append(pair)
    found, found_pair = describe([loop, pair], protocol)
    assert found[0] is found[1]
    assert found[2] is found
    assert found_pair[0][0] is found_pair


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_parameters_and_tensors_with_attributes_are_tensors(protocol):
    plain = torch.nn.Parameter(torch.zeros(2, 3))
    marked = torch.nn.Parameter(torch.zeros(2, 3))
    marked.note = "kept by the optimizer"
    noted = torch.zeros(2, 3)
    noted.note = "here too"
    buffer = torch.nn.Buffer(torch.zeros(2, 3))
    found = describe([plain, marked, noted, buffer], protocol)
    assert [value.storage for value in found] == ["0", "1", "2", "3"]
    assert all(value.shape == (2, 3) for value in found)


@pytest.mark.parametrize(
    "kind", ["torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer"]
)
@pytest.mark.parametrize("function", ["_rebuild_from_type", "_rebuild_from_type_v2"])
def test_types_that_add_nothing_to_a_tensor_are_tensors(kind, function):
    arguments = tuple_of(
        storage_id(), number(0), tuple_of(number(2), number(3)), tuple_of(number(3), number(1))
    )
    inner = named("torch._utils._rebuild_tensor") + named(kind) + arguments + b"}"
    assert (
        load_descriptors(program(named(f"torch._tensor.{function}") + b"(" + inner + b"tR"), WHERE) == WEIGHTS
    )


def quantized():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.quint8)


def nested():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: torch.eye(2).to_sparse(), "sparse"),
        (lambda: torch.zeros(2, device="meta"), "meta"),
        (quantized, "quantized"),
        (nested, "nested"),
        (lambda: torch.zeros(2).as_subclass(Subclass), "Subclass"),
        (lambda: torch.zeros(2, dtype=torch.complex64).conj(), "conjugate"),
        (lambda: torch.zeros(2, dtype=torch.complex64).conj().imag, "negative"),
        (lambda: torch.zeros(2, dtype=torch.int32).view(torch.bits16), "bits16"),
    ],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_other_kinds_of_tensors_are_named(make, kind, protocol):
    found = describe({"w": make(), "v": torch.ones(1)}, protocol)
    assert isinstance(found["w"], UnsupportedTensor)
    assert kind in found["w"].kind
    assert isinstance(found["v"], TensorDescriptor)


@pytest.mark.parametrize(
    "function", ["wrapper_subclass", "device_tensor_from_numpy", "xla_tensor", "qtensor"]
)
def test_rebuild_functions_that_need_their_library_give_unsupported_tensors(function):
    found = load_descriptors(program(named(f"torch._utils._rebuild_{function}") + b")R"), WHERE)
    assert isinstance(found, UnsupportedTensor)


def test_device_tensors_kept_on_the_cpu_are_tensors():
    call = named("torch._utils._rebuild_device_tensor_from_cpu_tensor")
    same = tuple_of(tensor(), named("torch.float32"), text("xla:0"), b"\x89")
    other = tuple_of(tensor(), named("torch.bfloat16"), text("xla:0"), b"\x89")
    assert load_descriptors(program(call + same + b"R"), WHERE) == WEIGHTS
    assert isinstance(load_descriptors(program(call + other + b"R"), WHERE), UnsupportedTensor)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("value", "name"),
    [
        (argparse.Namespace(lr=0.1, betas=(0.9, 0.99)), "argparse.Namespace"),
        (Colour.RED, "Colour"),
        (pathlib.PurePosixPath("a/b"), "pathlib"),
        (datetime.datetime(2024, 1, 1), "datetime.datetime"),
        (decimal.Decimal("1.5"), "decimal.Decimal"),
        (collections.Counter("aab"), "collections.Counter"),
        (torch.device("cpu"), "torch.device"),
        (torch.float32, "torch.float32"),
        (torch.zeros(3).untyped_storage(), "UntypedStorage"),
        (complex(1, 2), "complex"),
        (slice(1, 2), "slice"),
        (range(3), "range"),
        ({1, 2}, "set"),
        (frozenset({1}), "frozenset"),
        (b"bytes" * 500, ""),
        (bytearray(b"bytes"), "bytearray"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_objects_are_inert_and_leave_the_weights_readable(value, name, protocol):
    found = describe({"w": torch.zeros(2, 3), "object": value}, protocol)
    assert isinstance(found["object"], Opaque)
    assert name in found["object"].name
    assert found["w"] == WEIGHTS
    assert isinstance(describe(value, protocol), Opaque)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_numpy_values_are_inert(protocol):
    numpy = pytest.importorskip("numpy")
    found = describe(
        {"loss": numpy.float64(0.5), "curve": numpy.arange(5000), "w": torch.zeros(2, 3)}, protocol
    )
    assert isinstance(found["loss"], Opaque)
    assert isinstance(found["curve"], Opaque)
    assert found["w"] == WEIGHTS


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_many_values_may_be_shared(protocol):
    parts = [[index] for index in range(400)]
    found = describe([parts, parts[::-1]], protocol)
    assert all(left is right for left, right in zip(found[0], found[1][::-1], strict=True))


def test_objects_made_with_keywords_or_of_odd_sizes_are_inert():
    keywords = named("a.Class", 4) + b")}\x92"
    assert load_descriptors(program(keywords, 4), WHERE) == Opaque("a.Class")
    assert load_descriptors(program(named("torch.Size") + b"]\x85R"), WHERE) == Opaque("torch.Size")


def test_lazy_views_of_newer_dtypes_are_unsupported():
    arguments = (
        storage_id(),
        number(0),
        b")",
        b")",
        b"\x89}",
        named("torch.uint16"),
        b"}" + text("neg") + b"\x88s",
    )
    body = named("torch._utils._rebuild_tensor_v3") + tuple_of(*arguments) + b"R"
    assert isinstance(load_descriptors(program(body), WHERE), UnsupportedTensor)


def test_optimizer_states_keep_their_tensors():
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adam([weight])
    weight.sum().backward()
    optimizer.step()
    found = describe(optimizer.state_dict())
    assert found["state"][0]["exp_avg"].shape == (3,)
    assert found["param_groups"][0]["params"] == [0]


def test_python_2_pickles_are_read():
    pairs = (
        b"]"
        + b"("
        + b"]("
        + b"U\x01a"
        + number(1)
        + b"e"
        + b"]("
        + b"T\1\0\0\0b"
        + b"I99999999999\n"
        + b"e"
        + b"e"
    )
    ordered = named("collections.OrderedDict") + b"(" + pairs + b"t" + b"R"
    assert load_descriptors(program(ordered), WHERE) == {"a": 1, "b": 99999999999}
    assert load_descriptors(program(b"U\x02\xff\xfe"), WHERE) == Opaque("builtins.bytes")


def test_the_state_of_a_dict_does_not_replace_its_items():
    fake = b"}" + text("w") + number(1) + b"s}" + text("items") + named("torch.Size") + b"sb"
    assert load_descriptors(program(fake), WHERE) == {"w": 1}


def test_keys_that_are_not_texts_or_small_integers_are_dropped():
    found = describe({"a": 1, 2: 2, True: 3, 0.5: 4, (1,): 5, None: 6, 2**40: 7, Colour.RED: 8})
    assert found == {"a": 1, 2: 2}


# Attacks.


def test_attacks_are_refused_by_name_and_nothing_runs(tmp_path):
    canary = tmp_path / "canary"
    for name, data in attacks(canary):
        assert f"would call {name} when unpickled: refused" in refusal(data)
    for body in foreign_opcodes(canary):
        assert "opcode" in refusal(program(body))
    assert os.listdir(tmp_path) == []


def test_the_attacks_are_real(tmp_path):
    canary = tmp_path / "canary"
    pickle.loads(program(call("os.mkdir", str(canary), 4), 4))
    assert canary.exists()


def test_harmless_looking_calls_stay_inert():
    for body in (
        named("builtins.bytearray") + number(3 << 30) + b"\x85R",
        named("torch.FloatStorage") + number(1 << 40) + b"\x85R",
        named("builtins.getattr") + named("argparse.Namespace") + text("__class__") + b"\x86R" + b")R",
        named("functools.partial") + named("builtins.getattr") + b"\x85R" + b")R",
        named("torch._tensor._rebuild_from_type_v2")
        + tuple_of(named("builtins.bytearray"), named("torch.Tensor"), tuple_of(number(3 << 30)), b"}")
        + b"R",
    ):
        assert isinstance(load_descriptors(program(body), WHERE), Opaque)


AUDIT = """
import sys
from pathlib import Path
from swatool.checkpoints.files import LocalFile
from swatool.checkpoints.pickle_descriptors import load_descriptors, next_descriptors
from swatool.checkpoints.torch_file import read_torch_file
from swatool.errors import CheckpointError

files = [(path, path.read_bytes()) for path in sorted(Path(sys.argv[1]).iterdir())]
events = []
HARMLESS = {"object.__getattr__", "gc.collect"}
before = set(sys.modules)

def audit(event, args):
    reading = event == "open" and args[1] in (None, "r", "rb") and not args[2] & 3
    if not reading and event not in HARMLESS:
        events.append((event, repr(args)[:80]))

sys.addaudithook(audit)
for path, data in files:
    for read in (lambda: load_descriptors(data, "x"), lambda: read_torch_file(LocalFile(path))):
        try:
            read()
        except CheckpointError:
            pass
found = list(events)
assert not found, found
assert set(sys.modules) == before
assert "torch" not in sys.modules
print(len(files))
"""


def test_no_import_no_call_no_write_is_seen_by_an_audit_hook(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    bodies = [data for _, data in attacks(tmp_path / "canary")]
    bodies += [program(body) for body in foreign_opcodes(tmp_path / "canary")]
    bodies.append(saved_pickle({"n": argparse.Namespace(a=1), "w": torch.ones(2)}))
    for index, data in enumerate(bodies):
        with zipfile.ZipFile(folder / f"{index}.pt", "w") as archive:
            archive.writestr("archive/data.pkl", data)
        (folder / f"{index}.pkl").write_bytes(data)
    run = subprocess.run([sys.executable, "-c", AUDIT, folder], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) == 2 * len(bodies)
    assert os.listdir(tmp_path) == ["corpus"]


# Damage and lies.

BAD_LENGTH = "non-negative 64-bit"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"0", "not there"),
        (b"\x85", "not there"),
        (b"t", "not there"),
        (b"K\x01(\x85", "not there"),
        (b"K\x01(b", "not there"),
        (b"(Nbt", "not there"),
        (b"h\x05", "not stored"),
        (b"j\xff\xff\xff\xff", "not stored"),
        (b"X\x05\0\0\0\xff\xfe\xfd\xfc\xfb", "UTF-8"),
        (b"X\xff\xff\xff\xffa", "within a value"),
        (b"\x8d" + b"\xff" * 8 + b"a", "within a value"),
        (b"\x8e" + b"\xff" * 8, "within a value"),
        (b"\x96" + b"\xff" * 8, "within a value"),
        (b"\x8b\xff\xff\xff\x7f1", "within a value"),
        (b"\x95" + b"\xff" * 8, "within a value"),
        (b"G\0\0", "within a number"),
        (b"\x80\x06N", "protocol 6"),
        (b"cos", "without an end"),
        (b"c\xff\nx\n", "UTF-8"),
        (b"c" + b"a" * 300 + b"\nb\n", "two short texts"),
        (b"NN\x93", "two short texts"),
        (text("a" * 300) + text("b") + b"\x93", "two short texts"),
        (b"Iabc\n", "number"),
        (b"I" + b"1" * 5000 + b"\n", "without an end"),
        (b"", "one value"),
        (b"NN", "one value"),
        (b"(N", "one value"),
        (b"N.N", "after its end"),
        (b"K\x01N\x85R", "not a function"),
        (named("a.b") + b"NR", "not a function"),
        (b"N)}\x92", "not a class"),
        (b"NNa", "not a list"),
        (b"}(Ne", "not a list"),
        (b"](NNu", "not a dict"),
        (b"}(NNNu", "without a value"),
        (b"N(N\x90", "not a set"),
        (b"NQ", "persistent id"),
        (text("0") + b"Q", "persistent id"),
        (
            tuple_of(text("module"), named("torch.FloatStorage"), text("0"), text("cpu"), number(1)) + b"Q",
            "persistent",
        ),
        (tuple_of(text("storage"), text("x"), text("0"), text("cpu"), number(1)) + b"Q", "persistent id"),
        (tuple_of(text("storage"), storage_id(), text("0"), text("cpu"), number(1)) + b"Q", "persistent id"),
        (storage_id(numel=-1), "impossible length"),
        (storage_id(numel=1 << 63), "impossible length"),
        (tensor(offset=number(-1)), BAD_LENGTH),
        (tensor(offset=b"G" + bytes(8)), BAD_LENGTH),
        (tensor(shape=tuple_of(number(-2), number(3))), BAD_LENGTH),
        (tensor(shape=tuple_of(b"\x88", number(3))), BAD_LENGTH),
        (tensor(shape=tuple_of(number(1 << 63), number(3))), BAD_LENGTH),
        (tensor(strides=tuple_of(number(-3), number(1))), BAD_LENGTH),
        (tensor(strides=tuple_of(number(1))), "1 strides"),
        (tensor(shape=b"]", strides=b"]"), "without shape"),
        (tensor(shape=tuple_of(*[number(1)] * 65), strides=tuple_of(*[number(1)] * 65)), "65 dimensions"),
        (tensor(storage=b"N"), "not a storage"),
        (tensor(storage=storage_id(kind="torch.storage.UntypedStorage")), "unknown type"),
        (tensor(rest=b""), "wrong number"),
        (named("torch._utils._rebuild_tensor") + b")R", "too few"),
        (named("torch._utils._rebuild_tensor_v3") + b")R", "wrong number"),
        (named("torch._utils._rebuild_parameter") + b")R", "not a tensor"),
        (named("torch._utils._rebuild_parameter") + b"N\x85R", "not a tensor"),
        (named("torch._utils._rebuild_device_tensor_from_cpu_tensor") + b")R", "not a tensor"),
        (named("torch._tensor._rebuild_from_type_v2") + b")R", "wrong number"),
        (
            named("torch._tensor._rebuild_from_type_v2") + tuple_of(b"N", b"N", b"N", b"N") + b"R",
            "wrong kind",
        ),
        (named("collections.OrderedDict") + b"N\x85R", "list of pairs"),
        (named("collections.OrderedDict") + b"]Na\x85R", "list of pairs"),
    ],
)
def test_damage_is_told_in_one_sentence(body, reason):
    assert reason in refusal(program(body))


def test_a_pickle_that_stops_early_is_refused_wherever_it_stops():
    data = saved_pickle({"w": torch.ones(2), "n": argparse.Namespace(a=1)})
    for end in range(len(data)):
        refusal(data[:end])


def test_a_tensor_of_a_dtype_that_is_none_is_refused():
    arguments = (storage_id(), number(0), tuple_of(number(1)), tuple_of(number(1)), b"\x89}", text("float32"))
    assert "not a dtype" in refusal(
        program(named("torch._utils._rebuild_tensor_v3") + tuple_of(*arguments) + b"R")
    )


def test_names_from_the_file_are_printed_escaped():
    message = refusal(program(text("os") + text("\x1b[2J\nsystem") + b"\x93"))
    assert "\x1b" not in message


# Bombs: each of these hangs, kills or bloats some other reader.


def test_bombs_neither_hang_nor_kill():
    with no_hang(60):
        load_descriptors(deep(300_000), WHERE)
        load_descriptors(program(b"]" * 300_000 + b"a" * 299_999), WHERE)
        assert load_descriptors(program(b"}" + b"N" + b"\x85" * 300_000 + b"Ns"), WHERE) == {}
        assert load_descriptors(program(b"}" + doubling(200) + b"Ns"), WHERE) == {}
        refusal(program(doubling(200) + b"Q"))
        refusal(program(tensor(shape=doubling(200))))
        refusal(program(tensor(offset=doubling(200))))
        rewrap = named("torch._tensor._rebuild_from_type_v2") + named("torch.Tensor")
        types = (
            named("torch._tensor._rebuild_from_type_v2")
            + (b"(" + rewrap) * 20_000
            + b")"
            + b"}t" * 20_000
            + b"R"
        )
        assert "wrapped already" in refusal(program(types))


def test_too_many_opcodes_are_refused():
    assert "holds far more than its tensors need" in refusal(program(b"N0" * 2_500_000))


def test_a_large_memo_index_costs_nothing():
    assert load_descriptors(program(b"Nr\xff\xff\xff\x7f"), WHERE) is None


def test_long_values_are_not_materialised():
    big = 2 << 20
    long_text = b"X" + struct.pack("<I", big) + b"a" * big
    long_integer = b"\x8b" + struct.pack("<I", big) + b"\x7f" * big
    assert load_descriptors(program(long_text), WHERE) == Opaque("builtins.str")
    assert load_descriptors(program(long_integer), WHERE) == Opaque("builtins.int")


def test_a_list_of_pairs_makes_one_dict_only():
    pairs = b"](](" + text("a") + b"Neeq\x01"
    made = named("collections.OrderedDict") + b"h\x01\x85R"
    assert load_descriptors(program(pairs + b"0" + made), WHERE) == {"a": None}
    assert "list of pairs" in refusal(program(pairs + b"0" + made + b"0" + made))
    twice = b"]q\x010" + made + b"0" + made  # from Python 2, an empty one
    assert load_descriptors(program(twice), WHERE) == {}
    assert "container" in refusal(program(pairs + b"0" + made[:-1] + b"\x81"))


def test_names_cannot_be_multiplied():
    words = b"".join(text(f"{i:0200d}") + b"q" + bytes([i]) + b"0" for i in range(200))
    crossed = b"".join(b"h%ch%c\x930" % (i, j) for i in range(200) for j in range(200))
    assert "names more than" in refusal(program(words + crossed + b"N"))
    same = load_descriptors(program(b"](" + named("a.b") * 100 + b"e"), WHERE)
    assert len({id(value) for value in same}) == 1


def test_crafted_integer_keys_do_not_collide():
    modulus = sys.hash_info.modulus
    body = b"}" + b"(" + b"".join(number(i * modulus) + b"N" for i in range(1, 20_000)) + b"u"
    with no_hang():
        assert load_descriptors(program(body), WHERE) == {}


def test_random_damage_raises_nothing_but_checkpoint_errors():
    dice = random.Random(20240607)
    seeds = [
        saved_pickle(
            {
                "model": torch.nn.BatchNorm1d(3).state_dict(),
                "args": argparse.Namespace(a=[1.5, "x"], c=Colour.RED),
                "v3": torch.zeros(2, dtype=torch.uint16),
                "p": torch.nn.Parameter(torch.ones(1)),
            },
            protocol,
        )
        for protocol in PROTOCOLS
    ]
    refused = 0
    for _ in range(3000):
        data = bytearray(dice.choice(seeds))
        for _ in range(dice.randint(1, 4)):
            start = dice.randrange(len(data))
            change = dice.randrange(4)
            if change == 0:
                data[start] = dice.randrange(256)
            elif change == 1:
                del data[start : start + dice.randint(1, 8)]
            elif change == 2:
                data[start:start] = dice.randbytes(dice.randint(1, 4))
            else:
                other = dice.randrange(len(data))
                data[start:start] = data[other : other + dice.randint(1, 40)]
        try:
            load_descriptors(bytes(data), WHERE)
        except CheckpointError:
            refused += 1
    assert refused > 1000


def test_random_opcodes_raise_nothing_but_checkpoint_errors():
    dice = random.Random(7)
    opcodes = b"()]}N\x88\x85\x86\x87tRQbaesu0122q\x00h\x00K\x94\x81\x92\x90\x91\x8fcX\x8c\x93"
    for _ in range(3000):
        body = bytes(dice.choices(opcodes, k=dice.randint(1, 60)))
        try:
            load_descriptors(program(body), WHERE)
        except CheckpointError:
            continue


# A pickle that is read piece by piece, or stands in front of something else.


def outcome(load, *arguments):
    try:
        return load(*arguments)
    except CheckpointError as error:
        return str(error)


def pieces(monkeypatch, size):
    monkeypatch.setattr("swatool.checkpoints.pickle_machine.PIECE", size)
    monkeypatch.setattr("swatool.checkpoints.pickle_values.MAX_TEXT", 1000)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_it_does_not_matter_where_one_piece_ends_and_the_next_begins(monkeypatch, protocol):
    value = {
        "model": torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)).state_dict(),
        "args": argparse.Namespace(a=[1.5, "x" * 900], b="y" * 5000, c=b"z" * 5000),
        "numbers": [0, 300, 70_000, -1, 2**40, 1.5, "\u4e2d"] * 50,
    }
    data = saved_pickle(value, protocol)
    pieces(monkeypatch, 1 << 20)
    expected = load_descriptors(data, WHERE)
    for size in range(2100, 2200):
        pieces(monkeypatch, size)
        assert load_descriptors(data, WHERE) == expected


def test_damage_is_found_the_same_wherever_a_piece_ends(monkeypatch):
    dice = random.Random(8)
    opcodes = b"()]}N\x88\x85\x86\x87tRQbaesu0122q\x00h\x00K\x94\x81\x92\x90\x91\x8fcX\x8c\x93"
    for _ in range(1500):
        # A piece ends somewhere in the damage.
        body = b"N0" * 1025 + bytes(dice.choices(opcodes, k=dice.randint(1, 60)))
        data = program(body + b"N0" * dice.randrange(2))
        pieces(monkeypatch, 1 << 20)
        expected = outcome(load_descriptors, data, WHERE)
        pieces(monkeypatch, 2100 - dice.randrange(48))
        assert outcome(load_descriptors, data, WHERE) == expected


def test_an_operation_without_its_values_is_not_tried_again_with_the_next_piece(monkeypatch):
    # Of these values the second operation would take the first one's; the piece ends behind the operation.
    body = b"N0" * 1022 + b"]((K\1e"
    for size in range(len(body) - 2, len(body) + 6):
        pieces(monkeypatch, size)
        assert "takes a value that is not there" in refusal(program(body))


def test_a_pickle_may_stand_in_front_of_another():
    first, second = saved_pickle({"w": torch.ones(6).view(2, 3)}), pickle.dumps([1, "x"], 2)
    data = b"junk" + first + second + b"more"

    def read(offset, nbytes):
        return data[offset : offset + nbytes]

    value, end = next_descriptors(read, (4, len(data)), WHERE)
    assert value == {"w": WEIGHTS}
    assert end == 4 + len(first)
    assert next_descriptors(read, (end, len(data)), WHERE) == ([1, "x"], end + len(second))
    with pytest.raises(CheckpointError, match="near byte 0"):
        next_descriptors(read, (end + len(second), len(data)), WHERE)
    with pytest.raises(CheckpointError, match="ends"):
        next_descriptors(read, (4, 4 + len(first) - 1), WHERE)


def test_what_is_stepped_over_is_not_read():
    got = []
    total = 3 << 30
    head = b"\x80\x04](" + b"\x8e" + struct.pack("<Q", total)

    def read(offset, nbytes):
        got.append(nbytes)
        inside = max(0, len(head) - offset)
        return (head[offset : offset + nbytes] + bytes(max(0, nbytes - inside)))[:nbytes]

    with pytest.raises(CheckpointError, match=f"near byte {len(head) + total}"):
        next_descriptors(read, (0, len(head) + total + 10), WHERE)
    assert sum(got) < 5 << 20


def test_the_collector_is_left_as_it_was():
    for enabled in (True, False):
        (gc.enable if enabled else gc.disable)()
        try:
            load_descriptors(program(b"N"), WHERE)
            assert gc.isenabled() == enabled
            refusal(program(b"0"))
            assert gc.isenabled() == enabled
        finally:
            gc.enable()


@given(st.lists(st.tuples(st.sampled_from(["q", "r", "\x94"]), st.integers(0, 6)), max_size=12))
def test_the_memo_is_numbered_as_python_numbers_it(puts):
    """Whatever order a pickle numbers its values in, and however often one number."""
    body = b""
    for place, (opcode, index) in enumerate(puts):
        number = {"q": bytes([index]), "r": index.to_bytes(4, "little"), "\x94": b""}[opcode]
        body += b"X\1\0\0\0" + bytes([97 + place]) + opcode.encode("latin-1") + number
    for index in range(9):
        data = b"\x80\x04(" + body + b"h" + bytes([index]) + b"t."
        try:
            expected = pickle.loads(data)
        except pickle.UnpicklingError:
            with pytest.raises(CheckpointError):
                load_descriptors(data, "file")
        else:
            assert load_descriptors(data, "file") == expected


@pytest.mark.parametrize("digits", [b"04000", b"-04", b"00", b"01", b"-01"])
def test_numbers_that_readers_take_differently_are_refused(digits):
    with pytest.raises(CheckpointError, match="holds a number that is none"):
        load_descriptors(b"\x80\x02I" + digits + b"\n.", "file")


def test_a_defaultdict_that_holds_something_from_the_start_is_refused():
    data = b"\x80\x02ccollections\ndefaultdict\nN}X\1\0\0\0aK\1s\x86R."
    assert pickle.loads(data) == {"a": 1}
    with pytest.raises(CheckpointError, match="makes a defaultdict of something that it would hold"):
        load_descriptors(data, "file")


def test_among_records_nothing_unknown_is_called():
    data = b"\x80\x02(}q\0coperator\nsetitem\nh\0X\1\0\0\0aK\1\x87Rt."
    assert pickle.loads(data) == ({"a": 1}, None)
    with pytest.raises(CheckpointError, match=r"calls 'operator\.setitem', which has no place in it"):
        load_descriptors(data, "file", records=("some.Record",))


def test_tensors_under_keys_that_are_no_texts_are_told():
    file = io.BytesIO()
    one = torch.ones(2)
    torch.save({"a": one, b"k": one, ("l", 1): one, 3: one, "x" * 4_000_000: one, None: 7}, file)
    with zipfile.ZipFile(file) as archive:
        found = load_descriptors(archive.read("archive/data.pkl"), "file")
    unnamed = [str(key) for key in found if isinstance(key, Unnamed)]
    assert unnamed == ["a tensor under something that is no text"] * 3
    assert [key for key in found if not isinstance(key, Unnamed)] == ["a", 3]
