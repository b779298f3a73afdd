"""The user's own loader as a data set: a function or an object in Python code that gives batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import cast

from torch import Tensor

from swatool.batchnorm.batches import Batch, size_of, sliced
from swatool.data.options import DataOptions, refuse_unused
from swatool.errors import UsageError, printable
from swatool.user_code import describe_failure, load_attribute

__all__ = ["LoaderData"]

USED = ("samples",)


class LoaderData:
    """What a loader gives. A Data, if the loader gives the same in every pass."""

    notes: Sequence[str] = ()
    samples = None  # a loader need not know

    def __init__(self, spec: str, options: DataOptions) -> None:
        """Import the loader; UsageError if that fails or an option does not apply."""
        refuse_unused(options, spec, USED, "the loader itself makes the batches")
        self.name = spec
        self.bad: Mapping[str, str] = {}
        self._most = options.samples
        self._given = load_attribute(spec, "--data")
        # A class is called even if its objects are iterable; an object that is both is iterated over.
        self._called = callable(self._given) and (isinstance(self._given, type) or not _iterable(self._given))
        self._kept: object = None
        self._used = False

    def __iter__(self) -> Iterator[Batch]:
        """Give all batches.

        Raises:
            UsageError: the loader fails, gives something else than batches, or cannot be iterated over again.
        """
        rest = self._most
        for batch in self._batches():
            if rest is None:
                yield batch
                continue
            count = size_of(batch)
            yield batch if count <= rest else sliced(batch, rest)
            rest -= count
            if rest <= 0:
                return

    def share(self, rank: int, size: int) -> Iterator[Batch]:
        """Give the batches number rank, rank + size, ...; the others are made, too."""
        return islice(iter(self), rank, None, size)

    def close(self) -> None:
        """Do nothing: what the loader holds is its own."""

    def _batches(self) -> Iterator[Batch]:
        iterator = self._start()
        while True:
            try:
                batch = next(iterator)
            except StopIteration:
                return
            except (Exception, SystemExit) as error:
                raise self._failure(error) from error
            if not isinstance(batch, Tensor | tuple | list | Mapping):
                raise UsageError(
                    f"--data {printable(self.name)} gave an object of type {type(batch).__name__}: "
                    "batches are tensors, tuples, lists or mappings of tensors"
                )
            yield batch

    def _start(self) -> Iterator[object]:
        """Begin a pass. A function is called again only if what it gave can be iterated over only once."""
        if self._used:
            raise UsageError(
                f"--data {printable(self.name)} is an iterator, which gives its batches only once, and "
                "another pass is needed: give a function that returns it, or a loader"
            )
        source = self._kept if self._kept is not None else self._call()
        if not _iterable(source):
            raise UsageError(
                f"--data {printable(self.name)} gives an object of type {type(source).__name__}, which "
                "cannot be iterated over: give a loader, or a function that returns one"
            )
        try:
            iterator = iter(cast(Iterable[object], source))
        except (Exception, SystemExit) as error:
            raise self._failure(error) from error
        once = iterator is source
        self._used = once and not self._called
        self._kept = None if once else source
        return iterator

    def _call(self) -> object:
        if not self._called:
            return self._given
        try:
            return cast(Callable[[], object], self._given)()
        except (Exception, SystemExit) as error:
            raise self._failure(error) from error

    def _failure(self, error: BaseException) -> UsageError:
        return UsageError(f"--data {printable(self.name)} failed: {describe_failure(error)}")


def _iterable(value: object) -> bool:
    """Tell whether something can be iterated over, by either protocol."""
    return hasattr(value, "__iter__") or hasattr(value, "__getitem__")
