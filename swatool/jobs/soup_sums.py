"""The running sum of a soup's members: the plan in which it stands for them, and its file.

A soup of n members and one more is (sum + x) / (n + 1), so that each step reads one checkpoint and the sum,
whatever n is. What is done with each tensor, and in which type it is written, is as in the average of those
members; only the rows of those that are in the sum are replaced by it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from contextlib import ExitStack, closing
from typing import NamedTuple

from swatool.averaging.plan import Action, Input, Plan, PlannedTensor, Treatment
from swatool.checkpoints.files import LocalFiles
from swatool.checkpoints.opening import Checkpoint, read_contents
from swatool.errors import CheckpointError, printable
from swatool.output.layout import Layout, OutputTensor
from swatool.output.safetensors_file import lay_out
from swatool.tensors import DTYPES, DType, StoredTensor

__all__ = ["Summed", "lay_out_sum", "open_sum", "plan_candidate", "plan_sum", "sum_nbytes"]


class Summed(NamedTuple):
    """A sum, and of what it is.

    Attributes:
        total: the sum, as a checkpoint that has the averaged tensors only.
        members: the checkpoints in it, by identity.
    """

    total: Checkpoint
    members: Collection[int]


def plan_candidate(plan: Plan, summed: Summed | None) -> Plan:
    """Return the plan of an average, in which a sum stands for some of its checkpoints."""
    if summed is None:
        return plan
    found: dict[Treatment, Treatment] = {}
    for tensor in plan.tensors:
        if tensor.treatment not in found:
            found[tensor.treatment] = (
                _with_sum(plan, tensor, summed) if tensor.treatment.averages else _copy(tensor.treatment)
            )
    return dataclasses.replace(
        plan,
        checkpoints=(*plan.checkpoints, summed.total),
        tensors=tuple(tensor._replace(treatment=found[tensor.treatment]) for tensor in plan.tensors),
    )


def plan_sum(plan: Plan, summed: Summed | None) -> Plan:
    """Return the plan of the sum of what a plan averages, of which some may be in a sum already."""
    plan = plan_candidate(plan, summed)
    found: dict[Treatment, Treatment] = {}
    for treatment in (tensor.treatment for tensor in plan.tensors):
        if treatment.averages and treatment not in found:
            inputs = tuple(one._replace(coefficients=(1.0,)) for one in treatment.inputs)
            found[treatment] = dataclasses.replace(treatment, inputs=inputs, dtype=_sum_dtype(treatment))
    tensors = [t._replace(treatment=found[t.treatment]) for t in plan.tensors if t.treatment in found]
    names = {tensor.name for tensor in tensors}
    ties = {name: first for name, first in plan.ties.items() if first in names}
    return dataclasses.replace(plan, tensors=tuple(tensors), ties=ties)


def lay_out_sum(plan: Plan) -> Layout:
    """Return the layout of the file of a sum; tied tensors have a place each, as they may part later."""
    tensors = [_stored_as(tensor.name, tensor) for tensor in plan.tensors]
    ties = [_stored_as(name, first) for name, first in _tied(plan)]
    return lay_out([*tensors, *ties], {})


def sum_nbytes(plan: Plan) -> int:
    """Return how many bytes the sum of what a plan averages takes."""
    tied = [tensor for _, tensor in _tied(plan)]
    return sum(
        tensor.numel * _sum_dtype(tensor.treatment).itemsize
        for tensor in (*plan.tensors, *tied)
        if tensor.treatment.averages
    )


def open_sum(path: str, plan: Plan, members: Collection[int], stack: ExitStack) -> Summed:
    """Open the file of a sum until the stack is left.

    Args:
        path: the file.
        plan: that of the average of its members, or of those and others.
        members: the checkpoints in it, by identity.
        stack: closes it.

    Raises:
        CheckpointError: it is not what was written.
    """
    files = stack.enter_context(closing(LocalFiles()))
    contents = read_contents(path, files)
    stored = contents.root if isinstance(contents.root, dict) else {}
    tensors: dict[str, StoredTensor] = {}
    for name, tensor in (*((one.name, one) for one in plan.tensors), *_tied(plan)):
        if not tensor.treatment.averages or all(
            id(plan.checkpoints[one.checkpoint]) not in members for one in tensor.treatment.inputs
        ):
            continue  # none of the members has it
        found = stored.get(name)
        wide = isinstance(found, StoredTensor) and found.dtype.name == "float64"
        dtype = _dtype(tensor.treatment.inputs[0].dtype.kind, wide)
        if not isinstance(found, StoredTensor) or found.nbytes != tensor.numel * dtype.itemsize:
            raise CheckpointError(
                f"{printable(path)} is damaged: it has no tensor {printable(name)} of its size; --restart "
                "begins the soup anew"
            )
        tensors[name] = StoredTensor(dtype, tensor.shape, found.extents)
    total = Checkpoint(path, files, contents.format, "", tensors, (), {}, (), {})
    return Summed(total, members)


def _with_sum(plan: Plan, tensor: PlannedTensor, summed: Summed) -> Treatment:
    """Replace the members of the sum by it, in what is done with tensors such as this one."""
    inputs = tensor.treatment.inputs
    others = tuple(one for one in inputs if id(plan.checkpoints[one.checkpoint]) not in summed.members)
    if len(others) == len(inputs):
        return tensor.treatment
    # In a plain mean the coefficients are all the same, over whichever checkpoints have the tensor.
    total = Input(len(plan.checkpoints), summed.total.tensors[tensor.name].dtype, inputs[0].coefficients)
    return dataclasses.replace(tensor.treatment, inputs=(total, *others))


def _copy(treatment: Treatment) -> Treatment:
    """Read only what is copied; the average in the end tells of differences."""
    if treatment.action is Action.MUST_EQUAL:
        return treatment
    chosen = treatment.inputs[0 if treatment.action is Action.COPY_FIRST else -1]
    return dataclasses.replace(treatment, inputs=(chosen,))


def _sum_dtype(treatment: Treatment) -> DType:
    return _dtype(treatment.inputs[0].dtype.kind, treatment.accumulator == "float64")


def _dtype(kind: str, wide: bool) -> DType:
    if kind == "complex":
        return DTYPES["complex128" if wide else "complex64"]
    return DTYPES["float64" if wide else "float32"]


def _stored_as(name: str, tensor: PlannedTensor) -> OutputTensor:
    """Describe a tensor of a sum as real numbers, because safetensors has no complex128."""
    dtype = tensor.treatment.dtype
    if dtype.kind != "complex":
        return OutputTensor(name, dtype, tensor.shape)
    return OutputTensor(name, DTYPES["float64" if dtype.itemsize == 16 else "float32"], (*tensor.shape, 2))


def _tied(plan: Plan) -> list[tuple[str, PlannedTensor]]:
    tensors = {tensor.name: tensor for tensor in plan.tensors}
    return [(name, tensors[first]) for name, first in plan.ties.items() if first in tensors]
