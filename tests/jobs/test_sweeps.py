from dataclasses import dataclass

import pytest

from swatool.errors import UsageError
from swatool.jobs.sweeps import fill, sweep


@dataclass(frozen=True, kw_only=True)
class Settings:
    last: int | None = None
    decay: float | None = None
    sigma_rel: float | None = None
    method: str = "swa"
    flag: bool | None = None
    other: int = 0


ALLOWED = ("last", "decay", "sigma_rel", "method")


def test_axes_are_crossed_and_the_last_varies_fastest():
    found = sweep(Settings(other=3), ["last=2,4", "decay=0.9,1e-3"], ALLOWED)
    assert [variant for variant, _ in found] == [
        {"last": "2", "decay": "0.9"},
        {"last": "2", "decay": "1e-3"},
        {"last": "4", "decay": "0.9"},
        {"last": "4", "decay": "1e-3"},
    ]
    assert found[3][1] == Settings(last=4, decay=0.001, other=3)
    assert fill("avg-{last}-{decay}.pt", [variant for variant, _ in found])[1] == "avg-2-1e-3.pt"


def test_names_and_hyphens():
    found = sweep(Settings(), ["sigma-rel=0.05,.1".replace(".1", "0.1"), "method=swa,wma"], ALLOWED)
    assert [one for _, one in found][-1] == Settings(sigma_rel=0.1, method="wma")
    assert fill("{{x}}-{sigma-rel}-{method}", [v for v, _ in found])[0] == "{x}-0.05-swa"


def test_flags_and_leading_points():
    found = sweep(Settings(), ["flag=true,false", "decay=.5"], (*ALLOWED, "flag"))
    assert [one.flag for _, one in found] == [True, False]
    assert found[0][1].decay == 0.5


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        (["last=2,02"], "a value twice"),
        (["decay=0.5,.5"], "a value twice"),
        (["flag=yes"], "flag must be true or false"),
        (["last"], "--sweep must be name=value"),
        (["last="], "--sweep must be name=value"),
        (["=3"], "--sweep must be name=value"),
        (["other=3"], "other cannot be swept; what can is last, decay, sigma-rel, method, flag"),
        (["last=2,x"], "last must be a whole number, not 'x'"),
        (["last=2.5"], "last must be a whole number"),
        (["last=2,"], "the value ''"),
        (["decay=../x"], r"the value '\.\./x'"),
        (["decay=a/b"], "the value 'a/b'"),
        (["last=2", "last=3"], "last is given twice"),
        (["last=" + ",".join(map(str, range(1, 30))), "decay=" + ",".join(["0.5"] * 9)], "261 averages"),
    ],
)
def test_what_cannot_be_swept(axes, said):
    with pytest.raises(UsageError, match=said):
        sweep(Settings(), axes, (*ALLOWED, "flag"))


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("avg.pt", "needs {last}"),
        ("avg-{last}-{first}.pt", "has {first}, which is not swept"),
        ("avg-{last}-{.pt", "a single brace"),
        ("avg-{last}-{}.pt", "has {}, which"),
    ],
)
def test_templates_that_do_not_fit(template, said):
    with pytest.raises(UsageError, match=said):
        fill(template, [{"last": "2"}, {"last": "4"}])


def test_two_averages_of_one_name():
    with pytest.raises(UsageError, match="a value twice"):
        fill("{last}", [{"last": "2"}, {"last": "2"}])
