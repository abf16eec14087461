"""What a build tells its report beyond the manifest, gathered from the notes of its records."""

import heapq
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.decisions import decision_hash
from pipeline.ledger import Ledger
from pipeline.report import BuildFacts, DuplicatePair, Example, LostDocument, PackedSplit
from pipeline.stages.pack import PACKING_FACTS
from pipeline.stages.run import Stages

EXAMPLES_SHOWN = 2
"""Documents of each source and fate."""
PAIRS_SHOWN = 5
"""Pairs of duplicates of each kind."""


def gather_facts(stages: Stages, lost: Sequence[LostDocument], manifest: Mapping[str, Any]) -> BuildFacts:
    """The facts of a build whose stages have run."""
    packed = {
        split: PackedSplit(*(entry[fact] for fact in PACKING_FACTS))
        for split, entry in manifest["splits"].items()
    }
    return BuildFacts(
        stages=stages.facts,
        examples=list(_examples(stages.ledger)),
        duplicates=list(_duplicates(stages.ledger)),
        lost=lost,
        lengths_before=_lengths(stages.ledger),
        packed=packed,
    )


def _examples(ledger: Ledger) -> Iterator[Example]:
    """Of each source and fate those with the least hash of all that the units have shown."""
    shown: dict[tuple[str, str], list[tuple[int, str, str]]] = {}
    for record in ledger.records("encode"):
        for fate, examples in record.notes.get("examples", {}).items():
            own = shown.setdefault((record.facts["source"], fate), [])
            own += [(decision_hash("example", 0, name), name, text) for name, text in examples]
            own[:] = heapq.nsmallest(EXAMPLES_SHOWN, own)
    for (source, fate), own in shown.items():
        for _, name, text in own:
            yield Example(source, name, text, None if fate == "kept" else fate)


def _duplicates(ledger: Ledger) -> Iterator[DuplicatePair]:
    for stage in ("ids", "texts", "join"):
        pairs = (pair for record in ledger.records(stage) for pair in record.notes.get("pairs", []))
        for (kept, dropped), _ in zip(pairs, range(PAIRS_SHOWN)):
            yield DuplicatePair(kept, dropped)


def _lengths(ledger: Ledger) -> dict[str, list[int]]:
    counts: dict[str, Counter[int]] = {}
    for record in ledger.records("encode"):
        lengths = dict(enumerate(record.notes.get("lengths", [])))
        counts.setdefault(record.facts["source"], Counter()).update(lengths)
    return {source: [own[i] for i in range(max(own, default=-1) + 1)] for source, own in counts.items()}
