"""The user's own loader: what may be named, how often it is called, and how its failures are told."""

import sys
from types import ModuleType

import pytest
import torch

from swatool.data.loader import LoaderData
from swatool.data.options import DataOptions
from swatool.errors import UsageError

BATCHES = [torch.full((3, 2), float(number)) for number in range(4)]


@pytest.fixture
def given(monkeypatch):
    """Makes an object importable as `of_mine:it`."""

    def giving(it, **options):
        module = ModuleType("of_mine")
        module.it = it
        monkeypatch.setitem(sys.modules, "of_mine", module)
        monkeypatch.setattr(sys, "path", list(sys.path))
        return LoaderData("of_mine:it", DataOptions(**options))

    return giving


def generator():
    yield from BATCHES


class Iterable:
    def __iter__(self):
        return iter(BATCHES)


class Indexed:
    def __getitem__(self, index):
        return BATCHES[index]


class Dataset(torch.utils.data.Dataset):
    def __len__(self):
        return 12

    def __getitem__(self, index):
        return torch.full((2,), float(index // 3))


FORMS = {
    "generator function": generator,
    "function that returns a list": lambda: BATCHES,
    "function that returns an iterator": lambda: iter(BATCHES),
    "list": BATCHES,
    "tuple": tuple(BATCHES),
    "iterable": Iterable(),
    "class": Iterable,
    "indexed": Indexed(),
    "DataLoader": torch.utils.data.DataLoader(Dataset(), batch_size=3),
    "function that returns a DataLoader": lambda: torch.utils.data.DataLoader(Dataset(), batch_size=3),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_every_form_gives_its_batches_in_every_pass(given, form):
    data = given(form)
    for _ in range(3):
        batches = list(data)
        assert len(batches) == 4
        assert all(map(torch.equal, batches, BATCHES))
    assert all(map(torch.equal, data.share(1, 3), [BATCHES[1]]))
    assert len(list(data.share(0, 3))) == 2
    assert (data.name, data.samples, dict(data.bad)) == ("of_mine:it", None, {})
    data.close()


def test_what_can_be_iterated_again_is_made_only_once(given):
    made = []
    data = given(lambda: made.append(1) or BATCHES)
    list(data)
    list(data)
    assert len(made) == 1


@pytest.mark.parametrize("once", [lambda: iter(BATCHES), generator])
def test_an_iterator_can_be_used_once(given, once):
    data = given(once())
    assert len(list(data)) == 4
    with pytest.raises(
        UsageError, match="gives its batches only once, and another pass is needed: give a func"
    ):
        list(data)


@pytest.mark.parametrize(
    "batch",
    [
        torch.ones(3, 2),
        (torch.ones(3, 2), torch.arange(3)),
        [torch.ones(3, 2), "a note"],
        {"pixels": torch.ones(3, 2), "labels": torch.arange(3)},
    ],
    ids=["tensor", "tuple", "list", "mapping"],
)
def test_every_kind_of_batch_is_handed_on_and_cut(given, batch):
    assert next(iter(given([batch]))) is batch
    found = list(given([batch, batch, batch], samples=5))
    assert len(found) == 2
    assert found[0] is batch
    cut = found[1]
    assert type(cut) is type(batch)
    if isinstance(batch, torch.Tensor):
        assert cut.shape == (2, 2)
    else:
        values = list(cut.values()) if isinstance(cut, dict) else list(cut)
        assert values[0].shape == (2, 2)
        assert len(values) == 2
        assert values[1] == "a note" or len(values[1]) == 2


def test_samples_stop_the_loader_itself(given):
    def endless():
        while True:
            yield torch.ones(3, 2)

    assert [len(batch) for batch in given(endless, samples=6)] == [3, 3]
    assert [len(batch) for batch in given(endless, samples=7)] == [3, 3, 1]
    assert len(list(given(BATCHES, samples=100))) == 4


@pytest.mark.parametrize("item", [3, "text", None, object()])
def test_something_that_is_no_batch(given, item):
    with pytest.raises(
        UsageError, match=f"gave an object of type {type(item).__name__}: batches are tensors"
    ):
        list(given([item]))


@pytest.mark.parametrize("it", [3, None, lambda: 3, lambda: None])
def test_something_that_cannot_be_iterated(given, it):
    with pytest.raises(UsageError, match=r"'of_mine:it' gives an object of type .* cannot be iterated over"):
        list(given(it))


def failing_at_once():
    raise KeyError("first\nsecond")


def failing_later():
    yield BATCHES[0]
    raise KeyError("first\nsecond")


class FailingIter:
    def __iter__(self):
        raise KeyError("first\nsecond")


@pytest.mark.parametrize("it", [failing_at_once, failing_later, FailingIter(), FailingIter])
def test_an_error_in_the_loader_is_told_and_kept_as_the_cause(given, it):
    with pytest.raises(UsageError, match=r"^--data 'of_mine:it' failed: KeyError: ") as caught:
        list(given(it))
    assert isinstance(caught.value.__cause__, KeyError)


def test_an_interrupt_goes_through(given):
    def interrupted():
        yield BATCHES[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(given(interrupted))


@pytest.mark.parametrize("option", [{"batch_size": 3}, {"shuffle": True}, {"shuffle": False}, {"size": 3}])
def test_options_that_the_loader_decides(given, option):
    with pytest.raises(UsageError, match="the loader itself makes the batches"):
        given(BATCHES, **option)
