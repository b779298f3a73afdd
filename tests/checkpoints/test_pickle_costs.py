"""What a pickle may make the process hold: no more than its opcodes cost, and enough for models."""

import gc
import io
import itertools
import os
import pickletools
import struct
import subprocess
import sys
import time
import tracemalloc
import zipfile

import pytest
import torch

from swatool.checkpoints.pickle_costs import ALLOWED_BY_TENSOR, COSTS
from swatool.checkpoints.pickle_descriptors import load_descriptors
from swatool.errors import CheckpointError

STORAGE = b"(X\x07\0\0\0storagectorch\nFloatStorage\n%bX\x03\0\0\0cpuK\x04tQ"


def numbered(template, count, width="<I"):
    return b"".join(template % struct.pack(width, index) for index in range(count))


def short_text(index):
    return b"X\x06\0\0\0%06d" % index


# What a stranger may write again and again, for about so many opcodes.
HOSTILE = {
    "lists": lambda n: b"](" + b"]" * n + b"e",
    "filled lists": lambda n: b"](" + b"]Na" * (n // 3) + b"e",
    "lists of two": lambda n: b"](" + b"](NNe" * (n // 5) + b"e",
    "dicts": lambda n: b"](" + b"}" * n + b"e",
    "filled dicts": lambda n: b"](" + b"}NNs" * (n // 4) + b"e",
    "dicts with a key": lambda n: b"](" + b"}K\1Ns" * (n // 4) + b"e",
    "dicts with keys": lambda n: b"](" + b"}(K\1NK\2NK\3NK\4NK\5NK\6Nu" * (n // 15) + b"e",
    "large dict of numbers": lambda n: b"}(" + numbered(b"J%bN", n // 2) + b"u",
    "large dict of texts": lambda n: b"}(" + b"".join(short_text(i) + b"N" for i in range(n // 2)) + b"u",
    "dict grown one by one": lambda n: b"}" + numbered(b"J%bNs", n // 3),
    "tuples": lambda n: b"](" + b"N\x85" * (n // 2) + b"e",
    "tuples of two": lambda n: b"](" + b"NN\x86" * (n // 3) + b"e",
    "tuples of three": lambda n: b"](" + b"NNN\x87" * (n // 4) + b"e",
    "tuples after a mark": lambda n: b"](" + b"(Nt" * (n // 3) + b"e",
    "nested tuples": lambda n: b")" + b"\x85" * n,
    "marks": lambda n: b"(" * n,
    "copies": lambda n: b"N" + b"2" * n,
    "numbers": lambda n: b"](" + numbered(b"J%b", n, ">I") + b"e",
    "short numbers": lambda n: b"](" + b"M\xff\xff" * n + b"e",
    "long numbers": lambda n: b"](" + b"\x8a\x08ABCDEFGH" * n + b"e",
    "very long numbers": lambda n: b"](" + (b"\x8a\xff" + b"A" * 255) * (n // 5) + b"e",
    "numbers as text": lambda n: b"](" + b"I123456789012345678\n" * n + b"e",
    "floats": lambda n: b"](" + b"G12345678" * n + b"e",
    "short texts": lambda n: b"](" + b"".join(map(short_text, range(n))) + b"e",
    "texts": lambda n: b"](" + (b"X\x40\0\0\0" + b"t" * 64) * n + b"e",
    "long texts": lambda n: b"](" + (b"X\x00\x08\0\0" + b"t" * 2048) * (n // 20) + b"e",
    "wide texts": lambda n: b"](" + (b"X\x40\0\0\0" + b"\xf0\x9f\x98\x80" * 1 + b"t" * 60) * n + b"e",
    "long wide texts": lambda n: b"](" + (b"X\x00\x08\0\0\xf0\x9f\x98\x80" + b"t" * 2044) * (n // 50) + b"e",
    "python 2 texts": lambda n: b"](" + b"U\x04text" * n + b"e",
    "memo": lambda n: b"N" + numbered(b"r%b", n),
    "memo with gaps": lambda n: b"N" + b"".join(b"r" + struct.pack("<I", 2 * i + 9) for i in range(n)),
    "memo without numbers": lambda n: b"N" + b"\x94" * n,
    "objects": lambda n: b"ca\nb\n" + b"".join(b"Nq\0b" for _ in range(n // 3)),
    "names": lambda n: b"".join(b"ca%06d\nb\n" % i for i in range(min(n, 9_999))) * 2,
    "ordered dicts": lambda n: b"](ccollections\nOrderedDict\nq\0" + b"h\0)R" * (n // 3) + b"e",
    "ordered pairs": lambda n: b"ccollections\nOrderedDict\n](" + numbered(b"J%bN\x86", n // 3) + b"e\x85R",
    "storages": lambda n: b"](" + b"".join(STORAGE % short_text(i) for i in range(n // 8)) + b"e",
}


@pytest.mark.parametrize("case", HOSTILE)
def test_nothing_holds_more_than_it_costs(case, monkeypatch):
    limit = 1 << 20
    monkeypatch.setattr("swatool.checkpoints.pickle_costs.ALLOWED", limit)
    monkeypatch.setattr("swatool.checkpoints.pickle_descriptors.CHECK_EVERY", 256)
    monkeypatch.setattr("swatool.checkpoints.pickle_machine.PIECE", 1 << 16)
    data = b"\x80\x04" + HOSTILE[case](60_000) + b"."
    gc.collect()
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError) as caught:
            load_descriptors(data, "'x.pt'")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    if case != "names":  # which are few enough to be let pass
        assert "holds far more than its tensors need" in str(caught.value)
    assert peak < limit + (1 << 19)


def test_a_wide_text_costs_what_it_takes():
    wide = b"X" + struct.pack("<I", 1 << 20) + "\U0001f600".encode() + b"t" * ((1 << 20) - 4)
    with pytest.raises(CheckpointError, match="holds far more"):
        load_descriptors(b"\x80\x02](" + wide * 20 + b"e.", "'x.pt'")


# Not ru_maxrss, which begins with what the parent process has.
CHILD = """
import sys, time
from swatool.checkpoints.files import LocalFile
from swatool.checkpoints.file_formats import read_file
from swatool.errors import CheckpointError
def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
idle = peak()
began = time.process_time()
try:
    read_file(LocalFile(sys.argv[1]))
except CheckpointError as error:
    print(str(error).count(chr(10)), "holds far more" in str(error))
print(peak() - idle, time.process_time() - began)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads the peak memory from /proc")
@pytest.mark.parametrize("case", ["lists", "floats", "memo", "very long numbers"])
def test_five_million_opcodes_are_refused_in_little_time_and_memory(tmp_path, case):
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + HOSTILE[case](5_000_000)[: 60 << 20] + b".")
    done = subprocess.run(
        [sys.executable, "-c", CHILD, path], capture_output=True, text=True, check=True, timeout=60
    )
    refusal, figures = done.stdout.splitlines()
    assert refusal == "0 True"
    kibibytes, seconds = map(float, figures.split())
    assert 1 << 10 < kibibytes < 64 << 10
    assert seconds < 4  # twice what is promised, on a machine that has other things to do


def costs_of(root):
    """What a checkpoint costs, and how many tensors it describes."""
    file = io.BytesIO()
    torch.save(root, file)
    with zipfile.ZipFile(file) as archive:
        data = archive.read("archive/data.pkl")
    opcodes = [(data[position], argument) for _, argument, position in pickletools.genops(data)]
    texts = sum(len(argument) for _, argument in opcodes if isinstance(argument, str) and len(argument) > 16)
    tensors = sum(opcode == ord("Q") for opcode, _ in opcodes)
    return sum(COSTS[opcode] for opcode, _ in opcodes) + texts + 64 * tensors, tensors


def training_state(count):
    names = [f"model.decoder.layers.{n}.self_attention.query_key_value.weight" for n in range(count)]
    model = {name: torch.nn.Parameter(torch.ones(2, 1)) for name in names}
    state = {
        index: {"step": torch.tensor(1.0), "exp_avg": torch.ones(2, 1), "exp_avg_sq": torch.ones(2, 1)}
        for index in range(count)
    }
    return model, {
        "model": model,
        "optimizer": {"state": state, "param_groups": [{"params": list(range(count))}]},
    }


def test_models_and_their_optimizers_cost_less_than_their_tensors_allow():
    for root in training_state(1000):
        cost, tensors = costs_of(root)
        assert tensors in (1000, 4000)
        assert cost < tensors * ALLOWED_BY_TENSOR


def test_without_any_tensor_there_is_room_for_a_large_vocabulary():
    words = {f"\u2581word{index}": index for index in range(200_000)}
    file = io.BytesIO()
    torch.save({"vocabulary": words, "losses": [index + 0.5 for index in range(50_000)]}, file)
    with zipfile.ZipFile(file) as archive:
        found = load_descriptors(archive.read("archive/data.pkl"), "'x.pt'")
    assert found["vocabulary"] == words


def test_many_tensors_are_read_in_linear_time():
    def seconds(count):
        storages = (
            short_text(index) + b"ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE % short_text(index)
            for index in range(count)
        )
        rest = b"K\0K\4\x85K\1\x85\x89ccollections\nOrderedDict\n)RtR"
        data = b"\x80\x02}(" + b"".join(itertools.chain.from_iterable((s, rest) for s in storages)) + b"u."
        began = time.process_time()
        assert len(load_descriptors(data, "'x.pt'")) == count
        return time.process_time() - began

    assert seconds(40_000) < 12 * seconds(10_000)
