"""What `swatool verify` says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from swatool.cli.render import Telling, counted, size
from swatool.errors import printable

if TYPE_CHECKING:
    from swatool.jobs.verify_report import ComparedSources, VerifyReport

__all__ = ["tell_verified"]

SHOWN = 20  # names of a kind, unless all are asked for
MOST_PARAMETERS = 10  # no method has so many


def tell_verified(telling: Telling, report: VerifyReport) -> None:
    """Say what was found about an output; what does not hold is told as an error."""
    telling.lines(_lines(report, None if telling.verbose else SHOWN))


def _lines(report: VerifyReport, most: int | None) -> Iterator[str]:
    tensors = counted(report.tensors, "tensor")
    yield f"{printable(report.path)[1:-1]}: {report.format}, {size(report.bytes)}, {tensors}"
    if report.key:
        yield f"state dict: {printable(report.key)}; what lies beside it is not looked at"
    if report.checksum is None:
        yield "no checksum recorded"
    else:
        yield f"compared with the checksums in {printable(report.checksum)}"
    if report.records:
        yield f"{counted(report.records, 'record')} compared with the CRC-32 in the file"
    for name in report.nonfinite[:most]:
        yield f"NaN or Inf: {printable(name)}"
    if report.sources is not None:
        yield from _about_sources(report.sources, most)
    if report.passed:
        yield "every check holds"
    yield (
        f"read {size(report.bytes_read)} in {report.seconds:.2f} s with {counted(report.threads, 'thread')}; "
        f"peak memory {size(report.peak_rss_bytes)}"
    )


def _about_sources(found: ComparedSources, most: int | None) -> Iterator[str]:
    said = list(found.parameters.items())
    parameters = "".join(f", {_shown(name)} {_shown(one)}" for name, one in said[:MOST_PARAMETERS])
    if len(said) > MOST_PARAMETERS:
        parameters += f" and {len(said) - MOST_PARAMETERS:,} more parameters"
    yield f"claims: {_shown(found.method)}{parameters}, of {counted(found.recorded, 'source')}"
    if found.settings:
        settings = ", ".join(f"{printable(k)[1:-1]} {_shown(one)}" for k, one in found.settings.items())
        yield f"with settings of its own: {settings}"
    unused = f"; {found.unused:,} others given" if found.unused else ""
    hashed = (
        f", {found.hashed:,} of them with a checksum" if found.hashed else ", known by name and size only"
    )
    yield f"sources: {found.found:,} of {found.recorded:,} found{hashed}{unused}"
    if found.compared:
        differing = len(found.differing)
        same = "all are the same" if not differing else f"{differing:,} differ"
        copied = f", {found.copied:,} of them no averages but one checkpoint's" if found.copied else ""
        yield f"made again: {counted(found.compared, 'tensor')}{copied}, byte by byte; {same}"
    if found.recalibrated:
        yield f"not compared: {counted(found.recalibrated, 'tensor')} recalibrated on data, by its own word"
        yield from (f"not compared: {printable(name)}" for name in found.not_compared[:most])
    yield from (f"differs: {printable(name)}" for name in found.differing[:most])


def _shown(value: object) -> str:
    return printable(value)[1:-1]
