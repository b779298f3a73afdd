"""The header of .npy arrays: what NumPy writes is read, and nothing in it is believed or run."""

import io
import pickle
import struct
import warnings
from importlib.util import find_spec

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swatool.data.npy_header import MAX_BEGINNING, read_npy_header
from swatool.errors import DataError

needs_numpy = pytest.mark.skipif(find_spec("numpy") is None, reason="NumPy's own writer is the reference")
PLAIN = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }"


def header(text, version=(1, 0), length=None):
    raw = text if isinstance(text, bytes) else text.encode()
    form = "<H" if version[0] == 1 else "<I"
    return b"\x93NUMPY" + bytes(version) + struct.pack(form, len(raw) if length is None else length) + raw


def described(descr="'<f4'", order="False", shape="(2, 3)", more=""):
    return header(f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, {more}}}")


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_every_version_is_read(version):
    raw = header(PLAIN, version)
    found = read_npy_header(raw, "'x.npy'")
    assert (found.dtype.name, found.swapped, found.shape) == ("float32", False, (2, 3))
    assert (found.begin, found.end) == (len(raw), len(raw) + 24)


@needs_numpy
@pytest.mark.parametrize("kind", ["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("shape", [(), (5,), (0, 3), (2, 3, 4)])
def test_what_numpy_writes_is_read(kind, order, shape):
    import numpy

    array = numpy.zeros(shape, order + kind)
    file = io.BytesIO()
    numpy.save(file, array)
    found = read_npy_header(file.getvalue()[:MAX_BEGINNING], "'x.npy'")
    assert found.dtype.name == array.dtype.name
    assert found.shape == shape
    assert found.swapped == (order == ">" and array.itemsize > 1)
    assert found.end == len(file.getvalue())


@needs_numpy
def test_fortran_order_is_refused_unless_it_makes_no_difference():
    import numpy

    file = io.BytesIO()
    numpy.save(file, numpy.asfortranarray(numpy.zeros((3, 4))))
    with pytest.raises(DataError, match=r"Fortran order.*ascontiguousarray"):
        read_npy_header(file.getvalue(), "'x.npy'")
    assert read_npy_header(described(order="True", shape="(6,)"), "'x.npy'").shape == (6,)


DAMAGED = {
    "empty": b"",
    "other format": b"PK\3\4" + bytes(100),
    "no version": b"\x93NUMPY",
    "version 4": header(PLAIN, (4, 0)),
    "version 1.1": header(PLAIN, (1, 1)),
    "no length": b"\x93NUMPY\1\0",
    "cut within the header": header(PLAIN)[:40],
    "length beyond the end": header(PLAIN, length=9000),
    "giant length": header(PLAIN, (2, 0), length=2**32 - 1),
    "not UTF-8": header(b"\xff\xfe" + PLAIN.encode(), (3, 0)),
    "NUL bytes": header(PLAIN + "\0"),
    "code": header("__import__('os').abort()"),
    "code in a value": described(shape="(__import__('os').abort(), 2)"),
    "deep brackets": header("(" * 9000),
    "deep lists": header("[" * 3000 + "]" * 3000),
    "deep minus": header("-" * 9000 + "1"),
    "deep not": header("not " * 2000 + "1"),
    "deep attributes": header("a" + ".a" * 4000),
    "open string": header("'''{"),
    "line ends": header("{\n\n'"),
    "a number": header("1"),
    "a list": header("['descr', 'fortran_order', 'shape']"),
    "unhashable key": header("{[]: 1}"),
    "unknown key": described(more="'evil': 1"),
    "missing key": header("{'descr': '<f4', 'shape': (2,)}"),
    "order is a number": described(order="0"),
    "shape is a list": described(shape="[2, 3]"),
    "shape is a number": described(shape="6"),
    "negative length": described(shape="(-2, -3)"),
    "bool length": described(shape="(True, 3)"),
    "float length": described(shape="(2.0, 3)"),
    "giant length in the shape": described(shape=f"({2**63},)"),
    "huge digits": described(shape=f"({'9' * 5000},)"),
    "many dimensions": described(shape=f"({'1, ' * 65})"),
}


@pytest.mark.parametrize("raw", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_header_is_one_sentence(raw):
    with pytest.raises(DataError, match=r"^'x\.npy' is damaged or no \.npy array: .*np\.save$") as caught:
        read_npy_header(raw, "'x.npy'")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_length_is_not_believed():
    with pytest.raises(DataError, match="its header claims 4,294,967,295 bytes, and at most 10,000 are read"):
        read_npy_header(DAMAGED["giant length"], "'x.npy'")


def test_python_does_not_warn_of_odd_literals():
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        with pytest.raises(DataError):
            read_npy_header(header("1if 1else 2"), "'x.npy'")
        with pytest.raises(DataError):
            read_npy_header(header("'\\d'"), "'x.npy'")
    assert not heard


@pytest.mark.parametrize(
    ("descr", "message"),
    [
        ("'|O'", "object array, which is a pickle"),
        ("'O'", "object array"),
        ("[('x', '<f4'), ('y', '|O')]", "structured type"),
        ("('<f4', (3,))", "structured type"),
        ("7", "structured type"),
        ("'<c8'", "has the type '<c8'"),
        ("'<V2'", "bfloat16 from safetensors"),
        ("'<U3'", "has the type"),
        ("'<M8[ns]'", "has the type"),
        ("'<f16'", "has the type"),
        ("'<f1'", "has the type"),
        ("'|f4'", "has the type"),
        ("'<b2'", "has the type"),
        ("'<i1'", "has the type"),
        ("'f4'", "has the type"),
        ("''", "has the type"),
        ("'\\x1b[2J'", r"has the type '\\x1b"),
    ],
)
def test_types_that_cannot_be_read_are_named(descr, message):
    with pytest.raises(DataError, match=message):
        read_npy_header(described(descr), "'x.npy'")


def test_a_product_that_overflows_64_bits_is_computed_all_the_same():
    found = read_npy_header(described(shape=f"({2**62}, {2**62})"), "'x.npy'")
    assert found.end == found.begin + 2**126


def test_a_pickle_after_the_header_is_not_looked_at():
    class Evil:
        def __reduce__(self):
            return pytest.fail, ("the pickle was run",)

    with pytest.raises(DataError, match="object array"):
        read_npy_header(described("'|O'") + pickle.dumps(Evil()), "'x.npy'")


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=80), st.integers(0, 60))
def test_any_bytes_are_either_read_or_a_data_error(noise, place):
    whole = header(PLAIN)
    for raw in (noise, b"\x93NUMPY\1\0" + noise, whole[:place] + noise + whole[place + len(noise) :]):
        try:
            found = read_npy_header(raw, "'x.npy'")
        except DataError:
            continue
        assert found.begin <= len(raw)
