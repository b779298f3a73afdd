"""Making the average again that an output claims to be, and comparing it with the output byte by byte.

Everything that the output says is a stranger's word: a source is only what the user has named.
"""

from __future__ import annotations

import dataclasses
import math
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass

from swatool.averaging.coefficients import needs_float64
from swatool.averaging.plan import Plan, make_plan
from swatool.averaging.posthoc_scheme import PosthocEma
from swatool.checkpoints.files import last_name
from swatool.checkpoints.opening import Checkpoint, open_checkpoint
from swatool.checkpoints.selection import expand
from swatool.checkpoints.state_dicts import without_prefixes
from swatool.errors import CheckpointError, MismatchError, UsageError, printable
from swatool.jobs.hashing import hash_checkpoints
from swatool.jobs.provenance import ClaimedSource, Provenance
from swatool.jobs.published_bytes import PublishedBytes
from swatool.jobs.recalibrate_output import STATISTICS
from swatool.jobs.verify_report import ComparedSources
from swatool.tensors import StoredTensor

__all__ = ["Candidates", "compare_with_sources", "open_candidates"]

SHOWN = 5
LONGEST = 1000  # characters of a sentence about what does not hold
AGREE = 1e-9  # of coefficients that two machines compute, relative
# Of a claimed posthoc-ema: its equations take a second and a half to solve, and four times that if no two
# snapshots have one width.
MOST_SNAPSHOTS = 256
MOST_WIDTHS = 16
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Candidates:
    """Checkpoints that the user gave and that are named like sources.

    Attributes:
        opened: by their names, in the order in which they were given.
        unused: how many others were given.
        hashed: whether a checksum is recorded of any source.
    """

    opened: Mapping[str, Sequence[Checkpoint]]
    unused: int
    hashed: bool

    @property
    def every(self) -> list[Checkpoint]:
        """All of them."""
        return [one for some in self.opened.values() for one in some]

    @property
    def nbytes(self) -> int:
        """About how many bytes are read of them."""
        return sum(one.files.size for one in self.every) * (2 if self.hashed else 1)


def open_candidates(
    claim: Provenance, sources: Iterable[str | os.PathLike[str]], stack: ExitStack
) -> Candidates:
    """Open those of the given checkpoints that are named like a claimed source, until the stack is left.

    Raises:
        CheckpointError: one of them is bad, or a pattern matches nothing.
    """
    names = {one.name for one in claim.sources}
    opened: dict[str, list[Checkpoint]] = {}
    unused = 0
    for path in expand(sources):
        name = last_name(path)
        if name not in names:
            unused += 1
            continue
        try:
            checkpoint = stack.enter_context(closing(open_checkpoint(path, claim.reading)))
        except MismatchError as error:
            raise CheckpointError(
                f"a source cannot be read as the output says: {_one_line(error)}"
            ) from error
        opened.setdefault(name, []).append(checkpoint)
    return Candidates(opened, unused, any(one.sha256 for one in claim.sources))


def compare_with_sources(
    output: Checkpoint,
    claim: Provenance,
    candidates: Candidates,
    *,
    threads: int,
    progress: Progress | None = None,
) -> tuple[ComparedSources, list[str]]:
    """Return how an output compares with the average that it claims, and a sentence for what does not hold.

    Raises:
        CheckpointError: a source cannot be read, or does not match checksums that it holds.
    """
    digests: dict[int, str] = {}
    every = candidates.every
    if candidates.hashed:
        found = hash_checkpoints(every, threads, progress)
        digests = {id(one): digest for one, digest in zip(every, found, strict=True)}
    matched, failures = _match_all(claim.sources, candidates.opened, digests)
    report = ComparedSources(
        method=claim.method,
        parameters=claim.parameters,
        settings=claim.settings,
        recorded=len(claim.sources),
        found=len(matched),
        unused=candidates.unused,
        hashed=sum(one.sha256 is not None for one in claim.sources),
    )
    failures += [] if failures else _wrong_coefficients(claim)
    if failures:
        return report, _few(failures)
    try:
        report, failures = _repeat(output, claim, matched, report, threads, progress)
    except (MismatchError, UsageError) as error:
        failures = [f"the average that it claims to be cannot be made: {_one_line(error)}"]
    return report, _few(failures)


def _one_line(error: MismatchError | UsageError) -> str:
    lines = str(error).splitlines()
    return " ".join(line.strip() for line in [*lines[: SHOWN + 1], *lines[SHOWN + 1 :][-1:]])


def _match_all(
    claimed: Sequence[ClaimedSource],
    opened: Mapping[str, Sequence[Checkpoint]],
    digests: Mapping[int, str],
) -> tuple[list[Checkpoint], list[str]]:
    """Return the checkpoint for each source that is there, and a sentence for each that is not.

    Of several of one name, where nothing else tells, each is taken once, in the order they were given in.
    """
    matched: list[Checkpoint] = []
    failures: list[str] = []
    used: set[int] = set()
    for source in claimed:
        named = opened.get(source.name, ())
        sized = [one for one in named if one.files.size == source.size]
        fitting = [one for one in sized if source.sha256 in (None, digests.get(id(one)))]
        left = [one for one in fitting if id(one) not in used]
        if left:
            used.add(id(left[0]))
            matched.append(left[0])
        elif fitting:
            failures.append(
                f"{printable(source.name)} is claimed more often than it was given: name it as often if it "
                "was averaged as often"
            )
        elif not named:
            failures.append(f"the source {printable(source.name)} is not among those that were given")
        elif not sized:
            sizes = f"{named[0].files.size:,} bytes, and the source had {source.size:,}"
            failures.append(f"{printable(named[0].path)} has {sizes}")
        else:
            failures.append(f"{printable(sized[0].path)} is not the source: its SHA-256 is another one")
    return matched, failures


def _wrong_coefficients(claim: Provenance) -> list[str]:
    """Return a sentence if the coefficients are not those of the method that is claimed."""
    if _takes_long(claim):
        return [
            f"the coefficients of {printable(claim.method)[1:-1]} are computed again of at most "
            f"{MOST_SNAPSHOTS} snapshots and {MOST_WIDTHS} widths"
        ]
    try:
        expected = claim.scheme().coefficients([one.step for one in claim.sources])
    except (UsageError, ArithmeticError) as error:
        return [f"its coefficients are not those of the method that it names: {error}"]
    return [
        f"the coefficient of {printable(one.name)} is {one.coefficient:g}, and the method gives {factor:g}"
        for one, factor in zip(claim.sources, expected, strict=True)
        if not math.isclose(one.coefficient, factor, rel_tol=AGREE, abs_tol=AGREE)
    ]


def _takes_long(claim: Provenance) -> bool:
    """Whether a stranger could keep the machine busy with the equations that the coefficients solve."""
    widths = claim.parameters.get("sigma_rels")
    if claim.method != PosthocEma.name or not isinstance(widths, list):
        return False
    return max(len(claim.sources), len(widths)) > MOST_SNAPSHOTS or len(set(map(repr, widths))) > MOST_WIDTHS


def _repeat(
    output: Checkpoint,
    claim: Provenance,
    matched: Sequence[Checkpoint],
    report: ComparedSources,
    threads: int,
    progress: Progress | None,
) -> tuple[ComparedSources, list[str]]:
    coefficients = [one.coefficient for one in claim.sources]
    policies = claim.policies
    if policies.accumulate == "auto" and needs_float64(coefficients):
        policies = dataclasses.replace(policies, accumulate="float64")
    plan = make_plan(matched, [coefficients], policies)
    published, failures = _as_planned(output, claim, plan)
    recalibrated = _recalibrated(claim, plan) & published.keys()
    target = PublishedBytes(published, recalibrated)
    failures += [f"{printable(name)} is not stored as swatool writes it" for name in target.strange]
    if failures:
        return report, failures
    before = sum(one.files.size for one in matched) if report.hashed else 0
    _stream(plan, target, threads, None if progress is None else lambda done: progress(before + done))
    for one in matched:
        one.files.check_unchanged()
    differing = tuple(sorted(target.differing))
    report = dataclasses.replace(
        report,
        compared=len(published) - len(recalibrated),
        copied=len((published.keys() - recalibrated) & _copied(plan)),
        recalibrated=len(recalibrated),
        not_compared=tuple(sorted(recalibrated)),
        differing=differing,
    )
    if differing:
        names = ", ".join(map(printable, differing[:SHOWN])) + (", ..." if len(differing) > SHOWN else "")
        return report, [
            f"it is not the average of its sources: {len(differing):,} of {report.compared:,} tensors have "
            f"other values, {names}{_hint(claim)}"
        ]
    return report, []


def _hint(claim: Provenance) -> str:
    names = [one.name for one in claim.sources if one.sha256 is None]
    if len(set(names)) == len(names):
        return ""
    return (
        "; several sources have one name and no checksum: give them in the order in which they were "
        "averaged, oldest first"
    )


def _as_planned(
    output: Checkpoint, claim: Provenance, plan: Plan
) -> tuple[dict[str, StoredTensor], list[str]]:
    """Return the output's tensors by the names that they have in the plan, and what is not as planned."""
    tensors = {tensor.name: tensor for tensor in plan.tensors}
    expected = {**tensors, **{name: tensors[first] for name, first in plan.ties.items()}}
    published = dict(output.tensors)
    if published.keys() - expected.keys():
        # `--like` puts the prefix of another checkpoint in front of all names.
        names = without_prefixes(
            list(published),
            output.path,
            automatic=not claim.reading.keep_prefix,
            given=claim.reading.strip_prefix,
        )
        published = {names[name]: tensor for name, tensor in published.items()}
    optional = plan.ties.keys() if claim.policies.tied == "drop" else set()
    failures = [
        f"it lacks {printable(name)}" for name in expected if name not in published and name not in optional
    ]
    for name, stored in published.items():
        wanted = expected.get(name)
        if wanted is None:
            failures.append(f"it has {printable(name)}, which the average has not")
        elif (stored.dtype, stored.shape) != (wanted.treatment.dtype, wanted.shape):
            failures.append(
                f"its {printable(name)} is {stored.dtype.name} {list(stored.shape)}, and that of the average "
                f"is {wanted.treatment.dtype.name} {list(wanted.shape)}"
            )
    return published, failures


def _recalibrated(claim: Provenance, plan: Plan) -> set[str]:
    """Return the names of what a recalibration has replaced, ties included: statistics of BatchNorm."""
    shapes = {tensor.name: tensor.shape for tensor in plan.tensors}
    shapes |= {name: shapes[first] for name, first in plan.ties.items()}
    names: set[str] = set()
    for layer in claim.recalibrated or ():
        mean, variance, count = (f"{layer}.{statistic}".lstrip(".") for statistic in STATISTICS)
        if len(shapes.get(mean, ())) == 1 and shapes[mean] == shapes.get(variance) and not shapes.get(count):
            names |= {mean, variance, count}
    groups: dict[str, set[str]] = {}
    for name, first in plan.ties.items():
        groups.setdefault(first, {first}).add(name)
    tied = set().union(*(group for group in groups.values() if group & names))
    return names | {name for name in tied if name.rpartition(".")[2] in STATISTICS}


def _copied(plan: Plan) -> set[str]:
    """Return the names of tensors that are not averaged, ties included."""
    own = {tensor.name for tensor in plan.tensors if not tensor.treatment.averages}
    return own | {name for name, first in plan.ties.items() if first in own}


def _few(failures: list[str]) -> list[str]:
    """Return the first of them, each cut: a stranger may have chosen its words."""
    more = len(failures) - SHOWN
    shown = [_cut(one) for one in failures[:SHOWN]]
    return shown if more <= 0 else [*shown, f"and {more:,} more"]


def _cut(sentence: str) -> str:
    half = LONGEST // 2
    return sentence if len(sentence) <= LONGEST else f"{sentence[:half]}...{sentence[-half:]}"


def _stream(plan: Plan, target: PublishedBytes, threads: int, progress: Progress | None) -> None:
    with warnings.catch_warnings():
        # Without NumPy, torch says so when it is imported; swatool does not need it.
        warnings.filterwarnings("ignore", message="Failed to initialize NumPy")
        from swatool.averaging.stream import Target, choose_device, stream

    stream(
        plan,
        [Target(target.layout, target.write)],
        device=choose_device("cpu"),
        threads=threads,
        allow_nonfinite=True,  # that is looked at apart
        progress=progress,
    )
