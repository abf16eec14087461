"""What the report tells beyond the manifest: timings and examples, which are not part of what a corpus is.

Everything may be left out; a section without its facts is not on the page. Texts are shortened and escaped by the page.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.progress import SlowUnit


@dataclass(frozen=True)
class StageFacts:
    """What a stage cost."""

    stage: str
    seconds: float
    """Of processor time, of all workers together, those of earlier runs among them."""
    wall: float | None = None
    """Seconds from the stage's begin to its end in this run."""
    bytes: int | None = None
    """That its units read."""
    units: int | None = None
    slowest: Sequence[SlowUnit] = ()


@dataclass(frozen=True)
class Example:
    """A document that was kept, or dropped for a reason."""

    source: str
    document: str
    text: str
    """As much of its start as is there to show."""
    reason: str | None = None
    """None for a kept one."""


@dataclass(frozen=True)
class DuplicatePair:
    """A dropped document, and the one that was kept in its place."""

    kept: str
    dropped: str
    similarity: float | None = None
    """From 0 to 1, as it was estimated; None for texts that are equal."""
    kept_text: str = ""
    dropped_text: str = ""


@dataclass(frozen=True)
class LostDocument:
    """One document in quarantine: where it is in its input, and what is wrong there."""

    source: str
    reason: str
    position: str
    detail: str = ""


@dataclass(frozen=True)
class PackedSplit:
    """How the documents of a split lie in its sequences."""

    pieces: int | None = None
    """Entries of the shards' piece columns."""
    documents_cut: int | None = None
    """Documents of more than one piece."""
    documents_cut_needlessly: int | None = None
    """Those of them that one sequence would hold."""


@dataclass(frozen=True)
class BuildFacts:
    """Everything that a build may tell its report."""

    stages: Sequence[StageFacts] = ()
    """In the order in which they ran."""
    examples: Sequence[Example] = ()
    duplicates: Sequence[DuplicatePair] = ()
    lost: Sequence[LostDocument] = ()
    """The first ones of each reason."""
    lengths_before: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """By source: as the manifest's `length_histogram`, but of all documents that were tokenised."""
    packed: Mapping[str, PackedSplit] = field(default_factory=dict)
    """By split."""
