"""Several processes that each take a part of the batches, and agree on statistics and on failures.

Nothing is pickled, and everything that is exchanged has a fixed size, so a process can tell the others of its
failure where they expect its results.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice

import torch
import torch.distributed as dist
from torch import Tensor

from swatool.batchnorm.batches import Batch, joined, pair, size_of
from swatool.errors import DataError, MismatchError, OutputError, SwatoolError, UsageError

__all__ = ["SINGLE", "ElsewhereError", "Ranks", "ranks_from_environment"]

TIMEOUT = timedelta(minutes=30)  # a pass of the slowest process may take longer than the fastest one's
HEADER = 3  # a kind of error, and two numbers
MESSAGE_BYTES = 1024
KINDS = {kind.exit_code: kind for kind in (UsageError, DataError, MismatchError, OutputError)}


class ElsewhereError(Exception):
    """The cause of an error that came from another process."""


@dataclass(frozen=True)
class Ranks:
    """This process among those that work together.

    Attributes:
        rank: its number, from 0.
        size: how many there are.
        device: where what is exchanged must lie: for NCCL the process's own GPU, for gloo None, the CPU.
    """

    rank: int
    size: int
    device: torch.device | None = None

    def gather(self, values: Tensor) -> list[Tensor]:
        """Return the float64 values of all processes in the order of their ranks; one shape for all."""
        if self.size == 1:
            return [values]
        own = values.to(self.device, torch.float64).contiguous()
        every = [torch.empty_like(own) for _ in range(self.size)]
        try:
            dist.all_gather(every, own)
        except RuntimeError as error:
            raise OutputError(
                f"process {self.rank} of {self.size} lost the others: one of them ended, or is out of reach"
            ) from ElsewhereError(str(error))
        return [one.cpu() for one in every]

    def agree(self, numbers: tuple[int, int] = (0, 0), error: Exception | None = None) -> list[list[int]]:
        """Wait for all processes and return everyone's two numbers, unless one has failed.

        Args:
            numbers: of this process.
            error: its failure, if it has failed; raised again here, and told to the others.

        Raises:
            SwatoolError: another process failed; of the same kind as its error, caused by an ElsewhereError.
        """
        if error is not None and (self.size == 1 or isinstance(error.__cause__, ElsewhereError)):
            raise error  # nobody waits for it
        if self.size == 1:
            return [list(numbers)]
        message = str(error).encode(errors="replace")[:MESSAGE_BYTES] if error is not None else b""
        code = error.exit_code if isinstance(error, SwatoolError) else 5
        written = [0 if error is None else code, *numbers, *message]
        letter = torch.zeros(HEADER + MESSAGE_BYTES, dtype=torch.float64)
        letter[: len(written)] = torch.tensor(written, dtype=torch.float64)
        letters = [[int(number) for number in one.tolist()] for one in self.gather(letter)]
        if error is not None:
            raise error
        for rank, one in enumerate(letters):
            if one[0]:
                text = bytes(one[HEADER:]).rstrip(b"\0").decode(errors="replace")
                failure = KINDS.get(one[0], OutputError)(f"process {rank} of {self.size}: {text}")
                raise failure from ElsewhereError(text)
        return [one[1:HEADER] for one in letters]

    def share(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Give this process's part of the joined batches: number rank, rank + size, ...

        Where the batches offer a method `share(rank, size)`, the others are not read.
        """
        if self.size == 1:
            return joined(batches)
        if hasattr(batches, "share"):
            return self._share(batches)
        return islice(joined(batches), self.rank, None, self.size)

    def _share(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Do so by `share`, which knows nothing of joining: all see together how the sequence ends."""
        held: Batch | None = None
        count = 0
        for batch in batches.share(self.rank, self.size):  # type: ignore[attr-defined]
            if held is not None:
                yield held
            held = batch
            count += 1
        ends = self.agree((count, size_of(held) if held is not None else 0))
        total = sum(end[0] for end in ends)
        last, before = (total - 1) % self.size, (total - 2) % self.size
        lone = total > 1 and ends[last][1] == 1
        if lone and self.rank == last:
            return
        if held is not None and lone and self.rank == before:
            *_, single = batches.share(last, self.size)  # type: ignore[attr-defined]
            yield from pair(held, single)
        elif held is not None:
            yield held


SINGLE = Ranks(0, 1)


@contextlib.contextmanager
def ranks_from_environment(device: torch.device | str | None = None) -> Iterator[Ranks]:
    """Join the processes that torchrun started, for the duration of the context; SINGLE without torchrun.

    Args:
        device: where the model runs; CUDA devices exchange by NCCL, all others by gloo.

    Raises:
        UsageError: the environment is incomplete or the other processes cannot be reached.
    """
    try:
        size = int(os.environ.get("WORLD_SIZE") or 1)
    except ValueError as error:
        raise UsageError("WORLD_SIZE in the environment is no number: start processes by torchrun") from error
    if size <= 1:
        yield SINGLE
        return
    where = torch.device(device or "cpu")
    cuda = where.type == "cuda"
    if cuda and where.index is None:
        where = torch.device("cuda", int(os.environ.get("LOCAL_RANK") or 0))
    try:
        dist.init_process_group("nccl" if cuda else "gloo", timeout=TIMEOUT)
    except (ValueError, RuntimeError) as error:
        first = str(error).partition("\n")[0]
        raise UsageError(f"cannot join the other processes: {first}; start them by torchrun") from error
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size(), where if cuda else None)
    finally:
        dist.destroy_process_group()
