"""A data set of the Hugging Face hub, or one saved to a folder, by the optional package `datasets`."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from functools import partial
from types import ModuleType
from typing import Protocol, cast

import torch
from torch import Tensor

from swatool.data.decoding import Decoder, Encoded
from swatool.data.images import check_pillow, decode_image, read_bytes
from swatool.data.indexed import IndexedData
from swatool.data.options import DataOptions
from swatool.errors import DataError, UsageError, few, printable
from swatool.user_code import describe_failure

__all__ = ["open_hub"]

SPLIT = "train"  # the statistics are those of the training data
COLUMNS = ("pixel_values", "image")
ARRAYS = ("Array2D", "Array3D", "Array4D", "Array5D", "Sequence", "List", "LargeList")
IMAGE = "Image"


class Table(Protocol):
    """What is used of a `datasets.Dataset`."""

    @property
    def features(self) -> Mapping[str, object]:
        """The columns by name, and their types."""

    def select_columns(self, columns: list[str]) -> Table:
        """Leave out the other columns."""

    def cast_column(self, column: str, feature: object) -> Table:
        """Change the type of a column."""

    def __len__(self) -> int:
        """Return the number of rows."""

    def __getitem__(self, positions: list[int]) -> Mapping[str, Sequence[object]]:
        """Return rows, column by column."""


def open_hub(name: str, dataset_name: str, column: str | None, options: DataOptions) -> IndexedData:
    """Open one column of a data set.

    Raises:
        UsageError: the package is missing or broken, or the column is not in the data set.
        DataError: the data set cannot be loaded.
    """
    try:
        datasets = importlib.import_module("datasets")
    except Exception as error:
        raise UsageError(
            f"{printable(name)} needs the package datasets, which does not import "
            f"({describe_failure(error)}): pip install datasets"
        ) from error
    try:
        table = _load(datasets, dataset_name)
    except Exception as error:
        raise DataError(
            f"the data set {printable(dataset_name)} cannot be loaded: {describe_failure(error)}"
        ) from error
    column = _column(name, table.features, column)
    table = table.select_columns([column])
    feature = table.features[column]
    is_image = type(feature).__name__ == IMAGE
    if is_image:
        check_pillow()
        table = table.cast_column(column, datasets.Image(decode=False))  # decoded here, with the same care
    elif options.size is not None:
        raise UsageError(
            f"--size cannot be used with {printable(name)}: column {printable(column)} holds arrays"
        )
    if not len(table):
        raise DataError(f"{printable(name)} holds no samples")
    return _data(name, table, column, is_image, _dtype(feature), options)


def _data(
    name: str, table: Table, column: str, is_image: bool, dtype: torch.dtype | None, options: DataOptions
) -> IndexedData:
    decoder = Decoder(name, options)

    def read(positions: Sequence[int]) -> Tensor | None:
        try:
            values = table[list(positions)][column]
        except (OSError, ValueError, LookupError, RuntimeError) as error:
            raise DataError(f"reading {printable(name)} failed: {describe_failure(error)}") from error
        decode = partial(_image, options) if is_image else partial(_array, dtype)
        return decoder.batch(
            [
                Encoded(f"row {position}", partial(decode, value), is_image)
                for position, value in zip(positions, values, strict=True)
            ]
        )

    return IndexedData(name, len(table), read, options, bad=decoder.bad)


def _load(datasets: ModuleType, name: str) -> Table:
    """Load a table from a folder or from the hub, whose code is not run."""
    if not os.path.isdir(name):
        return cast(Table, datasets.load_dataset(name, split=SPLIT))
    saved: object = datasets.load_from_disk(name)
    if not isinstance(saved, Mapping):
        return cast(Table, saved)
    if SPLIT not in saved and len(saved) != 1:
        raise ValueError(f"it has no split {SPLIT!r}, but {sorted(saved)}")
    return cast(Table, saved[SPLIT if SPLIT in saved else next(iter(saved))])


def _column(name: str, features: Mapping[str, object], column: str | None) -> str:
    kinds = {key: type(feature).__name__ for key, feature in features.items()}
    shown = few(f"{printable(key)} ({kind})" for key, kind in kinds.items())
    if column is not None:
        if column not in kinds:
            raise UsageError(f"{printable(name)} has no such column: it has {shown}")
        return column
    usual = [key for key in COLUMNS if key in kinds]
    arrays = [key for key, kind in kinds.items() if kind == IMAGE or kind in ARRAYS]
    if usual:
        return usual[0]
    if len(arrays) == 1:
        return arrays[0]
    raise UsageError(f"{printable(name)} has the columns {shown}: name one, as in hf:NAME:COLUMN")


def _dtype(feature: object) -> torch.dtype | None:
    """Return the element type of a column of arrays; None if it is to be told from the values."""
    if isinstance(feature, list):
        feature = feature[0]
    while hasattr(feature, "feature"):
        feature = feature.feature
    found = getattr(torch, str(getattr(feature, "dtype", "")), None)
    return found if isinstance(found, torch.dtype) else None


def _image(options: DataOptions, value: object) -> Tensor:
    if not isinstance(value, Mapping) or (value.get("bytes") is None and value.get("path") is None):
        raise DataError("there is no image")
    data = value.get("bytes")
    return decode_image(read_bytes(value["path"]) if data is None else data, options)


def _array(dtype: torch.dtype | None, value: object) -> Tensor:
    try:
        values = torch.tensor(value, dtype=dtype)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise DataError(f"it is no array: {describe_failure(error)}") from error
    if not values.numel():
        raise DataError("it holds no values")
    return values
