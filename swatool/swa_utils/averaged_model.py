"""`AveragedModel`: a model whose weights are the average of another's over its training."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from swatool.averaging.kernels import can_lerp, lerp_together
from swatool.averaging.schemes import OnlineScheme, Swa
from swatool.swa_utils.arguments import check_module, check_options, check_rules
from swatool.swa_utils.averaging_functions import MultiEma, MultiSwa, SingleEma, SingleSwa
from swatool.swa_utils.foreign import AvgFn, MultiAvgFn, apply_to_each, apply_to_lists
from swatool.swa_utils.interrupts import interrupts_held
from swatool.swa_utils.names import clean_state_dict
from swatool.swa_utils.pairing import writable
from swatool.swa_utils.plan import Group, Plan
from swatool.swa_utils.refusals import ArgumentError, PairingError
from swatool.swa_utils.slots import slots
from swatool.swa_utils.swapping import in_a_swap, swapped

__all__ = ["AveragedModel"]

READ_AT_ONCE = {"cpu"}  # devices whose numbers can be read without waiting


class AveragedModel(nn.Module):
    """Holds a copy of a model and averages the model's parameters into it, at each `update_parameters`.

        averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.999))
        for batch in loader:
            ...
            optimizer.step()
            averaged.update_parameters(model)

    The first update copies. An update that raises changes nothing, and Ctrl-C waits for the end of one.

    Attributes:
        module: the average; a submodule.
        n_averaged: number of updates, int64; a buffer. Setting it, as by `load_state_dict`, is respected.
        avg_fn: as given; like the next five it is not part of the state dict.
        multi_avg_fn: as given.
        scheme: as given.
        use_buffers: as given.
        update_every: as given.
    """

    n_averaged: Tensor
    _plan: Plan | None = None  # for the whole class, so that pickles and copies need none

    def __init__(
        self,
        model: nn.Module,
        device: int | str | torch.device | None = None,
        avg_fn: AvgFn | None = None,
        multi_avg_fn: MultiAvgFn | None = None,
        use_buffers: bool = False,
        *,
        scheme: OnlineScheme | None = None,
        update_every: int = 1,
        dtype: torch.dtype | None = None,
        deepcopy: bool = True,
    ) -> None:
        """Copy the model; by default the average is the mean (SWA).

        Args:
            model: whose copy becomes `module`; it is not changed.
            device: where the average is kept; by default where the model is. "cpu" for a model on a GPU saves
                the GPU's memory.
            avg_fn: of an average, the model's tensor and the number of updates before; returns the new one.
            multi_avg_fn: of lists of them, in place; much faster.
            use_buffers: average floating buffers, too; else all buffers are copied from the model. Whole
                numbers and flags always are.
            scheme: in place of a function, such as `PowerEma(gamma=6)`.
            update_every: only the first and then each so-many-th call of `update_parameters` counts.
            dtype: of the average's floating tensors, such as torch.float32 for a model in bfloat16; as the
                model's by default. Complex ones are made of two such numbers, if theirs are narrower.
            deepcopy: False: `model` itself becomes the average, for modules that cannot be copied; give
                another one than the one that is trained.

        Raises:
            ConflictError: more than one of avg_fn, multi_avg_fn and scheme. An AssertionError, as torch's.
            ArgumentError: a value that makes no sense. A ValueError.
            ArgumentTypeError: a value of the wrong type, as a function in the place of a device. A TypeError.
        """
        super().__init__()
        check_module(model)
        check_rules({"avg_fn": avg_fn, "multi_avg_fn": multi_avg_fn}, scheme)
        check_options(device, update_every, dtype)
        self.module = copy.deepcopy(model) if deepcopy else model
        if device is not None:
            self.module = self.module.to(device)
        if dtype is not None:
            _convert(self.module, dtype)
        self.register_buffer("n_averaged", torch.tensor(0, dtype=torch.long, device=device))
        self.avg_fn = avg_fn
        self.multi_avg_fn = multi_avg_fn
        self.scheme = scheme
        self.use_buffers = use_buffers
        self.update_every = update_every
        self._calls = 0
        self._counted: tuple[Tensor, int, int] | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Run the average."""
        return self.module(*args, **kwargs)

    def update_parameters(self, model: nn.Module) -> None:
        """Average the model's present parameters in.

        Args:
            model: of the same names and shapes; `module.` and `_orig_mod.` in names do not matter.

        Raises:
            PairingError: the model is not built as the average. A ValueError and a RuntimeError.
        """
        if in_a_swap(self.module) or in_a_swap(model):
            raise ArgumentError(
                "update_parameters inside swapped_into would average the average: call it outside"
            )
        with interrupts_held():
            count = self._count()
            if count == 0:
                self._calls = 0  # whoever begins anew begins now
            if self._calls % self.update_every == 0:
                self._update(model, count)
            self._calls += 1

    def _update(self, model: nn.Module, count: int) -> None:
        plan = self._plan
        if plan is None or not plan.fits(self.module, model, use_buffers=self.use_buffers):
            self._plan = None  # a stale one would hold memory while the next one is made
            plan = Plan(self.module, model, use_buffers=self.use_buffers)
            self._plan = plan
        if self._is_ours(count):
            _check_types(plan.averaged)
        if count == 0:
            for group in plan.averaged:
                group.copy()
        else:
            self._average(plan.averaged, count)
        for group in plan.copied:
            group.copy()
        with torch.no_grad():
            writable(self.n_averaged).add_(1)
        self._remember(count + 1)

    def _is_ours(self, count: int) -> bool:
        """Tell whether our arithmetic is used, not somebody's own."""
        return self._weight(count) is not None or isinstance(self.avg_fn, SingleEma | SingleSwa)

    def _average(self, groups: list[Group], count: int) -> None:
        weight = self._weight(count)
        if weight is not None:
            for group in groups:
                group.apply(partial(lerp_together, weight=weight))
        elif self.multi_avg_fn is not None:
            apply_to_lists(self.multi_avg_fn, groups, count)
        elif isinstance(self.avg_fn, SingleEma | SingleSwa):
            function = partial(_write_each, self.avg_fn, count)
            for group in groups:
                group.apply(function)
        elif self.avg_fn is not None:
            apply_to_each(self.avg_fn, groups, count)

    def _weight(self, count: int) -> float | None:
        """Return the model's weight if that is all there is to know of the averaging."""
        if self.scheme is not None:
            return self.scheme.weight(count)
        if isinstance(self.multi_avg_fn, MultiEma | MultiSwa):
            return self.multi_avg_fn.weight(count)
        if self.multi_avg_fn is None and self.avg_fn is None:
            return Swa().weight(count)
        return None

    def _count(self) -> int:
        """Return `n_averaged`; from an accelerator it is fetched only if somebody else has changed it."""
        counter = self.n_averaged
        if counter.is_meta:
            raise ArgumentError(
                "n_averaged is on the meta device: make the average outside of torch.device('meta')"
            )
        if self._counted is not None and counter.device.type not in READ_AT_ONCE:
            known, version, count = self._counted
            if known is counter and version == counter._version:
                return count
        fetched = int(counter)
        if fetched < 0:
            raise ArgumentError(f"n_averaged is {fetched}: set it to the number of models in the average")
        return fetched

    def _remember(self, count: int) -> None:
        counter = self.n_averaged
        # Inference tensors have no version, so others' changes would not be seen.
        self._counted = None if counter.is_inference() else (counter, counter._version, count)

    @contextmanager
    def swapped_into(self, model: nn.Module) -> Iterator[None]:
        """Put the average's parameters and buffers into a model, and its own back, bit for bit, on any exit.

            with averaged.swapped_into(model):
                evaluate(model)

        Takes as much memory as the model while it lasts. Whatever happens to the model's tensors inside is
        undone with the rest: new values, such as the statistics of a BatchNorm layer in training mode;
        another type or device; other tensors or modules in their place. Only where FSDP2 divides tensors, a
        type that was given to them inside stays.

        Raises:
            PairingError: the model is not built as the average, or cannot be written.
            ArgumentError: the average is in a model already.
        """
        with swapped(self.module, model):
            yield

    def averaged_state_dict(self) -> dict[str, Any]:
        """Return the average's state dict under clean names, without `module.` and `_orig_mod.`.

            torch.save({"model": averaged.averaged_state_dict(), "step": step}, path)

        It is what the state dict would be without DataParallel, DistributedDataParallel and torch.compile.
        `swatool average` takes such files, and the plain model's `load_state_dict` takes what is in them. As
        in any state dict, the tensors are those of the average itself.
        """
        return clean_state_dict(self.module)

    def __getstate__(self) -> dict[str, Any]:
        """Return what copies and pickles need: no plan."""
        state = dict(self.__dict__)
        state.pop("_plan", None)
        return state


def _write_each(
    function: SingleEma | SingleSwa,
    count: int,
    averages: Sequence[Tensor],
    models: Sequence[Tensor],
) -> None:
    with torch.no_grad():
        for average, model in zip(averages, models, strict=True):
            average.copy_(function(average, model, count))


def _check_types(groups: list[Group]) -> None:
    """Raise PairingError, before anything is changed, for types that have no arithmetic."""
    found = {group.route for group in groups if not can_lerp(group.route.device, group.route.dtype)}
    if found:
        names = ", ".join(sorted(f"{route.dtype} on {route.device}" for route in found))
        raise PairingError(
            f"tensors of type {names} cannot be averaged, and nothing was changed: give the average a wider "
            "type with dtype=torch.float32"
        )


def _convert(module: nn.Module, dtype: torch.dtype) -> None:
    """Give all floating tensors a type, and complex ones at least its width; ties are kept."""

    def convert(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point():
            return tensor.to(dtype)
        if tensor.is_complex() and tensor.dtype.itemsize < dtype.to_complex().itemsize:
            return tensor.to(dtype.to_complex())
        return tensor

    before = slots(module)
    module._apply(convert)  # type: ignore[no-untyped-call]  # sharded modules have their own
    converted: dict[object, object] = {}
    for slot in before:
        # It may have made a tensor for each of the places where one lay.
        slot.put(converted.setdefault(slot.value, slot.current()))
