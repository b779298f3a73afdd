"""What `--data` names: recognising the kind of a data set by its form, and opening it.

Kept apart from the sources, which it imports only when one is used, so that options need neither torch nor
Pillow.
"""

from __future__ import annotations

import os
import re

from swatool.data.options import Data, DataOptions
from swatool.errors import UsageError, printable
from swatool.user_code import names_code

__all__ = ["FORMS", "Data", "DataOptions", "open_data"]

FORMS = (
    ("FILE.npy", "train.npy", "an array, whose first dimension counts the samples"),
    ("FILE.npz:KEY", "train.npz:x", "an array of an archive"),
    ("FILE.safetensors:KEY", "train.safetensors:x", "a tensor of a file"),
    ("MODULE:NAME", "my.data:loader", "a loader, or a function that returns one; also path/file.py:NAME"),
    ("imagefolder:FOLDER", "imagefolder:train/", "all images below a folder"),
    ("wds:PATTERN", "wds:shards/*.tar", "tar files in the manner of WebDataset"),
    ("hf:NAME", "hf:ylecun/mnist:image", "a data set of the Hugging Face hub, or saved to a folder"),
)
ARRAY_FILE = re.compile(r"(?P<path>.+?\.(?:npy|npz|safetensors))(?::(?P<key>.*))?", re.IGNORECASE | re.DOTALL)


def open_data(spec: str, options: DataOptions | None = None) -> Data:
    """Open the data set that `spec` names, in one of the FORMS.

    Raises:
        UsageError: the form is unknown, an option does not apply, or a package is missing.
        DataError: the data set is missing, damaged or empty.
    """
    options = DataOptions() if options is None else options
    kind, _, rest = spec.partition(":")
    if kind == "imagefolder" and rest:
        from swatool.data.image_folder import open_image_folder

        return open_image_folder(spec, rest, options)
    if kind == "wds" and rest:
        from swatool.data.tar_records import TarData

        return TarData(spec, rest, options)
    if kind == "hf" and rest:
        from swatool.data.hub import open_hub

        dataset, colon, column = rest.rpartition(":")
        return open_hub(spec, dataset if colon else rest, column if colon else None, options)
    return _open_file_or_code(spec, options)


def _open_file_or_code(spec: str, options: DataOptions) -> Data:
    array = ARRAY_FILE.fullmatch(spec)
    if array is not None:
        from swatool.data.arrays import open_arrays

        path, key = (spec, None) if os.path.exists(spec) else array.group("path", "key")
        return open_arrays(spec, path, key or None, options)
    if names_code(spec):
        from swatool.data.loader import LoaderData

        return LoaderData(spec, options)
    lines = [f"  {form:<22} {meaning}, as in {example}" for form, example, meaning in FORMS]
    raise UsageError("\n".join([f"--data {printable(spec)} is of no known form; these are:", *lines]))
