"""Why swatool alone reads some mutants: the reference library refuses them for what swatool never uses."""

import re

# By what torch.load says: swatool makes no objects, so that it does not matter of what kind they would be.
OF_TORCH = {
    "an object that torch does not make, inert here": (
        r"Unsupported global|Unsupported class|Can only \w+|Trying to (call|instantiate)|was blocked"
        r"|object is not callable|has no attribute|Boolean value of Tensor|set_\(\) received an invalid"
    ),
    "an opcode that torch does not know": r"Unsupported operand",
    "a key that is dropped here": r"unhashable type",
    "whether it needs a gradient, which has no bytes": r"requires?_grad|can require gradients",
    "more arguments than torch takes, of which none has bytes": r"positional arguments? but",
    "hooks and states, which are dropped here": r"expected dict, got|invalid argument: state",
    "the device that it lay on": (
        r"restore data location|expected string or bytes-like object|invalid literal for int|on a CUDA device"
    ),
    "records that swatool does not read": (
        r'hasRecord\("version"\)|not in a subdirectory|codec can.t decode|parse the version'
        r"|failed reading file \.?(data/serialization_id|format_version|storage_alignment|version|\.data)"
    ),
}


def of_torch(_mutant, _ours, error):
    """Name the reason why torch.load refuses what swatool reads; None if it is not known."""
    return next((name for name, pattern in OF_TORCH.items() if re.search(pattern, str(error))), None)


def of_archives(mutant, _ours, _error):
    """NumPy goes by the first bytes, and zipfile by the last ones."""
    return None if mutant.startswith(b"PK\3\4") else "a beginning of an archive that zipfile does not look at"
