"""select: every decision that looks at more than one document, from the tables alone.

In this order, each on what the former left: of documents with one id, of documents with one text, and of documents
with nearly one text, one stays; a source with a budget is cut to it; each of the others goes to train or validation,
at its place in the stream. The result is a *keep-list* for each range of the order hash and each split.

No unit looks at all documents. One of `ids`, `budget` and `keep` has a range of the order hash, one of `texts` a range
of the text hash, one of `near` a range of the keys of one band; so a unit's memory is bounded by `ranges.DOCUMENTS`
but for what they have in common: who has lost so far, in sealed lists, 8 bytes each. `join` alone, which finds the
groups of near-duplicates, holds all pairs of them in memory.
"""

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

from pipeline.config import Config
from pipeline.stages.run import Stages
from pipeline.stages.select.catalogue import Catalogue
from pipeline.stages.select.duplicates import (
    DUPLICATE_ID,
    DUPLICATE_TEXT,
    NEAR_DUPLICATE,
    IdsUnit,
    JoinUnit,
    NearUnit,
    TextsUnit,
)
from pipeline.stages.select.keep import OVER_BUDGET, SPLITS, BudgetUnit, KeepUnit, budget_limits
from pipeline.stages.select.ranges import Range, ranges_for
from pipeline.units import PublishedFile, Record


@dataclass(frozen=True)
class KeepList:
    """A published keep-list, and where in the stream of its split it starts and ends."""

    file: PublishedFile
    start: int
    end: int


@dataclass(frozen=True)
class Selection:
    """Which documents a corpus has, and where."""

    keep_lists: dict[str, tuple[KeepList, ...]]
    """For each split, in the order of the stream."""
    sources: dict[str, dict[str, Any]]
    """For each source: what was dropped by reason, what each split got, how long the kept ones are."""

    @property
    def documents(self) -> int:
        """How many there are."""
        return sum(split["documents"] for own in self.sources.values() for split in own["splits"].values())


def select(stages: Stages, catalogue: Catalogue, config: Config) -> Selection:
    """Runs the stages of select over what the catalogue lists."""
    sources = tuple(source.name for source in config.sources)
    within = ranges_for(catalogue.documents)
    dropped: dict[str, Counter[tuple[str, str]]] = {}  # by reason: (source, documents or tokens) → how many

    def losers(reason: str, stage: str) -> tuple[PublishedFile, ...]:
        records = list(stages.ledger.records(stage))
        counts = dropped[reason] = Counter()
        for record in records:
            for number, tally in record.facts["dropped"].items():
                counts.update({(sources[int(number)], what): count for what, count in tally.items()})
        return tuple(file for record in records for file in record.files)

    stages.run("ids", (IdsUnit(catalogue, part) for part in within), len(within))
    lost = losers(DUPLICATE_ID, "ids")
    stages.run("texts", (TextsUnit(catalogue, part, lost) for part in within), len(within))
    lost += losers(DUPLICATE_TEXT, "texts")
    if config.deduplicate.near is not None:
        settings = config.deduplicate.near
        near = (
            NearUnit(catalogue, p, band, lost, settings) for band in range(settings.bands) for p in within
        )
        stages.run("near", near, settings.bands * len(within))
        pairs = tuple(file for record in stages.ledger.records("near") for file in record.files)
        stages.run("join", [JoinUnit(catalogue, pairs)], 1)
        lost += losers(NEAR_DUPLICATE, "join")

    budgets = {number: s.budget for number, s in enumerate(config.sources) if s.budget is not None}
    limits: dict[int, int] = {}
    if budgets:
        counting = (BudgetUnit(catalogue, part, lost, tuple(budgets)) for part in within)
        stages.run("budget", counting, len(within))
        counted = [file for record in stages.ledger.records("budget") for file in record.files]
        limits = budget_limits(counted, budgets, stages.stores)
    keep = KeepUnit(catalogue, within[0], lost, tuple(limits.items()), sources, config.validation_fraction)
    kept = _keep(stages, keep, within)
    forced = _without_empty_split(keep, kept)
    if forced is not None:
        kept = _keep(stages, forced, within, again=True)
    return Selection(_keep_lists(kept), _by_source(sources, kept, dropped))


def _keep(stages: Stages, unit: KeepUnit, within: list[Range], again: bool = False) -> list[Record]:
    stage = "keep-again" if again else "keep"
    stages.run(stage, (replace(unit, within=part) for part in within), len(within))
    return list(stages.ledger.records(stage))


def _without_empty_split(unit: KeepUnit, kept: list[Record]) -> KeepUnit | None:
    """`unit` with a document sent to the split that would else be empty, None where both have one: of a small
    corpus the least hash goes to validation, and the greatest stays in train."""
    documents = {
        split: sum(
            s["splits"][split]["documents"] for record in kept for s in record.facts["sources"].values()
        )
        for split in SPLITS
    }
    hashes = [record.facts[end] for record in kept for end in ("least", "greatest")]
    hashes = [value for value in hashes if value is not None]
    if sum(documents.values()) >= 2 and unit.validation_fraction and min(hashes) < max(hashes):
        if not documents["validation"]:
            return replace(unit, validation=min(hashes))
        if not documents["train"]:
            return replace(unit, train=max(hashes))
    elif not documents["train"] and documents["validation"]:  # nothing to train on else
        return replace(unit, train=max(hashes))
    return None


def _keep_lists(kept: list[Record]) -> dict[str, tuple[KeepList, ...]]:
    lists: dict[str, tuple[KeepList, ...]] = {}
    for place, split in enumerate(SPLITS):
        lists[split] = ()
        end = 0
        for record in kept:
            start, end = end, end + record.facts["streams"][split]
            lists[split] += (KeepList(record.files[place], start, end),)
    return lists


def _by_source(
    sources: tuple[str, ...], kept: list[Record], dropped: dict[str, Counter[tuple[str, str]]]
) -> dict[str, dict[str, Any]]:
    found = {}
    for source in sources:
        own = [record.facts["sources"][source] for record in kept]
        reasons = {
            reason: {what: counts[source, what] for what in ("documents", "tokens")}
            for reason, counts in dropped.items()
        }
        reasons[OVER_BUDGET] = _added([facts["over_budget"] for facts in own])
        histogram: Counter[int] = Counter()
        for facts in own:
            histogram.update(dict(enumerate(facts["length_histogram"])))
        found[source] = {
            "dropped": {reason: tally for reason, tally in reasons.items() if tally["documents"]},
            "splits": {split: _added([facts["splits"][split] for facts in own]) for split in SPLITS},
            "length_histogram": [histogram[i] for i in range(max(histogram, default=-1) + 1)],
        }
    return found


def _added(tallies: list[dict[str, int]]) -> dict[str, int]:
    return {what: sum(tally[what] for tally in tallies) for what in ("documents", "tokens")}
