"""The units of select that find documents of which there is another: by id, by text, by near-duplicate."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa

from pipeline.decisions import content_id
from pipeline.deduplicate import NearDuplicates, components, shared, similar_pairs, survivors
from pipeline.stages.select.catalogue import Catalogue, read_catalogue
from pipeline.stages.select.ranges import (
    Documents,
    Losers,
    RangeUnit,
    entries_with_rows,
    gather,
    open_table,
    publish_losers,
)
from pipeline.stages.tokens import TokensFile
from pipeline.storage import Storage, Stores
from pipeline.units import VERSIONS, PublishedFile, Record

DUPLICATE_ID = "duplicate_id"
DUPLICATE_TEXT = "duplicate_text"
NEAR_DUPLICATE = "near_duplicate"

EXAMPLES = 3
"""Pairs of duplicates that a unit's notes name."""

PAIRS_SCHEMA = pa.schema([pa.field("first", pa.int64()), pa.field("second", pa.int64())])


@dataclass(frozen=True)
class IdsUnit(RangeUnit):
    """Of the documents with one id, those but the first. The order hash stands for the id: that two ids share it
    is a chance of one in 100,000 for a corpus of 15 million documents."""

    stage: ClassVar[str] = "ids"

    @property
    def id(self) -> str:
        return content_id(self.stage, 1, VERSIONS, self.catalogue, self.within)

    def run(self, stores: Stores) -> Record:
        columns = ("order", "text_high", "text_low", "tokens")
        documents = gather(
            self.catalogue, stores.work, columns, self.within, "order", Losers((), stores.work)
        )
        # Which of them comes first must not depend on chunks: its text decides.
        keys = (documents.number, documents["text_low"], documents["text_high"], documents["order"])
        pairs = _all_but_the_first(keys, same=(documents["order"],))
        return _dropped(self, documents, pairs, stores, self.catalogue)


@dataclass(frozen=True)
class TextsUnit(RangeUnit):
    """Of the documents with one normalised text, in a range of that text's hash (its high half), those but the one of
    the first source, and in a source the first in order."""

    stage: ClassVar[str] = "texts"
    losers: tuple[PublishedFile, ...]

    @property
    def id(self) -> str:
        return content_id(self.stage, 1, VERSIONS, self.catalogue, self.within, self.losers)

    def run(self, stores: Stores) -> Record:
        columns = ("order", "text_high", "text_low", "tokens")
        losers = Losers(self.losers, stores.work)
        documents = gather(self.catalogue, stores.work, columns, self.within, "text_high", losers)
        texts = (documents["text_high"], documents["text_low"])
        keys = (documents["order"], documents.source, texts[1], texts[0])
        return _dropped(self, documents, _all_but_the_first(keys, same=texts), stores, self.catalogue)


@dataclass(frozen=True)
class NearUnit(RangeUnit):
    """Pairs of near-duplicates among the documents whose key of one band lies in a range."""

    stage: ClassVar[str] = "near"
    band: int
    losers: tuple[PublishedFile, ...]
    settings: NearDuplicates

    @property
    def id(self) -> str:
        how = (self.band, self.losers, self.settings.model_dump())
        return content_id(self.stage, 2, VERSIONS, self.catalogue, self.within, how)

    @property
    def about(self) -> str:
        return f"band {self.band}, {self.within}"

    def run(self, stores: Stores) -> Record:
        keys, numbers = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
        unused = np.uint64(
            64 - self.settings.bits * self.settings.rows
        )  # high bits of a key: ranges are of 64
        losers = Losers(self.losers, stores.work)
        for entry in read_catalogue(self.catalogue, stores.work):
            assert entry.signs is not None
            own = open_table(stores.work, entry.signs).column(band_column(self.band)).to_numpy()
            # 0 is the key of all documents that are compared with none, and they may be most.
            rows = np.flatnonzero(self.within.holds(own << unused) & (own != 0) & losers.left(entry))
            keys.append(own[rows])
            numbers.append(rows + (entry.number << 32))
        candidates = np.concatenate(numbers)[shared(np.concatenate(keys))]
        signatures = np.zeros((len(candidates), self.settings.bands), dtype=np.uint64)
        source, texts = _precedence(self.catalogue, stores.work, candidates)
        for entry, rows, place in entries_with_rows(self.catalogue, stores.work, candidates):
            assert entry.signs is not None
            signs = open_table(stores.work, entry.signs)
            for band in range(self.settings.bands):
                signatures[place, band] = signs.column(band_column(band)).to_numpy()[rows]
        pairs = candidates[similar_pairs(signatures, self.band, (source, *texts), self.settings)]
        columns = [pa.array(pairs[:, side], pa.int64()) for side in (0, 1)]
        name = f"{self.stage}/{self.id}.arrow"
        batch = pa.record_batch(columns, schema=PAIRS_SCHEMA)
        written = stores.work.publish_arrow(name, batch)
        return Record([PublishedFile.of("work", name, written)], {"pairs": len(pairs)})


@dataclass(frozen=True)
class JoinUnit:
    """Joins the pairs of all bands to groups; of each group the least document, by source and text hash, stays.
    The one unit that holds all pairs of a corpus in memory, 16 bytes each and some copies of that."""

    stage: ClassVar[str] = "join"
    catalogue: Catalogue
    pairs: tuple[PublishedFile, ...]

    @property
    def id(self) -> str:
        return content_id(self.stage, 1, VERSIONS, self.catalogue, self.pairs)

    @property
    def size(self) -> int:
        return sum(file.bytes for file in self.pairs)

    @property
    def about(self) -> str:
        return f"{len(self.pairs):,} lists of pairs"

    def run(self, stores: Stores) -> Record:
        found = [np.zeros((0, 2), np.int64)]
        for file in self.pairs:
            batch = open_table(stores.work, file)
            found.append(np.stack([batch.column(side).to_numpy() for side in ("first", "second")], axis=1))
        numbers, groups = components(np.concatenate(found))
        source, texts = _precedence(self.catalogue, stores.work, numbers)
        stays = survivors(groups, (source, *texts))
        tokens = np.zeros(len(numbers), dtype=np.int64)
        for entry, rows, place in entries_with_rows(self.catalogue, stores.work, numbers):
            tokens[place] = open_table(stores.work, entry.table).column("tokens").to_numpy()[rows]
        documents = Documents(numbers, source, {"tokens": tokens})
        survivor = np.flatnonzero(stays)
        of_group = dict(zip(groups[survivor].tolist(), survivor.tolist(), strict=True))
        losers = np.flatnonzero(~stays)
        first = np.array([of_group[group] for group in groups[losers].tolist()], dtype=np.int64)
        return _dropped(self, documents, np.stack([first, losers], axis=1), stores, self.catalogue)


def band_column(band: int) -> str:
    """The name of a band's column in the files that sign publishes."""
    return f"band_{band:03d}"


def _precedence(
    catalogue: Catalogue, work: Storage, numbers: np.ndarray
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """(source, (text hash high, low)) of documents in ascending order of their numbers."""
    source = np.zeros(len(numbers), dtype=np.int32)
    high, low = np.zeros(len(numbers), np.uint64), np.zeros(len(numbers), np.uint64)
    for entry, rows, place in entries_with_rows(catalogue, work, numbers):
        table = open_table(work, entry.table)
        source[place] = entry.source
        high[place] = table.column("text_high").to_numpy()[rows]
        low[place] = table.column("text_low").to_numpy()[rows]
    return source, (high, low)


def _all_but_the_first(keys: tuple[np.ndarray, ...], same: tuple[np.ndarray, ...]) -> np.ndarray:
    """(losers, 2) int64: for each document that is not the first of those that are the `same`, in the order of
    `keys` (the last counts most), the first one and itself."""
    ranked = np.lexsort(keys)
    repeats = np.zeros(len(ranked), dtype=bool)
    repeats[1:] = True
    for column in same:
        repeats[1:] &= column[ranked][1:] == column[ranked][:-1]
    first = np.maximum.accumulate(np.where(repeats, 0, np.arange(len(ranked))))
    return np.stack([ranked[first[repeats]], ranked[repeats]], axis=1)


def _dropped(
    unit: IdsUnit | TextsUnit | JoinUnit,
    documents: Documents,
    pairs: np.ndarray,
    stores: Stores,
    catalogue: Catalogue,
) -> Record:
    """The record of a unit that drops the second document of each pair."""
    losers = pairs[:, 1]
    tallies = {}
    for source in np.unique(documents.source[losers]).tolist():
        own = losers[documents.source[losers] == source]
        tallies[str(source)] = {"documents": len(own), "tokens": int(documents["tokens"][own].sum())}
    file = publish_losers(f"{unit.stage}/{unit.id}.arrow", documents.number[losers], stores.work)
    shown = pairs[np.argsort(documents.number[losers], kind="stable")[:EXAMPLES]]
    examples = list(_names(documents.number[shown].reshape(-1), stores.work, catalogue))
    return Record(
        [file], {"dropped": tallies}, {"pairs": list(zip(examples[::2], examples[1::2], strict=True))}
    )


def _names(numbers: np.ndarray, work: Storage, catalogue: Catalogue) -> Iterator[str]:
    """The ids of some few documents."""
    ascending = np.unique(numbers)
    names: dict[int, str] = {}
    for entry, rows, place in entries_with_rows(catalogue, work, ascending):
        file = TokensFile(work.open_arrow_ranged(entry.tokens.name, entry.tokens.sha256))
        for number, row in zip(ascending[place].tolist(), rows.tolist(), strict=True):
            [batch] = file.batches_of(row, row + 1)
            names[number] = batch.ids[row - batch.first].as_py()
    return (names[number] for number in numbers.tolist())
