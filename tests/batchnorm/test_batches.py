from collections import namedtuple

import pytest
import torch
from torch import nn

from swatool.batchnorm.batches import (
    call,
    check_finite,
    describe,
    joined,
    moved,
    pair,
    signature,
    size_of,
    sliced,
)
from swatool.errors import DataError

Labelled = namedtuple("Labelled", "image label")


def rows(*sizes, width=2):
    return [torch.full((size, width), float(number)) for number, size in enumerate(sizes)]


@pytest.mark.parametrize(
    ("batch", "size"),
    [
        (torch.zeros(3, 2), 3),
        ((torch.zeros(4, 2), torch.zeros(9)), 4),
        ([torch.zeros(4, 2)], 4),
        ({"flag": True, "x": torch.zeros(5, 1), "y": torch.zeros(6)}, 5),
        (([torch.zeros(2)], 1), 2),
    ],
)
def test_the_first_tensor_of_the_input_tells_the_size(batch, size):
    assert size_of(batch) == size


@pytest.mark.parametrize("batch", [torch.tensor(1.0), (), ([], torch.zeros(3)), {"a": 1}, "text", None])
def test_what_has_no_samples_is_refused(batch):
    with pytest.raises(DataError, match="a batch"):
        size_of(batch)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((), []),
        ((1,), [1]),
        ((5,), [5]),
        ((4, 4, 1), [4, 5]),
        ((4, 4, 2), [4, 4, 2]),
        ((4, 1, 4), [4, 1, 4]),
        ((1, 1, 1, 1), [1, 1, 2]),
        ((1, 3), [1, 3]),
        ((0, 4, 0, 1, 0), [5]),
    ],
)
def test_a_last_single_sample_is_joined(sizes, expected):
    batches = rows(*sizes)
    found = list(joined(batches))
    assert [len(batch) for batch in found] == expected
    assert sum(sizes) == 0 or torch.equal(torch.cat(found), torch.cat(batches))


def test_at_most_one_batch_is_read_ahead():
    read = []

    def source():
        for batch in rows(2, 2, 2, 2):
            read.append(batch)
            yield batch

    for given, _ in enumerate(joined(source())):
        assert len(read) <= given + 2


def test_everything_in_a_batch_is_joined():
    one = Labelled(
        torch.zeros(3, 2), {"label": torch.zeros(3), "name": ["a", "b", "c"], "all": torch.ones(7)}
    )
    two = Labelled(torch.ones(1, 2), {"label": torch.ones(1), "name": ["d"], "all": torch.ones(7)})
    (both,) = pair(one, two)
    assert isinstance(both, Labelled)
    assert both.image.tolist() == [[0, 0]] * 3 + [[1, 1]]
    assert both.label["label"].tolist() == [0, 0, 0, 1]
    assert both.label["name"] == ["a", "b", "c", "d"]
    assert both.label["all"].shape == (7,)


@pytest.mark.parametrize(
    "lone",
    [
        torch.zeros(1, 3),
        torch.zeros(1, 2, dtype=torch.float64),
        (torch.zeros(1, 2),),
        {"x": torch.zeros(1, 2)},
    ],
)
def test_what_does_not_fit_together_stays_apart(lone):
    first = torch.zeros(4, 2)
    found = list(joined([first, lone]))
    assert found[0] is first
    assert found[1] is lone


def test_mappings_with_other_keys_and_tuples_of_other_lengths_stay_apart():
    assert len(pair({"x": torch.zeros(2, 1)}, {"y": torch.zeros(1, 1)})) == 2
    assert len(pair((torch.zeros(2, 1), 1, 2), (torch.zeros(1, 1), 1))) == 2


def test_a_slice_takes_the_first_samples_of_what_has_samples():
    batch = {"x": torch.arange(6).view(3, 2), "table": torch.zeros(5), "n": 4}
    few = sliced(batch, 2)
    assert few["x"].tolist() == [[0, 1], [2, 3]]
    assert few["table"].shape == (5,)
    assert few["n"] == 4


def test_only_floating_tensors_change_their_type():
    batch = Labelled(torch.zeros(2, dtype=torch.float64), [torch.zeros(2, dtype=torch.int64), "name"])
    new = moved(batch, None, torch.float32)
    assert isinstance(new, Labelled)
    assert new.image.dtype == torch.float32
    assert new.label[0].dtype == torch.int64
    assert new.label[1] == "name"
    assert moved(batch.image, None, None) is batch.image


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e5m2])
def test_values_that_are_not_finite_are_told_with_their_batch(bad, dtype):
    good = torch.full((2, 3), torch.finfo(torch.float32).max)  # of which the sum is infinite
    bad = torch.tensor([[0.0, 1.0], [bad, 0.0]]).to(dtype)
    check_finite((good, bad), 1)
    check_finite({"x": good, "n": torch.ones(2, dtype=torch.int64)}, 1)
    for batch in (bad, (bad, good), {"x": good, "y": bad}):
        with pytest.raises(DataError, match=r"batch 7 .*NaN or Inf"):
            check_finite(batch, 7)


def test_shapes_and_structure_make_the_signature():
    batch = {"x": torch.zeros(2, 3), "flag": True}
    assert signature(batch) == signature({"x": torch.ones(2, 3), "flag": True})
    others = [
        {"x": torch.zeros(3, 3), "flag": True},
        {"x": torch.zeros(2, 3), "flag": False},
        {"x": torch.zeros(2, 3, dtype=torch.int64), "flag": True},
        [torch.zeros(2, 3), True],
    ]
    assert all(signature(batch) != signature(other) for other in others)
    hash(signature([batch, object(), (torch.zeros(1),)]))


class Recorder(nn.Module):
    def forward(self, *args, **kwargs):
        self.seen = args, kwargs


def test_a_model_is_called_as_the_batch_asks():
    model, x = Recorder(), torch.zeros(2)
    call(model, x, None)
    assert model.seen == ((x,), {})
    call(model, (x, 5), None)
    assert model.seen == ((x,), {})
    call(model, {"a": x, "b": 1}, None)
    assert model.seen == ((), {"a": x, "b": 1})
    call(model, [x, 5], lambda model, batch: model(batch[1], batch[0]))
    assert model.seen == ((5, x), {})


def test_a_batch_is_described_by_its_input():
    assert describe((torch.zeros(2, 3), 1)) == "shape (2, 3) and dtype float32"
    assert describe([]) == "no tensor"


def test_unknown_values_are_never_taken_for_alike():
    class Steps:
        pass

    steps = Steps()
    assert signature({"x": torch.ones(2), "n": steps}) != signature({"x": torch.ones(2), "n": steps})
    assert signature({"x": torch.ones(2), "n": 3}) == signature({"x": torch.zeros(2), "n": 3})
    assert signature({"x": torch.ones(2), "n": 3}) != signature({"x": torch.ones(2), "n": 4})
    assert signature((torch.ones(2), None)) == signature((torch.ones(2), None))
