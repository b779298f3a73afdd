"""The names that Hugging Face's libraries give to files of weights: what a folder offers, and what is meant.

transformers, diffusers, peft and accelerate use a few fixed names, between whose parts a variant may stand:
`model.safetensors`, `model.fp16.safetensors`, `pytorch_model.bin.index.json` and so on.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from swatool.errors import CheckpointError, few, printable

__all__ = ["choose", "is_index", "recognises", "shards_of"]

CONFIGS = ("config.json", "adapter_config.json")
# In the order in which they are preferred: safetensors first, the model before what is added to it.
KINDS = (
    "model.safetensors",
    "diffusion_pytorch_model.safetensors",
    "adapter_model.safetensors",
    "pytorch_model.bin",
    "diffusion_pytorch_model.bin",
    "adapter_model.bin",
)
# It begins with a letter: the number in model.1000.safetensors is a step.
VARIANT = r"(?:\.(?P<{}>[A-Za-z][A-Za-z0-9_-]*?))?"
SUFFIX = r"(?P<suffix>\.safetensors|\.bin)"
WHOLE = re.compile(rf"(?P<stem>[^.]+){VARIANT.format('variant')}{SUFFIX}")
INDEX = re.compile(rf"(?P<stem>.+){SUFFIX}\.index{VARIANT.format('variant')}\.json")
# Libraries, and their versions, disagree on which side of the number the variant stands.
SHARD = re.compile(
    rf"(?P<stem>.+?){VARIANT.format('early')}-\d+-of-\d+{VARIANT.format('variant')}{SUFFIX}", re.ASCII
)


class Weights(NamedTuple):
    """One way in which the names in a folder offer a model.

    Attributes:
        kind: the name of the whole file, without a variant.
        variant: such as `fp16`; empty for the plain one.
        entry: the file to begin with: the whole file or the index; empty for shards that have no index.
        shards: names of the shards of this kind and variant.
    """

    kind: str
    variant: str
    entry: str
    shards: tuple[str, ...]


def is_index(name: str) -> bool:
    """Tell whether a file's name is that of an index, which stands for the shards beside it."""
    return INDEX.fullmatch(name) is not None


def recognises(names: Sequence[str]) -> bool:
    """Tell from the names in a folder whether it holds one model.

    Several variants without a plain one, and without a config beside them, are checkpoints of their own, such
    as `model.step10.safetensors` and `model.step20.safetensors`.
    """
    variants = {weights.variant for weights in _offers(names)}
    return "" in variants or len(variants) == 1 or (len(variants) > 1 and not set(CONFIGS).isdisjoint(names))


def shards_of(index: str, names: Sequence[str]) -> list[str]:
    """Return the names that are those of an index's shards, whether it knows them or not."""
    match = INDEX.fullmatch(index)
    wanted = match and _kind_and_variant(match)
    return [name for name in names if (m := SHARD.fullmatch(name)) and _kind_and_variant(m) == wanted]


def choose(names: Sequence[str], variant: str | None, path: str) -> str:
    """Return the file to begin with: a file that holds the whole model, or an index.

    Args:
        names: what lies in the folder.
        variant: the one that is wanted; None is the plain one, or the only one that there is.
        path: the folder, for messages.

    Raises:
        CheckpointError: there is none, or it is not clear what is meant.
    """
    where = printable(path)
    found = _of_variant(_offers(names), variant, where)
    found = [weights for weights in found if weights.kind == found[0].kind]
    first = found[0]
    if not first.entry:
        raise CheckpointError(
            f"{where} holds shards such as {printable(first.shards[0])} and no index of them: the save was "
            "interrupted, or the index was not copied"
        )
    others = [weights.entry for weights in found[1:]]
    if not is_index(first.entry):
        others += first.shards
    if others:
        raise CheckpointError(
            f"{where} holds both {printable(first.entry)} and {printable(others[0])}, of two saves: name the "
            "file that is meant, or its index, by its own path"
        )
    return first.entry


def _of_variant(offers: Sequence[Weights], variant: str | None, where: str) -> list[Weights]:
    """Return what is offered of the variant that is wanted, or that must be meant."""
    variants = sorted({weights.variant for weights in offers})
    shown = few(printable(one) if one else "the plain one" for one in variants)
    if variant is None and "" not in variants and len(variants) > 1:
        raise CheckpointError(f"{where} holds several variants, {shown}: choose one with --variant")
    wanted = variant if variant is not None else "" if "" in variants else variants[0]
    if wanted not in variants:
        there = f"there is {shown}" if shown else "it holds no weights as Hugging Face's libraries name them"
        raise CheckpointError(f"{where} has no variant {printable(wanted)}: {there}")
    return [weights for weights in offers if weights.variant == wanted]


def _offers(names: Sequence[str]) -> list[Weights]:
    """Return what the names offer, the most preferred kind first."""
    entries: dict[tuple[str, str], list[str]] = {}
    shards: dict[tuple[str, str], list[str]] = {}
    for name in names:
        for pattern, found in ((SHARD, shards), (INDEX, entries), (WHOLE, entries)):
            match = pattern.fullmatch(name)
            if match is not None:
                found.setdefault(_kind_and_variant(match), []).append(name)
                break
    known = [key for key in entries.keys() | shards.keys() if key[0] in KINDS]
    return [
        Weights(*key, entry, tuple(shards.get(key, ())))
        for key in sorted(known, key=lambda key: (KINDS.index(key[0]), key[1]))
        for entry in entries.get(key, [""])
    ]


def _kind_and_variant(match: re.Match[str]) -> tuple[str, str]:
    groups = match.groupdict()
    return groups["stem"] + groups["suffix"], groups["variant"] or groups.get("early") or ""
