"""What one goal of reliability was tried against, and what went wrong: a row of the table."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """A goal, how often it was tried, and a sentence for each time that it was missed."""

    goal: str
    tried: int
    wrong: tuple[str, ...] = ()
    measured: str = ""  # what a reader wants to know beside the count: the slowest, the largest
