"""Planning an average of checkpoints as large as they get: 8 of them, each of 200 shards and 50,000 tensors.

Only the headers are real, the rest of the files is holes: their lengths come to more than a terabyte where
the disk has room for such an output, else to less, which changes nothing for the plan. It fails if planning
takes more time or memory than it may.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass

SWATOOL = [sys.executable, "-m", "swatool", "average", "--dry-run", "--json", "-q"]
# As in a mixture of experts; the first dimension is made smaller where the disk is.
WIDTHS = ((512,), (1408,), (), (256,), (512, 4))
MOST_ROWS = 2048
MOST_SECONDS = 30
MOST_BYTES = 10**9


@dataclass(frozen=True)
class Size:
    """How large the set is."""

    checkpoints: int
    shards: int
    tensors: int


LARGE, SHORT = Size(8, 200, 50_000), Size(8, 20, 5_000)


def rows_for(folder: str, size: Size) -> int:
    """Return the first dimension with which an output takes at most half of the room that there is."""
    free = shutil.disk_usage(folder).free
    per_row = 2 * sum(map(math.prod, WIDTHS)) / len(WIDTHS)
    return max(1, min(MOST_ROWS, int(free / 2 / (per_row * size.tensors))))


def write_checkpoint(folder: str, size: Size, rows: int) -> int:
    """Write one checkpoint as a Hugging Face folder with nothing but headers, and return its bytes."""
    os.makedirs(folder)
    weight_map: dict[str, str] = {}
    total = 0
    for shard in range(size.shards):
        name = f"model-{shard + 1:05d}-of-{size.shards:05d}.safetensors"
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        position = 0
        for index in range(shard, size.tensors, size.shards):
            shape = (rows, *WIDTHS[index % len(WIDTHS)])
            nbytes = 2 * math.prod(shape)
            tensor = f"model.layers.{index // 800}.mlp.experts.{index % 800}.down_proj.weight"
            header[tensor] = {"dtype": "BF16", "shape": shape, "data_offsets": (position, position + nbytes)}
            weight_map[tensor] = name
            position += nbytes
        text = json.dumps(header).encode()
        with open(os.path.join(folder, name), "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + position)
        total += position
    with open(os.path.join(folder, "model.safetensors.index.json"), "w") as file:
        json.dump({"metadata": {"total_size": total}, "weight_map": weight_map}, file, indent=2)
    return total


def main() -> None:
    """Write the set, plan it, print what that took, and fail if it was too much."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="a tenth of it")
    parser.add_argument("--folder", help="where the set is written; default: a temporary folder")
    options = parser.parse_args()
    size = SHORT if options.short else LARGE
    folder = tempfile.mkdtemp(prefix="swatool-bench-", dir=options.folder)
    try:
        rows = rows_for(folder, size)
        total = sum(
            write_checkpoint(os.path.join(folder, f"checkpoint-{step}"), size, rows)
            for step in range(size.checkpoints)
        )
        started = time.perf_counter()
        output = os.path.join(folder, "averaged.safetensors")
        done = subprocess.run([*SWATOOL, folder, "-o", output], stdout=subprocess.PIPE, check=True)
        seconds = time.perf_counter() - started
    finally:
        shutil.rmtree(folder)
    report = json.loads(done.stdout)
    if report["tensors"]["averaged"] != size.tensors:
        raise SystemExit(f"the plan has {report['tensors']['averaged']} tensors")
    memory, estimate = report["peak_rss_bytes"], report["estimate"]
    print(
        f"plan of {size.checkpoints} checkpoints x {size.shards} shards, {size.tensors:,} tensors each, "
        f"{total / 1e12:.2f} TB: {seconds:.1f} s, {memory / 1e6:,.0f} MB (the run would take "
        f"{estimate['seconds']:.0f} s, {estimate['memory_bytes'] / 1e6:,.0f} MB)"
    )
    if seconds > MOST_SECONDS or memory > MOST_BYTES:
        raise SystemExit(f"more than {MOST_SECONDS} s or {MOST_BYTES / 1e6:,.0f} MB")


if __name__ == "__main__":
    main()
