"""A published output as the target of the average that it claims to be: all is compared, nothing written."""

from __future__ import annotations

import itertools
import threading
from bisect import bisect_right
from collections.abc import Collection, Mapping
from typing import NamedTuple

from swatool.output.layout import BETWEEN_FILES, Layout
from swatool.tensors import Source, StoredTensor

__all__ = ["PublishedBytes"]

PIECE = 1 << 20


class Span(NamedTuple):
    """Where a tensor's bytes lie, in positions that count through all files."""

    begin: int
    end: int
    name: str


class PublishedBytes:
    """Compares bytes with those of an output, by position; several threads may do so at once.

    Attributes:
        layout: where each tensor is.
        strange: names of tensors that do not lie as swatool writes them: whole, in C order, and apart or
            on the same bytes.
        differing: names of tensors of which other bytes were given, so far.
    """

    def __init__(self, tensors: Mapping[str, StoredTensor], left_out: Collection[str] = ()) -> None:
        """Look where the tensors lie; of those that are left out, differences are not noted."""
        self.differing: set[str] = set()
        self._left_out = frozenset(left_out)
        self._sources: list[Source] = []
        self._begins: list[int] = []  # of the files
        self._numbers: dict[int, int] = {}  # of the files, by identity
        strange = {name for name, one in tensors.items() if one.is_gathered or len(one.extents) > 1}
        spans = sorted(
            self._span(name, one) for name, one in tensors.items() if name not in strange and one.extents
        )
        strange.update(later.name for one, later in itertools.pairwise(spans) if _overlap(one, later))
        self.strange = tuple(sorted(strange))
        self._spans = spans
        self._span_begins = [span.begin for span in spans]
        empty = {name: 0 for name, one in tensors.items() if not one.extents}
        self.layout = Layout((), {**empty, **{span.name: span.begin for span in spans}}, ())
        self._local = threading.local()

    def _span(self, name: str, tensor: StoredTensor) -> Span:
        source, offset, nbytes = tensor.extents[0]
        if id(source) not in self._numbers:
            self._numbers[id(source)] = len(self._sources)
            behind = self._begins[-1] + self._sources[-1].size + BETWEEN_FILES if self._sources else 0
            self._sources.append(source)
            self._begins.append(behind)
        begin = self._begins[self._numbers[id(source)]] + offset
        return Span(begin, begin + nbytes, name)

    def write(self, position: int, buffer: memoryview) -> None:
        """Compare bytes with those at a position, in place of writing; CheckpointError if reading fails."""
        for start in range(0, len(buffer), PIECE):
            self._compare(position + start, buffer[start : start + PIECE])

    def _compare(self, position: int, data: memoryview) -> None:
        index = bisect_right(self._begins, position) - 1
        # Of the very length: bytearrays are compared at once, and views of them byte by byte.
        mine: bytearray = getattr(self._local, "buffer", bytearray())
        if len(mine) != len(data):
            mine = self._local.buffer = bytearray(len(data))
        self._sources[index].read_into([mine], position - self._begins[index])
        if mine != data:
            self._note(position, mine, data)

    def _note(self, position: int, mine: bytearray, data: memoryview) -> None:
        """Find whose bytes differ; tensors lie apart, or on the same bytes."""
        index = bisect_right(self._span_begins, position) - 1
        while index > 0 and self._span_begins[index - 1] == self._span_begins[index]:
            index -= 1
        for begin, end, name in self._spans[max(index, 0) :]:
            if begin >= position + len(data):
                break
            part = slice(max(begin - position, 0), max(end - position, 0))
            if mine[part] != data[part] and name not in self._left_out:
                self.differing.add(name)


def _overlap(one: Span, later: Span) -> bool:
    return later.begin < one.end and (one.begin, one.end) != (later.begin, later.end)
