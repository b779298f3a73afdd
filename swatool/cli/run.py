"""`swatool run`: a recipe, from its inputs to its checks."""

from __future__ import annotations

import json
from contextlib import nullcontext
from typing import Annotated

import typer

from swatool.cli.options import AsJson, Quiet
from swatool.cli.outcome import ending_in_an_exit_code, printing_the_report, showing_causes
from swatool.errors import CheckFailedError, UsageError
from swatool.jobs.recipe_model import recipe_schema
from swatool.jobs.recipes import run_recipe
from swatool.user_code import speaking_on_stderr

__all__ = ["run"]


@ending_in_an_exit_code
def run(
    recipe: Annotated[str | None, typer.Argument(help="The recipe: a YAML file.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="key=value in place of the file's, such as outputs.0.parameters.decay=0.9."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the whole plan; run and write nothing.")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Annotated[
        bool,
        typer.Option("--verbose", "-v", help="Print all names, and where in your own code an error arose."),
    ] = False,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema of recipes, for editors.")
    ] = False,
) -> None:
    """Carry out a recipe: averages, recalibrations, evaluations and checks, as a YAML file says.

    Its paths are relative to its folder, where its commands and your own code run, too. Everything is planned
    before anything is read; outputs appear whole or not at all. A check that does not hold ends with exit
    code 6 when all else is done.
    """
    from swatool.cli.render import Telling
    from swatool.cli.run_text import RecipeTelling

    if schema:
        with printing_the_report(None):
            typer.echo(json.dumps(recipe_schema(), indent=2))
        return
    if recipe is None:
        raise UsageError("name a recipe, such as recipe.yaml; --schema prints what one may say")
    with (
        Telling(quiet=quiet or as_json, verbose=verbose) as telling,
        showing_causes(verbose),
        speaking_on_stderr() if as_json else nullcontext(),  # the user's code may print
    ):
        told = RecipeTelling(telling)
        report = run_recipe(
            recipe,
            overrides=overrides or (),
            dry_run=dry_run,
            on_plan=told.plan,
            on_progress=telling.progress,
            on_part=told.part,
        )
    with printing_the_report(None if dry_run else recipe):
        if as_json:
            typer.echo(json.dumps(report.as_json(names=verbose), indent=2))
        elif not dry_run:
            told.summary(report)
        telling.warnings(report.warnings, even_if_quiet=as_json and not quiet)
    if not report.passed:
        raise CheckFailedError("; ".join(report.failures))
