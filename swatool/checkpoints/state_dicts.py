"""Finding the state dict inside a checkpoint: wrappers around it, prefixes in front of its names.

Training scripts wrap the weights in many ways (`state_dict`, `model`, `module`, an EMA copy beside them). The
rules here decide by structure first and by name only where structure does not settle it.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from swatool.checkpoints.contents import Contents, Opaque, TensorDescriptor, UnsupportedTensor
from swatool.checkpoints.library_layouts import check_gathered, take_count, updates
from swatool.errors import CheckpointError, MismatchError, printable
from swatool.tensors import StoredTensor

__all__ = [
    "AUTOMATIC_PREFIXES",
    "Candidate",
    "StateDict",
    "find_state_dict",
    "list_state_dicts",
    "names_an_average",
    "without_prefixes",
]

MAX_DEPTH = 8
MAX_DICTS = 100_000
AUTOMATIC_PREFIXES = ("module.", "_orig_mod.")
# What lies beside the weights and is never them, by the beginning of its key.
BESIDE_THE_WEIGHTS = ("optim", "lr_sched", "sched", "scaler", "rng", "callbacks", "loops", "hyper_param")
# As words of their own: "semantic" and "swav" are no averages.
NAMED_LIKE_AVERAGES = re.compile(r"(?<![a-z])(ema|swa|shadow|averaged)(?![a-z])", re.IGNORECASE)
SHOWN_CANDIDATES = 20

Leaf = TensorDescriptor | StoredTensor
LEAVES = (TensorDescriptor, StoredTensor)


@dataclass(frozen=True, slots=True)
class StateDict:
    """The part of a checkpoint that is averaged.

    Attributes:
        key: where it was found, as `--key` takes it; empty for the whole file.
        leaves: tensor leaves by name, in the file's order.
        skipped: names of entries that are no tensors, or have no text for a name.
        fields: numbers that stand beside it and in it (step, epoch, metrics).
        scalars: tensors of no dimension that stand beside it, which may be such numbers, too.
        opaque: names of what stands beside it and is of an unknown class, such as NumPy's numbers.
        others: keys of other models that lie beside it.
        around: names of tensors in the dicts around it that might be averaged, too.
    """

    key: str
    leaves: Mapping[str, Leaf]
    skipped: tuple[str, ...]
    fields: Mapping[str, int | float]
    scalars: Mapping[str, Leaf]
    opaque: tuple[str, ...]
    others: tuple[str, ...]
    around: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A dict that holds tensors, and the dicts on the way to it.

    Attributes:
        path: the keys that lead to it.
        ancestors: the dicts on the way, from the root.
        node: the dict itself.
        tensors: how many tensors it holds itself.
        nbytes: their bytes.
        averageable: the bytes of those that can be averaged; a random state cannot.
    """

    path: tuple[str, ...]
    ancestors: tuple[Mapping[object, object], ...]
    node: Mapping[object, object]
    tensors: int
    nbytes: int
    averageable: int

    @property
    def key(self) -> str:
        """What `--key` calls it."""
        return ".".join(self.path)


def find_state_dict(contents: Contents, path: str, key: str | None = None) -> StateDict:
    """Return the state dict under `key`, or the only one that there is.

    Raises:
        CheckpointError: there is none, none under that key, or several that nothing tells apart.
    """
    candidates = list(_candidates(contents.root))
    chosen = _only_one(candidates, contents, path) if key is None else _under_key(candidates, key, path)
    unsupported = [
        f"{printable(name)} is {value.kind}"
        for name, value in chosen.node.items()
        if isinstance(value, UnsupportedTensor)
    ]
    if unsupported:
        raise CheckpointError(
            f"{printable(path)} holds tensors of a kind that cannot be averaged from their bytes: "
            f"{', '.join(unsupported[:5])}; save them as plain dense tensors"
        )
    leaves = {
        name: value
        for name, value in chosen.node.items()
        if isinstance(name, str) and isinstance(value, Leaf)
    }
    if not leaves:
        raise CheckpointError(
            f"{printable(path)} holds tensors that have no names, but numbers or places in a list: save them "
            "in a dict by their names"
        )
    check_gathered(chosen.ancestors[0] if chosen.ancestors else {}, leaves, path)
    skipped = tuple(str(name) for name in chosen.node if name not in leaves)
    count = take_count(leaves)
    beside = [(n, v) for node in chosen.ancestors for n, v in node.items() if isinstance(n, str)]
    return StateDict(
        key=chosen.key,
        leaves=leaves,
        skipped=skipped,
        fields=updates(chosen.ancestors) | _fields([*chosen.ancestors, chosen.node]),
        scalars={name: value for name, value in beside if isinstance(value, Leaf) and not value.shape}
        | count,
        opaque=tuple(name for name, value in beside if isinstance(value, Opaque)),
        others=tuple(one.key for one in candidates if _is_another_model(one, chosen)),
        around=tuple(
            name
            for name, value in beside
            if isinstance(value, Leaf) and value.shape and value.dtype.averageable
        ),
    )


def _is_another_model(one: Candidate, chosen: Candidate) -> bool:
    """Whether a dict of tensors is neither the chosen one, around it nor in it, nor told to be no model."""
    apart = one.path[: len(chosen.path)] != chosen.path and chosen.path[: len(one.path)] != one.path
    return apart and one.node is not chosen.node and one.averageable > 0 and not _lies_beside(one)


def list_state_dicts(contents: Contents) -> tuple[tuple[Candidate, ...], tuple[Candidate, ...]]:
    """Return everything that `key` could choose, and what remains of it if nothing is said.

    Where one remains, `find_state_dict` takes it; where none or several do, it needs a key.
    """
    candidates = tuple(_candidates(contents.root))
    return candidates, tuple(_remaining(candidates))


def _candidates(root: object) -> Iterator[Candidate]:
    """Yield every dict, reached through string keys, that holds tensors; parents before children.

    A dict that stands under several keys is yielded for each, and looked into once.
    """
    seen: dict[int, Candidate | None] = {}
    pending: list[tuple[tuple[str, ...], tuple[Mapping[object, object], ...], object]] = [((), (), root)]
    while pending and len(seen) < MAX_DICTS:
        path, ancestors, node = pending.pop()
        if not isinstance(node, dict):
            continue
        if id(node) in seen:
            known = seen[id(node)]
            if known is not None:
                yield replace(known, path=path, ancestors=ancestors)
            continue
        seen[id(node)] = None
        tensors = [value for value in node.values() if isinstance(value, LEAVES)]
        if tensors or any(isinstance(value, UnsupportedTensor) for value in node.values()):
            found = _candidate(path, ancestors, node, tensors)
            seen[id(node)] = found
            yield found
        if len(path) < MAX_DEPTH:
            children = [(name, value) for name, value in node.items() if isinstance(name, str)]
            pending += [((*path, name), (*ancestors, node), value) for name, value in reversed(children)]


def _candidate(
    path: tuple[str, ...],
    ancestors: tuple[Mapping[object, object], ...],
    node: Mapping[object, object],
    tensors: Sequence[Leaf],
) -> Candidate:
    nbytes = averageable = 0
    for tensor in tensors:
        some = math.prod(tensor.shape) * tensor.dtype.itemsize
        nbytes += some
        averageable += some if tensor.dtype.averageable else 0
    return Candidate(path, ancestors, node, len(tensors), nbytes, averageable)


def _under_key(candidates: Sequence[Candidate], key: str, path: str) -> Candidate:
    for candidate in candidates:
        if candidate.key == key:
            return candidate
    raise CheckpointError(
        f"{printable(path)} has no state dict under the key {printable(key)}; {_listing(candidates)}"
    )


def _remaining(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Leave out what is told not to be the state dict by its place, its name or its size."""
    once = {id(candidate.node): candidate for candidate in reversed(candidates)}
    weights = [c for c in candidates if c is once[id(c.node)] and not _lies_beside(c)]
    weights = _without_wrappers(weights)
    weights = _without_inner(weights)
    plain = [c for c in weights if not names_an_average(c.key)]
    return plain or weights


def _only_one(candidates: Sequence[Candidate], contents: Contents, path: str) -> Candidate:
    remaining = _remaining(candidates)
    if len(remaining) == 1:
        return remaining[0]
    if remaining:
        raise CheckpointError(
            f"{printable(path)} holds several state dicts, choose one with --key; {_listing(remaining)}"
        )
    if isinstance(contents.root, Opaque):
        raise CheckpointError(
            f"{printable(path)} holds a pickled object of class {printable(contents.root.name)}, not a state "
            "dict: save model.state_dict() instead"
        )
    if candidates:
        raise CheckpointError(
            f"{printable(path)} holds no state dict that is one by its name; choose one with --key: "
            f"{_listing(candidates)}"
        )
    objects = [
        f"{printable(name)} is a pickled object of class {printable(value.name)}"
        for name, value in (contents.root.items() if isinstance(contents.root, dict) else ())
        if isinstance(value, Opaque)
    ]
    more = f", and {', '.join(objects[:5])}, which is not looked into" if objects else ""
    raise CheckpointError(f"{printable(path)} holds no state dict: no tensors were found by name in it{more}")


def _lies_beside(candidate: Candidate) -> bool:
    return any(
        part.lower().startswith(BESIDE_THE_WEIGHTS) or part.endswith("_extra_state")
        for part in candidate.path
    )


def names_an_average(key: str) -> bool:
    """Tell whether a state dict's key says that training has averaged these weights already."""
    return NAMED_LIKE_AVERAGES.search(key) is not None


def _without_wrappers(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Leave out wrappers with a few tensors of their own (a random state, a loss)."""
    inner: Counter[tuple[str, ...]] = Counter()
    for candidate in candidates:
        for above in _paths_above(candidate):
            inner[above] += candidate.averageable
    return [c for c in candidates if inner[c.path] <= c.averageable]


def _without_inner(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Leave out the dicts inside a state dict (an extra state)."""
    paths = {candidate.path for candidate in candidates}
    return [c for c in candidates if paths.isdisjoint(_paths_above(c))]


def _paths_above(candidate: Candidate) -> list[tuple[str, ...]]:
    return [candidate.path[:depth] for depth in range(len(candidate.path))]


def _listing(candidates: Sequence[Candidate]) -> str:
    if not candidates:
        return "there is none at all"
    shown = [
        f"{printable(c.key) if c.path else 'the whole file'} ({c.tensors} tensors, {c.nbytes:,} bytes)"
        for c in candidates[:SHOWN_CANDIDATES]
    ]
    more = len(candidates) - len(shown)
    return "there are " + ", ".join(shown) + (f" and {more} more" if more else "")


def _fields(nodes: Sequence[Mapping[object, object]]) -> dict[str, int | float]:
    """Return the numbers in some dicts, and those in their `metrics` as `metrics.name`."""
    inner = [found for node in nodes if isinstance(found := node.get("metrics"), Mapping)]
    return {
        f"metrics.{name}": value for node in inner for name, value in _numbers([node]).items()
    } | _numbers(nodes)


def _numbers(nodes: Sequence[Mapping[object, object]]) -> dict[str, int | float]:
    return {
        name: value
        for node in nodes
        for name, value in node.items()
        if isinstance(name, str) and isinstance(value, int | float) and not isinstance(value, bool)
    }


def without_prefixes(
    names: Sequence[str], path: str, *, automatic: bool = True, given: Sequence[str] = ()
) -> Mapping[str, str]:
    """Map each name to what is left when the prefixes that every name bears are taken off.

    Args:
        names: the names as stored.
        path: the file, for messages.
        automatic: take off `module.` and `_orig_mod.`, repeatedly.
        given: further prefixes, each taken off once, in this order; every name must bear them.

    Raises:
        MismatchError: a given prefix is missing from some names.
    """
    shortened = list(names)
    if automatic:
        shortened = _strip_repeatedly(shortened)
    for prefix in given:
        without = [name for name in shortened if not name.startswith(prefix)]
        if without:
            raise MismatchError(
                f"not every name in {printable(path)} begins with {printable(prefix)}",
                [printable(name) for name in without],
            )
        shortened = [name.removeprefix(prefix) for name in shortened]
        if automatic:
            shortened = _strip_repeatedly(shortened)
    return dict(zip(names, shortened, strict=True))


def _strip_repeatedly(names: list[str]) -> list[str]:
    for _ in range(MAX_DEPTH * len(AUTOMATIC_PREFIXES)):
        common = next((p for p in AUTOMATIC_PREFIXES if names and all(n.startswith(p) for n in names)), None)
        if common is None or any(name == common for name in names):
            break
        names = [name.removeprefix(common) for name in names]
    return names
