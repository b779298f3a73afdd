"""What `swatool diff` says."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from swatool.cli.render import Telling, counted, size
from swatool.errors import printable

if TYPE_CHECKING:
    from swatool.jobs.diff_report import ComparedCheckpoint, DiffReport, TensorDifference

__all__ = ["tell_diff"]

SHOWN = 20  # tensors, and names of a kind, unless all are asked for


def tell_diff(telling: Telling, report: DiffReport) -> None:
    """Say how two checkpoints differ: what they are, the worst tensors, and the sums at the end."""
    most = None if telling.verbose else SHOWN
    telling.lines([_checkpoint("A", report.a), _checkpoint("B", report.b), *_findings(report, most)])
    differing = [one for one in report.tensors if one.difference.differing]
    shown = (report.tensors if telling.verbose else differing)[:most]
    if shown:
        nonfinite = any((*one.difference.nan, *one.difference.inf) != (0, 0, 0, 0) for one in shown)
        header = ["tensor", "relative L2", "max abs", "cosine", "differing", "of"]
        header += ["NaN in A, B", "Inf in A, B"] if nonfinite else []
        telling.table(header, [_row(one, nonfinite) for one in shown])
    if len(differing) > len(shown):
        telling.lines([f"... and {len(differing) - len(shown):,} more that differ less; -v shows all"])
    telling.lines(_sums(report))


def _checkpoint(letter: str, one: ComparedCheckpoint) -> str:
    key = f", state dict {printable(one.key)}" if one.key else ""
    prefix = f", {printable(one.prefix)} taken off the names" if one.prefix else ""
    tensors = counted(one.tensors, "tensor")
    return f"{letter}: {printable(one.path)[1:-1]}: {one.format}, {size(one.bytes)}, {tensors}{key}{prefix}"


def _findings(report: DiffReport, most: int | None) -> Iterable[str]:
    yield from _listed("only in A", [printable(name) for name in report.only_in_a], most)
    yield from _listed("only in B", [printable(name) for name in report.only_in_b], most)
    shapes = [
        f"{printable(one.name)} {printable(list(one.a))[1:-1]} in A, {printable(list(one.b))[1:-1]} in B"
        for one in report.shapes
    ]
    yield from _listed("shapes differ", shapes, most)
    dtypes = [f"{printable(one.name)} {one.a} in A, {one.b} in B" for one in report.dtypes]
    yield from _listed("types differ", dtypes, most)


def _listed(what: str, found: Sequence[str], most: int | None) -> Iterable[str]:
    shown = found[:most]
    yield from (f"{what}: {one}" for one in shown)
    if len(shown) < len(found):
        yield f"{what}: ... and {len(found) - len(shown):,} more; -v shows all"


def _row(one: TensorDifference, nonfinite: bool) -> list[str]:
    found = one.difference
    cells = [
        printable(one.name)[1:-1],
        f"{found.rel_l2:.4g}",
        f"{found.max_abs:.4g}",
        _cosine(found.cosine),
        f"{found.differing:,}",
        f"{found.elements:,}",
    ]
    if nonfinite:
        cells += [f"{found.nan[0]:,}, {found.nan[1]:,}", f"{found.inf[0]:,}, {found.inf[1]:,}"]
    return cells


def _cosine(value: float | None) -> str:
    return "-" if value is None else f"{value:.8g}"


def _sums(report: DiffReport) -> Iterable[str]:
    total = report.total
    if report.bit_identical:
        yield f"bit-identical: {counted(len(report.tensors), 'tensor')}"
    elif report.tensors:
        yield f"{report.identical:,} of {counted(len(report.tensors), 'tensor')} have equal values"
        if total.elements:
            yield (
                f"all floating tensors together: relative L2 {total.rel_l2:.6g}, "
                f"max abs {total.max_abs:.6g}, cosine {_cosine(total.cosine)}, "
                f"{total.differing:,} of {total.elements:,} elements differ"
            )
    else:
        yield "no tensor to compare: the two have no name in common with one shape"
    if report.excluded:
        yield f"left out: {counted(len(report.excluded), 'tensor')}"
    if report.passed:
        yield f"within the tolerance of {report.tolerance:g}"
    yield (
        f"read {size(report.bytes_read)} in {report.seconds:.2f} s with {counted(report.threads, 'thread')}; "
        f"peak memory {size(report.peak_rss_bytes)}"
    )
