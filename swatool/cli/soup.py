"""`swatool soup`: the greedy soup of some checkpoints, by the user's own evaluation."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
from collections.abc import Callable
from typing import Annotated, Any

import typer

from swatool.cli.average import average
from swatool.cli.options import AsJson, Quiet
from swatool.cli.outcome import ending_in_an_exit_code, printing_the_report, telling_of
from swatool.jobs.average_settings import DEFAULT_OUTPUT
from swatool.jobs.scoring import Scoring
from swatool.jobs.soup import SoupSettings
from swatool.jobs.soup import soup as run

__all__ = ["soup"]

DEFAULTS = SoupSettings()
OWN = ("order_by", "metrics", "max_members", "min_gain")


def _with_options_of_average(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command, in place of its `**shared`, those options of `average` that are settings of a soup."""
    taken = inspect.signature(average, eval_str=True).parameters
    own = [
        p
        for p in inspect.signature(command, eval_str=True).parameters.values()
        if p.kind is not p.VAR_KEYWORD
    ]
    names = [field.name for field in dataclasses.fields(SoupSettings) if field.name not in OWN]
    parameters = [*own, *(taken[name] for name in taken if name in names)]
    keyword = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]

    @functools.wraps(command)
    def wrapped(*, strip_prefix: list[str] | None, exclude: list[str] | None, **given: object) -> None:
        command(strip_prefix=tuple(strip_prefix or ()), exclude=tuple(exclude or ()), **given)

    wrapped.__signature__ = inspect.Signature(keyword)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {p.name: p.annotation for p in keyword}
    return wrapped


@ending_in_an_exit_code
@_with_options_of_average
def soup(
    checkpoints: Annotated[
        list[str], typer.Argument(help="Checkpoint files, quoted glob patterns and folders, in any order.")
    ],
    evaluate: Annotated[
        str,
        typer.Option(
            "--eval", help="'command {path}' or module:function that gives numbers of a checkpoint."
        ),
    ],
    mode: Annotated[str, typer.Option("--mode", help="Whether max or min is the best; never guessed.")],
    output: Annotated[
        str, typer.Option("--output", "-o", help="The file to write; or a folder, if it ends in a slash.")
    ] = DEFAULT_OUTPUT,
    metric: Annotated[
        str | None, typer.Option("--metric", help="Which number of the evaluation counts.")
    ] = None,
    order_by: Annotated[
        str | None,
        typer.Option(
            "--order-by", help="Order members by this number, known of each; evaluate the first only."
        ),
    ] = DEFAULTS.order_by,
    metrics: Annotated[
        str | None,
        typer.Option("--metrics", help="For --order-by, a table: .csv, .tsv, .json, .jsonl or .yaml."),
    ] = DEFAULTS.metrics,
    max_members: Annotated[
        int | None, typer.Option("--max-members", help="Stop when so many are accepted.")
    ] = DEFAULTS.max_members,
    min_gain: Annotated[
        float, typer.Option("--min-gain", help="Accept a member only if the metric gains at least this.")
    ] = DEFAULTS.min_gain,
    restart: Annotated[
        bool, typer.Option("--restart", help="Forget what a run that was stopped has found.")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Print the names of tensors, too.")
    ] = False,
    **shared: Any,  # noqa: ANN401 - as `average` declares them
) -> None:
    """Average those checkpoints that do not make the average worse, by an evaluation: a greedy soup.

    Members are tried from the best to the worst. What is found is kept beside the output until that is
    written: after a kill, the same command goes on where it stopped.
    """
    from swatool.cli.render import Telling
    from swatool.cli.soup_text import tell_soup, tell_soup_plan, tell_step

    settings = SoupSettings(
        **shared, order_by=order_by, metrics=metrics, max_members=max_members, min_gain=min_gain
    )
    scoring = Scoring(evaluate=evaluate, metric=metric, mode=mode)  # type: ignore[arg-type]
    with Telling(quiet=quiet or as_json, verbose=verbose) as telling, telling_of(output):
        report = run(
            checkpoints,
            output,
            scoring=scoring,
            settings=settings,
            restart=restart,
            on_plan=lambda report: tell_soup_plan(telling, report),
            on_step=lambda step: tell_step(telling, step),
        )
    with printing_the_report(None if report.dry_run else output):
        if as_json:
            typer.echo(json.dumps(report.as_json(names=verbose), indent=2))
        elif not report.dry_run:
            tell_soup(telling, report)
        telling.warnings(report.warnings, even_if_quiet=as_json and not quiet)
