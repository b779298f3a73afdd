import math

import pytest
import torch

from swatool.averaging import kernels
from swatool.averaging.kernels import (
    accumulate,
    accumulate_together,
    can_lerp,
    complex_view,
    copy_together,
    fits,
    lerp_together,
    most_together,
    real_view,
    torch_dtype,
)
from swatool.tensors import DTYPES

CPU = torch.device("cpu")
WIDE = [torch.float32, torch.float64]
LENGTHS = [*range(1, 40), 63, 64, 65, 127, 500, 1023, 4096, 4099, 20_000]


@pytest.fixture
def forget():
    """Let the proof of the product be made anew, before the test and after it."""
    most_together.cache_clear()
    yield
    most_together.cache_clear()


def chain(sums, rows, coefficients, first):
    """Add rows one by one, the definition of the result."""
    sums = sums.clone()
    for index, row in enumerate(rows):
        if first and index == 0:
            sums = row * coefficients[0].item()
        else:
            sums = torch.add(sums, row, alpha=coefficients[index].item())
    return sums


def check_accumulate(dtype, count, length, *, first, together, device=CPU, padding=0):
    generator = torch.Generator().manual_seed(17 * length + count)
    values = torch.randn(count + 1, length + padding, generator=generator, dtype=dtype).to(device)
    coefficients = torch.rand(count, generator=generator, dtype=dtype).to(device)
    rows, sums = values[:count, :length], values[count, :length].clone()
    expected = chain(sums, rows, coefficients, first)
    if first:
        sums.fill_(math.nan)  # what was in the memory before must not matter
    if together:
        accumulate_together(sums, rows.t(), coefficients, first=first)
    else:
        for index, coefficient in enumerate(coefficients.tolist()):
            accumulate(sums, rows[index], coefficient, first=first and index == 0)
    assert torch.equal(sums, expected), (dtype, count, length, first, padding)


def check_lengths(dtype, device, together):
    most = most_together(device, dtype) if together else 9
    for count in range(1, most + 1):
        for length in LENGTHS:
            for first in (True, False):
                for padding in (0, 5):
                    check_accumulate(
                        dtype, count, length, first=first, together=together, device=device, padding=padding
                    )


@pytest.mark.parametrize("dtype", WIDE)
@pytest.mark.parametrize("together", [True, False])
def test_accumulating_is_the_chain_bit_for_bit(dtype, together):
    check_lengths(dtype, CPU, together)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", WIDE)
@pytest.mark.parametrize("together", [True, False])
def test_accumulating_is_the_chain_on_cuda(dtype, together):
    check_lengths(dtype, torch.device("cuda"), together)


@pytest.mark.parametrize("dtype", WIDE)
def test_most_together_is_one_or_all(dtype):
    assert most_together(CPU, dtype) in (1, kernels.MOST_TOGETHER)


def test_real_view_shares_memory():
    values = torch.tensor([[1 + 2j, 3 - 4j]])
    view = real_view(values)
    view[0, 1] = 7
    assert values.tolist() == [[1 + 7j, 3 - 4j]]
    reals = torch.ones(2)
    assert real_view(reals) is reals


def backwards_mv(matrix, vector, out):
    return out.copy_(chain(out, matrix.t().flip(0), vector.flip(0), True))


def backwards_addmv(sums, matrix, vector):
    return sums.copy_(chain(sums, matrix.t().flip(0), vector.flip(0), False))


@pytest.mark.usefixtures("forget")
@pytest.mark.parametrize(
    ("where", "name", "product"),
    [(torch, "mv", backwards_mv), (torch.Tensor, "addmv_", backwards_addmv)],
    ids=["mv", "addmv_"],
)
@pytest.mark.parametrize("dtype", WIDE)
def test_product_that_adds_in_another_order_is_not_used(monkeypatch, where, name, product, dtype):
    monkeypatch.setattr(where, name, product)
    assert most_together(CPU, dtype) == 1


def test_torch_dtype_knows_every_type():
    for name, dtype in DTYPES.items():
        assert torch_dtype(dtype) is getattr(torch, name)
        assert torch_dtype(dtype).itemsize == dtype.itemsize


def test_complex_view_shares_memory():
    reals = torch.arange(6, dtype=torch.float32)
    view = complex_view(reals)
    view[1] = 7 - 8j
    assert reals.tolist() == [0, 1, 7, -8, 4, 5]


@pytest.mark.parametrize("wide", WIDE)
@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [
        ([0.0, 1.0, -2.0], torch.float32, True),
        ([0.0, math.nan, 1.0], torch.float32, False),
        ([math.nan], torch.float32, False),
        ([0.0, math.inf], torch.float32, False),
        ([-math.inf, 0.0], torch.float64, False),
        ([65504.0, -65504.0], torch.float16, True),
        ([65519.0, 0.0], torch.float16, True),  # rounds down to the largest
        ([65520.0, 0.0], torch.float16, False),
        ([0.0, -65520.0], torch.float16, False),
        ([3.3895313892515355e38], torch.bfloat16, True),
        ([3.4e38], torch.bfloat16, False),
        ([-3.4e38, 1.0], torch.bfloat16, False),
        ([448.0, -448.0], torch.float8_e4m3fn, True),
        ([500.0], torch.float8_e4m3fn, False),
        ([-500.0, 3.0], torch.float8_e4m3fn, False),
        ([464.0], torch.float8_e4m3fn, True),
        ([-2.0, 1.0], torch.float8_e8m0fnu, False),  # has no sign
        ([57344.0], torch.float8_e5m2, True),
        ([1e5, -1.0], torch.float8_e5m2, False),
    ],
)
def test_fits(values, dtype, expected, wide):
    assert bool(fits(torch.tensor(values, dtype=wide), dtype)) is expected


def test_double_that_is_too_large_for_float_does_not_fit():
    assert not fits(torch.tensor([1e39], dtype=torch.float64), torch.float32)
    assert fits(torch.tensor([1e39], dtype=torch.float64), torch.float64)


MANY = [(7, 5), (), (0, 3), (1000,)]


def many(dtype, seed, device=CPU):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(device, dtype) for shape in MANY]


@pytest.mark.parametrize("dtype", [*WIDE, torch.float16, torch.bfloat16, torch.complex64])
@pytest.mark.parametrize("weight", [0.0, 0.001, 0.5, 0.7, 1.0])
def test_lerp_together_is_lerp_of_each_in_place(dtype, weight):
    averages, models = many(dtype, 0), many(dtype, 1)
    expected = [torch.lerp(a, b, weight) for a, b in zip(averages, models, strict=True)]
    pointers = [one.data_ptr() for one in averages]
    lerp_together(tuple(averages), tuple(models), weight)
    assert all(map(torch.equal, averages, expected))
    assert [one.data_ptr() for one in averages] == pointers
    lerp_together([], [], weight)


def test_parameters_are_written_without_gradients():
    averages, models = ([torch.nn.Parameter(one) for one in many(torch.float32, seed)] for seed in (0, 1))
    lerp_together(averages, models, 0.5)
    copy_together(averages, models)
    assert all(map(torch.equal, averages, models))
    assert all(one.is_leaf and one.requires_grad for one in averages)


def test_copy_together_converts():
    targets, sources = many(torch.float32, 0), many(torch.bfloat16, 1)
    copy_together(targets, tuple(sources))
    assert all(torch.equal(a, b.float()) for a, b in zip(targets, sources, strict=True))
    copy_together([], [])


def test_copies_wait_unless_they_are_told_not_to(monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "_foreach_copy_", lambda *args: asked.append(args[2]))
    copy_together([torch.ones(1)], [torch.ones(1)])
    copy_together([torch.ones(1)], [torch.ones(1)], non_blocking=True)
    assert asked == [False, True]


def test_can_lerp_knows_the_types_that_have_it():
    assert all(can_lerp(CPU, dtype) for dtype in (*WIDE, torch.float16, torch.bfloat16, torch.complex64))
    assert not can_lerp(CPU, torch.float8_e5m2)
    assert not can_lerp(CPU, torch.int64)
