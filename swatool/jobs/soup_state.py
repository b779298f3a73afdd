"""How far a greedy soup has got: pure data, and its decisions, to and from JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from swatool.jobs.scoring import Scoring
from swatool.json_text import parse_json

__all__ = ["SoupState", "Trial", "accepts", "as_text", "from_text", "ranked"]

SCHEMA = 1


@dataclass(frozen=True)
class Trial:
    """What an evaluation said.

    Attributes:
        member: number of the member: of its own evaluation, or that was tried as a part of the soup.
        value: the number that counts.
        metrics: all numbers.
        accepted: whether the member became part of the soup; true of an evaluation of its own.
    """

    member: int
    value: float
    metrics: Mapping[str, float]
    accepted: bool = True


@dataclass(frozen=True)
class SoupState:
    """Everything that was found so far.

    Attributes:
        identity: what it was found of, as plain data: the members and the request.
        own: the members' own evaluations.
        order: in which the members are tried; empty until it is known.
        tried: the trials, in that order; the first is the best member's own evaluation.
        publishing: whether all is decided, and the output may have been published.
    """

    identity: Mapping[str, object]
    own: tuple[Trial, ...] = ()
    order: tuple[int, ...] = ()
    tried: tuple[Trial, ...] = ()
    publishing: bool = False

    @property
    def accepted(self) -> tuple[int, ...]:
        """The members of the soup so far, in the order in which they were accepted."""
        return tuple(trial.member for trial in self.tried if trial.accepted)

    @property
    def value(self) -> float:
        """What the soup is worth so far."""
        return next(trial.value for trial in reversed(self.tried) if trial.accepted)

    @property
    def evaluations(self) -> int:
        """How many there were; the best member's own stands among the trials, too."""
        own = {trial.member for trial in self.own}
        return len(own) + len(self.tried) - (1 if self.tried and self.tried[0].member in own else 0)


def ranked(values: Sequence[float], mode: str) -> tuple[int, ...]:
    """Return the numbers of the members from the best to the worst; of equal ones the later first."""
    sign = 1 if mode == "max" else -1
    return tuple(sorted(range(len(values)), key=lambda one: (sign * values[one], one), reverse=True))


def accepts(scoring: Scoring, before: float, after: float, min_gain: float) -> bool:
    """Tell whether a soup that was worth `before` takes a member with which it is worth `after`."""
    wanted = before + min_gain if scoring.mode == "max" else before - min_gain
    return not scoring.better(wanted, after)


def as_text(state: SoupState) -> str:
    """Return the state as JSON."""
    return json.dumps({"schema": SCHEMA, **asdict(state)}, indent=1)


def from_text(text: str | bytes) -> SoupState:
    """Return the state that JSON tells; ValueError if it is none."""
    data: Any = parse_json(text)
    try:
        if data["schema"] != SCHEMA or not isinstance(data["identity"], dict):
            raise ValueError("it is of another version")
        state = SoupState(
            identity=data["identity"],
            own=tuple(map(_trial, data["own"])),
            order=tuple(map(int, data["order"])),
            tried=tuple(map(_trial, data["tried"])),
            publishing=bool(data["publishing"]),
        )
        _check(state)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("it lacks something") from error
    return state


def _trial(data: Mapping[str, object]) -> Trial:
    found = Trial(**data)  # type: ignore[arg-type]
    if type(found.member) is not int or type(found.value) is not float or math.isnan(found.value):
        raise ValueError("it has something else where a number should stand")
    return found


def _check(state: SoupState) -> None:
    """Refuse what no run has written, so that nobody need ask again."""
    identity, tried = state.identity, tuple(trial.member for trial in state.tried)
    numbers = {*state.order, *(trial.member for trial in state.own)}
    members = identity["members"]
    if (
        identity.keys() != {"members", "request", "known"}
        or not isinstance(members, list)
        or not all(isinstance(one, list) and len(one) == 3 and isinstance(one[0], str) for one in members)
        or not isinstance(identity["request"], dict)
        or tried != state.order[: len(tried)]
        or not numbers <= set(range(len(members)))
        or len(set(state.order)) not in (0, len(members))
        or (state.tried and not state.tried[0].accepted)
        or (state.publishing and not state.tried)
    ):
        raise ValueError("its parts do not belong together")
