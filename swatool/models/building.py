"""Where the model comes from: a factory of the user's own, or one of the libraries that know it by name.

The model is code, and is trusted; the checkpoint is data, and is not.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from types import ModuleType

import torch
from torch import nn

from swatool.errors import UsageError, printable
from swatool.user_code import describe_failure, load_attribute

__all__ = ["build_model"]

Arguments = Mapping[str, object]


def build_model(spec: str, arguments: Arguments) -> nn.Module:
    """Build the model that `--model` names.

    Args:
        spec: `package.module:factory`, `path/file.py:factory`, `timm:NAME`, `torchvision:NAME`, `hf:FOLDER`.
            A factory is a function or a class; a module that is there already is taken as it is.
        arguments: keyword arguments for the factory, from `--model-arg`.

    Raises:
        UsageError: there is no such model, it cannot be made, or it is no torch module.
    """
    kind, separator, name = spec.partition(":")
    if separator and kind in LIBRARIES:
        return _checked(spec, _called(spec, LIBRARIES[kind], name, arguments))
    if not separator and spec.endswith((".pt", ".pth", ".ts", ".torchscript")):
        raise UsageError(
            f"--model {printable(spec)} is a file of weights or a TorchScript archive: name the factory that "
            "makes the model, as in my/models.py:build"
        )
    factory = load_attribute(spec, "--model")
    if isinstance(factory, nn.Module):
        if arguments:
            raise UsageError(f"--model {printable(spec)} is a finished module, which takes no --model-arg")
        return _checked(spec, factory)
    if not callable(factory):
        raise UsageError(
            f"--model {printable(spec)} is {printable(type(factory).__name__)}: name a function or a class "
            "that makes the model"
        )
    return _checked(spec, _called(spec, factory, **arguments))


def _called(spec: str, factory: Callable[..., object], *args: object, **kwargs: object) -> object:
    try:
        return factory(*args, **kwargs)
    except UsageError:
        raise
    except (Exception, SystemExit) as error:
        raise UsageError(
            f"--model {printable(spec)} failed when it was called: {describe_failure(error)}; -v shows where"
        ) from error


def _checked(spec: str, model: object) -> nn.Module:
    if isinstance(model, torch.jit.ScriptModule):
        raise UsageError(
            f"--model {printable(spec)} gives a TorchScript module, whose layers cannot be looked into: give "
            "the factory of the module that was scripted"
        )
    if not isinstance(model, nn.Module):
        raise UsageError(
            f"--model {printable(spec)} gives {printable(type(model).__name__)} instead of a torch.nn.Module"
        )
    return model


def _library(name: str, spec: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:  # torchvision raises RuntimeError beside another torch
        raise UsageError(
            f"--model {spec} needs {name}, which cannot be imported here ({describe_failure(error)}): "
            f"pip install {name}, in a release that fits the torch that is installed"
        ) from error


def _timm(name: str, arguments: Arguments) -> object:
    return _library("timm", f"timm:{name}").create_model(name, pretrained=False, **arguments)


def _torchvision(name: str, arguments: Arguments) -> object:
    return _library("torchvision", f"torchvision:{name}").models.get_model(name, weights=None, **arguments)


def _transformers(folder: str, arguments: Arguments) -> object:
    """Make the class that the folder's config names; its weights are not read, nor code that lies beside."""
    library = _library("transformers", f"hf:{folder}")
    config = library.AutoConfig.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False, **arguments
    )
    names = config.architectures or []
    if not names:
        return library.AutoModel.from_config(config)
    kind = getattr(library, names[0], None)
    if kind is None:
        raise UsageError(f"--model hf:{folder} is a {printable(names[0])}, which transformers does not have")
    return kind(config)


LIBRARIES: Mapping[str, Callable[[str, Arguments], object]] = {
    "timm": _timm,
    "torchvision": _torchvision,
    "hf": _transformers,
}
