"""The averages that a greedy soup tries, each of the members so far and one more."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from swatool.averaging.plan import Plan
from swatool.checkpoints.opening import Checkpoint
from swatool.jobs.average_plan import Request, plan_averages
from swatool.jobs.average_report import AverageJob
from swatool.jobs.average_settings import AverageSettings
from swatool.jobs.running import uncollected
from swatool.jobs.soup_sums import Summed, lay_out_sum, open_sum, plan_candidate, plan_sum
from swatool.output.layout import Layout
from swatool.output.writing import writing

__all__ = ["Candidates", "candidate_suffix"]

SUM = re.compile(r"sum-(\d+)\.safetensors")


@dataclass(frozen=True)
class Candidates:
    """Where and how candidates are made.

    Attributes:
        checkpoints: all members, open, by number.
        folder: that they are written to.
        suffix: what their names end in, as the output's does.
        settings: of the average.
    """

    checkpoints: Sequence[Checkpoint]
    folder: str
    suffix: str
    settings: AverageSettings

    def write(self, accepted: Sequence[int], member: int, number: int) -> str:
        """Write the average of the accepted members and another one, and return its path.

        Args:
            accepted: numbers of the members, in the order in which they were accepted.
            member: number of the other one.
            number: of the candidate; each has a name of its own, lest an evaluation remember it.

        Raises:
            CheckpointError: an input failed or changed, or the result holds NaN or Inf.
            MismatchError: the members do not match each other.
            OutputError: it cannot be written.
        """
        path = os.path.join(self.folder, f"candidate-{number}{self.suffix}")
        with ExitStack() as stack, uncollected():
            summed = self._sum(accepted, stack)
            job = self._job((*accepted, member), path)
            self._carry_out(plan_candidate(job.plan, summed), job.layout, path)
        return path

    def _sum(self, accepted: Sequence[int], stack: ExitStack) -> Summed | None:
        """Return the sum of the accepted members, made of the last one if need be; of one there is none."""
        count = len(accepted)
        if count < 2:
            return None
        plan = self._job(accepted, os.path.join(self.folder, f"candidate-0{self.suffix}")).plan
        path = self._sum_path(count)
        if not os.path.exists(path):
            with ExitStack() as until_then:
                made = max((one for one in self._sums() if one < count), default=0)
                summed = self._open(made, plan, accepted, until_then) if made else None
                of_all = plan_sum(plan, summed)
                self._carry_out(of_all, lay_out_sum(of_all), path)
        for one in self._sums():
            if one != count:
                os.unlink(self._sum_path(one))
        return self._open(count, plan, accepted, stack)

    def _open(self, count: int, plan: Plan, accepted: Sequence[int], stack: ExitStack) -> Summed:
        members = {id(self.checkpoints[one]) for one in accepted[:count]}
        return open_sum(self._sum_path(count), plan, members, stack)

    def _sums(self) -> list[int]:
        """Return of how many members there are sums."""
        return [int(match[1]) for name in os.listdir(self.folder) if (match := SUM.fullmatch(name))]

    def _sum_path(self, count: int) -> str:
        return os.path.join(self.folder, f"sum-{count}.safetensors")

    def _job(self, members: Sequence[int], path: str) -> AverageJob:
        request = Request(path, self.settings, fewest=1)
        (jobs,) = plan_averages([self.checkpoints[one] for one in members], [request], ())
        return jobs[0]

    def _carry_out(self, plan: Plan, layout: Layout, path: str) -> None:
        with warnings.catch_warnings():
            # Without NumPy, torch says so when it is imported; swatool does not need it.
            warnings.filterwarnings("ignore", message="Failed to initialize NumPy")
            from swatool.averaging.stream import Target, choose_device, stream

        with writing(layout, path, overwrite=True) as pending:
            stream(
                plan,
                [Target(layout, pending.write)],
                device=choose_device(self.settings.device),
                threads=self.settings.workers(),
                allow_nonfinite=self.settings.allow_nonfinite,
            )
            for checkpoint in plan.checkpoints:
                checkpoint.files.check_unchanged()
            pending.publish()


def candidate_suffix(output: str, chosen: str) -> str:
    """Return what the candidates' names end in, so that they are taken for what the output is taken for."""
    return "" if chosen in ("hf", "dcp") else os.path.splitext(output)[1]
