"""What lies beside the weights in a Hugging Face folder and is needed to load them; never weights or code."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from swatool.errors import CheckpointError, printable
from swatool.json_text import JsonError, parse_json
from swatool.tensors import Folder

__all__ = ["CONFIG", "SIDECARS", "read_sidecars", "sidecar_warnings", "with_dtype"]

CONFIG = "config.json"
SIDECARS = (
    CONFIG,
    "generation_config.json",
    # tokenizers
    "added_tokens.json",
    "bpe.codes",
    "chat_template.jinja",
    "chat_template.json",
    "merges.txt",
    "normalizer.json",
    "sentencepiece.bpe.model",
    "source.spm",
    "special_tokens_map.json",
    "spiece.model",
    "spm.model",
    "target.spm",
    "tekken.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
    # images, sound, video
    "feature_extractor_config.json",
    "image_processor_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)
MOST_BYTES = 64 * 2**20  # of one; large vocabularies take half of that
DTYPE_FIELDS = ("dtype", "torch_dtype")  # in use since transformers 4.56, and before
FLOATS = ("float16", "bfloat16", "float32", "float64")


def read_sidecars(folder: Folder) -> dict[str, bytes]:
    """Return the sidecars that lie in a checkpoint's folder, by name.

    Raises:
        CheckpointError: one is no regular file, too large, or cannot be read.
    """
    found: dict[str, bytes] = {}
    present = set(folder.names)
    for name in SIDECARS:
        if name not in present:
            continue
        try:
            source = folder.open(name)
            if source.size > MOST_BYTES:
                raise CheckpointError(
                    f"{printable(source.path)} has {source.size:,} bytes, and at most {MOST_BYTES:,} are "
                    "copied"
                )
            found[name] = source.read(0, source.size)
        except CheckpointError as error:
            raise CheckpointError(f"{error}; --no-sidecars leaves such files alone") from error
    return found


def with_dtype(sidecars: Mapping[str, bytes], dtype: str) -> dict[str, bytes]:
    """Return the sidecars, with the weights' type changed in the configuration, if it says a type.

    It stays byte for byte as it is where it says the right one already, or is not understood.
    """
    config = _parsed(sidecars.get(CONFIG, b""))
    if config is None or not _set_dtype(config, dtype):
        return dict(sidecars)
    return {**sidecars, CONFIG: (json.dumps(config, indent=2) + "\n").encode()}


def sidecar_warnings(sidecars: Mapping[str, bytes]) -> Iterator[str]:
    """Yield what deserves attention about the sidecars."""
    config = _parsed(sidecars.get(CONFIG, b"")) or {}
    if "auto_map" in config:
        yield f"{CONFIG} names code of the model's own (auto_map), which is not copied to the output's folder"


def _parsed(content: bytes) -> dict[str, object] | None:
    try:
        config = parse_json(content)
    except JsonError:
        return None
    return config if isinstance(config, dict) else None


def _set_dtype(config: dict[str, object], dtype: str) -> bool:
    """Change the type of the model and of those that it consists of; False if nothing is to be changed."""
    changed = False
    parts = [config, *(value for name, value in config.items() if _is_part(name, value))]
    for part in parts:
        assert isinstance(part, dict)
        for field in DTYPE_FIELDS:
            if part.get(field) in FLOATS and part[field] != dtype:
                part[field] = dtype
                changed = True
    return changed


def _is_part(name: str, value: object) -> bool:
    return isinstance(value, dict) and name.endswith("_config") and name != "quantization_config"
