"""The network of the digits example: three small convolutions with BatchNorm."""

from torch import nn


def build() -> nn.Sequential:
    """Build the untrained network; it maps (images, 1, 8, 8) float32 to (images, 10) logits."""
    return nn.Sequential(
        *_convolution(1, 16),
        *_convolution(16, 32),
        nn.MaxPool2d(2),
        *_convolution(32, 32),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 10),
    )


def _convolution(channels_in: int, channels_out: int) -> tuple[nn.Module, ...]:
    # BatchNorm subtracts the mean, so a bias before it would have no effect.
    convolution = nn.Conv2d(channels_in, channels_out, kernel_size=3, padding=1, bias=False)
    return convolution, nn.BatchNorm2d(channels_out), nn.ReLU()
