import pytest

from swatool.output.layout import OutputFile, OutputTensor, Piece, one_file, together
from swatool.tensors import DTYPES


@pytest.mark.parametrize(
    ("dtype", "shape", "nbytes"),
    [("float32", (2, 3), 24), ("bfloat16", (), 2), ("int64", (0, 5), 0), ("complex128", (3,), 48)],
)
def test_nbytes_counts_elements_times_their_size(dtype, shape, nbytes):
    assert OutputTensor("w", DTYPES[dtype], shape).nbytes == nbytes


def test_a_layout_cannot_be_changed():
    layout = one_file([], {}, 0)
    with pytest.raises(AttributeError):
        layout.files = ()


def test_files_lie_apart_in_one_space():
    first = one_file([Piece(0, b"head")], {"a": 4, "b": 8}, 12)
    second = one_file([Piece(0, b"h"), Piece(9, b"tail")], {"c": 1}, 13)
    both = together({"one": first, "two": second})
    begin = both.files[1].begin
    assert both.files == (OutputFile("one", 0, 12), OutputFile("two", begin, 13))
    assert begin > 12 + 4096
    assert both.offsets == {"a": 4, "b": 8, "c": begin + 1}
    assert both.fixed == (Piece(0, b"head"), Piece(begin, b"h"), Piece(begin + 9, b"tail"))
    assert (both.size, both.fixed_nbytes) == (25, 9)
