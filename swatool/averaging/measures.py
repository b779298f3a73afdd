"""What is measured of tensors, as data: statistics of one tensor, differences between two, and exact sums.

Sums of parts are added as whole numbers, without rounding. So it does not matter in which order, and by how
many threads, the parts of a tensor come together. No torch here: `measuring` works on the values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from swatool.averaging.plan import Action, Input, Plan, PlannedTensor, Treatment, memory_warnings
from swatool.checkpoints.opening import Checkpoint
from swatool.tensors import StoredTensor

__all__ = [
    "Difference",
    "DifferenceSums",
    "ExactSum",
    "Measuring",
    "Statistics",
    "StatisticsSums",
    "plan_measuring",
]

SCALE = 2300  # bits behind the point: the square of the smallest float64 is 2**-2148
MANTISSA = 53


class ExactSum:
    """A sum of float64 numbers that is never rounded.

    Attributes:
        total: the sum, in units of 2**-SCALE.
    """

    __slots__ = ("total",)

    def __init__(self, total: int = 0) -> None:
        self.total = total

    def add(self, value: float, exponent: int = 0) -> None:
        """Add value * 2**exponent, of which what lies below 2**-SCALE is lost; the value is finite."""
        mantissa, shift = math.frexp(value)
        whole, places = int(math.ldexp(mantissa, MANTISSA)), SCALE + shift + exponent - MANTISSA
        self.total += whole << places if places >= 0 else whole >> -places

    def root(self) -> float:
        """Return the square root, rounded; Inf if there is no such number."""
        return _quotient(math.isqrt(self.total), 1 << SCALE // 2)

    def mean(self, count: int) -> float:
        """Return the sum divided by a count, rounded."""
        return _quotient(self.total, count << SCALE)


def _quotient(above: int, below: int) -> float:
    try:
        return above / below
    except OverflowError:
        return math.inf


class Statistics(NamedTuple):
    """What the values of one tensor are like; complex ones are taken as pairs of numbers.

    Attributes:
        minimum: smallest finite value, exact; None if there is none.
        maximum: largest finite value.
        mean: of the finite values.
        norm: root of the sum of the squares of the finite values.
        nan: elements that are NaN.
        inf: elements that are infinite.
    """

    minimum: float | int | None
    maximum: float | int | None
    mean: float | None
    norm: float
    nan: int
    inf: int


@dataclass(slots=True)
class StatisticsSums:
    """The statistics of the part of a tensor that has been seen so far.

    Attributes:
        seen: elements.
        finite: numbers that are finite; a complex element has two.
        minimum, maximum: of those.
        total: their sum.
        squares: the sum of their squares.
        nan, inf: elements that are not.
    """

    seen: int = 0
    finite: int = 0
    minimum: float | int | None = None
    maximum: float | int | None = None
    total: ExactSum = field(default_factory=ExactSum)
    squares: ExactSum = field(default_factory=ExactSum)
    nan: int = 0
    inf: int = 0

    def merge(self, other: StatisticsSums) -> None:
        """Take in what was seen of another part."""
        self.seen += other.seen
        self.finite += other.finite
        if self.minimum is None or (other.minimum is not None and other.minimum < self.minimum):
            self.minimum = other.minimum
        if self.maximum is None or (other.maximum is not None and other.maximum > self.maximum):
            self.maximum = other.maximum
        self.total.total += other.total.total
        self.squares.total += other.squares.total
        self.nan += other.nan
        self.inf += other.inf

    def finish(self) -> Statistics:
        """Return the statistics of all that was seen."""
        mean = self.total.mean(self.finite) if self.finite else None
        return Statistics(self.minimum, self.maximum, mean, self.squares.root(), self.nan, self.inf)


class Difference(NamedTuple):
    """How a tensor of B differs from the one of A, by value.

    NaN at the same place in both is no difference, and neither is the same infinity. Where NaN or Inf stands
    against something else, `max_abs` and `rel_l2` are Inf and `cosine` is None.

    Attributes:
        elements: of the tensor.
        differing: elements whose values differ.
        max_abs: largest absolute difference.
        rel_l2: |a - b| / |a| over the elements that are finite in both; Inf if only a is all zero.
        cosine: a.b / (|a| |b|) over the same elements; None if a or b is all zero.
        nan: elements that are NaN, in A and in B.
        inf: elements that are infinite, in A and in B.
        same_bits: whether even the bits are the same, those of negative zeros and NaNs included.
    """

    elements: int
    differing: int
    max_abs: float
    rel_l2: float
    cosine: float | None
    nan: tuple[int, int]
    inf: tuple[int, int]
    same_bits: bool


@dataclass(slots=True)
class DifferenceSums:
    """The difference between two tensors, or many, as far as they have been seen.

    Attributes:
        seen: elements.
        differing: of those, the ones whose values differ.
        max_abs: largest absolute difference.
        unbounded: whether NaN or Inf stands against something else.
        same_bits: whether all bits were the same.
        dd, aa, bb, ab: the sums over (a - b)^2, a^2, b^2 and a b.
        nan, inf: how many of those there are in A and in B.
    """

    seen: int = 0
    differing: int = 0
    max_abs: float = 0.0
    unbounded: bool = False
    same_bits: bool = True
    dd: ExactSum = field(default_factory=ExactSum)
    aa: ExactSum = field(default_factory=ExactSum)
    bb: ExactSum = field(default_factory=ExactSum)
    ab: ExactSum = field(default_factory=ExactSum)
    nan: tuple[int, int] = (0, 0)
    inf: tuple[int, int] = (0, 0)

    def merge(self, other: DifferenceSums) -> None:
        """Take in what was seen of another part or tensor."""
        self.seen += other.seen
        self.differing += other.differing
        self.max_abs = max(self.max_abs, other.max_abs)
        self.unbounded |= other.unbounded
        self.same_bits &= other.same_bits
        for name in ("dd", "aa", "bb", "ab"):
            getattr(self, name).total += getattr(other, name).total
        self.nan = (self.nan[0] + other.nan[0], self.nan[1] + other.nan[1])
        self.inf = (self.inf[0] + other.inf[0], self.inf[1] + other.inf[1])

    def finish(self) -> Difference:
        """Return the difference over all that was seen."""
        return Difference(
            elements=self.seen,
            differing=self.differing,
            max_abs=math.inf if self.unbounded else self.max_abs,
            rel_l2=self._relative(),
            cosine=self._cosine(),
            nan=self.nan,
            inf=self.inf,
            same_bits=self.same_bits,
        )

    def _relative(self) -> float:
        if self.unbounded:
            return math.inf
        if not self.dd.total:
            return 0.0
        return _quotient(math.isqrt(self.dd.total), math.isqrt(self.aa.total)) if self.aa.total else math.inf

    def _cosine(self) -> float | None:
        norms = math.isqrt(self.aa.total * self.bb.total)
        if self.unbounded or not norms:
            return None
        return max(-1.0, min(1.0, self.ab.total / norms))


@dataclass(frozen=True)
class Measuring:
    """What is measured, in a form that `blocks.cut` divides.

    Attributes:
        plan: the tensors to be read, each once, in the types that they have in each checkpoint.
        offsets: their places in a row that nobody writes, in the order of the first checkpoint's files.
        names: for each tensor that is read, all names that show the same bytes, its own among them.
        empty: names of tensors without elements, of which nothing is read.
    """

    plan: Plan
    offsets: Mapping[str, int]
    names: Mapping[str, tuple[str, ...]]
    empty: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        """Bytes that are read from all checkpoints."""
        return sum(t.numel * one.dtype.itemsize for t in self.plan.tensors for one in t.treatment.inputs)


def plan_measuring(checkpoints: Sequence[Checkpoint], names: Sequence[str]) -> Measuring:
    """Decide in which order tensors are read to be measured.

    Args:
        checkpoints: one, or several whose tensors are compared.
        names: tensors that all have, in one shape; their types may differ.
    """
    shared: dict[tuple[StoredTensor, ...], list[str]] = {}
    treatments: dict[tuple[str, ...], Treatment] = {}
    tensors: list[PlannedTensor] = []
    empty: list[str] = []
    for name in _in_the_order_of_the_files(checkpoints[0], names):
        stored = tuple(checkpoint.tensors[name] for checkpoint in checkpoints)
        if not stored[0].numel:
            empty.append(name)
            continue
        # Extents hold open files, which compare by identity: equal ones are the same bytes.
        known = shared.setdefault(stored, [])
        known.append(name)
        if len(known) == 1:
            dtypes = tuple(one.dtype.name for one in stored)
            if dtypes not in treatments:
                inputs = tuple(Input(index, one.dtype, (1.0,)) for index, one in enumerate(stored))
                treatments[dtypes] = Treatment(Action.MEASURE, inputs, stored[0].dtype, "")
            tensors.append(PlannedTensor(name, stored[0].shape, treatments[dtypes]))
    offsets: dict[str, int] = {}
    end = 0
    for tensor in tensors:
        offsets[tensor.name] = end
        end += tensor.numel * tensor.treatment.dtype.itemsize
    warnings = tuple(memory_warnings(tensors, checkpoints))
    return Measuring(
        plan=Plan(tuple(checkpoints), ((1.0,) * len(checkpoints),), tuple(tensors), {}, (), (), warnings),
        offsets=offsets,
        names={group[0]: tuple(group) for group in shared.values()},
        empty=tuple(empty),
    )


def _in_the_order_of_the_files(checkpoint: Checkpoint, names: Sequence[str]) -> list[str]:
    """Sort names by where their bytes begin, so that files are read from the front to the back."""
    files: dict[int, int] = {}
    places: list[tuple[int, int, str]] = []
    for name in names:
        extents = checkpoint.tensors[name].extents
        if extents:
            file = files.setdefault(id(extents[0].source), len(files))
            places.append((file, extents[0].offset, name))
        else:
            places.append((-1, 0, name))
    return [name for _, _, name in sorted(places)]
