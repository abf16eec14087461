"""The manifest of a corpus: its form, and whether its numbers agree with each other.

Keys that are not named here are allowed: they describe the corpus, but nothing can be checked against them.
"""

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.shards import FORMAT_VERSION, MANIFEST
from pipeline.verify.problems import Problems

CONCATENATE, BEST_FIT = "concatenate", "best_fit"

Count = Annotated[int, Field(ge=0)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True, strict=True)


class ShardEntry(_Entry):
    path: Annotated[str, Field(pattern=r"^\w[\w.-]*/\w[\w.-]*\.arrow$")]
    sha256: Digest
    bytes: Count
    sequences: Annotated[int, Field(ge=1)]


class SplitEntry(_Entry):
    sequences: Count
    tokens: Count
    shards: list[ShardEntry]


class Tally(_Entry):
    documents: Count
    tokens: Count


class Dropped(_Entry):
    documents: Count


class SpecialIds(_Entry):
    bos: Count
    pad: Count
    eos: Count
    unk: Count
    mask: Count


class TokenizerEntry(_Entry):
    fingerprint: str
    vocabulary_size: Annotated[int, Field(ge=1)]
    special_ids: SpecialIds


class SourceEntry(_Entry):
    name: Annotated[str, Field(pattern=r"^[\w.-]+$")]
    read: Count
    quarantined: dict[str, Count]
    dropped: dict[str, Dropped]
    kept: Tally
    splits: dict[str, Tally]
    length_histogram: list[Count]


class Manifest(_Entry):
    """What a manifest.json must hold."""

    version: int
    fingerprint: Digest
    sequence_length: Annotated[int, Field(ge=3)]
    packing: Literal["concatenate", "best_fit"] = "concatenate"
    tokenizer: TokenizerEntry
    splits: dict[str, SplitEntry]
    sources: list[SourceEntry]
    inputs: list[Mapping[str, Any]]
    config: Mapping[str, Any]
    versions: Mapping[str, str]


def read_form(content: bytes, problems: Problems) -> Manifest | None:
    """The manifest of these bytes, None (and the problems) where it has not the form of one."""
    try:
        data = json.loads(content)
    except ValueError as error:
        problems.add(MANIFEST, f"not readable as JSON: {error}")
        return None
    version = data.get("version") if isinstance(data, dict) else None
    if version != FORMAT_VERSION:
        problems.add(MANIFEST, f"format version {version}, expected {FORMAT_VERSION}")
        return None
    try:
        return Manifest.model_validate(data)
    except ValidationError as error:
        for details in error.errors():
            key = ".".join(str(part) for part in details["loc"])
            problems.add(MANIFEST, f"{key}: {details['msg']}; found {str(details['input'])[:100]!r}")
        return None


def check_counts(manifest: Manifest, problems: Problems) -> None:
    """Conservation: nothing that was read is missing, nothing is counted that was not read."""
    for name, split in manifest.splits.items():
        expect = _Expected(problems, f"splits.{name}")
        expect("sequences", split.sequences, sum(shard.sequences for shard in split.shards))
        expect("tokens", split.tokens, sum(_tally(s, name).tokens for s in manifest.sources))
        paths = [shard.path for shard in split.shards]
        expect("shards, different", len(set(paths)), len(paths))
        for path in paths:
            if not re.match(rf"{re.escape(name)}/", path):
                problems.add(MANIFEST, f"splits.{name}.shards: {path} lies in another split's folder")
    names = [source.name for source in manifest.sources]
    _Expected(problems, "sources")("names, different", len(set(names)), len(names))
    for source in manifest.sources:
        expect = _Expected(problems, f"sources.{source.name}")
        lost = sum(source.quarantined.values()) + sum(tally.documents for tally in source.dropped.values())
        expect("read, as kept + dropped + quarantined", source.read, source.kept.documents + lost)
        for key in ("documents", "tokens"):
            total = sum(getattr(tally, key) for tally in source.splits.values())
            expect(f"kept.{key}, as the splits' sum", getattr(source.kept, key), total)
        expect("length_histogram, its sum", sum(source.length_histogram), source.kept.documents)
        for unknown in sorted(source.splits.keys() - manifest.splits.keys()):
            problems.add(MANIFEST, f"sources.{source.name}.splits: there is no split {unknown!r}")


def _tally(source: SourceEntry, split: str) -> Tally:
    return source.splits.get(split) or Tally(documents=0, tokens=0)


class _Expected:
    def __init__(self, problems: Problems, key: str) -> None:
        self._problems, self._key = problems, key

    def __call__(self, what: str, found: int, expected: int) -> None:
        self._problems.differ(MANIFEST, f"{self._key}.{what}", found, expected)
