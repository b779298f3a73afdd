"""Train the digits network and save a checkpoint every other epoch of the last phase.

The learning rate warms up to a high value, falls, and then stays constant: in that last phase the
weights wander around a minimum without settling, and the saved checkpoints are worth averaging.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from data import CLASSES, Images, load_split
from evaluation import evaluate
from model import build
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

DEFAULT_FOLDER = Path(__file__).parent / "run"


@dataclass(frozen=True)
class Settings:
    """Everything a run depends on besides the data; the defaults make 12 checkpoints."""

    seed: int = 0
    batch_size: int = 32
    warmup_epochs: int = 2
    falling_epochs: int = 20
    constant_epochs: int = 24
    save_every: int = 2
    high_rate: float = 0.2
    constant_rate: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_noise: float = 0.1

    def learning_rate(self, epoch: float) -> float:
        """Rate at a point of the run: up linearly from 0, down linearly, then constant."""
        if epoch < self.warmup_epochs:
            return self.high_rate * epoch / self.warmup_epochs
        left_to_fall = max(1.0 - (epoch - self.warmup_epochs) / self.falling_epochs, 0.0)
        return self.constant_rate + left_to_fall * (self.high_rate - self.constant_rate)

    @property
    def first_constant_epoch(self) -> int:
        """Number of epochs before the learning rate is constant."""
        return self.warmup_epochs + self.falling_epochs


def train(folder: Path, settings: Settings) -> list[Path]:
    """Train from scratch, printing a line per checkpoint; gives the files in the order of their steps."""
    torch.manual_seed(settings.seed)
    split = load_split()
    training = Images(split.training.pixels, _noisy(split.training.labels, settings.label_noise))
    model = build()
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.0, momentum=settings.momentum, weight_decay=settings.weight_decay
    )
    folder.mkdir(parents=True, exist_ok=True)
    saved = []
    step = 0
    for epoch in range(1, settings.first_constant_epoch + settings.constant_epochs + 1):
        step = _train_epoch(model, optimizer, training, settings, step)
        constant_epoch = epoch - settings.first_constant_epoch
        if constant_epoch > 0 and constant_epoch % settings.save_every == 0:
            accuracy = evaluate(model, split.validation).accuracy
            saved.append(_save(folder, model, optimizer, step, epoch, accuracy))
            print(f"epoch {epoch}: saved {saved[-1].name}, validation accuracy {accuracy:.1%}", flush=True)
    return saved


def _train_epoch(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: Images, settings: Settings, step: int
) -> int:
    """Take one step per whole batch of a new random order; gives the number of steps so far."""
    steps_per_epoch = len(images.labels) // settings.batch_size
    batches = torch.randperm(len(images.labels)).split(settings.batch_size)[:steps_per_epoch]
    model.train()
    for batch in batches:
        optimizer.param_groups[0]["lr"] = settings.learning_rate(step / steps_per_epoch)
        optimizer.zero_grad()
        loss = cross_entropy(model(_shifted(images.pixels[batch])), images.labels[batch])
        loss.backward()
        optimizer.step()
        step += 1
    return step


def _noisy(labels: Tensor, share: float) -> Tensor:
    """Replace about this share of the labels by random ones, so that the training loss cannot reach 0."""
    replaced = torch.rand(len(labels)) < share
    return torch.where(replaced, torch.randint(CLASSES, labels.shape), labels)


def _shifted(pixels: Tensor) -> Tensor:
    """Shift each image by -1, 0 or 1 pixels in both directions; what comes in is black."""
    images, _, height, width = pixels.shape
    top, left = torch.randint(3, (2, images, 1))
    rows = (top + torch.arange(height)).unsqueeze(2)
    columns = (left + torch.arange(width)).unsqueeze(1)
    return pad(pixels, (1, 1, 1, 1))[torch.arange(images).view(-1, 1, 1), 0, rows, columns].unsqueeze(1)


def _save(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int, epoch: int, accuracy: float
) -> Path:
    path = folder / f"ckpt-{step}.pt"
    checkpoint = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
        "epoch": epoch,
        "val_accuracy": accuracy,
    }
    torch.save(checkpoint, path)
    return path


def main() -> None:
    """Read the options and train."""
    defaults = Settings()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=DEFAULT_FOLDER, help="where checkpoints go")
    for name in ("seed", "warmup_epochs", "falling_epochs", "constant_epochs", "save_every"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(defaults, name))
    options = vars(parser.parse_args())
    torch.set_num_threads(1)  # the same sums in the same order on every machine, and no slower here
    train(options.pop("folder"), Settings(**options))


if __name__ == "__main__":
    main()
