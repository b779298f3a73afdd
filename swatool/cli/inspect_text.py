"""What `swatool inspect` says."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from swatool.cli.render import Telling, counted, size
from swatool.errors import printable

if TYPE_CHECKING:
    from swatool.jobs.inspect_report import InspectReport, StateDictReport, TensorReport, Total

__all__ = ["InspectTelling"]

SHOWN_BESIDE = 10  # state dicts, fields and the like, unless all are asked for
DEEPEST = 16  # levels of the tree; names may have any number of dots
STATISTICS = ("min", "max", "mean", "norm", "NaN", "Inf")


class InspectTelling:
    """Says what was found in one checkpoint after the other."""

    def __init__(self, telling: Telling, *, tree: bool, limit: int | None) -> None:
        self._telling = telling
        self._tree = tree
        self._limit = limit
        self._measuring = False
        self._first = True

    def progress(self, done: int, total: int) -> None:
        """Move the progress bar of the checkpoint that is being measured."""
        if not self._measuring:
            self._telling.begin("measuring", total, in_bytes=True)
            self._measuring = True
        self._telling.progress(done)

    def report(self, report: InspectReport) -> None:
        """Say what a checkpoint holds: what it is, its tensors, and their sums at the end."""
        if not self._first:
            self._telling.lines([""])
        self._first = self._measuring = False
        self._telling.lines(self._head(report))
        if report.key is None:
            return
        header, rows = _tree(report.tensors) if self._tree else _table(report.tensors)
        shown = rows[: self._limit]
        if shown:
            self._telling.table(header, shown)
        if len(shown) < len(rows):
            self._telling.lines([f"... and {len(rows) - len(shown):,} more, left out by --limit"])
        self._telling.lines(_sums(report))

    def _head(self, report: InspectReport) -> Iterable[str]:
        files = "" if report.files == 1 else f" in {report.files} files"
        yield f"{printable(report.path)[1:-1]}: {report.format}, {size(report.bytes)}{files}"
        provenance = report.provenance
        if provenance is not None:
            yield f"written by swatool: {_in_one_line(provenance)}"
        if report.key is None:
            yield "nothing tells which state dict is meant; with --key, one of these:"
            yield from self._listed([f"  {_state_dict(one)}" for one in report.state_dicts])
            return
        if report.key or report.prefix:
            taken = f", {printable(report.prefix)} taken off the names" if report.prefix else ""
            yield f"state dict: {printable(report.key) if report.key else 'the whole file'}{taken}"
        others = [one for one in report.state_dicts if not one.chosen]
        yield from self._joined("other state dicts, for --key", [_state_dict(one) for one in others])
        fields = [f"{printable(name)[1:-1]} {value}" for name, value in report.fields.items()]
        yield from self._joined("beside it", fields)
        metadata = [
            f"{printable(name)[1:-1]} {printable(text)}"
            for name, text in report.metadata.items()
            if provenance is None or name != "swatool"
        ]
        yield from self._joined("metadata", metadata)
        yield from self._joined("no plain values, not read", list(map(printable, report.opaque)))
        yield from self._joined("no tensors, skipped", list(map(printable, report.skipped)))

    def _listed(self, lines: Sequence[str]) -> list[str]:
        shown = list(lines if self._telling.verbose else lines[:SHOWN_BESIDE])
        more = len(lines) - len(shown)
        return [*shown, f"  ... and {more:,} more; -v shows all"] if more else shown

    def _joined(self, what: str, found: Sequence[str]) -> Iterable[str]:
        shown = found if self._telling.verbose else found[:SHOWN_BESIDE]
        more = len(found) - len(shown)
        if found:
            yield f"{what}: {', '.join(shown)}{f' and {more:,} more' if more else ''}"


def _in_one_line(provenance: Mapping[str, object]) -> str:
    """Say where an output of swatool comes from; what it says of itself may be of any form."""
    said = [f"{name} {_plain(provenance[name])}" for name in ("version", "method") if name in provenance]
    sources = provenance.get("sources")
    if isinstance(sources, list):
        steps = [one["step"] for one in sources if isinstance(one, dict) and isinstance(one.get("step"), int)]
        known = f", steps {_plain(steps[0])} to {_plain(steps[-1])}" if steps else ""
        said.append(f"{counted(len(sources), 'checkpoint')}{known}")
    others = [printable(name)[1:-1] for name in provenance if name not in ("version", "method", "sources")]
    if others:
        said.append(f"also says {', '.join(others[:SHOWN_BESIDE])}")
    return ", ".join(said)


def _plain(value: object) -> str:
    try:
        return printable(value if isinstance(value, str) else json.dumps(value))[1:-1]
    except (ValueError, RecursionError):
        return "?"


def _state_dict(one: StateDictReport) -> str:
    name = printable(one.key) if one.key else "the whole file"
    return f"{name} ({counted(one.tensors, 'tensor')}, {size(one.bytes)})"


def _table(tensors: Sequence[TensorReport]) -> tuple[Sequence[str], list[Sequence[str]]]:
    measured = any(tensor.stats is not None for tensor in tensors)
    header = ["tensor", "dtype", "shape", "size", "kind", *(STATISTICS if measured else ())]
    return header, [_row(tensor, measured) for tensor in tensors]


def _row(tensor: TensorReport, measured: bool) -> Sequence[str]:
    tied = "" if tensor.tied_with is None else f", tied with {printable(tensor.tied_with)}"
    cells = [
        printable(tensor.name)[1:-1],
        tensor.dtype,
        printable(list(tensor.shape))[1:-1],
        size(tensor.bytes),
        f"{tensor.kind}{tied}",
    ]
    if measured:
        cells += ["-"] * len(STATISTICS) if tensor.stats is None else map(_number, tensor.stats)
    return cells


def _number(value: float | int | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.5g}"


@dataclass(slots=True)
class Module:
    """A module, or a part of one: the sums over its tensors, and what is in it."""

    tensors: int = 0
    elements: int = 0
    bytes: int = 0
    inside: dict[str, Module] = field(default_factory=dict)

    def add(self, tensor: TensorReport) -> None:
        """Count a tensor that is in it."""
        self.tensors += 1
        self.elements += tensor.elements
        self.bytes += tensor.bytes


def _tree(tensors: Sequence[TensorReport]) -> tuple[Sequence[str], list[Sequence[str]]]:
    """Add tensors up by module; tied ones count where they stand first."""
    root = Module()
    for tensor in tensors:
        if tensor.tied_with is not None:
            continue
        module = root
        module.add(tensor)
        for part in tensor.name.split(".", DEEPEST)[:-1]:
            inside = module.inside.get(part)
            if inside is None:
                inside = module.inside[part] = Module()
            module = inside
            module.add(tensor)
    rows: list[Sequence[str]] = []
    _add_rows(rows, "(all)", root, 0)
    return ("module", "tensors", "elements", "size"), rows


def _add_rows(rows: list[Sequence[str]], name: str, module: Module, depth: int) -> None:
    shown = printable(name)[1:-1]
    rows.append((f"{'  ' * depth}{shown}", f"{module.tensors:,}", f"{module.elements:,}", size(module.bytes)))
    for part, inside in module.inside.items():
        _add_rows(rows, part, inside, depth + 1)


def _sums(report: InspectReport) -> Iterable[str]:
    tied = sum(tensor.tied_with is not None for tensor in report.tensors)
    names = f" under {counted(len(report.tensors), 'name')}" if tied else ""
    yield f"{_total(report.totals)}{names}"
    if report.tensors:
        yield "by type: " + "; ".join(f"{name} {_total(total)}" for name, total in report.dtypes.items())
        yield "by kind: " + "; ".join(f"{name} {_total(total)}" for name, total in report.kinds.items())


def _total(total: Total) -> str:
    return f"{counted(total.tensors, 'tensor')}, {counted(total.elements, 'element')}, {size(total.bytes)}"
