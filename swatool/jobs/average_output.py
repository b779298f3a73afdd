"""What an average is written as: the format that was asked for, and where in it each byte goes."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from contextlib import closing
from dataclasses import dataclass

from swatool.averaging.plan import Plan
from swatool.averaging.policies import Policies
from swatool.checkpoints.files import LocalFiles, LocalFolder, is_link_outside
from swatool.checkpoints.hf_folder import is_index
from swatool.checkpoints.opening import Checkpoint, Reading
from swatool.choices import check_choices, choice
from swatool.errors import CheckpointError, UsageError, printable
from swatool.jobs.likeness import lay_out_like, read_likeness
from swatool.output.dcp_folder import lay_out_dcp
from swatool.output.hf_folder import DEFAULT_SHARD_SIZE, lay_out_shards, parse_size
from swatool.output.layout import Layout, OutputTensor, one_file, together
from swatool.output.safetensors_file import lay_out
from swatool.output.sidecars import SIDECARS, read_sidecars, sidecar_warnings, with_dtype
from swatool.output.torch_file import lay_out_torch
from swatool.output.writing import check_output

__all__ = ["FORMATS", "LayoutSettings", "OutputOptions", "check_place", "choose_format", "lay_out_average"]

FORMATS = ("safetensors", "pt", "hf", "dcp")
FOLDERS = ("hf", "dcp")
TORCH_SUFFIXES = (".pth.tar", ".pt", ".pth", ".bin", ".ckpt")  # the first is timm's
# Formats that nobody should find safetensors under.
FOREIGN_SUFFIXES = (
    ".tar",
    ".zip",
    ".gz",
    ".onnx",
    ".json",
    ".npz",
    ".npy",
    ".h5",
    ".hdf5",
    ".gguf",
    ".msgpack",
)
FILE_SUFFIXES = (".safetensors", *TORCH_SUFFIXES)
WHOLE_MODELS = ("model.safetensors", "pytorch_model.bin")  # files that stand for the folder they lie in


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """What the output is written as.

    Attributes:
        format: `safetensors` for one file, `pt` for one as torch.save writes it, `hf` for a folder as Hugging
            Face's libraries load it, `dcp` for one as torch.distributed.checkpoint does; None goes by the
            output's name.
        max_shard_size: bytes of the tensors in one file of a folder, as a number or such as `5GB`; None is
            5GB for `hf`, and no limit for `dcp`. To give one is to ask for a folder.
        like: a checkpoint whose wrapper keys and names a `pt` output has, so that the same loader takes it.
        sidecars: copy the configuration and the tokenizer from the newest checkpoint to a folder.
    """

    format: str | None = choice(FORMATS, default=None)
    max_shard_size: int | str | None = None
    sidecars: bool = True
    like: str | None = None

    def __post_init__(self) -> None:
        check_choices(self)
        if self.max_shard_size is not None:
            if self.format not in (None, *FOLDERS):
                raise UsageError(f"--max-shard-size does not belong to --format {self.format}")
            parse_size(str(self.max_shard_size))
        if self.like is not None and self.format not in (None, "pt"):
            raise UsageError(f"--like does not belong to --format {self.format}, but to pt")

    def shard_bytes(self) -> int | None:
        """Return how many bytes of tensors a file may hold, if that was said."""
        return None if self.max_shard_size is None else parse_size(str(self.max_shard_size))


def choose_format(output: str, options: OutputOptions) -> str:
    """Return the format of an output: the one that is asked for, or that its name tells.

    Raises:
        UsageError: the name does not fit what is asked for, or tells a format that cannot be written.
    """
    suffix = next((one for one in FILE_SUFFIXES if output.endswith(one)), os.path.splitext(output)[1])
    folder = output.endswith("/")
    if suffix in FOREIGN_SUFFIXES and not folder:
        raise UsageError(
            f"{printable(output)} is named like a format that is not written: name it .safetensors or .pt"
        )
    if options.format in FOLDERS or options.max_shard_size is not None:
        if suffix in FILE_SUFFIXES and not folder:
            raise UsageError(
                f"{printable(output)} is a file's name, and a folder is to be written: name one, such as "
                "-o averaged/"
            )
        return options.format or "hf"
    found = options.format
    if found is None and (folder or (suffix not in FILE_SUFFIXES and os.path.isdir(output))):
        found = "hf"
    if found is None:
        found = "pt" if suffix in TORCH_SUFFIXES or options.like is not None else "safetensors"
    if options.like is not None and found != "pt":
        raise UsageError(
            f"--like is for torch files: name {printable(output)} .pt or .ckpt, or give --format pt"
        )
    return found


@dataclass(frozen=True, kw_only=True)
class LayoutSettings(Reading, Policies, OutputOptions):
    """All that bears on how an average is laid out."""

    def __post_init__(self) -> None:
        for group in (Reading, Policies, OutputOptions):
            group.__post_init__(self)


def check_place(
    output: str,
    chosen: str,
    overwrite: bool,
    inputs: Collection[tuple[int, int]],
    nbytes: int,
    *,
    checksum: bool = False,
) -> None:
    """Refuse an output of about so many bytes, as `check_output` does, before it can be laid out."""
    alone = one_file([], {}, nbytes)
    layout = together({"a file": alone}) if chosen in FOLDERS else alone
    check_output(layout, output, overwrite=overwrite, inputs=inputs, checksum=checksum)


def lay_out_average(
    plan: Plan, settings: LayoutSettings, output: str, newest: Checkpoint, said: Mapping[str, str]
) -> tuple[Layout, tuple[str, ...]]:
    """Return where each byte of an average goes, and what deserves attention about that.

    Args:
        plan: what is averaged.
        settings: what was decided about ties and types, and about what is written.
        output: its name.
        newest: the last of the averaged checkpoints.
        said: what the output says of itself.

    Raises:
        UsageError: the format does not fit the name, or cannot store a dtype.
        CheckpointError: the format cannot store a name, or a sidecar cannot be read.
        MismatchError: the checkpoint that it should be like has other tensors.
    """
    chosen = choose_format(output, settings)
    tensors = {t.name: OutputTensor(t.name, t.treatment.dtype, t.shape) for t in plan.tensors}
    tied = {name: tensors[first]._replace(name=name) for name, first in plan.ties.items()}
    if chosen == "pt":
        return _lay_out_torch(tensors | tied, plan.ties, settings, newest, said)
    aliases: dict[str, str] = {}
    if settings.tied == "drop":
        aliases = dict(plan.ties)
    else:
        tensors |= tied
    if chosen == "dcp":
        limit = settings.shard_bytes()
        return lay_out_dcp(tensors.values(), said, wrapper=newest.key, max_file_bytes=limit), ()
    # A tensor may be called anything; what the file says of itself comes first.
    metadata = {**aliases, "format": "pt", **said}
    if chosen == "safetensors":
        return lay_out(tensors.values(), metadata), ()
    sidecars = _sidecars(newest.path, settings.dtype) if settings.sidecars else {}
    limit = settings.shard_bytes() or parse_size(DEFAULT_SHARD_SIZE)
    layout = lay_out_shards(tensors.values(), metadata, limit, sidecars)
    return layout, tuple(sidecar_warnings(sidecars))


def _lay_out_torch(
    tensors: Mapping[str, OutputTensor],
    ties: Mapping[str, str],
    settings: LayoutSettings,
    newest: Checkpoint,
    said: Mapping[str, str],
) -> tuple[Layout, tuple[str, ...]]:
    """Return the layout of a torch file, in which ties stay ties and names keep the order that they had."""
    if settings.tied == "drop":
        raise UsageError(
            "--tied drop is for safetensors: in a torch file tied tensors are stored once anyway"
        )
    if settings.like is not None:
        like = read_likeness(settings.like, settings)
        return lay_out_like(like, tensors.values(), ties, said), like.warnings
    order = dict.fromkeys([*(name for name in newest.tensors if name in tensors), *tensors])
    return lay_out_torch([tensors[name] for name in order], ties, said), ()


def _sidecars(newest: str, dtype: str) -> dict[str, bytes]:
    """Return what is copied from the newest checkpoint, if it is a folder or stands for one."""
    folder = newest
    if not os.path.isdir(newest):
        folder, name = os.path.split(newest)
        if name not in WHOLE_MODELS and not is_index(name):
            return {}
    for name in SIDECARS:
        if is_link_outside(folder or os.curdir, name):
            raise CheckpointError(
                f"{printable(os.path.join(folder, name))} is a link out of its folder, and what a stranger "
                "may have linked is not copied: put the file itself there, or pass --no-sidecars"
            )
    with closing(LocalFiles()) as files:
        found = read_sidecars(LocalFolder(folder or os.curdir, files))
        files.check_unchanged()
    return found if dtype == "same" else with_dtype(found, dtype)
