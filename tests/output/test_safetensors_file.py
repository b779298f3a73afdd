from importlib.util import find_spec

import pytest
import safetensors.torch
import torch
from hanging import no_hang
from hypothesis import given, settings
from hypothesis import strategies as st

from swatool.errors import CheckpointError, OutputError, UsageError
from swatool.output import safetensors_file
from swatool.output.layout import OutputTensor
from swatool.output.safetensors_file import lay_out
from swatool.tensors import DTYPES

needs_numpy = pytest.mark.skipif(find_spec("numpy") is None, reason="safetensors' own writer needs NumPy")

STORABLE = [name for name, dtype in DTYPES.items() if dtype.code]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
NAMES = st.one_of(
    TEXT.filter(bool),
    st.text('"\\/\x00\b\f\n\r\t\x1f\x7f\u2028\uffff\U00010000é', min_size=1, max_size=4),
)
KINDS = st.tuples(st.sampled_from(STORABLE), st.lists(st.integers(0, 3), max_size=3).map(tuple))


def zeros(dtype, shape):
    return torch.zeros(shape, dtype=torch.uint8).to(getattr(torch, dtype))


def filled(dtype, shape, seed):
    """A tensor of any dtype whose bytes are 0 or 1, which is valid for every one of them."""
    numel = zeros(dtype, shape).numel()
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randint(0, 2, (numel * DTYPES[dtype].itemsize,), dtype=torch.uint8, generator=generator)
    return raw.view(getattr(torch, dtype)).reshape(shape)


def assemble(state, metadata):
    layout = lay_out(
        [
            OutputTensor(name, DTYPES[str(tensor.dtype).removeprefix("torch.")], tuple(tensor.shape))
            for name, tensor in state.items()
        ],
        metadata,
    )
    whole = bytearray(layout.size)
    whole[: len(layout.fixed[0].data)] = layout.fixed[0].data
    for name, start in layout.offsets.items():
        data = bytes(state[name].reshape(-1).view(torch.uint8).tolist())
        whole[start : start + len(data)] = data
    assert len(whole) == layout.size
    return bytes(whole)


@needs_numpy
@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(NAMES, KINDS, max_size=6),
    st.dictionaries(TEXT, TEXT, max_size=1),  # the reference writes several in random order
)
def test_the_file_is_the_reference_writers_to_the_byte(kinds, metadata):
    state = {name: filled(dtype, shape, seed) for seed, (name, (dtype, shape)) in enumerate(kinds.items())}
    assert assemble(state, metadata) == safetensors.torch.save(state, metadata or None)


@needs_numpy
def test_every_dtype_is_laid_out_in_the_order_of_the_reference():
    state = {f"t{99 - rank}": filled(dtype, (3,), rank) for rank, dtype in enumerate(STORABLE)}
    assert assemble(state, {}) == safetensors.torch.save(state)


def test_several_metadata_entries_keep_their_order_and_are_read_back(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(assemble({"w": torch.ones(2)}, {"b": "1", "a": "2"}))
    with safetensors.safe_open(path, "pt") as opened:
        assert opened.metadata() == {"b": "1", "a": "2"}
        assert opened.get_tensor("w").tolist() == [1, 1]
    assert b'{"__metadata__":{"b":"1","a":"2"},"w"' in path.read_bytes()


def test_offsets_are_in_the_order_of_the_file():
    layout = lay_out(
        [OutputTensor("a", DTYPES["int8"], (3,)), OutputTensor("b", DTYPES["float32"], (1,))], {}
    )
    start = len(layout.fixed[0].data)
    assert list(layout.offsets.items()) == [("b", start), ("a", start + 4)]
    assert layout.size == start + 7


def test_a_dtype_without_a_safetensors_name_is_refused():
    with pytest.raises(UsageError, match=r"'w' is complex128.*--dtype float32"):
        lay_out([OutputTensor("w", DTYPES["complex128"], (1,))], {})


@pytest.mark.parametrize("name", ["", "__metadata__", "\ud800"])
def test_a_name_that_safetensors_cannot_store_is_refused(name):
    with pytest.raises(CheckpointError, match="cannot store a tensor under the name"):
        lay_out([OutputTensor(name, DTYPES["float32"], (1,))], {})


def test_a_name_used_twice_is_refused():
    with pytest.raises(CheckpointError, match=r"'w'.*twice"):
        lay_out([OutputTensor("w", DTYPES["float32"], (1,)), OutputTensor("w", DTYPES["int8"], (1,))], {})


def test_metadata_that_is_not_unicode_does_not_stop_the_output():
    layout = lay_out([], {"source": "caf\udce9.pt"})
    assert b'"caf?.pt"' in layout.fixed[0].data
    assert safetensors.torch.load(layout.fixed[0].data) == {}


def test_a_header_that_readers_would_refuse_is_refused(monkeypatch):
    tensors = [OutputTensor("w", DTYPES["float32"], (1,))]
    length = len(lay_out(tensors, {}).fixed[0].data) - 8
    monkeypatch.setattr(safetensors_file, "MAX_HEADER_BYTES", length)
    lay_out(tensors, {})
    monkeypatch.setattr(safetensors_file, "MAX_HEADER_BYTES", length - 1)
    with pytest.raises(OutputError, match=f"would take {length} bytes"):
        lay_out(tensors, {})


def test_the_limit_is_the_reference_readers():
    for length in (safetensors_file.MAX_HEADER_BYTES, safetensors_file.MAX_HEADER_BYTES + 1):
        header = length.to_bytes(8, "little") + b"{}".ljust(length)
        if length > safetensors_file.MAX_HEADER_BYTES:
            with pytest.raises(safetensors.SafetensorError, match="header too large"):
                safetensors.torch.load(header)
        else:
            assert safetensors.torch.load(header) == {}


def test_many_tensors_are_laid_out_in_linear_time():
    tensors = [
        OutputTensor(f"model.layers.{i}.mlp.weight", DTYPES["bfloat16"], (64, 64)) for i in range(100_000)
    ]
    with no_hang():
        lay_out(tensors, {})
