"""The floor: the same threads read every input byte and write the output's bytes, with no arithmetic."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Sequence

BLOCKS = (512 * 1024, 1024 * 1024)


def floor_seconds(paths: Sequence[str], output_bytes: int, threads: int, block: int) -> float:
    """Return the seconds that reading all files and writing an output of that size takes."""
    descriptors = [os.open(path, os.O_RDONLY) for path in paths]
    size = min(os.fstat(descriptor).st_size for descriptor in descriptors)
    with tempfile.TemporaryFile(dir=os.path.dirname(paths[0])) as output:
        os.posix_fallocate(output.fileno(), 0, output_bytes)
        places = iter(range(0, size, block))
        lock = threading.Lock()

        def work() -> None:
            buffer = bytearray(block)
            while True:
                with lock:
                    place = next(places, None)
                if place is None:
                    return
                for descriptor in descriptors:
                    os.preadv(descriptor, [buffer], place)
                share = place * output_bytes // size, min(place + block, size) * output_bytes // size
                os.pwrite(output.fileno(), memoryview(buffer)[: share[1] - share[0]], share[0])

        workers = [threading.Thread(target=work) for _ in range(threads)]
        started = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        seconds = time.perf_counter() - started
    for descriptor in descriptors:
        os.close(descriptor)
    return seconds
