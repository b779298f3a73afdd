import math
from dataclasses import dataclass, field

import pytest

from swatool.averaging.posthoc_ema import PowerProfile, reconstruct
from swatool.averaging.posthoc_scheme import PosthocEma
from swatool.averaging.power_profiles import exponent, width
from swatool.errors import UsageError


@dataclass(frozen=True)
class Saved:
    path: str = "run/ckpt.pt"
    fields: dict = field(default_factory=dict)
    metadata: dict = field(default_factory=dict)


NAMES = [f"run/phema-{step:07}-{sigma:.3f}.pt" for step in (100, 200) for sigma in (0.05, 0.1)]
WIDTHS = (0.05, 0.1, 0.05, 0.1)
STEPS = (100, 100, 200, 200)


def expected(sigma_rel, step=200, normalize="constrained"):
    snapshots = [PowerProfile(s, exponent(w)) for s, w in zip(STEPS, WIDTHS, strict=True)]
    return reconstruct(snapshots, PowerProfile(step, exponent(sigma_rel)), normalize).coefficients


def test_profiles_in_names():
    scheme = PosthocEma(0.07, profile="phema-{step}-{sigma_rel}")
    found = scheme.informed([None] * 4, list(map(Saved, NAMES)))
    assert found == PosthocEma(0.07, sigma_rels=WIDTHS, snapshot_steps=STEPS)
    assert found.informed([None] * 4, []) == found
    assert found.coefficients([None] * 4) == expected(0.07)
    assert found.coefficients([7, 8, 9, 10]) == expected(0.07)  # what the pattern tells comes first


def test_profiles_in_names_and_steps_from_elsewhere():
    scheme = PosthocEma(0.07, profile="*-{sigma_rel}", normalize="nvlabs", target_step=250)
    found = scheme.informed(STEPS, list(map(Saved, NAMES)))
    assert (found.snapshot_steps, found.sigma_rels) == ((), WIDTHS)
    assert found.coefficients(STEPS) == expected(0.07, 250, "nvlabs")


def test_profiles_in_files():
    saved = [
        Saved(fields={"sigma_rel": 0.05}),
        Saved(metadata={"sigma_rel": "0.1"}),
        Saved(fields={"gamma": 3}),
        Saved(metadata={"gamma": "3.5", "sigma_rel": "0.2"}),
    ]
    found = PosthocEma(0.07).informed(STEPS, saved).sigma_rels
    assert found == pytest.approx((0.05, 0.1, width(3), 0.2))


def test_widths_that_are_given_come_first():
    scheme = PosthocEma(0.07, sigma_rels=[0.05, 0.1, 0.05, 0.1])
    assert scheme.informed(STEPS, [Saved()] * 4) == scheme
    assert scheme.coefficients(STEPS) == expected(0.07)


def test_a_fit_that_is_poor_is_told():
    steps = [25 * k for k in range(1, 9) for _ in range(2)]
    assert list(PosthocEma(0.07, sigma_rels=WIDTHS * 4).remarks(steps)) == []
    outside = PosthocEma(0.2, sigma_rels=WIDTHS)
    told = list(outside.remarks(STEPS))
    assert "--sigma-rel 0.2 lies outside of what was tracked, 0.05 to 0.1" in told[0]
    alone = PosthocEma(0.07, sigma_rels=(0.1,))
    assert any("is met only within" in remark for remark in alone.remarks([100]))


@pytest.mark.parametrize(
    ("saved", "told"),
    [
        (Saved("run/a.pt"), "'run/a.pt' stores no sigma_rel: give --profile 'phema-{step}-{sigma_rel}'"),
        (Saved(metadata={"sigma_rel": "wide"}), "has a sigma_rel that is no number"),
        (Saved(fields={"gamma": math.nan}), "has a gamma out of range: nan"),
        (Saved(fields={"gamma": -1}), "has a gamma out of range: -1"),
        (Saved(fields={"sigma_rel": 0.5}), "--sigma-rels must lie in"),
    ],
)
def test_files_that_do_not_tell_a_profile_are_refused(saved, told):
    with pytest.raises(UsageError, match=told):
        PosthocEma(0.07).informed([100], [saved])


def test_what_is_needed_is_asked_for():
    with pytest.raises(UsageError, match="needs the width of each snapshot: give --profile"):
        PosthocEma(0.07).coefficients(STEPS)
    with pytest.raises(UsageError, match="--sigma-rels gives 1 numbers for 4 snapshots"):
        PosthocEma(0.07, sigma_rels=(0.1,)).coefficients(STEPS)
    with pytest.raises(UsageError, match="--snapshot-steps gives 1 numbers for 4 snapshots"):
        PosthocEma(0.07, sigma_rels=WIDTHS, snapshot_steps=(3,)).coefficients(STEPS)
    with pytest.raises(UsageError, match="snapshot 3 is of step 200, after the step that is wanted, 150"):
        PosthocEma(0.07, target_step=150, sigma_rels=WIDTHS).coefficients(STEPS)
    with pytest.raises(UsageError, match="does not match --profile"):
        PosthocEma(0.07, profile="x-{sigma_rel}").informed([1], [Saved()])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"sigma_rel": 0.3}, "--sigma-rel must lie in"),
        ({"target_step": 0}, "--target-step must be a whole number of at least 1, not 0"),
        ({"normalize": True}, "--normalize must be one of constrained, nvlabs, not True"),
        ({"sigma_rels": (0.05, 0.5)}, "--sigma-rels must lie in"),
        ({"sigma_rels": 0.05}, "--sigma-rels must be finite numbers, one per snapshot"),
        ({"snapshot_steps": (1.5,)}, "--snapshot-steps must be a whole number"),
        ({"snapshot_steps": (-1,)}, "--snapshot-steps"),
        ({"profile": "{sigma_rel}", "sigma_rels": (0.05,)}, "tell the same"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(options, told):
    with pytest.raises(UsageError, match=told):
        PosthocEma(**{"sigma_rel": 0.1, **options})
