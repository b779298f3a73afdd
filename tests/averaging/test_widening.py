import math

import pytest
import torch

from swatool.averaging.memory import Memory
from swatool.averaging.widening import extremes, largest, part_of, scaled, widen

MEMORY = Memory(torch.device("cpu"))
LONG = {
    torch.int64: [0, 1, -1, 2**53 + 1, -(2**53) - 1, 2**63 - 1, -(2**63), 2**32, -(2**32) - 7],
    torch.uint64: [0, 1, 2**53 + 1, 2**64 - 1, 2**63, 2**32 - 1],
}


@pytest.mark.parametrize("dtype", LONG)
def test_long_integers_are_two_exact_numbers(dtype):
    (found,) = widen([torch.tensor(LONG[dtype], dtype=dtype)], MEMORY)
    assert found.low is not None
    for value, high, low, wide in zip(LONG[dtype], found.high, found.low, found.wide, strict=True):
        assert int(high) + int(low) == value
        assert wide.item() == float(value)
    assert extremes(found.stored, found.wide) == (min(LONG[dtype]), max(LONG[dtype]))


@pytest.mark.parametrize(
    "dtype",
    [
        *(torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn),
        *(torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float8_e8m0fnu),
        *(torch.int32, torch.uint32, torch.int16, torch.uint16, torch.int8, torch.uint8, torch.bool),
    ],
)
def test_other_types_are_one_number(dtype):
    if dtype is torch.bool:
        stored = torch.tensor([True, False, True])
    else:
        size = torch.empty(0, dtype=dtype).element_size()
        stored = torch.arange(256, dtype=torch.uint8).repeat(size).view(dtype)
    (found,) = widen([stored], MEMORY)
    assert (found.low, found.width) == (None, 1)
    expected = stored.to(torch.float32 if "float8" in str(dtype) else torch.float64).double()
    assert torch.equal(found.wide.nan_to_num(7), expected.nan_to_num(7))
    assert found.nan() == int(expected.isnan().sum())
    assert found.infinite() == int(expected.isinf().sum())


def test_complex_numbers_are_pairs_and_so_is_what_they_are_compared_with():
    stored = torch.tensor([1 + 2j, complex(math.nan, math.inf), complex(0, -math.inf)])
    a, b = widen([stored, torch.tensor([3, 4, 5])], MEMORY)
    assert a.wide[:2].tolist() == [1.0, 2.0]
    assert b.wide.tolist() == [3.0, 0.0, 4.0, 0.0, 5.0, 0.0]
    assert (a.width, a.nan(), a.infinite()) == (2, 1, 1)
    assert a.elements(torch.tensor([True, True, False, True, False, False])) == 2


def test_a_part_is_a_run_of_elements():
    (a,) = widen([torch.arange(4) + 1j], MEMORY)
    assert part_of(a, 1, 3).wide.tolist() == [1.0, 1.0, 2.0, 1.0]
    (c,) = widen([torch.arange(4) + 2**40], MEMORY)
    part = part_of(c, 2, 3)
    assert (part.stored.tolist(), part.low.tolist()) == ([2**40 + 2], [2.0])


@pytest.mark.parametrize("top", [5e-324, 1e-200, 1.0, 1e200, 1.7e308])
def test_scaled_numbers_can_be_squared(top):
    numbers, exponent = scaled(torch.tensor([0.0, top, -top / 4], dtype=torch.float64))
    square = float(torch.dot(numbers, numbers))
    assert 1e-280 < square < math.inf
    assert math.ldexp(numbers[1].item(), exponent) == top


def test_the_largest_of_zeros_is_zero():
    assert math.copysign(1, largest(torch.tensor([-0.0, 0.0]))) == 1
    assert scaled(torch.zeros(3))[1] == 0


def test_extremes_of_integers_are_integers():
    for stored in (torch.tensor([3, -5], dtype=torch.int8), torch.tensor([True, False])):
        (found,) = widen([stored], MEMORY)
        lowest, highest = extremes(found.stored, found.wide)
        assert (type(lowest), type(highest)) == (int, int)
        assert (lowest, highest) == (min(stored.tolist()), max(stored.tolist()))
