"""What a greedy soup is asked for, and of which members: the same as an earlier run that it goes on with."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass

from swatool.checkpoints.files import last_name
from swatool.checkpoints.opening import Checkpoint, open_checkpoint
from swatool.checkpoints.selection import DatedCheckpoint, expand, passed_over, select
from swatool.errors import CheckpointError, UsageError, printable
from swatool.jobs.average import Paths
from swatool.jobs.metrics import check_best, metric_values
from swatool.jobs.running import METADATA_KEY, uncollected
from swatool.jobs.scoring import Scoring
from swatool.jobs.soup_settings import SoupSettings, bearing
from swatool.jobs.soup_state import SoupState
from swatool.jobs.soup_work import read_state, work_folder
from swatool.json_text import JsonError, parse_json

__all__ = ["SoupRequest", "found_before", "is_published", "make_request"]


@dataclass(frozen=True)
class SoupRequest:
    """What is asked for, and of which members, which are open.

    Attributes:
        dated: the members, oldest first; their places are their numbers.
        known: the numbers that put them in order; None if their own evaluations do.
        output: what is written.
        scoring, settings: as they were given.
        warnings: what deserves attention about the inputs.
    """

    dated: tuple[DatedCheckpoint, ...]
    known: tuple[float, ...] | None
    output: str
    scoring: Scoring
    settings: SoupSettings
    warnings: tuple[str, ...]

    @property
    def checkpoints(self) -> list[Checkpoint]:
        """The members."""
        return [one.checkpoint for one in self.dated]

    @property
    def folder(self) -> str:
        """The work folder."""
        return work_folder(self.output)

    @property
    def identity(self) -> dict[str, object]:
        """Everything on which what is found depends, as JSON has it."""
        members = [
            (os.path.abspath(one.path), one.files.size, one.files.mtime_ns) for one in self.checkpoints
        ]
        asked = {**dataclasses.asdict(self.scoring), **bearing(self.settings)}
        found = {"members": members, "request": asked, "known": self.known}
        plain: dict[str, object] = json.loads(json.dumps(found))
        return plain

    @property
    def most(self) -> int:
        """How many evaluations there can be."""
        count = len(self.dated)
        return count if self.known is not None else 2 * count - 1


def make_request(
    checkpoints: Paths, output: str, scoring: Scoring, settings: SoupSettings, stack: ExitStack
) -> SoupRequest:
    """Open the members until the stack is left, and put them in the order of their age."""
    given = [checkpoints] if isinstance(checkpoints, str | os.PathLike) else list(checkpoints)
    # A shell's pattern may have found what an earlier run left.
    work = os.path.abspath(work_folder(output))
    given = [one for one in given if os.path.abspath(one) != work]
    with uncollected():
        opened = [stack.enter_context(closing(open_checkpoint(path, settings))) for path in expand(given)]
        dated = select(opened, settings)
    if len(dated) < 2:
        raise UsageError(
            f"a soup needs at least two checkpoints, and {len(dated)} is left of {len(opened)} given"
        )
    known = None
    if settings.order_by is not None:
        known = metric_values(dated, settings.order_by, settings.metrics)
        check_best(dated, known, scoring.mode, settings.metrics)
    return SoupRequest(dated, known, output, scoring, settings, tuple(passed_over(given)))


@dataclass(frozen=True)
class _Identity:
    members: Sequence[tuple[str, int, int]]
    request: Mapping[str, object]
    known: Sequence[float] | None


def found_before(request: SoupRequest) -> SoupState | None:
    """Return what an earlier run of the same request has found.

    Raises:
        UsageError: it was another request, or a member has changed since.
    """
    state = read_state(request.folder)
    if state is None or state.identity == request.identity:
        return state
    if state.publishing and _is_average_of(request.output, _accepted(state)):
        return None  # that one was killed at its very end, and nobody will go on with it
    raise UsageError(
        f"{printable(request.folder)} holds a soup that was begun, and {_difference(state, request)}: give "
        "what it was begun with to go on, or --restart to begin anew"
    )


def _difference(state: SoupState, request: SoupRequest) -> str:
    """Say what is another than it was when the soup was begun."""
    before, now = (_Identity(**one) for one in (state.identity, request.identity))  # type: ignore[arg-type]
    if [path for path, *_ in before.members] != [path for path, *_ in now.members]:
        return "its members were others"
    for was, member in zip(before.members, now.members, strict=True):
        if was != member:
            return f"{printable(member[0])} has changed since"
    for name in sorted(before.request.keys() | now.request.keys()):
        then, given = before.request.get(name), now.request.get(name)
        if then != given:
            option = {"evaluate": "eval"}.get(name, name).replace("_", "-")
            return f"--{option} was {printable(then)} and is {printable(given)}"
    return f"the numbers of {printable(request.settings.order_by)} have changed since"


def is_published(request: SoupRequest, before: SoupState | None) -> bool:
    """Tell whether what stands under the output's name is what an earlier run published, and was killed."""
    if before is None or not before.publishing:
        return False
    return _is_average_of(request.output, _accepted(before))


def _accepted(state: SoupState) -> list[str]:
    """Return the names of the members that a soup has accepted."""
    members = _Identity(**state.identity).members  # type: ignore[arg-type]
    return [last_name(members[one][0]) for one in state.accepted]


def _is_average_of(output: str, names: Sequence[str]) -> bool:
    """Tell whether what stands under a name says that it is the average of members of these names."""
    if not os.path.exists(output):
        return False
    try:
        with closing(open_checkpoint(output)) as there:
            said = parse_json(there.metadata.get(METADATA_KEY, "{}"))
        found = [source["name"] for source in said["sources"]]  # type: ignore[index]
        return sorted(found) == sorted(names)
    except (CheckpointError, JsonError, KeyError, TypeError):
        return False
