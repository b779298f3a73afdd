import pytest

from swatool.output.layout import Layout, OutputTensor
from swatool.tensors import DTYPES


@pytest.mark.parametrize(
    ("dtype", "shape", "nbytes"),
    [("float32", (2, 3), 24), ("bfloat16", (), 2), ("int64", (0, 5), 0), ("complex128", (3,), 48)],
)
def test_nbytes_counts_elements_times_their_size(dtype, shape, nbytes):
    assert OutputTensor("w", DTYPES[dtype], shape).nbytes == nbytes


def test_a_layout_cannot_be_changed():
    layout = Layout(b"", {}, 0)
    with pytest.raises(AttributeError):
        layout.size = 1
