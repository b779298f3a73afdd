"""`swatool average`: from the checkpoints of a run to one averaged safetensors file."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from swatool.cli.options import AsJson, Device, KeepPrefix, Key, Overwrite, Quiet, StripPrefix, numbers
from swatool.cli.outcome import ending_in_an_exit_code, printing_the_report, telling_of
from swatool.jobs.average import DEFAULT_OUTPUT, AverageSettings
from swatool.jobs.average import average as run

__all__ = ["average"]

DEFAULTS = AverageSettings()


@ending_in_an_exit_code
def average(
    checkpoints: Annotated[
        list[str], typer.Argument(help="Checkpoint files, quoted glob patterns and folders, in any order.")
    ],
    output: Annotated[
        str, typer.Option("--output", "-o", help="The safetensors file to write.")
    ] = DEFAULT_OUTPUT,
    method: Annotated[
        str | None, typer.Option("--method", help="swa (mean, the default), ema, or weights.")
    ] = DEFAULTS.method,
    decay: Annotated[
        float | None,
        typer.Option("--decay", help="ema: what each checkpoint leaves of the average, 0 to 1."),
    ] = DEFAULTS.decay,
    debias: Annotated[
        bool | None, typer.Option("--debias/--no-debias", help="ema: divide by the weight seen so far.")
    ] = DEFAULTS.debias,
    weights: Annotated[
        str | None, typer.Option("--weights", help="Comma-separated, one per checkpoint, oldest first.")
    ] = None,
    normalize: Annotated[
        bool | None,
        typer.Option("--normalize/--no-normalize", help="weights: divide them by their sum (default)."),
    ] = DEFAULTS.normalize,
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
    allow_duplicates: Annotated[
        bool,
        typer.Option("--allow-duplicates", help="Accept a file twice, and earlier outputs of swatool."),
    ] = DEFAULTS.allow_duplicates,
    key: Key = DEFAULTS.key,
    strip_prefix: StripPrefix = None,
    keep_prefix: KeepPrefix = DEFAULTS.keep_prefix,
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
    device: Device = DEFAULTS.device,
    threads: Annotated[
        int | None, typer.Option("--threads", "-j", help="Workers; default: the cores that may be used.")
    ] = DEFAULTS.threads,
    overwrite: Overwrite = DEFAULTS.overwrite,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan and write nothing.")
    ] = DEFAULTS.dry_run,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Print the names of tensors, too.")
    ] = False,
) -> None:
    """Average checkpoints of one training run into one safetensors file.

    Checkpoints are safetensors files and files by torch.save; their code is never run. The output appears
    whole or not at all.
    """
    from swatool.cli.average_text import tell_plan, tell_summary
    from swatool.cli.render import Telling

    settings = AverageSettings(
        method=method,
        decay=decay,
        debias=debias,
        weights=numbers("--weights", weights),
        normalize=normalize,
        accumulate=accumulate,
        sort=sort,
        last=last,
        first=first,
        every=every,
        min_step=min_step,
        max_step=max_step,
        allow_duplicates=allow_duplicates,
        key=key,
        strip_prefix=tuple(strip_prefix or ()),
        keep_prefix=keep_prefix,
        match=match,
        integers=integers,
        tied=tied,
        exclude=tuple(exclude or ()),
        dtype=dtype,
        allow_nonfinite=allow_nonfinite,
        device=device,
        threads=threads,
        overwrite=overwrite,
        dry_run=dry_run,
    )
    with Telling(quiet=quiet or as_json, verbose=verbose) as telling, telling_of(output):
        report = run(
            checkpoints,
            output,
            settings=settings,
            on_plan=lambda report: tell_plan(telling, report),
            on_progress=telling.progress,
        )
    with printing_the_report(None if dry_run else output):
        if as_json:
            typer.echo(json.dumps(report.as_json(names=verbose), indent=2))
        elif not dry_run:
            tell_summary(telling, report)
        telling.warnings(report.warnings, even_if_quiet=as_json and not quiet)
