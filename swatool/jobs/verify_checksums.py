"""Comparing an output with the checksums published with it, and with those that torch files hold."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass

from swatool.checkpoints.files import LocalFile, LocalFolder, is_link_outside
from swatool.checkpoints.opening import Checkpoint
from swatool.checkpoints.record_checks import has_records
from swatool.errors import CheckpointError, printable
from swatool.jobs.hashing import UnopenedFile, hash_files, holds_zip_files
from swatool.output.checksums import MOST_BYTES, SUFFIX, SUMS, parse_checksums

__all__ = ["CheckedFiles", "Checksums", "check_files", "find_checksums"]

SHOWN = 20


@dataclass(frozen=True)
class Checksums:
    """The checksum file of an output.

    Attributes:
        path: of it; empty if there is none.
        digests: SHA-256 by the names of the output's files.
        files: those files, open; those that the checkpoint does without are not.
        missing: names of files that are not there.
        leading_out: names of links to what lies outside of the folder, which are not followed.
        unlisted: names of files of the checkpoint that it does not list.
        others: names of other files in the folder that it does not list.
    """

    path: str = ""
    digests: Mapping[str, str] | None = None
    files: tuple[LocalFile | UnopenedFile, ...] = ()
    missing: tuple[str, ...] = ()
    leading_out: tuple[str, ...] = ()
    unlisted: tuple[str, ...] = ()
    others: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes that are read to compare them."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True)
class CheckedFiles:
    """What came of it.

    Attributes:
        records: how many records of torch files match their CRC-32.
        failures: a sentence for each file that does not match.
    """

    records: int
    failures: tuple[str, ...]


def find_checksums(opened: Checkpoint) -> Checksums:
    """Return the checksums beside an output, or in its folder; of a file, also those of the folder it is in.

    Raises:
        CheckpointError: what should hold them holds none, or lists what is no regular file.
    """
    folder = opened.path
    if not os.path.isdir(folder):
        return _beside(opened)
    names = set(LocalFolder(folder, opened.files).names)
    if SUMS not in names:
        return Checksums(files=_with_records(opened))
    digests = _read(os.path.join(folder, SUMS))
    own = {os.path.basename(file.path): file for file in opened.files.opened}
    there = [name for name in digests if name in names]
    leading_out = {name: None for name in there if name not in own and is_link_outside(folder, name)}
    followed = [name for name in there if name not in leading_out]
    files = [own.get(name) or _unopened(os.path.join(folder, name)) for name in followed]
    return Checksums(
        os.path.join(folder, SUMS),
        digests,
        tuple(files),
        missing=tuple(name for name in digests if name not in names),
        leading_out=tuple(leading_out),
        unlisted=tuple(name for name in own if name not in digests),
        others=tuple(sorted(names - {*digests, *own, SUMS})),
    )


def _unopened(path: str) -> UnopenedFile:
    """Look at a file that is read later; CheckpointError if it cannot be."""
    with closing(LocalFile(path)) as file:
        return UnopenedFile(path, file.size)


def _beside(opened: Checkpoint) -> Checksums:
    path, name = opened.path + SUFFIX, os.path.basename(opened.path)
    if not os.path.lexists(path):
        return _among(opened)
    digests = _read(path)
    if name not in digests:
        raise CheckpointError(f"{printable(path)} holds no checksum of {printable(name)}: write it again")
    return Checksums(path, {name: digests[name]}, opened.files.opened)


def _among(opened: Checkpoint) -> Checksums:
    """Return the checksums of a file that lies in a folder with a list of them; others in it do not count."""
    folder, name = os.path.split(opened.path)
    path = os.path.join(folder, SUMS)
    digests = _read(path) if os.path.lexists(path) else {}
    if name not in digests:
        return Checksums(files=_with_records(opened))
    own = {os.path.basename(file.path): file for file in opened.files.opened}
    return Checksums(
        path,
        {name: digests[name] for name in own if name in digests},
        tuple(file for name, file in own.items() if name in digests),
        unlisted=tuple(name for name in own if name not in digests),
    )


def _with_records(opened: Checkpoint) -> tuple[LocalFile, ...]:
    if not holds_zip_files(opened):
        return ()
    return tuple(file for file in opened.files.opened if has_records(file))


def _read(path: str) -> dict[str, str]:
    with closing(LocalFile(path)) as file:
        digests = parse_checksums(file.read(0, file.size)) if file.size <= MOST_BYTES else None
    if digests is None:
        raise CheckpointError(f"{printable(path)} is no list of checksums as sha256sum writes it")
    return digests


def check_files(
    opened: Checkpoint,
    checksums: Checksums,
    threads: int,
    progress: Callable[[int], None] | None = None,
) -> CheckedFiles:
    """Read the files of an output, and compare them with their checksums.

    Raises:
        CheckpointError: a file cannot be read, or a record does not match the CRC-32 that it holds.
    """
    checked = holds_zip_files(opened)
    hashed = hash_files([(file, checked) for file in checksums.files], threads, progress)
    for file in checksums.files:
        if isinstance(file, LocalFile):
            file.check_unchanged()
    where, expected = printable(checksums.path), checksums.digests
    failures = [f"{printable(name)}, which {where} lists, is not there" for name in checksums.missing]
    failures += [
        f"{printable(name)}, which {where} lists, is a link that leads out of the folder: it is not followed"
        for name in checksums.leading_out
    ]
    failures += [f"{printable(name)} is not listed in {where}" for name in checksums.unlisted]
    if expected is not None:
        failures += [
            f"{printable(one.name)} does not have the SHA-256 that {where} records"
            for one in hashed
            if one.sha256 != expected[one.name]
        ]
    return CheckedFiles(sum(one.records for one in hashed), _few(failures))


def _few(failures: list[str]) -> tuple[str, ...]:
    """Return the first of them: a list may name any number of files that are not there."""
    more = len(failures) - SHOWN
    return tuple(failures) if more <= 0 else (*failures[:SHOWN], f"and {more:,} more")
