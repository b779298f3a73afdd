"""Order and batches of a data set that can be read in any order."""

from itertools import chain

import pytest
import torch

from swatool.data.indexed import MAX_SHUFFLED, IndexedData
from swatool.data.options import DataOptions
from swatool.errors import UsageError


def made(count, read=lambda positions: torch.tensor(list(positions)), **options):
    return IndexedData("x", count, read, DataOptions(**options))


def lists(batches):
    return [batch.tolist() for batch in batches]


def flat(parts):
    return list(chain.from_iterable(parts))


def test_unshuffled_batches_are_in_order_and_the_last_is_smaller():
    data = made(7, batch_size=3, shuffle=False)
    assert lists(data) == [[0, 1, 2], [3, 4, 5], [6]]
    assert data.samples == 7


def test_by_default_the_order_is_drawn_and_stays_the_same():
    data = made(1000, batch_size=300)
    first = lists(data)
    assert [len(batch) for batch in first] == [300, 300, 300, 100]
    assert sorted(flat(first)) == list(range(1000))
    assert flat(first) != list(range(1000))
    assert lists(data) == first == lists(made(1000, batch_size=300, shuffle=True, seed=0))
    assert lists(made(1000, batch_size=300, seed=1)) != first


def test_the_default_batch_has_256_samples():
    assert [len(batch) for batch in made(300)] == [256, 44]


def test_the_users_random_state_is_left_alone():
    before = torch.get_rng_state()
    list(made(100))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("shuffle", [False, True])
def test_samples_takes_the_first_of_the_order(shuffle):
    everything = flat(lists(made(50, batch_size=7, shuffle=shuffle)))
    data = made(50, batch_size=7, shuffle=shuffle, samples=10)
    assert flat(lists(data)) == everything[:10]
    assert data.samples == 10
    assert made(50, samples=51, shuffle=shuffle).samples == 50


@pytest.mark.parametrize("size", [1, 2, 3, 5, 20])
def test_the_shares_are_the_batches_in_turn_and_nothing_else_is_read(size):
    read = []

    def reading(positions):
        read.append(list(positions))
        return torch.tensor(list(positions))

    data = made(40, reading, batch_size=7)
    every = lists(data)
    for rank in range(size):
        read.clear()
        assert lists(data.share(rank, size)) == every[rank::size] == read


def test_two_passes_at_once_do_not_disturb_each_other():
    data = made(10, batch_size=2)
    expected = lists(data)
    assert lists(batch for pair in zip(data, data, strict=True) for batch in pair) == [
        batch for batch in expected for _ in range(2)
    ]


def test_a_batch_of_which_nothing_is_readable_is_left_out():
    data = made(6, lambda p: None if 2 in p else torch.tensor(list(p)), batch_size=2, shuffle=False)
    assert lists(data) == [[0, 1], [4, 5]]


def test_more_than_memory_holds_is_not_shuffled():
    with pytest.raises(UsageError, match="give --no-shuffle"):
        made(MAX_SHUFFLED + 1)
    assert made(10**18, shuffle=False).samples == 10**18


def test_closing_closes_what_is_read():
    closed = []
    data = IndexedData("x", 3, torch.tensor, DataOptions(), close=lambda: closed.append(1))
    data.close()
    assert closed == [1]
