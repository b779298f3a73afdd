"""The averaging schemes, for saved checkpoints and for training; importing this does not import torch.

    from swatool.schemes import PowerEma
    AveragedModel(model, scheme=PowerEma(sigma_rel=0.1))
    PowerEma(sigma_rel=0.1).coefficients([1000, 2000, 3000])

Every scheme gives the coefficients of saved checkpoints from their steps, by `coefficients`; those in
`ONLINE_SCHEMES` also have the form for training, `weight`.
"""

from swatool.averaging.schemes import (
    ONLINE_SCHEMES,
    SCHEMES,
    Bema,
    CrowsonEma,
    Difference,
    Ema,
    Extrapolate,
    Interpolate,
    LrWeighted,
    OnlineScheme,
    Polynomial,
    PosthocEma,
    PowerEma,
    RestartedMean,
    Scheme,
    Swa,
    Tail,
    WarmupEma,
    Weights,
    Wma,
    Wsm,
    make_scheme,
)

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
    "make_scheme",
]
