"""Which modules of a model have statistics to recalibrate, and why the others have none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import is_lazy

from swatool.errors import UsageError, printable

__all__ = ["Layer", "Layers", "NormModule", "find_layers"]

NormModule = _BatchNorm | _InstanceNorm
WITHOUT_STATISTICS = (nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm, nn.RMSNorm)
SHOWN_LAYERS = 20


@dataclass(frozen=True, eq=False)
class Layer:
    """A module whose running statistics are recalibrated.

    Attributes:
        index: its place among them, in the order of the model's modules.
        names: all names that it has in the model; a shared module has several.
        module: the module.
    """

    index: int
    names: tuple[str, ...]
    module: NormModule

    @property
    def name(self) -> str:
        """The first of its names; the model itself has none."""
        return self.names[0]

    @property
    def kind(self) -> str:
        """The name of its class."""
        return type(self.module).__name__

    @property
    def per_instance(self) -> bool:
        """Whether it normalises each sample by its own statistics, as InstanceNorm does."""
        return isinstance(self.module, _InstanceNorm)

    @property
    def running(self) -> tuple[Tensor, Tensor]:
        """Its running mean and variance, [C]."""
        mean, variance = self.module.running_mean, self.module.running_var
        assert mean is not None
        assert variance is not None
        return mean, variance


@dataclass(frozen=True, eq=False)
class Layers:
    """The layers of a model.

    Attributes:
        found: what is recalibrated.
        skipped: what could be and is not, as asked.
        untouched: for every normalisation that is left alone, by name, the reason.
    """

    found: tuple[Layer, ...]
    skipped: tuple[Layer, ...]
    untouched: Mapping[str, str]


def find_layers(model: nn.Module, skip: Sequence[str] = ()) -> Layers:
    """Return the layers with running statistics, except those that have a name which a pattern matches.

    Args:
        model: its modules are looked through.
        skip: patterns as of file names, in which * matches dots as well.

    Raises:
        UsageError: a pattern matches no layer, or a module has no parameters yet.
    """
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    _check_loaded(names)
    untouched = {own[0]: reason for module, own in names.items() if (reason := _reason(module))}
    candidates = [
        (module, tuple(own))
        for module, own in names.items()
        if isinstance(module, NormModule) and own[0] not in untouched
    ]
    _check_patterns(skip, [own for _, own in candidates])
    found: list[Layer] = []
    skipped: list[Layer] = []
    for module, own in candidates:
        target = skipped if any(fnmatchcase(name, pattern) for name in own for pattern in skip) else found
        target.append(Layer(len(target), own, module))
    untouched |= {layer.name: "skipped, as asked" for layer in skipped}
    return Layers(tuple(found), tuple(skipped), untouched)


def _reason(module: nn.Module) -> str | None:
    """Return why a normalisation has nothing to recalibrate; None if it has, or if it is something else."""
    has_statistics = all(
        isinstance(getattr(module, name, None), Tensor) for name in ("running_mean", "running_var")
    )
    if isinstance(module, NormModule):
        return None if has_statistics else f"{type(module).__name__} keeps no running statistics"
    if isinstance(module, WITHOUT_STATISTICS):
        return f"{type(module).__name__} has no running statistics"
    return f"{type(module).__name__} is frozen: its statistics are constants" if has_statistics else None


def _check_loaded(names: Mapping[nn.Module, Sequence[str]]) -> None:
    """Raise UsageError if a lazy module does not know its shapes yet."""
    for module, own in names.items():
        if any(map(is_lazy, _own_tensors(module))):
            raise UsageError(
                f"module {printable(own[0])} ({type(module).__name__}) has no parameters yet: "
                "load the model's state first"
            )


def _own_tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters(recurse=False)
    yield from module.buffers(recurse=False)


def _check_patterns(patterns: Sequence[str], layers: Sequence[Sequence[str]]) -> None:
    for pattern in patterns:
        if any(fnmatchcase(name, pattern) for names in layers for name in names):
            continue
        known = [printable(names[0]) for names in layers]
        if len(known) > SHOWN_LAYERS:
            known = [*known[:SHOWN_LAYERS], f"and {len(known) - SHOWN_LAYERS} more"]
        raise UsageError(
            f"--skip {printable(pattern)} matches no layer with running statistics; "
            + (f"there are {', '.join(known)}" if known else "the model has none")
        )
