"""Modes of outputs, which follow the umask as any new file's do; and that others load what is written."""

import stat
from pathlib import Path

import torch

from faults import inputs
from faults.finding import Finding
from faults.trials import Warm, clear

UMASKS = (0o022, 0o077, 0o027, 0o002)
NBYTES = 1 << 16
FILE, FOLDER = 0o666, 0o777
OUTPUTS = {
    "out.safetensors": (),
    "out.pt": (),
    "shards/": ("--max-shard-size", "20kB"),
    "distributed/": ("--format", "dcp"),
}
# A file system that knows no files without a name.
NAMED = "from swatool.output import publish\npublish.UNNAMED = 0\n"


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def wrong_modes(path: Path, umask: int) -> list[str]:
    """Return which modes of an output are not those that the umask leaves."""
    expected = {path: (FOLDER if path.is_dir() else FILE) & ~umask}
    if path.is_dir():
        expected |= dict.fromkeys(path.iterdir(), FILE & ~umask)
    return [
        f"{one.name} has mode {mode(one):03o} under umask {umask:03o}"
        for one, wanted in expected.items()
        if mode(one) != wanted
    ]


def wrong_tensors(path: Path, kind: str) -> list[str]:
    """Return what is wrong with what safetensors and huggingface_hub load of an output."""
    import huggingface_hub
    import safetensors.torch

    names = [name for name in inputs.state(1, NBYTES) if name != "steps"]
    expected = {name: (inputs.state(1, NBYTES)[name] + inputs.state(2, NBYTES)[name]) / 2 for name in names}
    if kind == "out.safetensors":
        ways = {
            "safetensors": safetensors.torch.load_file(path),
            "huggingface_hub": huggingface_hub.load_state_dict_from_file(path),
        }
    else:
        model = torch.nn.Module()
        for name, values in expected.items():
            layer, _, weight = name.partition(".")
            model.add_module(layer, torch.nn.Module())
            getattr(model, layer).register_parameter(weight, torch.nn.Parameter(torch.zeros_like(values)))
        huggingface_hub.load_torch_model(model, path, strict=True)
        parts = [safetensors.torch.load_file(one) for one in sorted(path.glob("*.safetensors"))]
        ways = {
            "safetensors": {name: values for part in parts for name, values in part.items()},
            "huggingface_hub": model.state_dict(),
        }
    return [
        f"{way} loads something else from {path.name}"
        for way, found in ways.items()
        if found.keys() != expected.keys()
        or any(not torch.allclose(found[name], values, rtol=1e-6) for name, values in expected.items())
    ]


def measure_permissions(full: bool, folder: Path) -> Finding:
    """Write outputs of each kind under each umask, and load those that others can load."""
    tried, wrong = 0, []
    with Warm() as warm:
        names = inputs.make(folder, "file.safetensors", NBYTES)
        for umask in UMASKS:
            for output, options in OUTPUTS.items():
                for way in ("", NAMED) if full or umask == UMASKS[0] else ("",):
                    command = ["average", *names, "-o", output, "-q", *options]
                    ended = warm.run(command, folder, f"import os\nos.umask({umask})\n{way}")
                    assert ended.code == 0, ended.stderr
                    wrong += wrong_modes(folder / output, umask)
                    if output in ("out.safetensors", "shards/"):
                        wrong += wrong_tensors(folder / output, output)
                    tried += 1
                    clear(folder, names)
    return Finding("modes follow the umask, and others load the outputs", tried, tuple(wrong))
