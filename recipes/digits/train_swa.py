"""Average while training: SWA with its learning rate, and EMA, on the digits; a table at the end.

A plain loop needs the lines that are marked with (swa) for SWA. The folder gets ordinary checkpoints of the
average, which `swatool average` takes.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from data import Images, load_split
from evaluation import Score, evaluate
from model import build
from torch import nn
from torch.nn.functional import cross_entropy

from swatool.swa_utils import SWALR, AveragedModel, WarmupEma, update_bn

DEFAULT_FOLDER = Path(__file__).parent / "run" / "swa"


@dataclass(frozen=True)
class Settings:
    """Everything a run depends on besides the data."""

    seed: int = 0
    batch_size: int = 32
    epochs: int = 20
    swa_start: int = 10
    rate: float = 0.1
    swa_rate: float = 0.05


def train(folder: Path, settings: Settings) -> dict[str, Score]:
    """Train from scratch and save averages; gives the scores on the test images."""
    torch.manual_seed(settings.seed)
    split = load_split()
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=settings.rate, momentum=0.9, weight_decay=5e-4)
    averaged = AveragedModel(model)  # (swa)
    ema = AveragedModel(model, scheme=WarmupEma(0.999), use_buffers=True)
    swalr = SWALR(optimizer, swa_lr=settings.swa_rate, anneal_epochs=3)  # (swa)
    folder.mkdir(parents=True, exist_ok=True)
    for epoch in range(settings.epochs):
        model.train()
        for batch in torch.randperm(len(split.training.labels)).split(settings.batch_size):
            optimizer.zero_grad()
            cross_entropy(model(split.training.pixels[batch]), split.training.labels[batch]).backward()
            optimizer.step()
            ema.update_parameters(model)
        if epoch >= settings.swa_start:
            averaged.update_parameters(model)  # (swa)
            swalr.step()  # (swa)
            state = {"model": averaged.averaged_state_dict(), "epoch": epoch}
            torch.save(state, folder / f"swa-{epoch}.pt")
        with ema.swapped_into(model):
            accuracy = evaluate(model, split.validation).accuracy
        print(f"epoch {epoch}: validation accuracy of the EMA {accuracy:.1%}", flush=True)
    update_bn(_batches(split.training), averaged)  # (swa)
    torch.save({"model": averaged.averaged_state_dict()}, folder / "swa.pt")
    models: dict[str, nn.Module] = {"last weights": model, "SWA": averaged, "EMA": ema}
    return {name: evaluate(one, split.test) for name, one in models.items()}


def _batches(images: Images) -> list[torch.Tensor]:
    """Return all images in large batches of nearly one size, because `update_bn` counts all the same."""
    return list(images.pixels.chunk(4))


def main() -> None:
    """Read the options, train, and print the scores."""
    defaults = Settings()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=DEFAULT_FOLDER, help="where averages go")
    for name in ("seed", "epochs", "swa_start"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(defaults, name))
    options = vars(parser.parse_args())
    torch.set_num_threads(1)  # the same sums in the same order on every machine, and no slower here
    for name, score in train(options.pop("folder"), Settings(**options)).items():
        print(f"{name:12} accuracy {score.accuracy:.2%}  loss {score.loss:.4f}")


if __name__ == "__main__":
    main()
