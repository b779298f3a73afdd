"""`swatool diff`: how two checkpoints differ, for people and as a check."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from swatool.cli.options import AsJson, KeepPrefix, Key, Quiet, StripPrefix, Threads, Variant
from swatool.cli.outcome import ending_in_an_exit_code, printing_the_report
from swatool.jobs.diff import DiffSettings, check
from swatool.jobs.diff import diff as run

__all__ = ["diff"]

DEFAULTS = DiffSettings()


@ending_in_an_exit_code
def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="A checkpoint: any that average reads.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another one, of any format.")],
    tolerance: Annotated[
        float | None,
        typer.Option(
            "--tolerance",
            help="Exit with 6 unless names and shapes agree and |a - b| / |a| of each tensor is at most "
            "this; 0: equal values.",
        ),
    ] = DEFAULTS.tolerance,
    exclude: Annotated[
        list[str] | None, typer.Option("--exclude", help="Leave out tensors of this glob pattern.")
    ] = None,
    key: Key = DEFAULTS.key,
    key_b: Annotated[
        str | None, typer.Option("--key-b", help="The same for B, if it is another one there.")
    ] = DEFAULTS.key_b,
    strip_prefix: StripPrefix = None,
    keep_prefix: KeepPrefix = DEFAULTS.keep_prefix,
    variant: Variant = DEFAULTS.variant,
    threads: Threads = DEFAULTS.threads,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="All tensors and names, not the first 20.")
    ] = False,
) -> None:
    """Compare two checkpoints: names, shapes, types, and the values of each tensor, the worst first.

    Values are compared in float64, whatever the types, formats and memory layouts. That the checkpoints
    differ is no error, unless --tolerance is given.
    """
    from swatool.cli.diff_text import tell_diff
    from swatool.cli.render import Telling

    settings = DiffSettings(
        key=key,
        key_b=key_b,
        strip_prefix=tuple(strip_prefix or ()),
        keep_prefix=keep_prefix,
        variant=variant,
        exclude=tuple(exclude or ()),
        tolerance=tolerance,
        threads=threads,
    )
    with Telling(quiet=quiet or as_json, verbose=verbose) as telling:
        report = run(
            a,
            b,
            settings=settings,
            on_plan=lambda total: telling.begin("comparing", total, in_bytes=True),
            on_progress=telling.progress,
        )
    with printing_the_report(None):
        if as_json:
            typer.echo(json.dumps(report.as_json(), indent=2))
        else:
            tell_diff(telling, report)
        telling.warnings(report.warnings, even_if_quiet=as_json and not quiet)
    check(report)
