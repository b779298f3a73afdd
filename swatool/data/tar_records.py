"""Tar files in the manner of WebDataset as a data set: members are read where they lie, in order.

Nothing is extracted, links are not followed, and what WebDataset would unpickle is left alone.
"""

from __future__ import annotations

import glob
import io
import os
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby, islice
from typing import NamedTuple, cast

from torch import Tensor

from swatool.checkpoints.files import LocalFile
from swatool.data.arrays import array_from_bytes
from swatool.data.decoding import Decoder, Encoded
from swatool.data.files import open_file, telling_of_data
from swatool.data.images import check_pillow, decode_image
from swatool.data.options import DEFAULT_BATCH_SIZE, DataOptions, refuse_unused
from swatool.errors import DataError, UsageError, listed, printable

__all__ = ["TarData"]

USED = ("batch_size", "samples", "shuffle", "size", "mean", "std", "max_bad")
IMAGES = (".jpg", ".jpeg", ".png", ".webp")
ARRAY = ".npy"
PICKLES = (".pyd", ".pickle", ".pkl", ".pth", ".pt")
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}
MAX_MEMBER = 256 << 20  # bytes of one that is decoded
MAX_HEADER = 1 << 20  # bytes of all that precedes a member's data: long names, extended headers
# What an extended header says that decides which bytes are read, and as what.
DECISIVE = frozenset({"path", "linkpath", "size", "hdrcharset"})
SPARSE = "GNU.sparse."
BLOCK = tarfile.BLOCKSIZE


class Shard(NamedTuple):
    """A tar file, and what changes when it is replaced or written to."""

    path: str
    key: tuple[int, int]
    size: int
    mtime_ns: int


class Member(NamedTuple):
    """A regular member of a tar file that can be decoded, and where its bytes lie."""

    shard: Shard
    name: str
    offset: int
    nbytes: int

    @property
    def sample(self) -> str:
        """What the members of one sample have in common: the name up to the first dot of its last part."""
        folder, base = os.path.split(self.name)
        return f"{folder}/{base.partition('.')[0]}"

    @property
    def kind(self) -> str:
        """What follows that first dot, which says what the member is to its sample."""
        return "." + os.path.basename(self.name).partition(".")[2].lower()


class TarData:
    """The samples of tar files, in the order in which they lie there. A Data."""

    samples = None  # known only after a pass

    def __init__(self, name: str, pattern: str, options: DataOptions) -> None:
        """Find the tar files, and read the first headers.

        Raises:
            UsageError: an option does not apply, or Pillow is missing.
            DataError: there are no such files, or no samples in them.
        """
        refuse_unused(options, name, USED, "tar files are read in their own order")
        if options.shuffle:
            raise UsageError(
                f"--shuffle cannot be used with {printable(name)}: tar files are read in their own order, "
                "so shuffle when you write them, or unpack them and use imagefolder:DIR"
            )
        check_pillow()
        self.name = name
        self._paths = sorted(glob.glob(pattern, recursive=True))
        if not self._paths:
            hint = "; braces are not expanded, give * or ?" if "{" in pattern else ""
            raise DataError(f"there are no files {printable(pattern)}{hint}")
        self._options = options
        self._decoder = Decoder(name, options)
        self.bad = self._decoder.bad
        self._pickles: Counter[str] = Counter()
        if next(self._encoded(), None) is None:
            raise DataError(
                f"{printable(pattern)} holds no samples, that is, members named {', '.join((*IMAGES, ARRAY))}"
            )

    @property
    def notes(self) -> Sequence[str]:
        """What was not decoded in the latest pass."""
        return [
            f"{count} members named {suffix} were not decoded, because unpickling runs code"
            for suffix, count in sorted(self._pickles.items())
        ]

    def __iter__(self) -> Iterator[Tensor]:
        """Give all batches."""
        return self.share(0, 1)

    def share(self, rank: int, size: int) -> Iterator[Tensor]:
        """Give the batches number rank, rank + size, ...; of the others only the headers are read."""
        encoded = islice(self._encoded(), self._options.samples)
        number = 0
        while chosen := list(islice(encoded, self._options.batch_size or DEFAULT_BATCH_SIZE)):
            if number % size == rank:
                batch = self._decoder.batch(chosen)
                if batch is not None:
                    yield batch
            number += 1

    def close(self) -> None:
        """Do nothing: the files are open only while they are read."""

    def _encoded(self) -> Iterator[Encoded]:
        self._pickles.clear()
        for path in self._paths:
            for _, members in groupby(_members(path, self._pickles), lambda member: member.sample):
                member = _chosen(list(members))
                decode = partial(_decode, member, self._options)
                yield Encoded(f"{member.shard.path}/{member.name}", decode, not member.name.endswith(ARRAY))


def _chosen(members: list[Member]) -> Member:
    """Return the member of a sample that is the model's input."""
    if len(members) == 1:
        return members[0]
    plain = [member for member in members if member.kind in (*IMAGES, ARRAY)]
    if len(plain) != 1:
        names = listed(member.name for member in members)
        raise DataError(
            f"{printable(members[0].shard.path)} has several inputs for one sample, {names}: "
            "give a loader, as in module:function, that chooses one"
        )
    return plain[0]


def _decode(member: Member, options: DataOptions) -> Tensor:
    if member.nbytes > MAX_MEMBER:
        raise DataError(f"it has {member.nbytes:,} bytes, and at most {MAX_MEMBER:,} are read")
    file = open_file(member.shard.path)
    try:
        if _shard(file) != member.shard:
            raise DataError(f"the data {printable(file.path)} changed while it was read")
        with telling_of_data():
            data = file.read(member.offset, member.nbytes)
    finally:
        file.close()
    return array_from_bytes(data, "it") if member.name.endswith(ARRAY) else decode_image(data, options)


def _members(path: str, pickles: Counter[str]) -> Iterator[Member]:
    """Walk through the headers of a tar file; DataError if it is damaged."""
    file = open_file(path)
    try:
        yield from _walk(file, pickles)
    finally:
        file.close()


def _shard(file: LocalFile) -> Shard:
    return Shard(file.path, file.key, file.size, file.mtime_ns)


def _walk(file: LocalFile, pickles: Counter[str]) -> Iterator[Member]:
    shard = _shard(file)
    where = printable(file.path)
    for info in _headers(file, where):
        suffix = os.path.splitext(info.name)[1].lower()
        if suffix in PICKLES:
            pickles[suffix] += 1
        if suffix not in (*IMAGES, ARRAY) or os.path.basename(info.name).startswith("."):
            continue
        if not info.isreg() or info.issparse():
            what = "a sparse file" if info.isreg() else "not a regular file (a link, folder or device)"
            raise DataError(f"{printable(info.name)} of {where} is {what}: pack the data as plain files")
        yield Member(shard, info.name, info.offset_data, info.size)


def _headers(file: LocalFile, where: str) -> Iterator[tarfile.TarInfo]:
    stream = _Headers(file)
    position = -1
    try:
        with telling_of_data():
            packed = COMPRESSED.get(file.read(0, min(file.size, 2)))
            if packed is not None:
                raise DataError(
                    f"{where} is compressed by {packed}: unpack it, as images are compressed already"
                )
            tar = tarfile.TarFile(fileobj=stream)
            while (info := tar.next()) is not None:
                if info.offset <= position or info.size < 0:
                    raise tarfile.ReadError("a header has a negative size")
                if info.offset_data + info.size > file.size:
                    raise tarfile.ReadError(f"member {printable(info.name)} reaches beyond its end")
                position = info.offset
                said = cast(dict[str, str], tar.pax_headers)
                _refuse_for_all(said, where)
                yield info
                # They would grow with the file.
                tar.members.clear()  # type: ignore[attr-defined]
                said.clear()
                stream.allowed = MAX_HEADER
            # tarfile takes damaged headers for the end.
            if file.size < tar.offset + BLOCK or file.read(tar.offset, BLOCK) != bytes(BLOCK):
                raise tarfile.ReadError(f"there is no header at byte {tar.offset}")
    except (tarfile.TarError, EOFError, LookupError, OverflowError, RecursionError, ValueError) as error:
        raise DataError(f"{where} is truncated, damaged or no tar file: {error}") from error


def _refuse_for_all(said: Mapping[str, str], where: str) -> None:
    """Refuse a global header that says of all members what they are called, or where they end."""
    found = [name for name in said if name in DECISIVE or name.startswith(SPARSE)]
    if found:
        raise DataError(
            f"{where} has a {printable(found[0])} for all its members: pack the data as plain files"
        )


class _Headers(io.RawIOBase):
    """A file as tarfile wants it, which may read no more than a bounded amount between two members."""

    def __init__(self, file: LocalFile) -> None:
        self.allowed = MAX_HEADER
        self._file = file
        self._position = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence != os.SEEK_SET:
            raise io.UnsupportedOperation("only positions from the beginning are known")
        self._position = offset
        return offset

    def tell(self) -> int:
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        rest = max(self._file.size - self._position, 0)
        count = rest if size is None or size < 0 else min(size, rest)
        self.allowed -= count
        if self.allowed < 0:
            raise tarfile.ReadError(f"a member's headers have more than {MAX_HEADER:,} bytes")
        data = self._file.read(self._position, count)
        self._position += count
        return data
