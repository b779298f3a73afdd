"""`swatool inspect`: what lies in checkpoints, without loading them."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from swatool.cli.options import AsJson, KeepPrefix, Key, Quiet, StripPrefix, Threads, Variant
from swatool.cli.outcome import ending_in_an_exit_code, printing_the_report, tell_error
from swatool.jobs.inspect import Failure, InspectSettings, inspect_each
from swatool.jobs.running import uncollected
from swatool.version import __version__

__all__ = ["inspect"]

DEFAULTS = InspectSettings()
SCHEMA = 1
MOST_INDENTED = 1000  # tensors: to indent, Python writes JSON ten times as slowly


@ending_in_an_exit_code
def inspect(
    checkpoints: Annotated[
        list[str], typer.Argument(help="Checkpoint files, quoted glob patterns and folders.")
    ],
    stats: Annotated[
        bool, typer.Option("--stats", help="Read the values: min, max, mean, norm, NaN and Inf.")
    ] = DEFAULTS.stats,
    tree: Annotated[bool, typer.Option("--tree", help="By module, with sums, instead of by tensor.")] = False,
    limit: Annotated[
        int | None, typer.Option("--limit", help="Show only so many tensors, or lines of the tree.", min=0)
    ] = None,
    key: Key = DEFAULTS.key,
    strip_prefix: StripPrefix = None,
    keep_prefix: KeepPrefix = DEFAULTS.keep_prefix,
    variant: Variant = DEFAULTS.variant,
    threads: Threads = DEFAULTS.threads,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="All state dicts, fields and metadata, uncut.")
    ] = False,
) -> None:
    """Show what lies in checkpoints: state dicts, tensors, steps and metrics.

    Only the descriptions are read, unless --stats is given; nothing in a checkpoint is ever executed.
    """
    from swatool.cli.inspect_text import InspectTelling
    from swatool.cli.render import Telling

    settings = InspectSettings(
        stats=stats,
        key=key,
        strip_prefix=tuple(strip_prefix or ()),
        keep_prefix=keep_prefix,
        variant=variant,
        threads=threads,
    )
    found: list[dict[str, object]] = []
    worst = 0
    with (
        uncollected(),
        Telling(quiet=quiet or as_json, verbose=verbose) as telling,
        printing_the_report(None),
    ):
        told = InspectTelling(telling, tree=tree, limit=limit)
        for one in inspect_each(checkpoints, settings, told.progress):
            if isinstance(one, Failure):
                tell_error(str(one.error), one.error.exit_code, as_json)
                worst = max(worst, one.error.exit_code)
                continue
            if as_json:
                found.append(one.as_json())
            else:
                told.report(one)
            telling.warnings(one.warnings, even_if_quiet=as_json and not quiet)
        if as_json:
            shown = {"schema": SCHEMA, "version": __version__, "command": "inspect", "checkpoints": found}
            many = sum(len(one["tensors"]) for one in found) > MOST_INDENTED  # type: ignore[arg-type,misc]
            typer.echo(json.dumps(shown, indent=None if many else 2))
    if worst:
        raise typer.Exit(worst)
