"""Distributed checkpoints of one run, whose `.metadata` differ in nothing but when and where they were saved.

That is what a `.metadata` ends with, and nothing of it is used. So what the last one described holds for the
next one, too, if they differ in those words alone; interpreting it takes most of the time that opening takes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import NamedTuple

from swatool.checkpoints.dcp_items import KnownItems
from swatool.checkpoints.dcp_metadata import Metadata, interpreted
from swatool.errors import printable
from swatool.tensors import Source

__all__ = ["Described", "Form", "describe", "form_of"]

MAX_BYTES = 4 << 20  # of a `.metadata` whose description, six times as large, is kept for the next one
FIRST_WORD = b"\x8c\x0cstorage_meta\x94"

# The opcodes after it: a text that is stored (SHORT_BINUNICODE, MEMOIZE), a stored value that is fetched
# (BINGET, LONG_BINGET), or one of those without an argument that are written there.
TOKEN = re.compile(rb"\x8c(.)([ -~]*)\x94|h.|j.{4}|[\x81\x93\x94().NRbtu\]}]", re.DOTALL)
CLASSES: Mapping[bytes, str] = {
    b"StorageMeta": "S",
    **dict.fromkeys((b"pathlib", b"pathlib._local", b"PosixPath", b"WindowsPath"), "P"),
}
# One letter for each: T for a text, S and P for the names of these classes, G for what is fetched. They make
# a StorageMeta whose state, a new dict, holds a path or the text of one, a number that no other save has, and
# what else torch keeps there; then, in the dict around it, the version. Nothing that was made before changes.
LAST_WORDS = re.compile(
    r"[TG]S\x93\x94\)\x81\x94\}\x94\("
    r"T(?:(?P<text>T)|PP\x93\x94\((?P<path>[TG]*)t\x94R\x94)"
    r"T(?P<number>T)"
    r"(?:T(?:T|N|\]\x94))*ub(?:TT)*ub\."
)


class Form(NamedTuple):
    """What is the same in all `.metadata` that describe the same.

    Attributes:
        key: a digest of all bytes but those of the texts that say when and where it was saved.
        boundary: where the last words begin, in which these texts are.
    """

    key: bytes
    boundary: int


class Described(NamedTuple):
    """What is shared by the checkpoints of a run: what they describe, and which of their items are known."""

    metadata: Metadata
    items: KnownItems


_last: tuple[bytes, Described] | None = None


def describe(source: Source) -> Described:
    """Return what the `.metadata` of a folder describes.

    Raises:
        CheckpointError: it is too large, damaged or hostile, or describes something else.
    """
    global _last
    where = printable(source.path)
    if source.size > MAX_BYTES:
        return Described(interpreted(source.read, source.size, where), {})
    data = source.read(0, source.size)
    form, last = form_of(data), _last
    if form is None:
        return Described(interpreted(_Pieces(data).read, len(data), where), {})
    if last is not None and last[0] == form.key:
        return last[1]
    pieces = _Pieces(data, form.boundary)
    described = Described(interpreted(pieces.read, len(data), where), {})
    if form.boundary in pieces.begun:
        _last = form.key, described
    return described


def form_of(data: bytes) -> Form | None:
    """Return the form of a `.metadata`; None if it does not end as torch writes it."""
    boundary = data.rfind(FIRST_WORD)
    if boundary < 0:
        return None
    letters, texts = _tokens(data, boundary + len(FIRST_WORD))
    found = LAST_WORDS.fullmatch(letters)
    if found is None:
        return None
    blank = bytearray(data)
    for group in ("text", "path", "number"):
        for begin, end in texts[slice(*found.span(group))]:
            blank[begin:end] = bytes(end - begin)
    return Form(hashlib.sha256(blank).digest(), boundary)


def _tokens(data: bytes, position: int) -> tuple[str, list[tuple[int, int]]]:
    """Return a letter for each opcode up to one that is not known, and where its text lies, if it has one."""
    letters, texts = [], []
    while (found := TOKEN.match(data, position)) is not None:
        position = found.end()
        length, text = found.groups()
        if length is None:
            letters.append("G" if found[0][:1] in b"hj" else chr(found[0][0]))
            texts.append((position, position))
        elif length[0] == len(text):
            letters.append(CLASSES.get(text, "T"))
            texts.append(found.span(2))
        else:
            break
    if position < len(data):
        letters.append("?")
    return "".join(letters), texts


class _Pieces:
    """The bytes of a `.metadata`, whose first piece ends where the last words begin.

    An interpreter goes on from just there only if an opcode begins there.

    Attributes:
        begun: where the pieces begin that were asked for.
    """

    def __init__(self, data: bytes, boundary: int = 0) -> None:
        self.begun: set[int] = set()
        self._data = data
        self._boundary = boundary

    def read(self, offset: int, nbytes: int) -> bytes:
        """Return bytes of it; the first time that they go beyond the boundary, those before it."""
        self.begun.add(offset)
        end = offset + nbytes
        if offset < self._boundary < end:
            end, self._boundary = self._boundary, 0
        return self._data[offset:end]
