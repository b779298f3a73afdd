"""Averaging weights while training: what `torch.optim.swa_utils` has, under the same names, and more.

    from swatool.swa_utils import AveragedModel, SWALR, get_ema_multi_avg_fn, update_bn

The arithmetic and the schemes are those of the offline averager, so that an average made in training and one
made of saved checkpoints agree. Importing this imports torch.
"""

from swatool.averaging.schemes import (
    ONLINE_SCHEMES,
    CrowsonEma,
    Ema,
    OnlineScheme,
    Polynomial,
    PowerEma,
    RestartedMean,
    Swa,
    WarmupEma,
    Wma,
)
from swatool.swa_utils.averaged_model import AveragedModel
from swatool.swa_utils.averaging_functions import (
    PARAM_LIST,
    get_ema_avg_fn,
    get_ema_multi_avg_fn,
    get_swa_avg_fn,
    get_swa_multi_avg_fn,
)
from swatool.swa_utils.bn_update import update_bn
from swatool.swa_utils.learning_rate import SWALR
from swatool.swa_utils.refusals import (
    ArgumentError,
    ArgumentTypeError,
    ConflictError,
    MissingRateError,
    PairingError,
)

__all__ = [  # noqa: RUF022  # torch's first, in torch's order
    "AveragedModel",
    "update_bn",
    "SWALR",
    "get_ema_multi_avg_fn",
    "get_swa_multi_avg_fn",
    "get_ema_avg_fn",
    "get_swa_avg_fn",
    # and what torch lacks
    "ONLINE_SCHEMES",
    "PARAM_LIST",
    "ArgumentError",
    "ArgumentTypeError",
    "ConflictError",
    "CrowsonEma",
    "Ema",
    "MissingRateError",
    "OnlineScheme",
    "PairingError",
    "Polynomial",
    "PowerEma",
    "RestartedMean",
    "Swa",
    "WarmupEma",
    "Wma",
]
