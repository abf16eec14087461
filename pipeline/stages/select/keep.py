"""The units of select that cut sources to their budgets and write the keep-lists."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from pipeline.decisions import content_id, threshold
from pipeline.stages.encode import length_histogram
from pipeline.stages.select.ranges import Documents, Losers, Range, RangeUnit, gather, open_table
from pipeline.storage import Stores
from pipeline.units import VERSIONS, PublishedFile, Record

OVER_BUDGET = "over_budget"
SPLITS = ("train", "validation")

BUDGET_BITS = 20
"""A budget is cut at one of 2**20 places of the hash that ranks its documents: to a millionth of the source."""

KEEP_SCHEMA = pa.schema(
    [
        pa.field("file", pa.int32()),  # the number of the tokens file in the catalogue
        pa.field("row", pa.int32()),  # its row in it
        pa.field("tokens", pa.int64()),  # its length, without the `</s>` that follows it
        pa.field("start", pa.int64()),  # its first token's place in the stream of this list
    ]
)


@dataclass(frozen=True)
class BudgetUnit(RangeUnit):
    """How many tokens the sources with a budget have, by the hash that ranks their documents."""

    stage: ClassVar[str] = "budget"
    losers: tuple[PublishedFile, ...]
    sources: tuple[int, ...]
    """Those with a budget."""

    @property
    def id(self) -> str:
        return content_id(self.stage, 1, VERSIONS, self.catalogue, self.within, self.losers, self.sources)

    def run(self, stores: Stores) -> Record:
        losers = Losers(self.losers, stores.work)
        documents = gather(self.catalogue, stores.work, ("budget", "tokens"), self.within, "order", losers)
        columns = {}
        for source in self.sources:
            own = documents.source == source
            place = documents["budget"][own] >> np.uint64(64 - BUDGET_BITS)
            counts = np.zeros(1 << BUDGET_BITS, dtype=np.int64)
            np.add.at(counts, place.astype(np.int64), documents["tokens"][own].astype(np.int64))
            columns[str(source)] = pa.array(counts)
        name = f"{self.stage}/{self.id}.arrow"
        batch = pa.record_batch(list(columns.values()), names=list(columns))
        return Record([PublishedFile.of("work", name, stores.work.publish_arrow(name, batch))])


def budget_limits(
    counted: Sequence[PublishedFile], budgets: dict[int, int], stores: Stores
) -> dict[int, int]:
    """For each source with a budget, the hash below which its documents are kept: the highest one with which they
    do not pass the budget."""
    limits = {}
    for source, budget in budgets.items():
        tokens = np.zeros(1 << BUDGET_BITS, dtype=np.int64)
        for file in counted:
            tokens += open_table(stores.work, file).column(str(source)).to_numpy()
        kept = int(np.searchsorted(np.cumsum(tokens), budget, side="right"))
        limits[source] = kept << (64 - BUDGET_BITS)
    return limits


@dataclass(frozen=True)
class KeepUnit(RangeUnit):
    """The keep-lists of a range of the order hash, one a split: its documents in that order, with where their tokens
    lie and where each starts in the stream of the list. A pack unit finds its part by searching `start`."""

    stage: ClassVar[str] = "keep"
    losers: tuple[PublishedFile, ...]
    limits: tuple[tuple[int, int], ...]
    """(source, hash): its documents whose hash for the budget is not below are over budget."""
    sources: tuple[str, ...]
    validation_fraction: Fraction
    train: int | None = None
    validation: int | None = None
    """Hashes (for the split) of documents that go to a split whatever the fraction, so that none is empty."""

    @property
    def id(self) -> str:
        how = (self.limits, self.sources, self.validation_fraction, self.train, self.validation)
        return content_id(self.stage, 1, VERSIONS, self.catalogue, self.within, self.losers, how)

    def run(self, stores: Stores) -> Record:
        columns = ("order", "budget", "split", "tokens")
        losers = Losers(self.losers, stores.work)
        documents = gather(self.catalogue, stores.work, columns, self.within, "order", losers)
        over = np.zeros(len(documents), dtype=bool)
        for source, limit in self.limits:
            over |= (documents.source == source) & ~Range(0, limit).holds(documents["budget"])
        held_out = self._held_out(documents["split"])
        parts = {"train": np.flatnonzero(~over & ~held_out), "validation": np.flatnonzero(~over & held_out)}
        files, streams = [], {}
        for split, rows in parts.items():
            name = f"{self.stage}/{self.id}.{split}.arrow"
            batch = _keep_list(documents, rows)
            files.append(PublishedFile.of("work", name, stores.work.publish_arrow(name, batch)))
            streams[split] = int(documents["tokens"][rows].sum()) + len(rows)
        kept = documents["split"][~over]
        facts = {
            "streams": streams,
            "sources": {
                source: _counts(documents, number, over, parts) for number, source in enumerate(self.sources)
            },
            # The hashes that would be the first to change the split, to fill one that is empty.
            "least": int(kept.min()) if len(kept) else None,
            "greatest": int(kept.max()) if len(kept) else None,
        }
        return Record(files, facts)

    def _held_out(self, split: np.ndarray) -> np.ndarray:
        """(documents,) bool: which go to validation."""
        limit = threshold(self.validation_fraction)
        held_out = Range(0, limit).holds(split)
        if self.validation is not None:
            held_out |= split == np.uint64(self.validation)
        if self.train is not None:
            held_out &= split != np.uint64(self.train)
        return held_out


def _keep_list(documents: Documents, rows: np.ndarray) -> pa.RecordBatch:
    ranked = rows[np.lexsort((documents.number[rows], documents["order"][rows]))]
    tokens = documents["tokens"][ranked].astype(np.int64)
    start = np.cumsum(tokens + 1) - (tokens + 1)  # each is followed by its </s>
    numbers = documents.number[ranked]
    columns = [numbers >> 32, numbers & 0xFFFFFFFF, tokens, start]
    arrays = [pa.array(column.astype(f.type.to_pandas_dtype())) for column, f in zip(columns, KEEP_SCHEMA)]
    return pa.record_batch(arrays, schema=KEEP_SCHEMA)


def _counts(
    documents: Documents, source: int, over: np.ndarray, parts: dict[str, np.ndarray]
) -> dict[str, Any]:
    """Of one source: what was over budget, what each split got, and how long the kept ones are."""
    own = documents.source == source
    return {
        "over_budget": _tally(documents, np.flatnonzero(own & over)),
        "splits": {split: _tally(documents, rows[own[rows]]) for split, rows in parts.items()},
        "length_histogram": length_histogram(documents["tokens"][own & ~over]),
    }


def _tally(documents: Documents, rows: np.ndarray) -> dict[str, int]:
    return {"documents": len(rows), "tokens": int(documents["tokens"][rows].sum())}
