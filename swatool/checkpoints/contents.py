"""What a format reader finds in a file or folder: a tree of plain values in which tensors are only described.

The readers (`safetensors_file`, `torch_file` and so on) make it, `state_dicts` searches it; neither knows the
other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from swatool.errors import printable
from swatool.tensors import DType, StoredTensor

__all__ = ["Contents", "Opaque", "TensorDescriptor", "Unnamed", "UnsupportedTensor"]

LONGEST_KIND = 100  # characters


@dataclass(slots=True)  # frozen ones take three times as long to make, and there are ten thousands
class TensorDescriptor:
    """A tensor as a pickle describes it: a view of a storage that lies elsewhere in the file.

    Attributes:
        dtype: element type.
        shape: length of each dimension.
        strides: distance in elements between neighbours along each dimension.
        storage: key of the storage.
        storage_nbytes: length of the storage, as the pickle claims it.
        offset: elements from the beginning of the storage to the first element.
    """

    dtype: DType
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    storage: str
    storage_nbytes: int
    offset: int


@dataclass(frozen=True, slots=True)
class UnsupportedTensor:
    """A tensor of a kind that cannot be averaged from its bytes: sparse, quantized, meta, a subclass.

    Attributes:
        kind: what it is, in words or by the name of its class, made fit to be printed.
    """

    kind: str

    def __post_init__(self) -> None:
        if not self.kind.isprintable() or len(self.kind) > LONGEST_KIND:
            object.__setattr__(self, "kind", printable(self.kind)[1:-1])


class Unnamed:
    """Stands for a key that is no text or small number, of an entry that is a tensor; each is another one."""

    __slots__ = ()

    def __str__(self) -> str:
        return "a tensor under something that is no text"


@dataclass(slots=True, unsafe_hash=True)
class Opaque:
    """An object of a class that was not looked up: inert, known by the class's name only."""

    name: str


@dataclass(frozen=True, slots=True)
class Contents:
    """All that a file holds, with nothing read but its descriptions.

    Attributes:
        format: the format's name for people, such as `torch zip`.
        root: dicts (keys str or int), lists, tuples, numbers, strings, None, and the three classes above or
            StoredTensor as leaves. It may be cyclic and of any depth: whoever walks it must guard himself.
        locate: gives the bytes of a tensor leaf of this tree; CheckpointError if the leaf lies about them.
        metadata: strings that the format keeps beside the tensors.
        fields: numbers that lie beside the tensors in a file of their own (step, epoch, metrics).
        warnings: sentences for the user.
    """

    format: str
    root: object
    locate: Callable[[TensorDescriptor | StoredTensor], StoredTensor]
    metadata: Mapping[str, str] = field(default_factory=dict)
    fields: Mapping[str, int | float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
