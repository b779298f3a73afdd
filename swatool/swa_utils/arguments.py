"""What `AveragedModel` may be given, looked over before anything is made of it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from swatool.swa_utils.refusals import ArgumentError, ArgumentTypeError, ConflictError

__all__ = ["check_module", "check_options", "check_rules"]

FACTORIES = ("get_ema_avg_fn", "get_ema_multi_avg_fn", "get_swa_avg_fn", "get_swa_multi_avg_fn")


def check_module(model: object) -> None:
    """Raise ArgumentTypeError unless it is a module."""
    if not isinstance(model, nn.Module):
        raise ArgumentTypeError(f"the model is a {type(model).__name__}: give a torch.nn.Module")


def check_rules(functions: Mapping[str, object], scheme: object) -> None:
    """Look over the averaging functions, by the names of their arguments, and the scheme; None is no rule."""
    rules = [rule for rule in (*functions.values(), scheme) if rule is not None]
    if len(rules) > 1:
        raise ConflictError(f"Only one of {', '.join(functions)} and scheme should be provided")
    for argument, function in functions.items():
        name = getattr(function, "__name__", "")
        if name in FACTORIES:
            raise ArgumentTypeError(f"{name} makes an averaging function: call it, as in {argument}={name}()")
        if function is not None and not callable(function):
            raise ArgumentTypeError(f"{argument} must be a function, not {function!r}")
    if scheme is not None and (isinstance(scheme, type) or not callable(getattr(scheme, "weight", None))):
        raise ArgumentTypeError(
            f"{scheme!r} is no scheme with an online form: give an instance of one of "
            "swatool.swa_utils.ONLINE_SCHEMES, such as PowerEma(gamma=6)"
        )


def check_options(device: object, update_every: object, dtype: object) -> None:
    """Look over what does not concern the rule."""
    if callable(device):
        raise ArgumentTypeError(
            f"the second argument is the device, not {device!r}: pass functions by name, as multi_avg_fn=..."
        )
    if not isinstance(update_every, int) or update_every < 1:
        raise ArgumentError(f"update_every must be a whole number of at least 1, not {update_every}")
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise ArgumentTypeError(f"dtype must be a type of torch's, such as torch.float32, not {dtype!r}")
    if dtype is not None and not dtype.is_floating_point:
        raise ArgumentError(f"dtype must be a floating type, not {dtype}")
