"""`swatool recalibrate-bn`: from a checkpoint, a model and data to one with true BatchNorm statistics."""

from __future__ import annotations

import json
import os
from contextlib import nullcontext, suppress
from typing import Annotated

import typer

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
    numbers,
)
from swatool.cli.outcome import (
    ending_in_an_exit_code,
    printing_the_report,
    showing_causes,
    telling_of,
)
from swatool.errors import UsageError, printable
from swatool.jobs.recalibrate import recalibrate_checkpoint
from swatool.jobs.recalibrate_settings import RecalibrateSettings, default_output
from swatool.user_code import speaking_on_stderr

__all__ = ["recalibrate_bn"]

DEFAULTS = RecalibrateSettings()


@ending_in_an_exit_code
def recalibrate_bn(
    checkpoint: Annotated[str, typer.Argument(help="The checkpoint: any file that average reads.")],
    model: Annotated[
        str,
        typer.Option(
            "--model",
            help="my.models:build or path/file.py:build; or timm:NAME, torchvision:NAME, hf:FOLDER.",
        ),
    ],
    data: Annotated[
        str,
        typer.Option(
            "--data",
            help="x.npy, x.npz:KEY, x.safetensors:KEY, my.data:loader, imagefolder:FOLDER, wds:*.tar or "
            "hf:NAME.",
        ),
    ],
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", help="The safetensors file to write; default: CHECKPOINT-bn."),
    ] = None,
    mode: Annotated[
        str, typer.Option("--mode", help="Which activations are pooled: batch, exact or torch.")
    ] = DEFAULTS.mode,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", help="Samples in a batch; default: 256.")
    ] = DEFAULTS.batch_size,
    samples: Annotated[
        int | None, typer.Option("--samples", help="Only so many samples; default: all.")
    ] = DEFAULTS.samples,
    shuffle: Annotated[
        bool | None,
        typer.Option("--shuffle/--no-shuffle", help="Random order; default where the data allows it."),
    ] = DEFAULTS.shuffle,
    seed: Annotated[int | None, typer.Option("--seed", help="Of that order; default: 0.")] = DEFAULTS.seed,
    size: Annotated[
        str | None, typer.Option("--size", help="Images: the side, cut from the centre, or HEIGHTxWIDTH.")
    ] = None,
    mean: Annotated[
        str | None, typer.Option("--mean", help="Images: subtracted from 0..1, a number per channel.")
    ] = None,
    std: Annotated[
        str | None, typer.Option("--std", help="Images: divides the difference, a number per channel.")
    ] = None,
    max_bad: Annotated[
        int | None, typer.Option("--max-bad", help="Unreadable images to leave out; default: 0.")
    ] = DEFAULTS.max_bad,
    skip: Annotated[
        list[str] | None,
        typer.Option("--skip", help="Layers of this glob pattern keep their statistics."),
    ] = None,
    model_arg: Annotated[
        list[str] | None,
        typer.Option("--model-arg", help="name=value for the model's factory; the value is read as YAML."),
    ] = None,
    forward: Annotated[
        str | None,
        typer.Option("--forward", help="module:function to call with the model and each batch."),
    ] = DEFAULTS.forward,
    evaluate: Annotated[
        str | None,
        typer.Option("--eval", help="module:function that is given the model and returns numbers."),
    ] = DEFAULTS.evaluate,
    higher_is_better: Annotated[
        bool | None,
        typer.Option("--higher-is-better/--lower-is-better", help="Warn if the first of them gets worse."),
    ] = DEFAULTS.higher_is_better,
    tolerance: Annotated[
        float | None,
        typer.Option("--tolerance", help="Stop early at this standard error of the statistics."),
    ] = DEFAULTS.tolerance,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse if there is no layer, or one that is not reached.")
    ] = DEFAULTS.strict,
    key: Key = DEFAULTS.key,
    strip_prefix: StripPrefix = None,
    keep_prefix: KeepPrefix = DEFAULTS.keep_prefix,
    variant: Variant = DEFAULTS.variant,
    device: Device = DEFAULTS.device,
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", help="Type to compute in: float32, float64, bfloat16 or float16."),
    ] = DEFAULTS.dtype,
    threads: Annotated[
        int | None, typer.Option("--threads", "-j", help="Of torch; default: as torch chooses.")
    ] = DEFAULTS.threads,
    overwrite: Overwrite = DEFAULTS.overwrite,
    checksum: Checksum = DEFAULTS.checksum,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Load everything, print the plan and write nothing.")
    ] = DEFAULTS.dry_run,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Annotated[
        bool,
        typer.Option("--verbose", "-v", help="Print all layers, and where in your own code an error arose."),
    ] = False,
) -> None:
    """Recompute the BatchNorm statistics of a checkpoint on data, and write it with them.

    The model, and a data loader given as module:name, are code and are run: they must be yours. The
    checkpoint and the data files are only read. The output appears whole or not at all.
    """
    from swatool.cli.recalibrate_text import RecalibrationTelling
    from swatool.cli.render import Telling

    settings = RecalibrateSettings(
        mode=mode,
        batch_size=batch_size,
        samples=samples,
        shuffle=shuffle,
        seed=seed,
        size=_size(size),
        mean=numbers("--mean", mean),
        std=numbers("--std", std),
        max_bad=max_bad,
        skip=tuple(skip or ()),
        model_arguments=_model_arguments(model_arg or ()),
        forward=forward,
        evaluate=evaluate,
        higher_is_better=higher_is_better,
        tolerance=tolerance,
        strict=strict,
        key=key,
        strip_prefix=tuple(strip_prefix or ()),
        keep_prefix=keep_prefix,
        variant=variant,
        device=device,
        dtype=dtype,
        threads=threads,
        overwrite=overwrite,
        checksum=checksum,
        dry_run=dry_run,
    )
    target = output or default_output(checkpoint)
    with (
        Telling(quiet=quiet or as_json or not _is_first(), verbose=verbose) as telling,
        telling_of(target),
        showing_causes(verbose),
        speaking_on_stderr() if as_json else nullcontext(),  # the user's code may print
    ):
        told = RecalibrationTelling(telling)
        report = recalibrate_checkpoint(
            checkpoint,
            target,
            model=model,
            data=data,
            settings=settings,
            on_plan=told.plan,
            on_passes=told.passes,
            on_progress=told.progress,
        )
    with printing_the_report(None if dry_run else target):
        if as_json and _is_first():
            typer.echo(json.dumps(report.as_json(), indent=2))
        elif not dry_run:
            told.summary(report)
        telling.warnings(report.warnings, even_if_quiet=as_json and not quiet and _is_first())


def _is_first() -> bool:
    """Tell whether this is the process that speaks for all that torchrun started."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"


def _model_arguments(given: list[str] | tuple[str, ...]) -> dict[str, object]:
    import yaml

    found: dict[str, object] = {}
    for one in given:
        name, equals, text = one.partition("=")
        try:
            value = yaml.safe_load(text)
        except (yaml.YAMLError, RecursionError, ValueError):
            value = {}
        if isinstance(value, str):
            with suppress(ValueError):
                value = float(value)  # YAML takes 1e-3 for a text
        if not equals or not name.isidentifier() or isinstance(value, dict):
            raise UsageError(f"--model-arg must be name=value, a plain value in YAML, not {printable(one)}")
        if name in found:
            raise UsageError(f"--model-arg gives {printable(name)} twice")
        found[name] = value
    return found


def _size(text: str | None) -> int | tuple[int, int] | None:
    if text is None:
        return None
    sides = text.lower().split("x")
    try:
        height, width = int(sides[0]), int(sides[-1])
    except ValueError:
        sides = []
    if len(sides) not in (1, 2):
        raise UsageError(
            f"--size must be a side or HEIGHTxWIDTH, such as 224 or 224x320, not {printable(text)}"
        )
    return height if len(sides) == 1 else (height, width)
