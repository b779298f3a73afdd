import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from swatool.batchnorm import statistics
from swatool.batchnorm.statistics import (
    InstanceMoments,
    Moments,
    Samples,
    Spread,
    Workspace,
    measure,
    merge,
    pool,
)

SHAPES = [(5, 3), (1, 3), (4, 3, 7), (4, 3, 1), (6, 5, 4, 3), (2, 3, 2, 3, 4), (3, 1, 50, 40), (0, 3, 2)]


def random(shape, *, seed=0, mean=0.0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) + mean).to(dtype)


def two_pass(values):
    """Mean and sum of squares per sample and channel, by the definition."""
    flat = values.double().flatten(2) if values.dim() > 2 else values.double().unsqueeze(2)
    mean = flat.mean(2)
    return mean, (flat - mean.unsqueeze(2)).square().sum(2)


def layouts(values):
    yield "as it is", values
    if values.dim() > 2:
        yield "channels last", values.movedim(1, -1).contiguous().movedim(-1, 1)
        yield "transposed", values.transpose(0, -1).contiguous().transpose(0, -1)
        yield "expanded", values[:, :, :1].expand(values.shape)
    yield "strided", values.repeat_interleave(2, 0)[::2]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("chunk", [1, 20, 2**18])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_each_sample_has_its_moments(shape, chunk, dtype, monkeypatch):
    monkeypatch.setattr(statistics, "CPU_CHUNK", chunk)
    for name, values in layouts(random(shape, mean=3, dtype=dtype)):
        before = values.clone()
        found = measure(values, Workspace())
        mean, m2 = two_pass(values)
        assert found.mean.dtype == found.m2.dtype == torch.float64
        assert found.values == max(1, values[0, 0].numel() if len(values) else 2), name
        torch.testing.assert_close(found.mean, mean, rtol=1e-14, atol=1e-14, msg=name)
        torch.testing.assert_close(found.m2, m2, rtol=1e-13, atol=1e-13, msg=name)
        assert torch.equal(values, before), name


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape[0]])
@pytest.mark.parametrize("chunk", [1, 20, 2**18])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_pooling_at_once_is_pooling_samples(shape, chunk, dtype, monkeypatch):
    monkeypatch.setattr(statistics, "CPU_CHUNK", chunk)
    workspace = Workspace()
    for name, values in layouts(random(shape, mean=3, dtype=dtype)):
        before = values.clone()
        found = pool(values, workspace)
        flat = values.double().transpose(0, 1).flatten(1)
        mean = flat.mean(1)
        assert found.count == flat.shape[1], name
        torch.testing.assert_close(found.mean, mean, rtol=1e-14, atol=1e-14, msg=name)
        m2 = (flat - mean.unsqueeze(1)).square().sum(1)
        torch.testing.assert_close(found.m2, m2, rtol=1e-13, atol=1e-13, msg=name)
        assert torch.equal(values, before), name
        pool(values * 2, workspace)
        torch.testing.assert_close(found.mean, mean, rtol=1e-14, atol=1e-14, msg=name)


def test_memory_is_that_of_a_chunk(monkeypatch):
    monkeypatch.setattr(statistics, "CPU_CHUNK", 64)
    taken = []

    class Watched(Workspace):
        def take(self, count, device):
            taken.append(count)
            return super().take(count, device)

    workspace = Watched()
    for shape in [(9, 3, 5), (2, 40, 3, 3), (50, 2, 2)]:
        measure(random(shape), workspace)
        measure(random(shape).movedim(1, -1).contiguous().movedim(-1, 1), workspace)
    assert max(taken) <= 64
    measure(random((2, 3, 100)), workspace)  # a single channel of a single sample is the least
    assert max(taken) == 100
    assert (
        workspace.take(8, torch.device("cpu")).data_ptr() == workspace.take(5, torch.device("cpu")).data_ptr()
    )


def test_what_is_measured_is_not_changed_by_what_is_measured_next():
    workspace = Workspace()
    for shape in [(4, 2), (4, 2, 3)]:
        first = random(shape)
        found = measure(first, workspace)
        measure(random(shape, seed=1), workspace)
        assert torch.equal(found.mean, two_pass(first)[0])


def pooled(batches, kind=Moments):
    workspace = Workspace()
    found = [kind.of(measure(batch, workspace)) for batch in batches]
    return merge([merge(found[:3]), *found[3:]])


def pooled_at_once(batches):
    workspace = Workspace()
    return merge([pool(batch, workspace) for batch in batches])


def reference(values):
    wide = values.double().movedim(1, 0).flatten(1)
    mean = wide.mean(1)
    return mean, (wide - mean.unsqueeze(1)).square().sum(1) / (wide.shape[1] - 1)


def relative(found, expected):
    return float(((found - expected).abs() / expected.abs()).max())


@pytest.mark.parametrize("sizes", [[500], [64] * 7 + [52], [7] * 71 + [3], [1] * 500, [499, 1]])
@pytest.mark.parametrize("pooling", [pooled, pooled_at_once])
def test_pooled_statistics_are_those_of_all_values(sizes, pooling):
    # Samples that differ between themselves, in an order that makes batches differ.
    values = random((500, 4, 3, 3), mean=0.3) * torch.linspace(0.1, 3, 500).view(-1, 1, 1, 1)
    values += torch.linspace(-3, 3, 500).view(-1, 1, 1, 1)
    mean, variance = reference(values)
    found = pooling(values.split(sizes))
    assert found.count == 4500
    assert relative(found.mean, mean) < 1e-12
    assert relative(found.variance(), variance) < 1e-12
    for one, other in ((found.mean, mean), (found.variance(), variance)):
        one, other = one.float(), other.float()
        assert bool(((one - other).abs() <= torch.finfo(torch.float32).eps * other.abs()).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("pooling", [pooled, pooled_at_once])
def test_a_mean_of_ten_thousand_sigma_leaves_the_variance_alone(dtype, pooling):
    values = random((300, 3, 16), mean=1e4, dtype=dtype)
    _, variance = reference(values)
    for sizes in ([300], [1] * 300, [128, 128, 44]):
        assert relative(pooling(values.split(sizes)).variance(), variance) < 1e-9


def test_batches_weigh_by_their_values():
    small, large = torch.zeros(1, 1, 2), torch.ones(3, 1, 4)
    assert float(pooled([small, large]).mean) == pytest.approx(12 / 14)


@settings(max_examples=50, deadline=None)
@given(
    cuts=st.lists(st.integers(1, 39), max_size=6, unique=True),
    scale=st.floats(1e-3, 1e3),
    shift=st.floats(-1e3, 1e3),
)
def test_any_way_of_cutting_gives_the_same(cuts, scale, shift):
    values = random((40, 2, 3), dtype=torch.float64) * scale + shift
    mean, variance = reference(values)
    found = pooled(torch.tensor_split(values, sorted(cuts)))
    torch.testing.assert_close(found.mean, mean, rtol=1e-12, atol=1e-12 * scale)
    torch.testing.assert_close(found.variance(), variance, rtol=1e-9, atol=0)


def test_a_single_value_has_no_variance():
    one = pooled([torch.ones(1, 2)])
    assert one.count == 1
    assert bool(one.variance().isnan().all())
    assert not bool(merge([one, one]).variance().any())


def test_instance_statistics_are_torchs_own():
    values = random((12, 3, 5, 5), mean=2)
    layer = torch.nn.InstanceNorm2d(3, track_running_stats=True, momentum=1.0)
    layer(values)
    for sizes in ([12], [5, 7], [1] * 12):
        found = pooled(values.split(sizes), InstanceMoments)
        assert found.count == 12
        torch.testing.assert_close(found.mean.float(), layer.running_mean)
        torch.testing.assert_close(found.variance().float(), layer.running_var)
    assert bool(pooled([torch.ones(2, 3, 1)], InstanceMoments).variance().isnan().all())


def test_groups_are_pooled_samples():
    values = random((12, 2, 5), mean=1)
    grouped = measure(values, Workspace()).grouped(4)
    together = values.view(4, 3, 2, 5).transpose(1, 2).flatten(2)
    expected = measure(together, Workspace())
    assert grouped.values == 15
    torch.testing.assert_close(grouped.mean, expected.mean)
    torch.testing.assert_close(grouped.m2, expected.m2)


def spread_errors(batches, *, instances=False):
    workspace = Workspace()
    make = Spread.of_instances if instances else Spread.of
    sets, spread = [], None
    for batch in batches:
        samples = measure(batch, workspace)
        kind = InstanceMoments if instances else Moments
        found = kind.of(samples)
        sets.append(found)
        part = make(samples, found.mean if spread is None else spread.origin)
        spread = part if spread is None else spread.merged(part)
    return spread.errors(merge(sets).variance(), instances=instances)


def test_standard_errors_follow_from_the_definition():
    values = random((200, 3, 6), dtype=torch.float64) + random((200, 3, 1), seed=1, dtype=torch.float64)
    values = values * torch.linspace(1, 3, 200, dtype=torch.float64).view(-1, 1, 1) + torch.arange(3).view(
        1, 3, 1
    )
    mean, variance = reference(values)
    own_means = values.mean(2)
    own_squares = (values - mean.view(1, 3, 1)).square().mean(2)
    expected = (
        float((own_means.std(0) / 200**0.5 / variance.sqrt()).max()),
        float((own_squares.std(0) / 200**0.5 / variance).max()),
    )
    for sizes in ([200], [50] * 4, [1] * 200, [3, 197]):
        assert spread_errors(values.split(sizes)) == pytest.approx(expected, rel=1e-9)


def test_standard_errors_of_instances_follow_from_the_definition():
    values = random((80, 2, 6), dtype=torch.float64) * torch.linspace(1, 2, 80, dtype=torch.float64).view(
        -1, 1, 1
    )
    own = values.var(2)
    expected = (
        float((values.mean(2).std(0) / 80**0.5 / own.mean(0).sqrt()).max()),
        float((own.std(0) / 80**0.5 / own.mean(0)).max()),
    )
    assert spread_errors(values.split([30, 50]), instances=True) == pytest.approx(expected, rel=1e-9)


def test_standard_errors_tell_how_statistics_scatter():
    runs = [random((64, 1, 4), seed=seed) + 2 * random((64, 1, 1), seed=seed + 1000) for seed in range(200)]
    found = [reference(run) for run in runs]
    means = torch.cat([mean for mean, _ in found])
    variances = torch.cat([variance for _, variance in found])
    told = torch.tensor([spread_errors([run]) for run in runs]).mean(0)
    scatter = torch.tensor([float(means.std()) / 5**0.5, float(variances.std()) / 5])
    assert told.tolist() == pytest.approx(scatter.tolist(), rel=0.2)


def test_a_dead_channel_has_no_error_and_one_sample_tells_nothing():
    values = torch.cat([torch.full((40, 1, 3), 7.0), random((40, 1, 3))], 1)
    mean_error, variance_error = spread_errors([values])
    assert 0 < mean_error < 1
    assert 0 < variance_error < 1
    assert spread_errors([torch.full((40, 1, 3), 7.0)]) == (0, 0)
    one = Spread.of(Samples(torch.zeros(1, 1), torch.ones(1, 1), 3), torch.zeros(1))
    assert one.errors(torch.ones(1)) == (float("inf"), float("inf"))
