"""`swatool verify`: whether outputs are whole, finite, and the averages that they claim to be."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from swatool.cli.options import AsJson, Key, Quiet, Threads, Variant
from swatool.cli.outcome import ending_in_an_exit_code, printing_the_report, tell_error
from swatool.errors import SwatoolError
from swatool.jobs.running import uncollected
from swatool.jobs.verify import VerifySettings, check
from swatool.jobs.verify import verify as run
from swatool.jobs.verify_report import VerifyReport
from swatool.version import __version__

__all__ = ["Command", "verify"]

DEFAULTS = VerifySettings()
SCHEMA = 1
SOURCES = "--sources"


class Command(TyperCommand):
    """A command whose `--sources` takes all up to the next option, as shells expand a pattern."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - typer hides its type
        """Put the option in front of each of its values."""
        spread: list[str] = []
        taking = False
        for one, before in zip(args, ["", *args], strict=False):
            if one.startswith("-"):
                taking = one == SOURCES
            elif taking and before != SOURCES:
                spread.append(SOURCES)
            spread.append(one)
        return super().parse_args(ctx, spread)


@ending_in_an_exit_code
def verify(
    outputs: Annotated[
        list[str], typer.Argument(metavar="OUTPUTS", help="Checkpoint files, and folders of one.")
    ],
    sources: Annotated[
        list[str] | None,
        typer.Option(
            SOURCES,
            help="Files, patterns and folders, up to the next option: repeat the average that is claimed.",
        ),
    ] = None,
    allow_nonfinite: Annotated[
        bool, typer.Option("--allow-nonfinite", help="Accept NaN and Inf.")
    ] = DEFAULTS.allow_nonfinite,
    require_checksum: Annotated[
        bool, typer.Option("--require-checksum", help="Exit with 6 if no checksum is recorded.")
    ] = DEFAULTS.require_checksum,
    key: Key = DEFAULTS.key,
    variant: Variant = DEFAULTS.variant,
    threads: Threads = DEFAULTS.threads,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="The names of all tensors, not the first 20.")
    ] = False,
) -> None:
    """Check outputs: header, sizes, finite values, checksums, and that they average their sources.

    Nothing in an output is executed, and no file is opened that it names and you do not.
    """
    from swatool.cli.render import Telling
    from swatool.cli.verify_text import tell_verified

    settings = VerifySettings(
        allow_nonfinite=allow_nonfinite,
        require_checksum=require_checksum,
        key=key,
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

        def told(report: VerifyReport) -> None:
            found.append(report.as_json())
            if not as_json:
                tell_verified(telling, report)
            telling.warnings(report.warnings, even_if_quiet=as_json and not quiet)
            check(report)

        for output in outputs:
            try:
                told(
                    run(
                        output,
                        sources or None,
                        settings=settings,
                        on_plan=lambda total: telling.begin("verifying", total, in_bytes=True),
                        on_progress=telling.progress,
                    )
                )
            except SwatoolError as error:
                tell_error(str(error), error.exit_code, as_json)
                worst = max(worst, error.exit_code)
        if as_json:
            shown = {"schema": SCHEMA, "version": __version__, "command": "verify", "outputs": found}
            typer.echo(json.dumps(shown, indent=2))
    if worst:
        raise typer.Exit(worst)
