"""The mode `exact`: what inference will see, each layer final before those that depend on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping
from itertools import chain

import torch

from swatool.batchnorm.batches import Batch, call, check_finite, moved, signature, size_of, sliced
from swatool.batchnorm.borrowed import RandomState, keeping_random_state
from swatool.batchnorm.dependencies import Plan, Trace, make_plan, trace
from swatool.batchnorm.layers import Layer
from swatool.batchnorm.passes import Outcome, Run, StopForward, failures_told, hooked, run_pass
from swatool.batchnorm.taking import Taker
from swatool.errors import DataError, UsageError, printable

__all__ = ["recalibrate_exactly"]

TRACED_SAMPLES = 2


class NewPath(BaseException):  # not an Exception: models that catch those must not catch it
    """A batch reached a layer that no plan knows."""

    def __init__(self, layer: Layer, batch: Batch, number: int) -> None:
        super().__init__(layer.name)
        self.layer = layer
        self.batch = batch
        self.number = number


def recalibrate_exactly(run: Run) -> tuple[list[Outcome], Plan, int, int]:
    """Run a pass for each level of layers; return the outcomes, the plan, the numbers of batches and samples.

    A pass over the layers of one level stops each forward at the last of them. The levels come from one
    traced forward. Should a later batch take another way, to a layer that was not reached then, it is traced
    as well, and everything starts anew.
    """
    start = RandomState()
    seen, source = _first_trace(run)
    while True:
        plan = make_plan(seen)
        if plan.passes > 1 and isinstance(run.batches, Iterator):
            raise UsageError(
                f"mode exact needs {plan.passes} passes over the data, and an iterator gives it only once: "
                "give something that can be iterated over again, as a list or a DataLoader"
            )
        run.on_passes(plan.passes)
        try:
            return _run_passes(run, plan, source, start)
        except NewPath as found:
            if isinstance(run.batches, Iterator):
                raise UsageError(_needs_more(found.layer, "data that can be iterated over again")) from None
            seen.add(_trace(run, found.batch, found.number, sliced_first=False))
            if found.layer.index not in seen.first:
                seen.note(found.layer.index, frozenset(seen.first))
            seen.dynamic = True
            source = None


def _needs_more(layer: Layer, what: str) -> str:
    return (
        f"some batches reach layer {printable(layer.name)} and the first one does not: "
        f"mode exact then needs {what}"
    )


def _first_trace(run: Run) -> tuple[Trace, Iterable[Batch] | None]:
    """Trace the first batch; return with it the batches, that one included, if they must not be opened again.

    Of several processes the first one traces, and tells the others in `_agreed`.
    """
    if run.ranks.size > 1:
        return _agreed(run), None
    batches = run.ranks.share(run.batches)
    first = next(batches, None)
    if first is None:
        return Trace(), ()
    with keeping_random_state():
        seen = _trace(run, first)
    return seen, chain([first], batches)


def _agreed(run: Run) -> Trace:
    """Return the first process's trace, in all of them."""
    seen = Trace()
    if run.ranks.rank == 0:
        try:
            if isinstance(run.batches, Iterator):
                raise UsageError("several processes cannot share an iterator: give a list or a DataLoader")
            with keeping_random_state():
                first = next((batch for batch in run.batches if size_of(batch)), None)
                seen = Trace() if first is None else _trace(run, first)
        except Exception as error:
            run.ranks.agree(error=error)
            raise
    run.ranks.agree()
    count = len(run.layers)
    letter = torch.zeros(1 + count + 2 * count * count, dtype=torch.float64)
    letter[0] = float(seen.dynamic)
    order, tables = letter[1 : 1 + count], letter[1 + count :].view(2, count, count)
    for place, layer in enumerate(seen.first):
        order[layer] = place + 1
        for table, tags in zip(tables, (seen.first[layer], seen.all[layer]), strict=True):
            table[layer, list(tags)] = 1
    letter = run.ranks.gather(letter)[0]
    order, tables = letter[1 : 1 + count], letter[1 + count :].view(2, count, count)
    seen = Trace(dynamic=bool(letter[0]))
    for layer in order.argsort().tolist():
        if order[layer]:
            seen.first[layer], seen.all[layer] = (
                frozenset(table[layer].nonzero().flatten().tolist()) for table in tables
            )
    return seen


def _trace(run: Run, batch: Batch, number: int = 1, *, sliced_first: bool = True) -> Trace:
    """Trace a few samples of a batch or, if the model does not take so few, all of them."""
    ready = moved(batch, run.device, run.dtype)
    check_finite(ready, number)
    if sliced_first and size_of(ready) > TRACED_SAMPLES:
        few = sliced(ready, TRACED_SAMPLES)
        try:
            return trace(run.layers, few, lambda: call(run.model, few, run.forward))
        except Exception:  # noqa: BLE001 - whatever it is, the whole batch shows whether it was the few samples
            pass
    with failures_told(ready, number):
        return trace(run.layers, ready, lambda: call(run.model, ready, run.forward))


class _Level:
    """Looks on while the layers of one level are taken. A Watch."""

    def __init__(self, run: Run, plan: Plan, turn: int, known: dict[Hashable, Counter[Layer]]) -> None:
        self.taker = Taker(
            [layer for layer in run.layers if plan.levels.get(layer.index) == turn],
            normalise=False,
            tolerance=run.tolerance,
        )
        self._run = run
        self._plan = plan
        self._turn = turn
        # How often each layer is reached by a batch with these shapes, as was seen in a whole forward.
        self._known = known
        self._calls: Counter[Layer] = Counter()
        self._awaited: Counter[Layer] | None = None

    def begin(self, batch: Batch, number: int) -> None:
        self._batch, self._number = batch, number
        self._calls.clear()
        uses = None if self._plan.dynamic else self._known.get(signature(batch))
        self._awaited = None if uses is None else Counter({layer: uses[layer] for layer in self.taker.layers})
        self.taker.begin(batch, number)
        self._random = RandomState()

    def see(self, layer: Layer, args: tuple[object, ...], kwargs: Mapping[str, object]) -> None:
        level = self._plan.levels.get(layer.index)
        if level is None:
            if self._run.ranks.size > 1:
                raise UsageError(_needs_more(layer, "a single process"))
            raise NewPath(layer, self._batch, self._number)
        self._calls[layer] += 1
        if level != self._turn:
            return
        self.taker.take(layer, args, kwargs)
        if self._awaited is not None:
            self._awaited[layer] -= 1
            if all(count <= 0 for count in self._awaited.values()):
                raise StopForward

    def end(self) -> None:
        # A forward that is stopped draws less than a whole one, and what the data draw must not depend on it.
        self._random.restore()
        self.taker.end()
        if self._awaited is None:
            self._known[signature(self._batch)] = self._calls.copy()

    def settled(self) -> bool:
        return self.taker.settled()


def _run_passes(
    run: Run, plan: Plan, source: Iterable[Batch] | None, start: RandomState
) -> tuple[list[Outcome], Plan, int, int]:
    """Run all passes; what is drawn at random in one is drawn in all, so that all see the same data."""
    outcomes: list[Outcome] = []
    known: dict[Hashable, Counter[Layer]] = {}
    counts = (0, 0)
    # Without layers there is one pass all the same, which tells whether there are data, and that they fit.
    for turn in range(1, max(1, plan.passes) + 1):
        if source is None:
            start.restore()
            source = run.ranks.share(run.batches)
        level = _Level(run, plan, turn, known)
        with hooked(run.layers, level.see):
            found = run_pass(run, level, source, turn=turn, passes=plan.passes)
        source = None
        if turn > 1 and run.tolerance is None and found != counts:
            raise DataError(
                f"the data gave {counts[1]:,} samples in the first pass and {found[1]:,} in pass {turn}: "
                "mode exact needs the same in every pass"
            )
        counts = max(counts, found)
        for outcome in level.taker.outcomes(run.ranks, found[0]):
            mean, variance = outcome.layer.running
            mean.copy_(outcome.mean)
            variance.copy_(outcome.variance)
            outcomes.append(outcome)
    return outcomes, plan, *counts
