"""`SWALR`: anneals each group's learning rate to a constant one and keeps it there."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Real
from typing import Any, Literal, cast

from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.optimizer import Optimizer

from swatool.swa_utils.refusals import ArgumentError, ArgumentTypeError, MissingRateError

__all__ = ["SWALR"]

Rate = float | Tensor
Strategy = Literal["cos", "linear"]
NOT_SAVED = ("optimizer", "anneal_func")


class SWALR(LRScheduler):
    """Anneals the learning rate from whatever it is to `swa_lr`, in `anneal_epochs` steps.

    After step k it is swa_lr a + start (1 - a), with a = k/anneal_epochs or (1 - cos(pi k/anneal_epochs))/2.
    Each step goes on from the group's present rate, so it can follow any other scheduler.

    A group that is added to the optimizer later is annealed from its own rate along the rest of the curve, to
    its own "swa_lr" if it has one, else to that of the other groups.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        swa_lr: Rate | Sequence[Rate],
        anneal_epochs: int = 10,
        anneal_strategy: Strategy = "cos",
        last_epoch: int = -1,
        *,
        resume: bool | None = None,
    ) -> None:
        """Start the anneal, or go on with it.

        Args:
            optimizer: whose groups' "lr" is set.
            swa_lr: for all groups, or one for each.
            anneal_epochs: number of steps; with 0 the rate is set at once.
            anneal_strategy: "cos" or "linear".
            last_epoch: -1, or one less than the number of steps made, as for torch's schedulers.
            resume: whether a last_epoch of 0 or more says how far the anneal has come. False is torch's way:
                it begins anew. By default it is gone on with if the optimizer has been annealed before, which
                its groups remember as "swa_lr".

        Raises:
            ArgumentError: a value that makes no sense, before anything is changed. A ValueError.
            ArgumentTypeError: not an optimizer, or no rate. A TypeError.
            MissingRateError: a last_epoch of 0 or more, and groups without "initial_lr". A KeyError.
        """
        if not isinstance(optimizer, Optimizer):
            raise ArgumentTypeError(
                f"{type(optimizer).__name__} is not an Optimizer: give SWALR the optimizer"
            )
        rates = _one_for_each(swa_lr, optimizer)
        _check_strategy(anneal_strategy)
        if not isinstance(anneal_epochs, int) or anneal_epochs < 0:
            raise ArgumentError(f"anneal_epochs must be equal or greater than 0, got {anneal_epochs}")
        groups = optimizer.param_groups
        if last_epoch != -1 and not all("initial_lr" in group for group in groups):
            raise MissingRateError(
                f"last_epoch={last_epoch} goes on with a schedule, but there are parameter groups without "
                "initial_lr: load the optimizer's saved state first, or leave last_epoch out"
            )
        if resume is None:
            resume = all("swa_lr" in group for group in groups)
        self._set_anneal_func(anneal_strategy)
        self.anneal_epochs = anneal_epochs
        with _restored_on_failure(groups):
            for group, rate in zip(groups, rates, strict=True):
                group["swa_lr"] = rate
            super().__init__(optimizer, last_epoch)
        if resume:
            # The position is read from this count; it is what an uninterrupted run would have.
            self._step_count = self.last_epoch + 1

    @staticmethod
    def _linear_anneal(t: float) -> float:
        return t

    @staticmethod
    def _cosine_anneal(t: float) -> float:
        return (1 - math.cos(math.pi * t)) / 2

    @staticmethod
    def _get_initial_lr(lr: Rate, swa_lr: Rate, alpha: float) -> Rate:
        """Return the rate at the start of the anneal, from the present one."""
        return swa_lr if alpha == 1 else (lr - alpha * swa_lr) / (1 - alpha)

    def get_lr(self) -> list[float | Tensor]:
        """Return the next rate of each group; for the scheduler's own use, see `get_last_lr`."""
        if not self._get_lr_called_within_step:
            warnings.warn(
                "get_lr computes the next learning rate; the last one is given by `get_last_lr()`.",
                UserWarning,
                stacklevel=2,
            )
        self._adopt_new_groups()
        step = self._step_count - 1
        if self.anneal_epochs == 0:
            step = max(1, step)
        before, now = self._alpha(step - 1), self._alpha(step)
        rates: list[float | Tensor] = []
        for group in self.optimizer.param_groups:
            start = self._get_initial_lr(group["lr"], group["swa_lr"], before)
            rates.append(group["swa_lr"] * now + start * (1 - now))
        return rates

    def _alpha(self, step: int) -> float:
        """Return how far the rate has come after a step, from 0 to 1."""
        return self.anneal_func(max(0, min(1, step / max(1, self.anneal_epochs))))

    def _adopt_new_groups(self) -> None:
        """Give groups that were added to the optimizer what they lack."""
        groups = self.optimizer.param_groups
        lacking = [group for group in groups if "swa_lr" not in group]
        if lacking:
            known = [group["swa_lr"] for group in groups[: len(self.base_lrs)]]
            if any(rate != known[0] for rate in known):
                raise ArgumentError(
                    "a parameter group was added, and the others have no common swa_lr that it could take: "
                    'give it its own, as add_param_group({"params": ..., "swa_lr": ...})'
                )
            for group in lacking:
                group["swa_lr"] = _copied(known[0])
        for group in groups[len(self.base_lrs) :]:
            self.base_lrs.append(_copied(group.setdefault("initial_lr", _copied(group["lr"]))))

    def _set_anneal_func(self, anneal_strategy: Strategy) -> None:
        self._anneal_strategy = anneal_strategy
        self.anneal_func: Callable[[float], float] = (
            self._cosine_anneal if anneal_strategy == "cos" else self._linear_anneal
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the scheduler's state; the rates themselves are part of the optimizer's."""
        return {key: value for key, value in self.__dict__.items() if key not in NOT_SAVED}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over a state that this class or torch's has saved.

        Raises:
            ArgumentError: its strategy is unknown; nothing was changed. A ValueError.
        """
        _check_strategy(state_dict.get("_anneal_strategy", self._anneal_strategy))
        self.__dict__.update({key: value for key, value in state_dict.items() if key not in NOT_SAVED})
        if "_anneal_strategy" not in state_dict:
            warnings.warn(
                "the scheduler's state comes from a torch that did not yet store its strategy; it goes "
                f"on as it was constructed, with {self._anneal_strategy!r}",
                UserWarning,
                stacklevel=2,
            )
        self._set_anneal_func(self._anneal_strategy)


def _check_strategy(strategy: object) -> None:
    if strategy not in ("cos", "linear"):
        raise ArgumentError(f"anneal_strategy must be one of 'cos' or 'linear', instead got {strategy}")


@contextmanager
def _restored_on_failure(groups: Sequence[dict[str, Any]]) -> Iterator[None]:
    """Give groups their entries back if something raises."""
    before = [dict(group) for group in groups]
    try:
        yield
    except BaseException:
        for group, entries in zip(groups, before, strict=True):
            group.clear()
            group.update(entries)
        raise


def _one_for_each(swa_lr: Rate | Sequence[Rate], optimizer: Optimizer) -> list[Rate]:
    count = len(optimizer.param_groups)
    rates = list(swa_lr) if isinstance(swa_lr, list | tuple) else [cast(Rate, swa_lr)] * count
    if len(rates) != count:
        raise ArgumentError(
            f"swa_lr must have the same length as optimizer.param_groups: it has {len(rates)} values for "
            f"{count} groups"
        )
    for rate in rates:
        if not isinstance(rate, Real | Tensor):
            raise ArgumentTypeError(f"swa_lr must be a number or a tensor, or a list of them, not {rate!r}")
    return [_copied(rate) for rate in rates]


def _copied(rate: Rate) -> Rate:
    """Return a rate that does not change when a tensor it came from does."""
    return rate.clone() if isinstance(rate, Tensor) else rate
