"""Print how the averages of a run compare with its single checkpoints on the test images.

    compare.py run "SWA=run/swa.safetensors" "EMA (decay 0.8)=run/ema.safetensors"

Every NAME=FILE adds a row; FILE is a safetensors file whose names are those of the model.
"""

import argparse
from pathlib import Path
from statistics import fmean

import torch
from data import Images, load_split
from evaluation import Score, evaluate
from model import build
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from torch import Tensor


def compare(folder: Path, averages: dict[str, Path], images: Images) -> dict[str, Score]:
    """Score the checkpoints in the folder and every average; gives the rows of the table."""
    checkpoints = [torch.load(path, weights_only=True) for path in folder.glob("ckpt-*.pt")]
    if not checkpoints:
        raise SystemExit(f"{folder}: no ckpt-*.pt in this folder; run train.py first")
    checkpoints.sort(key=lambda checkpoint: checkpoint["step"])
    singles = [_score(checkpoint["model"], images) for checkpoint in checkpoints]
    rows = {"last checkpoint": singles[-1], f"mean of the {len(singles)} single checkpoints": _mean(singles)}
    return rows | {name: _score(load_file(path), images) for name, path in averages.items()}


def _score(state_dict: dict[str, Tensor], images: Images) -> Score:
    model = build()
    model.load_state_dict(state_dict, strict=True)
    return evaluate(model, images)


def _mean(scores: list[Score]) -> Score:
    return Score(fmean(score.accuracy for score in scores), fmean(score.loss for score in scores))


def _table(rows: dict[str, Score], images: int) -> Table:
    table = Table(title=f"digits, {images} test images")
    table.add_column("weights")
    table.add_column("accuracy", justify="right")
    table.add_column("loss", justify="right")
    for name, score in rows.items():
        table.add_row(name, f"{score.accuracy:.2%}", f"{score.loss:.4f}")
    return table


def _named_file(text: str) -> tuple[str, Path]:
    name, separator, path = text.partition("=")
    if not (name and separator and path):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAME=FILE")
    return name, Path(path)


def main() -> None:
    """Read the options and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder with ckpt-*.pt")
    parser.add_argument("averages", nargs="*", type=_named_file, metavar="NAME=FILE", help="one more row")
    options = parser.parse_args()
    test = load_split().test
    rows = compare(options.folder, dict(options.averages), test)
    Console().print(_table(rows, len(test.labels)))


if __name__ == "__main__":
    main()
