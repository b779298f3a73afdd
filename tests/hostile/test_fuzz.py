"""Random damage of a fixed seed: no uncaught exception, and what is read is what the libraries read."""

import os
import pickletools
import random
from dataclasses import replace

import pytest

from hostile import fuzz, fuzz_images, mutating
from hostile.fuzz_formats import FORMATS

# A thousand mutants take 0.2 to 1.4 s.
COUNT = int(os.environ.get("FUZZ_COUNT", "5000"))
NEEDS = {"npy": ("numpy",), "npz": ("numpy",)} | dict.fromkeys(
    (*fuzz_images.FORMATS, "tar"), ("numpy", "PIL")
)


@pytest.mark.parametrize("name", FORMATS)
def test_mutants_are_refused_or_read_as_the_reference_library_reads_them(name):
    for module in NEEDS.get(name, ()):
        pytest.importorskip(module)
    outcome = fuzz.fuzz(name, COUNT)
    assert not outcome.failures, outcome.failures[0]
    assert outcome.mutants == COUNT
    assert outcome.refused > COUNT // 2
    assert outcome.agreed > COUNT // 100


def test_what_goes_wrong_is_seen():
    kind = FORMATS["safetensors"]
    broken = {
        "Traceback": replace(kind, ours=lambda _: {}[0]),
        "read differently": replace(kind, difference=lambda *_: "all"),
        "only swatool reads it": replace(kind, theirs=lambda _: {}[0]),
    }
    for said, one in broken.items():
        FORMATS["broken"] = one
        try:
            outcome = fuzz.fuzz("broken", 200)
        finally:
            del FORMATS["broken"]
        assert outcome.failures
        assert said in outcome.failures[0][0]


def test_the_same_seed_gives_the_same_mutants():
    first, second = ([mutating.of_bytes(random.Random(n), bytes(90)) for n in range(99)] for _ in range(2))
    assert first == second
    assert len(set(first)) > 80


def test_mutants_of_pickles_are_still_pickles_now_and_then():
    dice = random.Random(1)
    data = b"\x80\x02}q\x00(X\x01\x00\x00\x00aq\x01K\x01X\x01\x00\x00\x00bq\x02K\x02u."
    whole = 0
    for _ in range(200):
        try:
            whole += any(
                code.name == "STOP" for code, _, _ in pickletools.genops(mutating.of_pickle(dice, data))
            )
        except Exception:  # noqa: BLE001 - it raises several kinds
            continue
    assert whole > 20
