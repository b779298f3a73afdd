import math

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swatool.averaging import measuring as module
from swatool.averaging.measures import plan_measuring
from swatool.averaging.measuring import measure_differences, measure_statistics
from swatool.checkpoints.opening import open_checkpoint
from swatool.errors import CheckpointError

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
WHOLE = (torch.int64, torch.int32, torch.uint8, torch.int8, torch.bool)
NAN, INF = math.nan, math.inf


@pytest.fixture
def differences(tmp_path):
    """Write two state dicts, the first by torch.save and the second as it is asked for, and compare them."""

    def compare(a, b, suffix=".pt", threads=2):
        paths = tmp_path / "a.pt", tmp_path / f"b{suffix}"
        torch.save(a, paths[0])
        if suffix == ".pt":
            torch.save(b, paths[1])
        else:
            safetensors.torch.save_file({n: t.contiguous() for n, t in b.items()}, paths[1])
        opened = [open_checkpoint(path) for path in paths]
        try:
            return measure_differences(plan_measuring(opened, list(a)), threads=threads)
        finally:
            for one in opened:
                one.close()

    return compare


@pytest.fixture
def statistics(tmp_path):
    def measure(state, threads=2):
        torch.save(state, tmp_path / "s.pt")
        opened = open_checkpoint(tmp_path / "s.pt")
        try:
            return measure_statistics(plan_measuring([opened], list(state)), threads=threads)
        finally:
            opened.close()

    return measure


def random_tensor(shape, dtype, generator):
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    return torch.randint(0, 100, shape, generator=generator).to(dtype)


def check_difference(found, a, b):
    """Compare with float64 arithmetic on the tensors themselves."""
    x, y = a.double().flatten(), b.double().flatten()
    d = x - y
    assert found.elements == a.numel()
    assert found.differing == int((d != 0).sum())
    assert found.max_abs == (d.abs().max().item() if len(d) else 0.0)
    norm = torch.linalg.vector_norm(x).item()
    if norm:
        expected = torch.linalg.vector_norm(d).item() / norm
        assert found.rel_l2 == pytest.approx(expected, rel=1e-12)
    if norm and y.any():
        expected = (torch.dot(x, y) / x.norm() / y.norm()).item()
        assert found.cosine == pytest.approx(expected, abs=1e-12)
    same = a.dtype is b.dtype and torch.equal(
        a.contiguous().flatten().view(torch.uint8), b.contiguous().flatten().view(torch.uint8)
    )
    assert found.same_bits == (same or not a.numel())


STATES = st.lists(
    st.tuples(
        st.lists(st.integers(0, 9), max_size=3),
        st.sampled_from(FLOATS + WHOLE),
        st.sampled_from(FLOATS + WHOLE),
        st.booleans(),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STATES, st.integers(0, 2**32), st.sampled_from([1, 7, 64]))
def test_differences_are_those_of_float64_arithmetic(differences, monkeypatch, kinds, seed, tile):
    monkeypatch.setattr(module, "TILE", tile)
    generator = torch.Generator().manual_seed(seed)
    a, b = {}, {}
    for index, (shape, first, second, equal) in enumerate(kinds):
        name = f"t{index}"
        a[name] = random_tensor(shape, first, generator)
        b[name] = a[name].to(second) if equal else random_tensor(shape, second, generator)
        if len(shape) > 1:
            a[name] = a[name].transpose(0, 1).contiguous().transpose(0, 1)
    found = differences(a, b, ".safetensors")
    for name in a:
        check_difference(found.tensors[name], a[name], b[name])


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STATES, st.integers(0, 2**32), st.sampled_from([1, 7, 64]))
def test_statistics_are_those_of_float64_arithmetic(statistics, monkeypatch, kinds, seed, tile):
    monkeypatch.setattr(module, "TILE", tile)
    generator = torch.Generator().manual_seed(seed)
    state = {
        f"t{index}": random_tensor(shape, dtype, generator)
        for index, (shape, dtype, _, _) in enumerate(kinds)
    }
    for name, found in statistics(state).items():
        values = state[name].double().flatten()
        if not len(values):
            assert found == (None, None, None, 0.0, 0, 0)
            continue
        assert (found.minimum, found.maximum) == (values.min().item(), values.max().item())
        assert found.mean == pytest.approx(values.mean().item(), rel=1e-12, abs=1e-14)
        assert found.norm == pytest.approx(torch.linalg.vector_norm(values).item(), rel=1e-12)
        assert (found.nan, found.inf) == (0, 0)


def large_state(seed):
    generator = torch.Generator().manual_seed(seed)
    return {
        "large": torch.randn(3, 70_000, generator=generator),
        "small": torch.randn(17, generator=generator),
        "half": torch.randn(100, 333, generator=generator).bfloat16(),
        "transposed": torch.randn(300, 400, generator=generator).t(),
        "channels": torch.randn(8, 16, 9, 9, generator=generator).contiguous(
            memory_format=torch.channels_last
        ),
        "counter": torch.tensor(seed),
    }


def test_the_number_of_threads_changes_no_bit(differences, statistics):
    a, b = large_state(1), large_state(2)
    one = differences(a, b, threads=1)
    for threads in (2, 5):
        assert differences(a, b, threads=threads) == one
    assert statistics(a, threads=1) == statistics(a, threads=4)
    for name in a:
        check_difference(one.tensors[name], a[name], b[name])


@pytest.mark.parametrize("tile", [1000, 4096, 10**6])
def test_the_size_of_tiles_changes_sums_in_their_last_bits_only(differences, monkeypatch, tile):
    a, b = large_state(1), large_state(2)
    usual = differences(a, b)
    monkeypatch.setattr(module, "TILE", tile)
    other = differences(a, b)
    for name in a:
        x, y = usual.tensors[name], other.tensors[name]
        exact = ("elements", "differing", "max_abs", "nan", "inf", "same_bits")
        assert [getattr(x, one) for one in exact] == [getattr(y, one) for one in exact]
        assert x.rel_l2 == pytest.approx(y.rel_l2, rel=1e-14)
        assert x.cosine == pytest.approx(y.cosine, abs=1e-14)


def test_memory_layouts_and_formats_do_not_matter(differences):
    a = large_state(1)
    found = differences(a, a, ".safetensors")
    for one in found.tensors.values():
        assert (one.differing, one.max_abs, one.rel_l2, one.cosine) == (0, 0.0, 0.0, pytest.approx(1))
        assert one.same_bits


def test_long_integers_differ_beyond_the_precision_of_float64(differences):
    a = torch.tensor([2**53, 2**63 - 1, -(2**63), 5])
    b = torch.tensor([2**53 + 1, 2**63 - 2, -(2**63) + 1, 5])
    u = torch.tensor([2**64 - 1, 2**63, 3], dtype=torch.uint64)
    v = torch.tensor([2**64 - 2, 2**63, 3], dtype=torch.uint64)
    found = differences(
        {"i": a, "u": u, "far": a[1:3], "mixed": a[:2]},
        {"i": b, "u": v, "far": b[[2, 1]], "mixed": a[:2].double()},
    ).tensors
    assert (found["i"].differing, found["i"].max_abs) == (3, 1.0)
    assert found["i"].rel_l2 > 0
    assert (found["u"].differing, found["u"].max_abs) == (1, 1.0)
    assert (found["far"].differing, found["far"].max_abs) == (2, 2.0**64)
    assert found["far"].cosine == pytest.approx(-1)
    close = torch.tensor([-1 + 2**-40, 2.5, 2**31 + 2**-20, -(2**40) + 2**-12], dtype=torch.float64)
    whole = torch.tensor([-1, 2, 2**31, -(2**40)])
    (found_close,) = differences({"x": close}, {"x": whole}).tensors.values()
    assert (found_close.differing, found_close.max_abs) == (4, 0.5)
    # 2**63 - 1 is no number of float64: there it is 2**63.
    assert (found["mixed"].differing, found["mixed"].max_abs) == (1, 1.0)


def test_nan_and_inf(differences):
    a = {
        "equal": torch.tensor([NAN, INF, -INF, 1.0]),
        "nan": torch.tensor([NAN, 2.0, 3.0]),
        "inf": torch.tensor([INF, 2.0, -INF]),
        "within": torch.tensor([NAN, 3.0]),
    }
    b = {
        "equal": torch.tensor([NAN, INF, -INF, 1.0]),
        "nan": torch.tensor([1.0, NAN, 3.0]),
        "inf": torch.tensor([-INF, 2.0, -INF]),
        "within": torch.tensor([NAN, 4.5]),
    }
    found = differences(a, b)
    equal, nan, inf, within = (found.tensors[name] for name in a)
    assert equal == (4, 0, 0.0, 0.0, 1.0, (1, 1), (2, 2), True)
    assert nan == (3, 2, INF, INF, None, (1, 1), (0, 0), False)
    assert inf == (3, 1, INF, INF, None, (0, 0), (2, 2), False)
    assert within == (2, 1, 1.5, 0.5, 1.0, (1, 1), (0, 0), False)
    assert found.total.rel_l2 == INF


def test_signed_zeros_and_other_nans_are_equal_but_not_the_same_bits(differences):
    payload = torch.tensor([0x7FC00001], dtype=torch.int32).view(torch.float32)
    found = differences(
        {"zero": torch.tensor([0.0, 1.0]), "nan": torch.tensor([NAN])},
        {"zero": torch.tensor([-0.0, 1.0]), "nan": payload},
    )
    for one in found.tensors.values():
        assert (one.differing, one.rel_l2, one.same_bits) == (0, 0.0, False)


def test_bits_of_every_tile_count(differences, monkeypatch):
    monkeypatch.setattr(module, "TILE", 2)
    a, b = torch.tensor([0.0, 1, 2, 0, 4]), torch.tensor([0.0, 1, 2, -0.0, 4])
    found = differences({"a": a, "b": a}, {"a": a, "b": b}).tensors
    assert (found["a"].same_bits, found["b"].same_bits) == (True, False)


def test_a_tensor_that_is_read_whole_is_widened_by_tiles(statistics, monkeypatch):
    widened = []

    def widen(stored, memory):
        widened.append(len(stored[0]))
        return usual(stored, memory)

    usual = module.widen
    monkeypatch.setattr(module, "TILE", 100)
    monkeypatch.setattr(module, "widen", widen)
    statistics({"t": torch.randn(30, 35).t()})
    assert sorted(widened) == [50] + [100] * 10


def test_squares_out_of_the_range_of_float64(differences, statistics):
    def double(*values):
        return torch.tensor(values, dtype=torch.float64)

    a = {"large": double(1e200, 1e308, -1e308), "tiny": double(5e-324, 3e-200), "zero": double(0.0, 0.0)}
    b = {"large": double(-1e200, -1e308, 1e308), "tiny": double(0.0, 3e-200), "zero": double(0.0, 1e-300)}
    found = differences(a, b).tensors
    assert (found["large"].differing, found["large"].max_abs) == (3, INF)
    assert (found["large"].rel_l2, found["large"].cosine) == (pytest.approx(2), pytest.approx(-1))
    assert (found["tiny"].differing, found["tiny"].max_abs) == (1, 5e-324)
    assert 0 < found["tiny"].rel_l2 < 1e-120
    assert (found["zero"].rel_l2, found["zero"].cosine) == (INF, None)
    values = statistics(a)
    assert values["large"][:2] == (-1e308, 1e308)
    assert values["large"].norm == pytest.approx(math.hypot(1e308, 1e308))
    assert values["tiny"].norm == pytest.approx(3e-200)


def test_complex_tensors(differences, statistics):
    a = torch.tensor([1 + 1j, 2 - 1j, complex(NAN, 0)])
    b = torch.tensor([1 + 1j, 2 + 2j, complex(NAN, 0)])
    (found,) = differences({"c": a}, {"c": b}).tensors.values()
    assert (found.elements, found.differing, found.max_abs) == (3, 1, 3.0)
    assert found.rel_l2 == pytest.approx(3 / math.sqrt(7))
    assert (found.nan, found.inf) == ((1, 1), (0, 0))
    (real,) = differences(
        {"c": torch.tensor([1 + 0j, 2 + 0j])}, {"c": torch.tensor([1.0, 2.0])}
    ).tensors.values()
    assert (real.differing, real.same_bits) == (0, False)
    assert statistics({"c": a})["c"] == (-1.0, 2.0, 0.6, pytest.approx(math.sqrt(7)), 1, 0)


def test_statistics_of_what_is_not_finite(statistics):
    found = statistics(
        {
            "some": torch.tensor([NAN, 1.0, -INF, 3.0, NAN]),
            "none": torch.tensor([NAN, INF]),
            "bool": torch.tensor([True, False, True]),
            "long": torch.tensor([2**63 - 1, 2**53 + 1]),
            "unsigned": torch.tensor([2**64 - 1, 1], dtype=torch.uint64),
        }
    )
    assert found["some"] == (1.0, 3.0, 2.0, math.sqrt(10), 2, 1)
    assert found["none"] == (None, None, None, 0.0, 1, 1)
    assert found["bool"][:2] == (0, 1)
    assert found["bool"].mean == pytest.approx(2 / 3)
    assert found["long"][:2] == (2**53 + 1, 2**63 - 1)
    assert found["unsigned"][:2] == (1, 2**64 - 1)


def test_tied_tensors_are_read_once_and_told_under_each_name(tmp_path):
    shared = torch.randn(1000)
    torch.save({"a": shared, "b": shared, "c": shared[:10]}, tmp_path / "a.pt")
    opened = open_checkpoint(tmp_path / "a.pt")
    read = []
    found = measure_statistics(plan_measuring([opened], ["a", "b", "c"]), threads=1, progress=read.append)
    opened.close()
    assert found["a"] == found["b"] != found["c"]
    assert read[-1] == 4040


def test_integers_are_not_in_the_total(differences):
    a = {"w": torch.ones(4), "n": torch.tensor(1000)}
    b = {"w": torch.full((4,), 1.5), "n": torch.tensor(2000)}
    total = differences(a, b).total
    assert (total.elements, total.rel_l2, total.max_abs) == (4, 0.5, 0.5)


def test_a_file_that_shrinks_is_an_error(tmp_path):
    torch.save({"a": torch.randn(100_000)}, tmp_path / "a.pt")
    opened = open_checkpoint(tmp_path / "a.pt")
    (tmp_path / "a.pt").write_bytes((tmp_path / "a.pt").read_bytes()[:200_000])
    with pytest.raises(CheckpointError, match="truncated"):
        measure_statistics(plan_measuring([opened], ["a"]), threads=2)
    opened.close()
