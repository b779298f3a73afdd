"""What the names in a pickle stand for: tensors and plain containers.

Apart from the interpreter (`pickle_descriptors`), which knows opcodes and nothing of torch. A name is never
looked up: it is compared with these tables, and whatever is not in them stays an inert Opaque.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from swatool.checkpoints.contents import Opaque, TensorDescriptor, Unnamed, UnsupportedTensor
from swatool.errors import printable
from swatool.tensors import DTYPES, DType

__all__ = [
    "CONTAINERS",
    "HARMLESS",
    "NOT_AN_IDENTIFIER",
    "MalformedError",
    "Storage",
    "call",
    "is_key",
    "storage",
]

MAX_RANK = 64
MAX_LENGTH = (1 << 63) - 1

NOT_AN_IDENTIFIER = "holds a persistent id that is not one of torch.save"

Arguments = tuple[object, ...]

STORAGE_DTYPES: Mapping[str, str] = {
    "torch.DoubleStorage": "float64",
    "torch.FloatStorage": "float32",
    "torch.HalfStorage": "float16",
    "torch.BFloat16Storage": "bfloat16",
    "torch.LongStorage": "int64",
    "torch.IntStorage": "int32",
    "torch.ShortStorage": "int16",
    "torch.CharStorage": "int8",
    "torch.ByteStorage": "uint8",
    "torch.BoolStorage": "bool",
    "torch.ComplexFloatStorage": "complex64",
    "torch.ComplexDoubleStorage": "complex128",
}
UNTYPED_STORAGES = frozenset({"torch.storage.UntypedStorage", "torch.UntypedStorage"})

# Types whose values are nothing but the tensor that they were made of.
PLAIN_TENSOR_TYPES = frozenset(
    {
        "torch.Tensor",
        "torch._tensor.Tensor",
        "torch.nn.parameter.Parameter",
        "torch.nn.parameter.Buffer",
    }
)

USED_UP = Opaque("a list that was used up")
# Attributes of a tensor that stand for its values.
VALUES = frozenset({"data", "real", "imag", "__class__"})

UNSUPPORTED_KINDS: Mapping[str, str] = {
    "torch._utils._rebuild_sparse_tensor": "sparse",
    "torch._utils._rebuild_sparse_csr_tensor": "sparse",
    "torch._utils._rebuild_qtensor": "quantized",
    "torch._utils._rebuild_meta_tensor_no_storage": "meta",
    "torch._utils._rebuild_nested_tensor": "nested",
    "torch._utils._rebuild_wrapper_subclass": "wrapper subclass",
    "torch._utils._rebuild_device_tensor_from_numpy": "device tensor kept as a NumPy array",
    "torch._utils._rebuild_xla_tensor": "device tensor kept as a NumPy array",
}


class MalformedError(Exception):
    """What is wrong with a pickle, as the end of a sentence; whoever knows the file's name completes it."""


@dataclass(slots=True, unsafe_hash=True)
class Storage(Opaque):
    """A storage that a tensor may be a view of; on its own it is as inert as any other object.

    Attributes:
        dtype: element type; None for an untyped storage.
        key: names the storage's record in the file.
        nbytes: its length, as the pickle claims it.
        part: first element and number of elements of the part that is meant, as very old files have it;
            None for the whole storage.
    """

    dtype: DType | None
    key: str
    nbytes: int
    part: tuple[int, int] | None = None


def storage(identifier: object) -> Opaque:
    """Return the storage that a persistent id of torch.save names; quantized ones are a mere Opaque."""
    if type(identifier) is not tuple or len(identifier) != 5:
        raise MalformedError(NOT_AN_IDENTIFIER)
    tag, kind, key, _location, count = identifier
    if type(tag) is not str or tag != "storage" or type(kind) is not Opaque or type(key) is not str:
        raise MalformedError(NOT_AN_IDENTIFIER)
    if type(count) is not int or not 0 <= count <= MAX_LENGTH:
        raise MalformedError(f"gives storage {printable(key)} an impossible length")
    if kind.name in UNTYPED_STORAGES:
        return Storage(kind.name, None, key, count)
    if kind.name not in STORAGE_DTYPES:
        return kind
    dtype = DTYPES[STORAGE_DTYPES[kind.name]]
    return Storage(kind.name, dtype, key, count * dtype.itemsize)


def call(function: Opaque, arguments: Arguments) -> object:
    """Describe what a call would return; an unknown function or class gives the Opaque of its name."""
    name = function.name
    describe = DESCRIBED.get(name)
    if describe is not None:
        return describe(arguments)
    if name in REWRAPPED:
        return _from_type(arguments)
    if name in PLAIN_TENSOR_TYPES:
        return UnsupportedTensor(name)  # a tensor that torch would make, of whatever it is given
    if name in UNSUPPORTED_KINDS:
        return UnsupportedTensor(UNSUPPORTED_KINDS[name])
    return function


def _tensor(arguments: Arguments) -> TensorDescriptor | UnsupportedTensor:
    """_rebuild_tensor(storage, offset, size, stride): the type is the storage's."""
    if len(arguments) < 4:
        raise MalformedError("rebuilds a tensor from too few arguments")
    return _view(arguments, None)


def _tensor_v2(arguments: Arguments) -> TensorDescriptor | UnsupportedTensor:
    """_rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks, metadata=None)."""
    if len(arguments) not in (6, 7):
        raise MalformedError("rebuilds a tensor from the wrong number of arguments")
    if len(arguments) == 7 and _is_lazy(arguments[6]):
        return UnsupportedTensor("conjugate or negative view")
    return _view(arguments, None)


def _tensor_v3(arguments: Arguments) -> TensorDescriptor | UnsupportedTensor:
    """_rebuild_tensor_v3(storage, offset, size, stride, requires_grad, hooks, dtype, metadata=None)."""
    if len(arguments) not in (7, 8):
        raise MalformedError("rebuilds a tensor from the wrong number of arguments")
    dtype = arguments[6]
    if type(dtype) is not Opaque:
        raise MalformedError("rebuilds a tensor of something that is not a dtype")
    known = DTYPES.get(dtype.name.removeprefix("torch."))
    if known is None:
        return UnsupportedTensor(dtype.name)
    if len(arguments) == 8 and _is_lazy(arguments[7]):
        return UnsupportedTensor("conjugate or negative view")
    return _view(arguments, known)


def _is_lazy(metadata: object) -> bool:
    """Tell whether the values still have to be conjugated or negated, or may have to be."""
    if isinstance(metadata, dict):
        return bool(metadata.get("conj") or metadata.get("neg"))
    return metadata is not None


def _view(arguments: Arguments, dtype: DType | None) -> TensorDescriptor | UnsupportedTensor:
    base, offset, shape, strides = arguments[:4]
    if not isinstance(base, Storage):
        if isinstance(base, Opaque):
            return UnsupportedTensor(base.name)
        raise MalformedError("rebuilds a tensor of something that is not a storage")
    dtype = dtype or base.dtype
    if dtype is None:
        raise MalformedError(f"rebuilds a tensor of unknown type from storage {printable(base.key)}")
    _check_layout(base.key, offset, shape, strides)
    if base.part is not None:
        offset = _offset_of_part(base, offset, shape, strides)  # type: ignore[arg-type]
    return TensorDescriptor(dtype, shape, strides, base.key, base.nbytes, offset)  # type: ignore[arg-type]


def _offset_of_part(base: Storage, offset: int, shape: Arguments, strides: Arguments) -> int:
    """Return where a tensor begins in the whole storage that lies in a part of it."""
    first, count = base.part or (0, 0)
    pairs: list[tuple[int, int]] = list(zip(shape, strides, strict=True))  # type: ignore[arg-type]
    reach = 1 + sum((length - 1) * stride for length, stride in pairs)
    if 0 not in shape and offset + reach > count:
        raise MalformedError(f"describes a tensor that goes beyond its part of storage {printable(base.key)}")
    return first + offset


def _check_layout(key: str, offset: object, shape: object, strides: object) -> None:
    if type(shape) is not tuple or type(strides) is not tuple:
        raise MalformedError(f"describes a tensor in storage {printable(key)} without shape and strides")
    if len(shape) != len(strides) or len(shape) > MAX_RANK:
        raise MalformedError(
            f"describes a tensor in storage {printable(key)} with {len(shape)} dimensions and "
            f"{len(strides)} strides"
        )
    for number in (offset, *shape, *strides):
        if type(number) is not int or not 0 <= number <= MAX_LENGTH:
            raise MalformedError(
                f"describes a tensor in storage {printable(key)} whose offset, shape or strides are not "
                "non-negative 64-bit integers"
            )


def _parameter(arguments: Arguments) -> object:
    """_rebuild_parameter(data, requires_grad, hooks), and with a state as a fourth: the data."""
    if not arguments or not isinstance(arguments[0], TensorDescriptor | UnsupportedTensor | Opaque):
        raise MalformedError("makes a parameter of something that is not a tensor")
    _check_state(arguments[3] if len(arguments) > 3 else None)
    return arguments[0]


def _check_state(state: object) -> None:
    """Refuse attributes by which a tensor that has been made would get other values; others are dropped."""
    for part in state if type(state) is tuple else (state,):
        if part is not None and (type(part) is not dict or any(name in part for name in VALUES)):
            raise MalformedError("changes the values of a tensor that it has made")


def _from_cpu_tensor(arguments: Arguments) -> object:
    """_rebuild_device_tensor_from_cpu_tensor(data, dtype, device, requires_grad): the data."""
    data, dtype, device, *_ = arguments if len(arguments) == 4 else (None, None, None)
    if not isinstance(data, TensorDescriptor):
        raise MalformedError("makes a device tensor of something that is not a tensor")
    if type(dtype) is not Opaque or dtype.name != f"torch.{data.dtype.name}":
        return UnsupportedTensor("device tensor kept in another dtype")
    if device == "meta":
        return UnsupportedTensor("meta")
    return data


def _from_type(arguments: Arguments) -> object:
    """_rebuild_from_type_v2(function, type, arguments, state): the tensor, if the type adds nothing to it."""
    if len(arguments) != 4:
        raise MalformedError("rebuilds a tensor from the wrong number of arguments")
    function, kind, inner, state = arguments
    if type(function) is not Opaque or type(kind) is not Opaque or type(inner) is not tuple:
        raise MalformedError("rebuilds a tensor from arguments of the wrong kind")
    _check_state(state)
    if function.name in REWRAPPED:
        raise MalformedError("wraps a tensor that is wrapped already")
    found = call(function, inner)  # also for what it does to the values
    return found if kind.name in PLAIN_TENSOR_TYPES else UnsupportedTensor(kind.name)


def _ordered_dict(arguments: Arguments) -> dict[object, object]:
    """OrderedDict() or, from Python 2, OrderedDict([[key, value], ...])."""
    result: dict[object, object] = {}
    if not arguments:
        return result
    pairs = arguments[0]
    if len(arguments) != 1 or type(pairs) is not list:
        raise MalformedError("makes an OrderedDict of something that is not a list of pairs")
    for pair in pairs:
        if type(pair) not in (list, tuple) or len(pair) != 2:
            raise MalformedError("makes an OrderedDict of something that is not a list of pairs")
        if is_key(pair[0]):
            result[pair[0]] = pair[1]
        elif type(pair[1]) is TensorDescriptor:
            result[Unnamed()] = pair[1]
    # Honest pickles make the list for this call alone. Used up, it cannot be copied a thousand times.
    pairs[:] = [USED_UP] if pairs else []
    return result


def is_key(key: object) -> bool:
    """Tell whether a dict keeps this key: hashing a tuple, or comparing crafted integers, may take hours."""
    return type(key) is str or (type(key) is int and -(1 << 31) <= key < 1 << 31)


def _default_dict(arguments: Arguments) -> dict[object, object]:
    """defaultdict(factory), whose entries are set afterwards."""
    if len(arguments) > 1:
        raise MalformedError("makes a defaultdict of something that it would hold already")
    return {}


def _size(arguments: Arguments) -> object:
    if len(arguments) == 1 and type(arguments[0]) is tuple:
        return arguments[0]
    return Opaque("torch.Size")


DESCRIBED: Mapping[str, Callable[[Arguments], object]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor_v2,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _from_cpu_tensor,
    "torch.Size": _size,
    "collections.OrderedDict": _ordered_dict,
    "collections.defaultdict": _default_dict,
}
# What descriptions of distributed checkpoints may call beside their own classes: it changes no argument.
HARMLESS = frozenset(
    {
        *DESCRIBED,
        *("torch.device", "torch.serialization._get_layout", "uuid.UUID", "datetime.datetime"),
        *(
            f"pathlib{home}.{name}"
            for home in ("", "._local")
            for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
        ),
    }
)
CONTAINERS = frozenset({"collections.OrderedDict", "collections.defaultdict"})
# Apart, so that one of them inside another is not followed: a pickle may nest them a million deep.
REWRAPPED = frozenset({"torch._tensor._rebuild_from_type", "torch._tensor._rebuild_from_type_v2"})
