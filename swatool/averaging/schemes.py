"""The averaging schemes: from the steps of the checkpoints to one float64 coefficient for each.

A scheme is a frozen dataclass whose fields are its parameters; it checks itself, and `coefficients` is a pure
function. The command line, recipes, training, the tests and the documentation all read the one table
`SCHEMES`. Only what is linear with coefficients known beforehand is a scheme; coordinate-wise and
data-dependent methods are reducers of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields

from swatool.averaging.combination_schemes import Difference, Extrapolate, Interpolate, Weights
from swatool.averaging.ema_schemes import Bema, CrowsonEma, Ema, PowerEma, WarmupEma
from swatool.averaging.mean_schemes import LrWeighted, Polynomial, RestartedMean, Swa, Tail, Wma, Wsm
from swatool.averaging.posthoc_scheme import PosthocEma
from swatool.averaging.scheme import Described, OnlineScheme, Scheme, Steps
from swatool.averaging.scheme_checks import option
from swatool.choices import nearest, not_among
from swatool.errors import UsageError, printable

__all__ = [
    "ONLINE_SCHEMES",
    "SCHEMES",
    "Bema",
    "CrowsonEma",
    "Difference",
    "Ema",
    "Extrapolate",
    "Interpolate",
    "LrWeighted",
    "OnlineScheme",
    "Polynomial",
    "PosthocEma",
    "PowerEma",
    "RestartedMean",
    "Scheme",
    "Swa",
    "Tail",
    "WarmupEma",
    "Weights",
    "Wma",
    "Wsm",
    "informed",
    "make_scheme",
]

Online = Swa | Wma | Polynomial | Ema | WarmupEma | PowerEma | RestartedMean
Offline = (
    Swa
    | Ema
    | WarmupEma
    | PowerEma
    | PosthocEma
    | Wma
    | Wsm
    | Tail
    | Polynomial
    | LrWeighted
    | Bema
    | Interpolate
    | Extrapolate
    | Difference
    | Weights
)
# In the order in which they are told.
SCHEMES: Mapping[str, type[Offline]] = {
    scheme.name: scheme
    for scheme in (
        *(Swa, Ema, WarmupEma, PowerEma, PosthocEma, Wma, Wsm, Tail, Polynomial, LrWeighted, Bema),
        *(Interpolate, Extrapolate, Difference, Weights),
    )
}
# Those that can be applied in training. The mean of the newest few is for training alone: files have --last.
ONLINE_SCHEMES: Mapping[str, type[Online]] = {
    scheme.name: scheme for scheme in (Swa, Ema, WarmupEma, PowerEma, Wma, Polynomial, RestartedMean)
}

# What is known under other names, and the way to it.
OTHER_NAMES: Mapping[str, str] = {
    **dict.fromkeys(("mean", "average", "uniform", "avg", "soup", "uniform-soup"), "--method swa"),
    **dict.fromkeys(("lawa", "latest", "last", "restarted-mean"), "--method swa with --last k"),
    "pma": "--method swa, wma or ema with --last k",
    "linear": "--method swa, wsm or weights",
    "polyak": "--method tail",
    "polyak-ruppert": "--method tail",
    "suffix": "--method tail",
    "ema-crowson": "--method ema-warmup with --inv-gamma and --power",
    "karras": "--method power-ema",
    "edm2": "--method power-ema, or posthoc-ema of stored averages",
    "phema": "--method posthoc-ema",
    "schedule-free": "--method lr-weighted",
    "minus-sqrt": "--method wsm with --schedule minus-sqrt",
    "cosine": "--method wsm with --schedule cosine",
    **dict.fromkeys(("wise-ft", "wiseft", "lerp", "task-arithmetic"), "--method interpolate"),
    "icefall": "--method difference",
}


def make_scheme(method: str, parameters: Mapping[str, object]) -> Scheme:
    """Build the scheme called `method`; parameters that are None count as not given.

    Args:
        method: its name in `SCHEMES`.
        parameters: by the names of its fields; lists count as tuples.

    Raises:
        UsageError: no such scheme, a parameter that it does not take, one that it needs and lacks, or a value
            out of range.
    """
    if method not in SCHEMES:
        raise UsageError(f"--method {not_among(SCHEMES, method, OTHER_NAMES)}")
    scheme = SCHEMES[method]
    given = {name: value for name, value in parameters.items() if value is not None}
    known = {field.name: field for field in fields(scheme)}
    for name in given:
        if name not in known:
            raise UsageError(_no_such_parameter(method, name, tuple(known)))
    for name, field in known.items():
        if field.default is MISSING and name not in given:
            raise UsageError(f"--method {method} needs {option(name)}")
    return scheme(**given)  # type: ignore[arg-type]


def informed(scheme: Scheme, steps: Steps, checkpoints: Sequence[Described]) -> Scheme:
    """Return the scheme with all that it takes from the checkpoints themselves, oldest first.

    Learning rates, the profiles of snapshots, and whether time is counted in steps: what it returns shows in
    its fields what was used.

    Raises:
        UsageError: a checkpoint lacks what is needed.
    """
    inform = getattr(scheme, "informed", None)
    found: Scheme = scheme if inform is None else inform(steps, checkpoints)
    return found


def _no_such_parameter(method: str, name: str, known: Sequence[str]) -> str:
    takers = [scheme.name for scheme in SCHEMES.values() if name in {field.name for field in fields(scheme)}]
    if takers:
        return f"{option(name)} does not belong to --method {method}, but to {', '.join(takers)}"
    near = nearest(name, known)
    hint = f"; did you mean {option(near)}?" if near else ""
    return f"{printable(option(name))[1:-1]} is no parameter of --method {method}{hint}"
