"""select: every decision that looks at more than one document, from the tables alone.

In this order, each on what the former left: of documents with one id and of documents with one text, one
stays; a source with a budget is cut to it; each of the others goes to train or validation, at its place in the
stream. The result is one *keep-list* a split: its documents in the order of their hash, with where their tokens
lie and where each starts in the stream of the split. A pack unit finds its part by searching `start`.
"""

from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from pipeline.config import Config
from pipeline.decisions import HASH_VALUES, content_id, threshold
from pipeline.storage import Stores
from pipeline.units import VERSIONS, PublishedFile, Record

DUPLICATE_ID = "duplicate_id"
DUPLICATE_TEXT = "duplicate_text"
OVER_BUDGET = "over_budget"
SPLITS = ("train", "validation")

KEEP_SCHEMA = pa.schema(
    [
        pa.field(
            "file", pa.int32()
        ),  # the number of the tokens file, in the order of the select unit's tables
        pa.field("row", pa.int32()),  # its row in it
        pa.field("tokens", pa.int64()),  # its length, without the `</s>` that follows it
        pa.field("start", pa.int64()),  # its first token's place in the stream
    ]
)


@dataclass(frozen=True)
class Table:
    """A table that encode published, and the tokens file that goes with it."""

    table: PublishedFile
    tokens: PublishedFile
    source: str

    @classmethod
    def of(cls, record: Record) -> "Table":
        tokens, table = record.files
        return cls(table, tokens, record.facts["source"])


@dataclass(frozen=True)
class SelectUnit:
    """The whole corpus: one unit, whose memory grows by some 60 bytes a document."""

    stage: ClassVar[str] = "select"
    tables: tuple[Table, ...]
    """In the plan's order."""
    sources: tuple[str, ...]
    """By priority."""
    budgets: tuple[int | None, ...]
    validation_fraction: Fraction

    @classmethod
    def of(cls, encoded: list[Record], config: Config) -> "SelectUnit":
        return cls(
            tables=tuple(Table.of(record) for record in encoded),
            sources=tuple(source.name for source in config.sources),
            budgets=tuple(source.budget for source in config.sources),
            validation_fraction=config.validation_fraction,
        )

    @property
    def id(self) -> str:
        tables = [(table.tokens.sha256, table.table.sha256, table.table.name) for table in self.tables]
        how = (self.sources, self.budgets, self.validation_fraction)
        return content_id(self.stage, 1, VERSIONS, tables, how)

    @property
    def size(self) -> int:
        return len(self.tables)

    def run(self, stores: Stores) -> Record:
        documents = _Documents.read(stores, self)
        dropped = np.full(len(documents.order), "", dtype="U16")
        for reason, losers in (
            (DUPLICATE_ID, documents.repeated_ids),
            (DUPLICATE_TEXT, documents.repeated_texts),
            (OVER_BUDGET, lambda left: documents.over_budget(left, self.budgets)),
        ):
            dropped[losers(np.flatnonzero(dropped == ""))] = reason
        kept = np.flatnonzero(dropped == "")
        held_out = _held_out(documents.split[kept], documents.order[kept], self.validation_fraction)
        parts = dict(zip(SPLITS, (kept[~held_out], kept[held_out]), strict=True))
        files, streams = [], {}
        for split, rows in parts.items():
            name = f"{self.stage}/{self.id}.{split}.arrow"
            batch = documents.keep_list(rows)
            files.append(PublishedFile.of("work", name, stores.work.publish_arrow(name, batch)))
            streams[split] = int(documents.tokens[rows].sum()) + len(rows)
        facts = {"streams": streams, "sources": documents.counts(self.sources, dropped, parts)}
        return Record(files, facts)


@dataclass(frozen=True)
class _Documents:
    """All documents of all tables; each array has one entry a document."""

    source: np.ndarray  # its number, which is its priority
    file: np.ndarray
    row: np.ndarray
    order: np.ndarray
    budget: np.ndarray
    split: np.ndarray
    text_high: np.ndarray
    text_low: np.ndarray
    tokens: np.ndarray  # int64

    @classmethod
    def read(cls, stores: Stores, unit: SelectUnit) -> "_Documents":
        columns: dict[str, list[np.ndarray]] = {}
        for number, table in enumerate(unit.tables):
            batch = stores.work.open_arrow(table.table.name, table.table.sha256).get_batch(0)
            for name in batch.schema.names:
                columns.setdefault(name, []).append(batch.column(name).to_numpy())
            rows = np.arange(batch.num_rows, dtype=np.int32)
            columns.setdefault("row", []).append(rows)
            columns.setdefault("file", []).append(np.full_like(rows, number))
            columns.setdefault("source", []).append(np.full_like(rows, unit.sources.index(table.source)))
        arrays = {name: np.concatenate(parts) for name, parts in columns.items()}
        return cls(**{**arrays, "tokens": arrays["tokens"].astype(np.int64)})

    def repeated_ids(self, left: np.ndarray) -> np.ndarray:
        """All but one of the documents of each id. The order hash stands for the id: that two different ids
        share it is a one in 100,000 chance for a corpus of 15 million documents."""
        keys = (self.row, self.file, self.text_low, self.text_high, self.order)
        return self._all_but_the_first(left, keys, same=(self.order,))

    def repeated_texts(self, left: np.ndarray) -> np.ndarray:
        """All but one of the documents of each normalised text: the one of the first source, and in a source
        the first in order, is kept."""
        keys = (self.order, self.source, self.text_low, self.text_high)
        return self._all_but_the_first(left, keys, same=(self.text_low, self.text_high))

    def over_budget(self, left: np.ndarray, budgets: tuple[int | None, ...]) -> np.ndarray:
        """Of each source with a budget, in the order of the budget's hash: the first document that would pass
        it, and all after that."""
        losers = [np.zeros(0, np.int64)]
        for number, budget in enumerate(budgets):
            if budget is not None:
                own = left[self.source[left] == number]
                own = own[np.lexsort((self.order[own], self.budget[own]))]
                losers.append(own[np.cumsum(self.tokens[own]) > budget])
        return np.concatenate(losers)

    def _all_but_the_first(
        self, left: np.ndarray, keys: tuple[np.ndarray, ...], same: tuple[np.ndarray, ...]
    ) -> np.ndarray:
        # lexsort's last key is the one that counts most.
        ranked = left[np.lexsort(tuple(key[left] for key in keys))]
        repeats = np.ones(max(len(ranked) - 1, 0), dtype=bool)
        for column in same:
            repeats &= column[ranked][1:] == column[ranked][:-1]
        return ranked[1:][repeats]

    def keep_list(self, rows: np.ndarray) -> pa.RecordBatch:
        rows = rows[np.argsort(self.order[rows], kind="stable")]
        tokens = self.tokens[rows]
        start = np.cumsum(tokens + 1) - (tokens + 1)  # each is followed by its </s>
        columns = [self.file[rows], self.row[rows], tokens, start]
        arrays = [
            pa.array(column.astype(f.type.to_pandas_dtype())) for column, f in zip(columns, KEEP_SCHEMA)
        ]
        return pa.record_batch(arrays, schema=KEEP_SCHEMA)

    def counts(
        self, sources: tuple[str, ...], dropped: np.ndarray, parts: dict[str, np.ndarray]
    ) -> dict[str, dict[str, Any]]:
        """By source: what was dropped by reason, what each split got, and how long the kept ones are."""
        counts = {}
        for number, source in enumerate(sources):
            own = self.source == number
            reasons = {
                reason: asdict(self._tally(np.flatnonzero(own & (dropped == reason))))
                for reason in (DUPLICATE_ID, DUPLICATE_TEXT, OVER_BUDGET)
            }
            splits = {split: asdict(self._tally(rows[own[rows]])) for split, rows in parts.items()}
            lengths = self.tokens[own & (dropped == "")]
            counts[source] = {
                "dropped": {reason: tally for reason, tally in reasons.items() if tally["documents"]},
                "splits": splits,
                "length_histogram": _histogram(lengths),
            }
        return counts

    def _tally(self, rows: np.ndarray) -> "Tally":
        return Tally(len(rows), int(self.tokens[rows].sum()))


@dataclass(frozen=True)
class Tally:
    documents: int
    tokens: int


def _histogram(lengths: np.ndarray) -> list[int]:
    """Entry i counts the documents of 2**i to 2**(i+1) - 1 tokens."""
    exponents = np.frexp(np.maximum(lengths, 1).astype(np.float64))[1] - 1
    return np.bincount(exponents).tolist() if len(lengths) else []


def _held_out(split: np.ndarray, order: np.ndarray, fraction: Fraction) -> np.ndarray:
    """Which documents are the validation split: those whose split hash is below the fraction; unless it is 0,
    at least the one with the least hash, and never all."""
    limit = threshold(fraction)
    held_out = np.full(len(split), True) if limit >= HASH_VALUES else split < np.uint64(limit)
    if limit and len(split) >= 2:
        ranked = np.lexsort((order, split))
        held_out[ranked[0]] = True
        held_out[ranked[-1]] = False
    elif len(split) == 1:
        held_out[:] = False
    return held_out
