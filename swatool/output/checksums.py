"""Checksum files as coreutils' `sha256sum` writes them: one line for each file, which `sha256sum -c` checks.

A file's stands beside it, as `OUT.sha256`; a folder's are in it, as `SHA256SUMS`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace

from swatool.output.layout import BETWEEN_FILES, Layout, OutputFile

__all__ = ["MOST_BYTES", "SUFFIX", "SUMS", "checksum_line", "parse_checksums", "sums_of", "with_sums"]

SUFFIX = ".sha256"
SUMS = "SHA256SUMS"
MOST_BYTES = 16 << 20  # of a checksum file that is read: some 200,000 lines
DIGEST_LENGTH = 64
# A backslash before the digest tells that the name is escaped; `*` stands for a file read as binary.
LINE = re.compile(rb"(\\?)([0-9a-fA-F]{64}) [ *](.+)", re.DOTALL)
ESCAPES = {b"\\": b"\\\\", b"\n": b"\\n", b"\r": b"\\r"}
ESCAPE = re.compile(rb"\\(.?)", re.DOTALL)
UNESCAPED = {b"\\": b"\\", b"n": b"\n", b"r": b"\r"}


def checksum_line(digest: str, name: str) -> bytes:
    """Return the line of a file, its name escaped where a line could not hold it."""
    plain = os.fsencode(name)
    escaped = b"".join(ESCAPES.get(bytes([one]), bytes([one])) for one in plain)
    mark = b"\\" if escaped != plain else b""
    return mark + digest.encode() + b"  " + escaped + b"\n"


def parse_checksums(text: bytes) -> dict[str, str] | None:
    """Return the digests by name that a checksum file tells; None if it is none, or contradicts itself."""
    found: dict[str, str] = {}
    if not text.endswith(b"\n"):
        return None
    for line in text[:-1].split(b"\n"):
        match = LINE.fullmatch(line.removesuffix(b"\r"))  # of a name that ends so it would be escaped
        name = _unescaped(match[3]) if match and match[1] else match and match[3]
        if match is None or name is None or b"\0" in name:
            return None
        digest = match[2].decode().lower()
        if found.setdefault(os.fsdecode(name), digest) != digest:
            return None
    return found


def _unescaped(name: bytes) -> bytes | None:
    if any(one not in UNESCAPED for one in ESCAPE.findall(name)):
        return None
    return ESCAPE.sub(lambda match: UNESCAPED[match[1]], name)


def with_sums(layout: Layout) -> Layout:
    """Return the layout of a folder with room for the checksums of its files; that of a file as it is."""
    if not layout.is_folder:
        return layout
    last = layout.files[-1]
    nbytes = sum(len(checksum_line("0" * DIGEST_LENGTH, file.name)) for file in layout.files)
    sums = OutputFile(SUMS, last.begin + last.nbytes + BETWEEN_FILES, nbytes)
    return replace(layout, files=(*layout.files, sums))


def sums_of(digests: Mapping[str, str]) -> bytes:
    """Return what the checksum file of a folder holds, from the digests of its files by name."""
    return b"".join(checksum_line(digests[name], name) for name in sorted(digests))
