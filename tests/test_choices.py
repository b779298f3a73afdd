from dataclasses import dataclass, fields

import pytest

from swatool.choices import check_choices, choice, choices_of, not_among, refusal
from swatool.errors import UsageError


@dataclass(frozen=True)
class Settings:
    kind: str = choice(("fast", "slow"), default="slow", other_names={"quick": "--kind fast"})
    some_word: str | None = choice({"a": 1, "b": 2}, default=None)
    other: int = 0


KIND, WORD, OTHER = fields(Settings)


def test_a_field_knows_its_words():
    assert Settings() == Settings("slow", None)
    assert [choices_of(one) for one in (KIND, WORD, OTHER)] == [("fast", "slow"), ("a", "b"), ()]


@pytest.mark.parametrize(("one", "value"), [(KIND, "fast"), (WORD, "a"), (WORD, None), (OTHER, "x")])
def test_what_is_taken(one, value):
    assert refusal(one, value) == ""


@pytest.mark.parametrize(
    ("one", "value", "said"),
    [
        (KIND, "Slow", "must be one of fast, slow, not 'Slow'; did you mean slow?"),
        (KIND, "Quick", "must be one of fast, slow, not 'Quick'; that is --kind fast"),
        (KIND, None, "must be one of fast, slow, not None"),
        (WORD, 3, "must be one of a, b, not 3"),
        (WORD, "\x1b", "must be one of a, b, not '\\x1b'"),
    ],
)
def test_what_is_refused(one, value, said):
    assert refusal(one, value) == said


def test_other_names_go_before_names_that_look_alike():
    assert not_among(["cat"], "car", {"car": "a cat"}).endswith("; that is a cat")


def test_all_fields_are_checked():
    check_choices(Settings())
    with pytest.raises(UsageError, match=r"^--some-word must be one of a, b, not 'c'$"):
        check_choices(Settings(some_word="c"))
