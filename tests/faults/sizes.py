"""Memory that does not grow with the checkpoints: those are files of zeros that lie on the disk as holes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from faults import inputs
from faults.finding import Finding
from faults.trials import HERE

MIB = 1 << 20
GB = 10**9
SPARE = 4 * GB  # what must stay free on the disk
BEYOND_TORCH = 64 * MIB  # which is promised, whatever the size


def peak(folder: Path, nbytes: int) -> int:
    """Average two checkpoints of so many bytes, and return the most memory that the process had."""
    names = ["ckpt-1.safetensors", "ckpt-2.safetensors"]
    for name in names:
        inputs.save_sparse(folder / name, nbytes)
    code = "import sys, swatool\nswatool.average(sys.argv[1:], 'out.safetensors', threads=2)\n"
    found = peak_of(folder, code, *names)
    assert os.stat(folder / "out.safetensors").st_size >= 0.99 * nbytes
    for name in (*names, "out.safetensors"):
        os.unlink(folder / name)
    return found


def peak_of(folder: Path, code: str, *arguments: str) -> int:
    """Return the most memory that a process had; not what wait() tells, which counts its parent's, too."""
    code += "print(open('/proc/self/status').read().partition('VmHWM:')[2].split()[0])\n"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": HERE},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return int(done.stdout) << 10


def measure_sizes(full: bool, folder: Path) -> Finding:
    """Average checkpoints of several sizes, as far as there is room for the outputs."""
    free = shutil.disk_usage(folder).free - SPARE
    wanted = (1 * GB, 4 * GB, 16 * GB) if full else (32 * MIB, 256 * MIB)
    sizes = [nbytes for nbytes in wanted if nbytes < free]
    idle = peak_of(folder, "import torch\n")
    peaks = {nbytes: peak(folder, nbytes) for nbytes in sizes}
    wrong = [
        f"{found // MIB} MiB for checkpoints of {nbytes:,} bytes, and torch alone takes {idle // MIB}"
        for nbytes, found in peaks.items()
        if found > idle + BEYOND_TORCH
    ]
    told = [f"{nbytes / GB:.3g} GB: {found // MIB} MiB" for nbytes, found in peaks.items()]
    if len(sizes) < len(wanted):
        told.append("no room for larger ones")
    measured = f"{', '.join(told)}; torch alone: {idle // MIB} MiB"
    return Finding("memory does not depend on the size", len(sizes), tuple(wrong), measured)
