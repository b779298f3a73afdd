"""A model on loan: whatever a run changes of it, and of torch's global state, is as before afterwards."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from types import TracebackType
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

__all__ = ["BorrowedModel", "RandomState", "keeping_random_state"]


class RandomState:
    """The state of torch's generators of random numbers, of the CPU and of every CUDA device."""

    def __init__(self) -> None:
        """Take the present state; that of CUDA only if CUDA is in use."""
        self._cpu = torch.get_rng_state()
        in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        self._cuda = torch.cuda.get_rng_state_all() if in_use else []

    def restore(self) -> None:
        """Go back to it."""
        torch.set_rng_state(self._cpu)
        if self._cuda:
            torch.cuda.set_rng_state_all(self._cuda)


class BorrowedModel:
    """A model whose buffers are copies, and whose parameters may be converted, until it gets its own.

    The original buffers are not written while the context lasts, and the original memory of parameters is put
    back where they were converted. So nothing needs to be undone value by value, whenever the run ends.

        with BorrowedModel(model, device=None, dtype=None, widen=True) as borrowed:
            ...

    Attributes:
        dtype: the floating type of the parameters during the run; None if there are several.
    """

    dtype: torch.dtype | None

    def __init__(
        self, model: nn.Module, *, device: torch.device | None, dtype: torch.dtype | None, widen: bool
    ) -> None:
        """Note how things are.

        Args:
            model: is lent.
            device: where it is run; None: where it is.
            dtype: that floating parameters and buffers are converted to; None: they are not.
            widen: convert those of less than four bytes to float32, if no type is asked for.
        """
        self._model = model
        self._device = device
        self._dtype = dtype
        self._widen = widen
        if device is not None and device.type == "cuda":
            torch.cuda.init()  # type: ignore[no-untyped-call]  # so that its random state can be taken
        self._random = RandomState()
        modules = list(model.modules())
        self._modes = [(module, module.training) for module in modules]
        self._buffers = [(module._buffers, dict(module._buffers)) for module in modules]
        self._momenta = [(module, module.momentum) for module in modules if isinstance(module, _NormBase)]
        self._parameters: list[tuple[nn.Parameter, Tensor]] = []
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Copy the buffers, convert the parameters, and switch gradients and compilation off."""
        try:
            self._stack.enter_context(torch.no_grad())
            if "torch._dynamo" in sys.modules:  # else nothing was compiled
                self._stack.enter_context(torch.compiler.set_stance("force_eager"))
            self._copy_buffers()
            for parameter in self._model.parameters():
                original = parameter.data
                converted = original.to(device=self._device, dtype=self._run_dtype(original))
                if converted is not original:
                    self._parameters.append((parameter, original))
                    parameter.data = converted
            self.dtype = self._common_dtype()
        except BaseException:
            self._give_back()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Put everything back."""
        self._give_back()

    def _copy_buffers(self) -> None:
        copies: dict[Tensor, Tensor] = {}  # a buffer that two modules share stays shared
        for buffers, originals in self._buffers:
            for name, original in originals.items():
                if original is None:
                    continue
                if original not in copies:
                    dtype = self._run_dtype(original)
                    copies[original] = original.detach().to(device=self._device, dtype=dtype, copy=True)
                buffers[name] = copies[original]

    def _run_dtype(self, tensor: Tensor) -> torch.dtype:
        if not tensor.is_floating_point():
            return tensor.dtype
        if self._dtype is not None:
            return self._dtype
        return torch.float32 if self._widen and tensor.dtype.itemsize < 4 else tensor.dtype

    def _common_dtype(self) -> torch.dtype | None:
        tensors: list[Tensor] = list(self._model.parameters()) or list(self._model.buffers())
        dtypes = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
        return dtypes.pop() if len(dtypes) == 1 else None

    def _give_back(self) -> None:
        try:
            self._restore()
        except BaseException:  # such as a second Ctrl-C
            self._restore()
            raise

    def _restore(self) -> None:
        """Put everything back; doing it twice is harmless."""
        for parameter, original in self._parameters:
            parameter.data = original
        for buffers, originals in self._buffers:
            buffers.clear()
            buffers.update(originals)
        for layer, momentum in self._momenta:
            layer.momentum = momentum
        for module, mode in self._modes:
            module.training = mode
        self._random.restore()
        self._stack.close()


@contextlib.contextmanager
def keeping_random_state() -> Iterator[None]:
    """Let nothing that happens in the context change what is drawn after it."""
    state = RandomState()
    try:
        yield
    finally:
        state.restore()
