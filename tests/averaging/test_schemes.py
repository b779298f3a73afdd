import re
from dataclasses import MISSING, fields

import pytest

from swatool.averaging.schemes import (
    OTHER_NAMES,
    SCHEMES,
    Ema,
    LrWeighted,
    PosthocEma,
    PowerEma,
    Swa,
    WarmupEma,
    Weights,
    Wsm,
    informed,
    make_scheme,
)
from swatool.errors import UsageError

NEEDED = {
    "ema": ["decay"],
    "weights": ["weights"],
    "posthoc-ema": ["sigma_rel"],
    "extrapolate": ["factor"],
}


def test_the_table_has_every_method_of_the_field():
    assert list(SCHEMES) == [
        *("swa", "ema", "ema-warmup", "power-ema", "posthoc-ema", "wma", "wsm", "tail", "polynomial"),
        *("lr-weighted", "bema", "interpolate", "extrapolate", "difference", "weights"),
    ]


def test_make_scheme_builds_what_is_asked_for():
    assert make_scheme("swa", {"decay": None, "weights": None}) == Swa()
    assert make_scheme("ema", {"decay": 0.5, "debias": True}) == Ema(0.5, debias=True)
    assert make_scheme("ema", {"decay": 0.0}) == Ema(0.0)
    assert make_scheme("weights", {"weights": (1.0,), "normalize": False}) == Weights((1.0,), normalize=False)
    assert make_scheme("weights", {"weights": [1, 2]}) == Weights((1, 2))
    assert make_scheme("ema-warmup", {"power": 0.75}) == WarmupEma(power=0.75)
    assert make_scheme("wsm", {"schedule": "cosine"}) == Wsm("cosine")


@pytest.mark.parametrize(
    ("method", "hint"),
    [
        ("emma", "; did you mean ema?"),
        ("quux", "not 'quux'"),
        ("power_ema", "; did you mean power-ema?"),
        ("lawa", "; that is --method swa with --last k"),
        ("Mean", "; that is --method swa"),
        ("soup", "; that is --method swa"),
        ("pma", "; that is --method swa, wma or ema with --last k"),
        ("average", "; that is --method swa"),
        ("wise-ft", "; that is --method interpolate"),
        ("ema-crowson", "; that is --method ema-warmup with --inv-gamma and --power"),
        ("restarted_mean", "; that is --method swa with --last k"),
        ("\x1b[1m", r"not '\x1b[1m'"),
    ],
)
def test_unknown_method_is_refused_with_the_way_to_go(method, hint):
    with pytest.raises(UsageError) as caught:
        make_scheme(method, {})
    assert str(caught.value).endswith(hint)
    assert all(name in str(caught.value) for name in SCHEMES)


def test_hints_lead_to_methods_that_exist():
    assert not set(OTHER_NAMES) & set(SCHEMES)
    for hint in OTHER_NAMES.values():
        named = re.findall(r"[a-z]+(?:-[a-z]+)*", hint.split(" with ")[0].removeprefix("--method "))
        assert set(named) - set(SCHEMES) <= {"or", "of", "stored", "averages"}


@pytest.mark.parametrize("method", SCHEMES)
def test_every_parameter_belongs_to_a_scheme_or_is_refused(method):
    own = {field.name for field in fields(SCHEMES[method])}
    every = {field.name for scheme in SCHEMES.values() for field in fields(scheme)}
    for name in every - own:
        told = f"--{name.replace('_', '-')} does not belong to --method {method}, but to "
        with pytest.raises(UsageError, match=told) as caught:
            make_scheme(method, {name: 1})
        for taker in str(caught.value).partition("but to ")[2].split(", "):
            assert name in {field.name for field in fields(SCHEMES[taker])}


@pytest.mark.parametrize(
    ("method", "name", "told"),
    [
        ("ema", "decai", "--decai is no parameter of --method ema; did you mean --decay?"),
        (
            "power-ema",
            "sigma-rel",
            "--sigma-rel is no parameter of --method power-ema; did you mean --sigma-rel?",
        ),
        ("swa", "quux", "--quux is no parameter of --method swa"),
        ("swa", "\x1b[1m", r"--\x1b[1m is no parameter of --method swa"),
    ],
)
def test_unknown_parameters_are_refused_with_a_suggestion(method, name, told):
    with pytest.raises(UsageError) as caught:
        make_scheme(method, {name: 1})
    assert str(caught.value) == told


@pytest.mark.parametrize("method", SCHEMES)
def test_needed_parameters_are_asked_for(method):
    needed = [field.name for field in fields(SCHEMES[method]) if field.default is MISSING]
    assert needed == NEEDED.get(method, [])
    for name in needed:
        with pytest.raises(
            UsageError, match=re.escape(f"--method {method} needs --{name.replace('_', '-')}")
        ):
            make_scheme(method, {})


def test_all_schemes_can_be_asked_to_take_what_they_need_from_the_checkpoints():
    assert informed(Swa(), [1, 2], []) == Swa()
    assert informed(PowerEma(1), [1, None], []) == PowerEma(1, spacing="index")
    assert informed(LrWeighted(1, (3,)), [1], []) == LrWeighted(1, (3,))
    assert informed(PosthocEma(0.1, sigma_rels=(0.1,)), [1], []) == PosthocEma(0.1, sigma_rels=(0.1,))
