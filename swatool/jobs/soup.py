"""`soup`: the greedy soup, an average to which a checkpoint is added only if that makes it no worse.

Wortsman et al. 2022, Model soups, recipe 1: sort the members by their own metric; begin with the best; add
each next one if the metric of the average does not get worse.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack

from swatool.errors import CheckFailedError
from swatool.jobs.average import DEFAULT_OUTPUT, Paths, average_all
from swatool.jobs.average_output import choose_format
from swatool.jobs.average_plan import Request, plan_averages
from swatool.jobs.average_report import AverageJob, planned_report
from swatool.jobs.named_files import refuse_evaluation_as_output
from swatool.jobs.running import uncollected
from swatool.jobs.scoring import Scoring, check_comparable, score
from swatool.jobs.soup_candidates import Candidates, candidate_suffix
from swatool.jobs.soup_report import SoupMember, SoupReport, SoupStep
from swatool.jobs.soup_request import SoupRequest, found_before, is_published, make_request
from swatool.jobs.soup_settings import SoupSettings, average_settings
from swatool.jobs.soup_state import SoupState, Trial, accepts, ranked
from swatool.jobs.soup_sums import sum_nbytes
from swatool.jobs.soup_work import SoupWork, working
from swatool.output.unfinished import check_room
from swatool.report import Report, Seconds
from swatool.version import __version__

__all__ = ["SoupSettings", "soup"]


def soup(
    checkpoints: Paths,
    output: str | os.PathLike[str] = DEFAULT_OUTPUT,
    *,
    scoring: Scoring,
    settings: SoupSettings | None = None,
    restart: bool = False,
    on_plan: Callable[[SoupReport], None] | None = None,
    on_step: Callable[[SoupStep], None] | None = None,
    **options: object,
) -> SoupReport:
    """Make the greedy soup of some checkpoints: of those that, one after the other, make it no worse.

    >>> soup("runs/", "soup.safetensors", scoring=Scoring(evaluate="python eval.py {path}", mode="max"))

    What is found is kept beside the output until that is written; the same call goes on from there.

    Args:
        checkpoints: files, glob patterns and folders, in any order.
        output: what to write; it appears whole or not at all.
        scoring: how members and averages of them are evaluated.
        settings: what is chosen; or give its fields as keywords.
        restart: forget what an earlier call has found.
        on_plan: is given the plan, as the report of a dry run, before anything is evaluated.
        on_step: is told of each evaluation.
        options: fields of `SoupSettings`.

    Returns:
        What was done.

    Raises:
        UsageError: the request is refused, or is not the one that an earlier call was stopped in.
        CheckFailedError: an evaluation failed; what was found is kept, and told in the error's report, of
            which the average is still that of a dry run.
        and as `average`.
    """
    if settings is None:
        settings = SoupSettings(**options)  # type: ignore[arg-type]
    elif options:
        raise TypeError("give either settings or single options, not both")
    started = time.perf_counter()
    refuse_evaluation_as_output([os.fspath(output)], scoring.evaluate)
    with ExitStack() as stack:
        request = make_request(checkpoints, os.fspath(output), scoring, settings, stack)
        before = None if restart else found_before(request)
        planned = _planned(request, before, started)
        if on_plan is not None:
            on_plan(planned)
        if settings.dry_run:
            return planned
        work = stack.enter_context(
            working(request.folder, before or SoupState(request.identity), resumed=before is not None)
        )
        telling = _Telling(request, on_step)
        try:
            _evaluate_members(request, work, telling)
            _grow(request, work, telling)
        except CheckFailedError as error:
            found = _found(request, work, planned, started)
            error.report = dataclasses.replace(found, failures=(str(error),))
            raise
        average = _publish(request, work)
        return dataclasses.replace(_found(request, work, planned, started), average=average)


def _found(request: SoupRequest, work: SoupWork, planned: SoupReport, started: float) -> SoupReport:
    """Return what the evaluations have said so far; the average is still the one that was planned."""
    state = work.state
    return dataclasses.replace(
        planned,
        dry_run=False,
        members=_members(request, state),
        best=state.tried[0].value if state.tried else None,
        value=state.value if state.tried else None,
        evaluations=state.evaluations,
        resumed=work.resumed,
        seconds=time.perf_counter() - started,
    )


def _planned(request: SoupRequest, before: SoupState | None, started: float) -> SoupReport:
    """Check everything that can be, by planning the average of all members; return the report of that."""
    settings = average_settings(request.settings)
    overwrite = settings.overwrite or is_published(request, before)
    with uncollected():
        whole = Request(request.output, dataclasses.replace(settings, overwrite=overwrite))
        ((job,),) = plan_averages(request.checkpoints, [whole], request.warnings)
    work_bytes = _work_bytes(job)
    if before is None:
        check_room(request.folder, work_bytes)
    planned = time.perf_counter() - started
    return SoupReport(
        version=__version__,
        command="soup",
        dry_run=True,
        evaluate=request.scoring.evaluate,
        metric=request.scoring.metric,
        mode=request.scoring.mode,
        order_by=request.settings.order_by,
        members=_members(request, before or SoupState({})),
        best=None,
        value=None,
        evaluations=request.most,
        resumed=before is not None,
        work_bytes=work_bytes,
        average=planned_report(job, Seconds(plan=planned, total=planned)),
        seconds=planned,
    )


def _work_bytes(job: AverageJob) -> int:
    """Return the most that the work folder takes: two candidates are never there, two sums for a moment."""
    if len(job.dated) < 3:
        return job.layout.size
    nbytes = sum_nbytes(job.plan)
    return nbytes + max(nbytes, job.layout.size)


class _Telling:
    """Tells of evaluations, and counts them."""

    def __init__(self, request: SoupRequest, on_step: Callable[[SoupStep], None] | None) -> None:
        self._request, self._on_step = request, on_step

    def __call__(self, work: SoupWork, member: SoupMember) -> None:
        if self._on_step is not None:
            self._on_step(SoupStep(member, work.state.evaluations, self._request.most))


def _evaluate_members(request: SoupRequest, work: SoupWork, telling: _Telling) -> None:
    """Evaluate the members, or the first one if their order is known, and note the order."""
    state = work.state
    if request.known is not None and not state.order:
        work.note(dataclasses.replace(state, order=ranked(request.known, request.scoring.mode)))
    done = {trial.member for trial in work.state.own}
    for number in work.state.order[:1] or range(len(request.dated)):
        if number in done or work.state.tried:
            continue
        path = request.dated[number][0].path
        trial = Trial(number, *_score(request, work.state, path))
        work.note(dataclasses.replace(work.state, own=(*work.state.own, trial)))
        telling(work, SoupMember(path, trial.value, trial.value, trial.metrics))
    if not work.state.tried:
        own = {trial.member: trial for trial in work.state.own}
        order = work.state.order or ranked([own[one].value for one in sorted(own)], request.scoring.mode)
        work.note(dataclasses.replace(work.state, order=order, tried=(own[order[0]],)))


def _score(request: SoupRequest, state: SoupState, path: str) -> tuple[float, Mapping[str, float]]:
    """Evaluate a file; CheckFailedError if that fails, or gives another number than the first one did."""
    value, metrics = score(path, request.scoring)
    for first in (*state.own, *state.tried)[:1]:
        before = request.dated[first.member][0].path
        check_comparable(request.scoring, (before, first.metrics), (path, metrics))
    return value, metrics


def _grow(request: SoupRequest, work: SoupWork, telling: _Telling) -> None:
    """Try the members one after the other."""
    settings = request.settings
    chosen = choose_format(request.output, settings)
    making = Candidates(
        request.checkpoints,
        request.folder,
        candidate_suffix(request.output, chosen),
        dataclasses.replace(average_settings(settings), format=chosen, overwrite=True),
    )
    for number in work.state.order[len(work.state.tried) :]:
        accepted = work.state.accepted
        if len(accepted) == settings.max_members:
            break
        path = making.write(accepted, number, len(work.state.tried))
        value, metrics = _score(request, work.state, path)
        taken = accepts(request.scoring, work.state.value, value, settings.min_gain)
        trial = Trial(number, value, metrics, taken)
        work.note(dataclasses.replace(work.state, tried=(*work.state.tried, trial)))
        work.clear(sums=False)
        telling(work, _member(request, work.state, number))


def _publish(request: SoupRequest, work: SoupWork) -> Report:
    """Write the average of the accepted members, and remove the work folder, whatever comes after that."""
    settings = average_settings(request.settings)
    if is_published(request, work.state):
        settings = dataclasses.replace(settings, overwrite=True)
    work.clear(sums=True)  # whose room the output may need
    work.note(dataclasses.replace(work.state, publishing=True))
    chosen = [request.dated[one][0] for one in work.state.accepted]
    for checkpoint in chosen:
        checkpoint.files.check_unchanged()
    before = _identity(request.output)
    try:
        (report,) = average_all([one.path for one in chosen], [Request(request.output, settings, fewest=1)])
        work.remove()
    except BaseException:  # a signal, or no memory
        if _identity(request.output) != before:
            work.remove()
        raise
    return dataclasses.replace(report, warnings=(*request.warnings, *report.warnings))


def _identity(path: str) -> tuple[int, int] | None:
    """Return what tells whether another file or folder has the name."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _members(request: SoupRequest, state: SoupState) -> tuple[SoupMember, ...]:
    order: Sequence[int] = state.order or range(len(request.dated))
    if not state.order and request.known is not None:
        order = ranked(request.known, request.scoring.mode)
    return tuple(_member(request, state, number) for number in order)


def _member(request: SoupRequest, state: SoupState, number: int) -> SoupMember:
    own: Mapping[int, float] = {trial.member: trial.value for trial in state.own}
    if request.known is not None:
        own = dict(enumerate(request.known))
    path = request.dated[number][0].path
    trial = next((one for one in state.tried if one.member == number), None)
    if trial is None:
        return SoupMember(path, own.get(number))
    return SoupMember(path, own.get(number), trial.value, trial.metrics, trial.accepted)
