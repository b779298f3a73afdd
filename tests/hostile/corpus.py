"""All hostile inputs."""

import dataclasses
import itertools

from hostile import corpus_beside, corpus_data, corpus_files, corpus_folders, corpus_tables, corpus_torch
from hostile.attacks import attacks_everywhere

SAMPLE = 3  # of each threat, as many are read by all commands also when time is short


def sampled(cases):
    """Mark the first few of each threat, and what changes while it is read."""
    counts = {}
    for case in cases:
        number = counts.setdefault(case.row, itertools.count())
        yield dataclasses.replace(case, sample=next(number) < SAMPLE or bool(case.during))


CASES = {
    case.name: case
    for wing in (
        corpus_torch.cases(),
        corpus_folders.cases(),
        corpus_files.cases(),
        corpus_data.cases(),
        corpus_tables.cases(),
        corpus_beside.cases(),
        attacks_everywhere(),
    )
    for case in sampled(wing)
}
