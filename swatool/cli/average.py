"""`swatool average`: from the checkpoints of a run to one averaged checkpoint."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from swatool.averaging.schemes import SCHEMES
from swatool.cli.options import (
    AsJson,
    Checksum,
    Device,
    KeepPrefix,
    Key,
    Overwrite,
    Quiet,
    StripPrefix,
    Variant,
    with_scheme_options,
)
from swatool.cli.outcome import ending_in_an_exit_code, printing_the_report, telling_of
from swatool.errors import UsageError, printable
from swatool.jobs.average_settings import DEFAULT_OUTPUT, AverageSettings
from swatool.jobs.recipe_saving import AskedFor, check_recipe_target, save_recipe
from swatool.jobs.scoring import Scoring
from swatool.jobs.sweep_average import average_sweep, outputs_of_sweep

__all__ = ["average"]

DEFAULTS = AverageSettings()


@ending_in_an_exit_code
@with_scheme_options
def average(
    checkpoints: Annotated[
        list[str], typer.Argument(help="Checkpoint files, quoted glob patterns and folders, in any order.")
    ],
    output: Annotated[
        str, typer.Option("--output", "-o", help="The file to write; or a folder, if it ends in a slash.")
    ] = DEFAULT_OUTPUT,
    method: Annotated[
        str | None, typer.Option("--method", help=f"The scheme: {', '.join(SCHEMES)}; default: swa.")
    ] = DEFAULTS.method,
    no_normalize: Annotated[
        bool, typer.Option("--no-normalize", help="weights: take them as they are, whatever they sum to.")
    ] = False,
    accumulate: Annotated[
        str, typer.Option("--accumulate", help="Type of the sums: auto, float32 or float64.")
    ] = DEFAULTS.accumulate,
    sort: Annotated[
        str, typer.Option("--sort", help="Order of age: step, name, mtime or given.")
    ] = DEFAULTS.sort,
    last: Annotated[int | None, typer.Option("--last", help="Only so many of the newest.")] = DEFAULTS.last,
    first: Annotated[
        int | None, typer.Option("--first", help="Only so many of the oldest.")
    ] = DEFAULTS.first,
    every: Annotated[
        int | None, typer.Option("--every", help="One in so many, counted back from the newest.")
    ] = DEFAULTS.every,
    min_step: Annotated[
        int | None, typer.Option("--min-step", help="None before this step.")
    ] = DEFAULTS.min_step,
    max_step: Annotated[
        int | None, typer.Option("--max-step", help="None after this step.")
    ] = DEFAULTS.max_step,
    best: Annotated[
        int | None, typer.Option("--best", help="Of what is left, only so many with the best --metric.")
    ] = DEFAULTS.best,
    metric: Annotated[
        str | None, typer.Option("--metric", help="Which number counts, for --best and for --eval.")
    ] = DEFAULTS.metric,
    mode: Annotated[
        str | None, typer.Option("--mode", help="Whether max or min is the best; never guessed.")
    ] = DEFAULTS.mode,
    metrics: Annotated[
        str | None,
        typer.Option("--metrics", help="A table of metrics: .csv, .tsv, .json, .jsonl or .yaml."),
    ] = DEFAULTS.metrics,
    sweep: Annotated[
        list[str] | None,
        typer.Option("--sweep", help="name=value,...: one average for each, from one read; -o has {name}."),
    ] = None,
    evaluate: Annotated[
        str | None,
        typer.Option("--eval", help="'command {path}' or module:function that gives numbers of an average."),
    ] = None,
    keep: Annotated[
        str | None, typer.Option("--keep", help="After --eval of a sweep: the best average, or all.")
    ] = None,
    allow_duplicates: Annotated[
        bool,
        typer.Option("--allow-duplicates", help="Accept a file twice, and earlier outputs of swatool."),
    ] = DEFAULTS.allow_duplicates,
    key: Key = DEFAULTS.key,
    strip_prefix: StripPrefix = None,
    keep_prefix: KeepPrefix = DEFAULTS.keep_prefix,
    variant: Variant = DEFAULTS.variant,
    match: Annotated[
        str,
        typer.Option("--match", help="Names that only some have: exact (refuse), intersection or union."),
    ] = DEFAULTS.match,
    integers: Annotated[
        str, typer.Option("--integers", help="Integer and bool tensors are copied: last, first or equal.")
    ] = DEFAULTS.integers,
    tied: Annotated[
        str, typer.Option("--tied", help="Tensors that share bytes: keep all names, or drop all but one.")
    ] = DEFAULTS.tied,
    exclude: Annotated[
        list[str] | None,
        typer.Option("--exclude", help="Copy tensors of this glob pattern from the last checkpoint."),
    ] = None,
    dtype: Annotated[
        str, typer.Option("--dtype", help="Type of averages: same, float32, bfloat16 or float16.")
    ] = DEFAULTS.dtype,
    allow_nonfinite: Annotated[
        bool, typer.Option("--allow-nonfinite", help="Write NaN and Inf instead of refusing them.")
    ] = DEFAULTS.allow_nonfinite,
    format: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="safetensors or pt (one file), hf or dcp (a folder); default: by the output's name.",
        ),
    ] = DEFAULTS.format,
    max_shard_size: Annotated[
        str | None,
        typer.Option("--max-shard-size", help="Write a folder of files of this size; its default: 5GB."),
    ] = None,
    sidecars: Annotated[
        bool,
        typer.Option("--sidecars/--no-sidecars", help="Copy configuration and tokenizer to a folder."),
    ] = DEFAULTS.sidecars,
    like: Annotated[
        str | None,
        typer.Option("--like", help="For a .pt or .ckpt: the wrapper and the names of this checkpoint."),
    ] = DEFAULTS.like,
    device: Device = DEFAULTS.device,
    threads: Annotated[
        int | None, typer.Option("--threads", "-j", help="Workers; default: the cores that may be used.")
    ] = DEFAULTS.threads,
    overwrite: Overwrite = DEFAULTS.overwrite,
    checksum: Checksum = DEFAULTS.checksum,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan and write nothing.")
    ] = DEFAULTS.dry_run,
    saved_recipe: Annotated[
        str | None,
        typer.Option("--save-recipe", help="Write this command line as a recipe for run; also in a dry run."),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Print the names of tensors, too.")
    ] = False,
    **parameters: Any,  # noqa: ANN401 - of the scheme, typed in the table of schemes
) -> None:
    """Average checkpoints of one training run into one.

    Checkpoints are safetensors files, files by torch.save, and folders by Hugging Face's libraries, by
    torch.distributed.checkpoint and by DeepSpeed; their code is never run. The output appears whole or not at
    all.
    """
    from swatool.cli.average_text import tell_plan, tell_ranking, tell_score, tell_summary
    from swatool.cli.render import Telling

    if no_normalize:
        parameters["normalize"] = False
    settings = AverageSettings(
        **parameters,
        method=method,
        accumulate=accumulate,
        sort=sort,
        last=last,
        first=first,
        every=every,
        min_step=min_step,
        max_step=max_step,
        best=best,
        metric=metric,
        mode=mode,
        metrics=metrics,
        allow_duplicates=allow_duplicates,
        key=key,
        strip_prefix=tuple(strip_prefix or ()),
        keep_prefix=keep_prefix,
        variant=variant,
        match=match,
        integers=integers,
        tied=tied,
        exclude=tuple(exclude or ()),
        dtype=dtype,
        allow_nonfinite=allow_nonfinite,
        format=format,
        max_shard_size=max_shard_size,
        sidecars=sidecars,
        like=like,
        device=device,
        threads=threads,
        overwrite=overwrite,
        checksum=checksum,
        dry_run=dry_run,
    )
    chosen_by_metric = best is not None or any(axis.startswith("best=") for axis in sweep or ())
    if evaluate is None and not chosen_by_metric and (metric is not None or mode is not None):
        raise UsageError("--metric and --mode have no use without --best N or --eval: give one of them")
    scoring = _scoring(evaluate, metric, mode, keep)
    asked = AskedFor(
        checkpoints=checkpoints,
        output=output,
        settings=settings,
        axes=sweep or (),
        scoring=scoring,
        keep=keep or "best",
    )
    if saved_recipe is not None:
        check_recipe_target(saved_recipe, asked)
    outputs = outputs_of_sweep(output, sweep or (), settings)
    with Telling(quiet=quiet or as_json, verbose=verbose) as telling, telling_of(*outputs):
        report = average_sweep(
            checkpoints,
            output,
            sweep or (),
            settings=settings,
            scoring=scoring,
            keep=keep or "best",
            on_plan=lambda report: tell_plan(telling, report),
            on_progress=telling.progress,
            on_score=lambda one: tell_score(telling, one),
        )
        if saved_recipe is not None:
            save_recipe(saved_recipe, asked)
            telling.lines([f"wrote the recipe {printable(saved_recipe)}"])
    with printing_the_report(None if dry_run else output):
        if as_json:
            data = report if sweep or scoring else report.outputs[0].report
            typer.echo(json.dumps(data.as_json(names=verbose), indent=2))
        elif not dry_run:
            tell_summary(telling, report)
            tell_ranking(telling, report)
        telling.warnings(report.warnings, even_if_quiet=as_json and not quiet)


def _scoring(evaluate: str | None, metric: str | None, mode: str | None, keep: str | None) -> Scoring | None:
    if evaluate is None:
        if keep is not None:
            raise UsageError("--keep says what is left after --eval: give that, too")
        return None
    if mode is None:
        raise UsageError("--eval needs --mode: whether max or min is the best")
    return Scoring(evaluate=evaluate, metric=metric, mode=mode)  # type: ignore[arg-type]
