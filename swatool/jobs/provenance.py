"""What an output says of where it comes from: written into it, and read again as a stranger's word.

No times and no paths, so that the same inputs give the same bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass, fields
from typing import Any, NamedTuple

from swatool.averaging.policies import Policies
from swatool.averaging.scheme import Scheme
from swatool.averaging.schemes import make_scheme
from swatool.checkpoints.files import last_name
from swatool.checkpoints.opening import Reading
from swatool.checkpoints.selection import DatedCheckpoint
from swatool.errors import CheckpointError, UsageError, printable
from swatool.jobs.running import METADATA_KEY
from swatool.version import __version__

__all__ = ["ClaimedSource", "Provenance", "provenance_text", "read_provenance"]

MOST_SOURCES = 10_000
MOST_NAMES = 1_000_000
MOST_PATTERNS = 1000  # each is compared with all names
MOST_BYTES = 2 << 20  # of the text: as objects, many times that
MOST_CHARACTERS = 10_000  # of all patterns together
LARGEST = 2**63
DIGEST = re.compile(r"[0-9a-f]{64}")
# The settings that decide what an average is, by the class that they belong to; how it is written shows.
DECIDING = (Reading, Policies)
INDIFFERENT = ("allow_nonfinite",)  # what is written is the same with it and without


def provenance_text(
    scheme: Scheme,
    parameters: Mapping[str, object],
    settings: object,
    sources: Sequence[tuple[DatedCheckpoint, float]],
    *,
    digests: Mapping[int, str],
    frozen: Sequence[str],
) -> str:
    """Return what an average says of itself, as JSON.

    Args:
        scheme: gave the coefficients.
        parameters: of the scheme.
        settings: what was chosen; what is not as it is by default is said.
        sources: the checkpoints and their coefficients, oldest first.
        digests: SHA-256 of sources, by the identity of the checkpoint.
        frozen: BatchNorm layers whose statistics are the same in all sources.
    """
    said: dict[str, object] = {"version": __version__, "method": scheme.name, "parameters": dict(parameters)}
    chosen = {
        one.name: getattr(settings, one.name)
        for one in _deciding()
        if getattr(settings, one.name) != one.default
    }
    if chosen:
        said["settings"] = chosen
    said["sources"] = [_source(dated, factor, digests) for dated, factor in sources]
    if frozen:
        said["frozen_statistics"] = frozen
    return json.dumps(said)


def _source(dated: DatedCheckpoint, coefficient: float, digests: Mapping[int, str]) -> dict[str, object]:
    checkpoint, step = dated
    found: dict[str, object] = {
        "name": last_name(checkpoint.path),
        "size": checkpoint.files.size,
        "step": step,
        "coefficient": coefficient,
    }
    if id(checkpoint) in digests:
        found["sha256"] = digests[id(checkpoint)]
    return found


def _deciding() -> list[Field[Any]]:
    return [one for cls in DECIDING for one in fields(cls) if one.name not in INDIFFERENT]


class ClaimedSource(NamedTuple):
    """A checkpoint that an output claims to be made of.

    Attributes:
        name: its name, without the folder.
        size: bytes of its files.
        step: its training step; None if none was known.
        coefficient: its factor.
        sha256: of the file, or of the lines about the files of a folder; None if it was not recorded.
    """

    name: str
    size: int
    step: int | None
    coefficient: float
    sha256: str | None


@dataclass(frozen=True)
class Provenance:
    """What an output claims, checked for its form only.

    Attributes:
        method: name of a scheme.
        parameters: of the scheme, of any JSON type.
        settings: what was chosen of reading and policies, as it is claimed.
        sources: oldest first.
        reading: how they were read.
        policies: what was done where there was a choice.
        recalibrated: BatchNorm layers whose statistics were recomputed afterwards; None: none were.
    """

    method: str
    parameters: Mapping[str, object]
    settings: Mapping[str, object]
    sources: tuple[ClaimedSource, ...]
    reading: Reading
    policies: Policies
    recalibrated: tuple[str, ...] | None

    def scheme(self) -> Scheme:
        """Return the scheme; UsageError if there is no such, or its parameters do not fit it."""
        return make_scheme(self.method, self.parameters)


def read_provenance(metadata: Mapping[str, str], path: str) -> Provenance | None:
    """Return what an output claims to be the average of; None if it claims nothing of the kind.

    Args:
        metadata: strings that its format keeps beside the tensors.
        path: the output, for messages.

    Raises:
        CheckpointError: what it says is not as swatool writes it.
    """
    text = metadata.get(METADATA_KEY)
    if text is None:
        return None
    reader = _Reader(path)
    said = reader.mapping(_parsed(reader, text), "what it says of itself")
    if "sources" not in said:
        return None
    listed = reader.items(said["sources"], "sources", most=MOST_SOURCES)
    if not listed:
        raise reader.refusal("it has no sources")
    recalibrated = said.get("recalibrated")
    layers = None if recalibrated is None else reader.mapping(recalibrated, "recalibrated").get("layers", [])
    settings = reader.mapping(said.get("settings", {}), "settings")
    return Provenance(
        method=reader.text(said.get("method"), "method"),
        parameters=reader.mapping(said.get("parameters"), "parameters"),
        settings=settings,
        sources=tuple(reader.source(one) for one in listed),
        **reader.settings(settings),  # type: ignore[arg-type]
        recalibrated=None if layers is None else reader.texts(layers, "layers", MOST_NAMES),
    )


def _parsed(reader: _Reader, text: str) -> object:
    if len(text) > MOST_BYTES:
        raise reader.refusal(f"it has {len(text):,} characters, of at most {MOST_BYTES:,}")
    try:
        found: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise reader.refusal("it is no JSON") from error
    return found


class _Reader:
    """Takes values of the types that they must have."""

    def __init__(self, path: str) -> None:
        self._path = path

    def refusal(self, why: str) -> CheckpointError:
        where = printable(self._path)
        return CheckpointError(f"{where} does not say where it comes from as swatool writes it: {why}")

    def mapping(self, value: object, what: str) -> Mapping[str, object]:
        if not isinstance(value, dict):
            raise self.refusal(f"{what} is no object")
        return value

    def items(self, value: object, what: str, most: int) -> Sequence[object]:
        if not isinstance(value, list) or len(value) > most:
            raise self.refusal(f"{what} is no list of at most {most:,}")
        return value

    def text(self, value: object, what: str) -> str:
        if not isinstance(value, str):
            raise self.refusal(f"{what} is no text")
        return value

    def texts(self, value: object, what: str, most: int) -> tuple[str, ...]:
        found = tuple(self.text(one, what) for one in self.items(value, what, most))
        if most == MOST_PATTERNS and sum(map(len, found)) > MOST_CHARACTERS:
            raise self.refusal(f"{what} has more than {MOST_CHARACTERS:,} characters")
        return found

    def whole(self, value: object, what: str, low: int) -> int:
        if type(value) is not int or not low <= value < LARGEST:
            raise self.refusal(f"{what} is no whole number")
        return value

    def source(self, value: object) -> ClaimedSource:
        said = self.mapping(value, "a source")
        step, factor, digest = said.get("step"), said.get("coefficient"), said.get("sha256")
        if type(factor) not in (int, float) or not -LARGEST < factor < LARGEST:  # type: ignore[operator]
            raise self.refusal("the coefficient of a source is no number")
        if digest is not None and not (isinstance(digest, str) and DIGEST.fullmatch(digest)):
            raise self.refusal("the sha256 of a source is none")
        return ClaimedSource(
            name=self.text(said.get("name"), "the name of a source"),
            size=self.whole(said.get("size"), "the size of a source", 0),
            step=None if step is None else self.whole(step, "the step of a source", -LARGEST),
            coefficient=float(factor),  # type: ignore[arg-type]
            sha256=digest,
        )

    def settings(self, said: Mapping[str, object]) -> dict[str, object]:
        """Return the settings that decide what an average is, as `reading` and `policies`."""
        known = {one.name: one.default for cls in DECIDING for one in fields(cls)}
        given: dict[str, object] = {}
        for name, value in said.items():
            if name not in known:
                raise self.refusal(f"it has a setting {printable(name)}, which this version does not know")
            default = known[name]
            if isinstance(default, tuple):
                given[name] = self.texts(value, f"the setting {name}", MOST_PATTERNS)
            elif type(value) is not (str if default is None else type(default)):
                raise self.refusal(f"the setting {name} is of another type")
            else:
                given[name] = value
        try:
            return {"reading": _made(Reading, given), "policies": _made(Policies, given)}
        except UsageError as error:
            raise self.refusal(str(error)) from error


def _made(cls: Callable[..., object], given: Mapping[str, object]) -> object:
    return cls(**{one.name: given[one.name] for one in fields(cls) if one.name in given})  # type: ignore[arg-type]
