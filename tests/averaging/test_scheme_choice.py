import dataclasses

import pytest

from swatool.averaging.scheme_choice import SchemeChoice, scheme_options
from swatool.averaging.schemes import SCHEMES, make_scheme
from swatool.errors import UsageError

OPTIONS = scheme_options()


def test_the_choice_has_every_parameter_of_every_scheme_and_no_other():
    parameters = {field.name for scheme in SCHEMES.values() for field in dataclasses.fields(scheme)}
    assert {field.name for field in dataclasses.fields(SchemeChoice)} == parameters | {"method"}
    assert set(OPTIONS) == parameters


@pytest.mark.parametrize("option", OPTIONS.values(), ids=lambda option: option.field)
def test_every_option_is_told_from_the_scheme(option):
    assert option.option == f"--{option.field.replace('_', '-')}"
    assert option.type in (float, int, str, bool)
    assert set(option.schemes) <= set(SCHEMES)
    assert option.schemes
    for name in option.schemes:
        assert name in option.help
    for part in option.help.split("; "):
        assert part.strip(" :")
    assert "\n" not in option.help


def test_types_are_those_of_the_fields():
    assert (OPTIONS["decay"].type, OPTIONS["decay"].many) == (float, False)
    assert (OPTIONS["weights"].type, OPTIONS["weights"].many) == (float, True)
    assert (OPTIONS["snapshot_steps"].type, OPTIONS["snapshot_steps"].many) == (int, True)
    assert (OPTIONS["per_step"].type, OPTIONS["per_step"].many) == (int, False)
    assert (OPTIONS["debias"].type, OPTIONS["debias"].many) == (bool, False)
    assert (OPTIONS["normalize"].type, OPTIONS["normalize"].many) == (str, False)
    assert OPTIONS["sigma_rel"].schemes == ("power-ema", "posthoc-ema")
    assert OPTIONS["decay"].help.startswith(
        "ema: how much of the average each further checkpoint leaves, in [0, 1]; "
    )


def test_the_choice_makes_the_scheme():
    assert SchemeChoice().scheme() == make_scheme("swa", {})
    assert SchemeChoice(weights=(1.0,)).scheme() == make_scheme("weights", {"weights": (1.0,)})
    assert SchemeChoice(method="ema", decay=0.5).scheme() == make_scheme("ema", {"decay": 0.5})
    chosen = SchemeChoice(method="power-ema", sigma_rel=0.1, spacing="index")
    assert chosen.scheme() == make_scheme("power-ema", {"sigma_rel": 0.1, "spacing": "index"})
    with pytest.raises(UsageError, match="--decay does not belong to --method swa"):
        SchemeChoice(decay=0.5).scheme()
    with pytest.raises(UsageError, match="--decay does not belong to --method weights"):
        SchemeChoice(decay=0.5, weights=(1.0,)).scheme()
