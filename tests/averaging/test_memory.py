import pytest
import torch

from swatool.averaging.memory import ALIGNMENT, Memory, Rows, bytes_of, is_shortage

gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
DEVICES = ["cpu", pytest.param("cuda", marks=gpu)]


@pytest.fixture(params=DEVICES)
def memory(request):
    return Memory(torch.device(request.param))


def test_bytes_of_is_the_tensors_own_memory():
    tensor = torch.zeros(5, dtype=torch.uint8)
    view = bytes_of(tensor)
    view[1:3] = b"\x07\x09"
    assert tensor.tolist() == [0, 7, 9, 0, 0]
    tensor[4] = 3
    assert bytes(view) == b"\x00\x07\x09\x00\x03"


def test_a_shortage_is_told_from_other_errors_of_torch():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_shortage(caught.value)
    assert is_shortage(RuntimeError("std::bad_alloc"))
    assert is_shortage(RuntimeError("[enforce fail a"))
    assert is_shortage(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(RuntimeError) as caught:
        torch.zeros(2) + torch.zeros(3)
    assert not is_shortage(caught.value)


def test_memory_is_the_same_under_the_same_name(memory):
    for take in (lambda n: memory.take("a", torch.float32, n), lambda n: memory.take_on_host("a", n)):
        large = take(1000)
        assert len(large) == 1000
        assert take(10).data_ptr() == large.data_ptr()
        assert len(take(10)) == 10
        assert len(take(2000)) == 2000
    assert memory.take("a", torch.float32, 3).device.type == memory.device.type
    assert memory.take_on_host("a", 3).device.type == "cpu"


def test_other_names_and_types_are_other_memory(memory):
    pieces = [
        memory.take("a", torch.float32, 100),
        memory.take("b", torch.float32, 100),
        memory.take("a", torch.float64, 100),
        memory.take_on_host("a", 100),
        memory.take_on_host("b", 100),
    ]
    assert len({piece.data_ptr() for piece in pieces}) == len(pieces)


# Larger, smaller, and the same once again: the memory is the same, the rows are not.
SHAPES = [(1, 1), (3, 7), (4, 64), (2, 1000), (4, 65), (1, 3), (1, 3), (4, 2000), (3, 2000)]


def test_rows_bring_what_is_read_into_them_to_the_device(memory):
    for count, nbytes in SHAPES:
        rows = Rows(memory, "rows", count, nbytes)
        assert [len(buffer) for buffer in rows.buffers] == [nbytes] * count
        for shift in (0, 100):
            expected = [[(7 * row + i + shift) % 256 for i in range(nbytes)] for row in range(count)]
            rows.wait()
            for buffer, values in zip(rows.buffers, expected, strict=True):
                buffer[:] = bytes(values)
            rows.upload()
            assert rows.host.tolist() == expected
            assert rows.device.tolist() == expected
        assert rows.device.device.type == memory.device.type
        assert rows.host.stride(0) % ALIGNMENT == 0
