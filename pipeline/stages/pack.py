"""pack: lays the documents of a split out as sequences; one unit writes one shard.

The layouts are `pipeline.shards`'s. Each document's place in the stream of its split is known from the keep-lists, so
unit k takes the stream's tokens from k·S on, whichever worker runs it and whatever the others do. The documents of a
unit are neighbours in the order of their hash, so it reads one range of rows of each tokens file.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa

from pipeline.config import Config
from pipeline.decisions import content_id
from pipeline.shards import FORMAT_VERSION, serialise_shard, shard_schema
from pipeline.stages.best_fit import best_fit
from pipeline.stages.select import SPLITS, KeepList, Selection
from pipeline.stages.select.catalogue import Catalogue
from pipeline.stages.select.ranges import entries_with_rows, open_table
from pipeline.stages.tokens import TokensFile
from pipeline.storage import Storage, Stores
from pipeline.tokenizer import Tokenizer
from pipeline.units import VERSIONS, PublishedFile, Record

PACKING_FACTS = ("pieces", "documents_cut", "documents_cut_needlessly")
"""What a shard's record and the manifest count: pieces; documents with a second piece; those of them that are no longer
than a sequence."""


@dataclass(frozen=True)
class Layout:
    """What a sequence looks like."""

    packing: Literal["concatenate", "best_fit"]
    sequence_length: int
    vocabulary_size: int
    tokenizer_fingerprint: str
    bos_id: int
    eos_id: int
    pad_id: int

    @property
    def stream_tokens(self) -> int:
        """Tokens of the stream in a sequence: all but `<s>` and the closing `</s>`."""
        return self.sequence_length - 2

    @property
    def schema(self) -> pa.Schema:
        return shard_schema(self.sequence_length, self.vocabulary_size, self.tokenizer_fingerprint)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.schema.field("input_ids").type.value_type.to_pandas_dtype())

    @classmethod
    def of(cls, config: Config, tokenizer: Tokenizer) -> "Layout":
        return cls(
            packing=config.packing,
            sequence_length=config.sequence_length,
            vocabulary_size=tokenizer.vocabulary_size,
            tokenizer_fingerprint=tokenizer.fingerprint,
            bos_id=tokenizer.bos_id,
            eos_id=tokenizer.eos_id,
            pad_id=tokenizer.pad_id,
        )


@dataclass(frozen=True)
class PackUnit:
    """The shard of a split's stream from `begin` to `end`: of all tokens there where documents are concatenated, of
    the documents that start there where they are fitted."""

    stage: ClassVar[str] = "pack"
    catalogue: Catalogue
    sources: tuple[str, ...]
    keep_lists: tuple[KeepList, ...]
    """Those that have documents of this part."""
    split: str
    number: int
    begin: int
    end: int
    layout: Layout

    @property
    def id(self) -> str:
        where = (self.split, self.number, self.begin, self.end)
        return content_id(
            self.stage,
            FORMAT_VERSION,
            VERSIONS,
            self.catalogue,
            self.sources,
            self.keep_lists,
            where,
            self.layout,
        )

    @property
    def size(self) -> int:
        return (self.end - self.begin) * self.layout.dtype.itemsize

    @property
    def shard(self) -> str:
        """The shard's name in the output."""
        return f"{self.split}/{self.number:05d}.arrow"

    @property
    def about(self) -> str:
        return self.shard

    def run(self, stores: Stores) -> Record:
        """Publishes the shard; none where documents are fitted and a long one covers the whole part."""
        kept = _Kept.read(self.keep_lists, self.begin, self.end, stores.work)
        if self.layout.packing == "concatenate":
            rows = _concatenated(self, kept, stores)
        else:
            kept = kept.starting_from(self.begin)
            if not len(kept.number):
                return Record(
                    [], {"split": self.split, "sequences": 0, "tokens": {}} | dict.fromkeys(PACKING_FACTS, 0)
                )
            rows = _fitted(self, kept, stores)
        pieces = rows.pieces
        sources = rows.read.source[pieces.documents]
        shard = serialise_shard(
            self.layout.schema,
            rows.ids,
            pieces.column(pa.array(pieces.starts, pa.int32())),
            pieces.column(rows.read.ids.take(pa.array(pieces.documents))),
            pieces.column(pa.array(pieces.offsets, pa.int64())),
            pieces.column(pa.array(self.sources, pa.string()).take(pa.array(sources))),
        )
        written = stores.output.publish(self.shard, shard)
        tokens = np.zeros(len(self.sources), dtype=np.int64)
        np.add.at(tokens, rows.read.source, rows.tokens)
        facts = {
            "split": self.split,
            "sequences": len(rows.ids),
            "tokens": {source: count for source, count in zip(self.sources, tokens.tolist()) if count},
            **_packing_facts(pieces, kept.tokens, self.layout),
        }
        return Record([PublishedFile.of("output", self.shard, written)], facts)


def plan_shards(
    catalogue: Catalogue, selection: Selection, config: Config, layout: Layout
) -> Iterator[PackUnit]:
    """The pack units of all splits."""
    sources = tuple(source.name for source in config.sources)
    step = config.shard_sequences * layout.stream_tokens
    for split in SPLITS:
        lists = [keep for keep in selection.keep_lists[split] if keep.start < keep.end]
        total = lists[-1].end if lists else 0
        for number, begin in enumerate(range(0, total, step)):
            end = min(begin + step, total)
            own = tuple(keep for keep in lists if keep.start < end and keep.end > begin)
            yield PackUnit(catalogue, sources, own, split, number, begin, end, layout)


@dataclass(frozen=True)
class _Kept:
    """Consecutive documents of a split's stream; (documents,) each."""

    number: np.ndarray
    """`file << 32 | row`."""
    tokens: np.ndarray
    start: np.ndarray
    """Its first token's place in the split's stream."""

    @classmethod
    def read(cls, lists: Sequence[KeepList], begin: int, end: int, work: Storage) -> "_Kept":
        """The documents with a token, or their `</s>`, in [begin, end) of the stream."""
        columns: tuple[list[np.ndarray], ...] = ([], [], [])
        for keep in lists:
            batch = open_table(work, keep.file)
            start = batch.column("start").to_numpy() + keep.start
            first = max(int(np.searchsorted(start, begin, side="right")) - 1, 0)
            own = slice(first, int(np.searchsorted(start, end, side="left")))
            number = batch.column("file").to_numpy()[own].astype(np.int64) << 32
            columns[0].append(number | batch.column("row").to_numpy()[own])
            columns[1].append(batch.column("tokens").to_numpy()[own])
            columns[2].append(start[own])
        return cls(*(np.concatenate(column) for column in columns))

    def starting_from(self, begin: int) -> "_Kept":
        """Those that start at `begin` or behind it."""
        own = self.start >= begin
        return _Kept(self.number[own], self.tokens[own], self.start[own])


@dataclass(frozen=True)
class _Read:
    """What the tokens files say of some documents; one entry a document."""

    ids: pa.StringArray
    source: np.ndarray


@dataclass(frozen=True)
class Pieces:
    """The pieces of consecutive sequences, one after the other; (pieces,) each, but for `ends`."""

    ends: np.ndarray
    """(sequences,): how many pieces there are up to the end of each sequence."""
    documents: np.ndarray
    """The number of the document that each is a part of."""
    starts: np.ndarray
    """Its first position in the sequence."""
    offsets: np.ndarray
    """How many of the document's tokens come before it."""

    def column(self, values: pa.Array) -> pa.ListArray:
        """(pieces,) values as a column of the shard: a list for each sequence."""
        return pa.ListArray.from_arrays(pa.array(np.append(0, self.ends), pa.int32()), values)


@dataclass(frozen=True)
class _Rows:
    """The content of a shard."""

    ids: np.ndarray
    """(sequences, sequence_length)."""
    pieces: Pieces
    tokens: np.ndarray
    """Of each document, its tokens in this shard."""
    read: _Read


def _concatenated(unit: PackUnit, kept: _Kept, stores: Stores) -> _Rows:
    begin, end, layout = unit.begin, unit.end, unit.layout
    stream = np.full(end - begin, layout.eos_id, dtype=layout.dtype)
    place = kept.start - begin
    skip = np.maximum(-place, 0)
    copied = np.maximum(np.minimum(kept.tokens, len(stream) - place) - skip, 0)
    read = _copy_tokens(unit, kept.number, stream, place + skip, skip, copied, stores)
    pieces = cut_pieces(kept.start, begin, end, layout.stream_tokens)
    return _Rows(lay_out(stream, layout), pieces, copied, read)


def _fitted(unit: PackUnit, kept: _Kept, stores: Stores) -> _Rows:
    layout = unit.layout
    fitted = best_fit(kept.tokens, layout.stream_tokens)
    stream = np.empty(int(kept.tokens.sum()), dtype=layout.dtype)
    place = np.cumsum(kept.tokens) - kept.tokens
    read = _copy_tokens(unit, kept.number, stream, place, np.zeros_like(place), kept.tokens, stores)
    rows = np.full((fitted.sequences, layout.sequence_length), layout.pad_id, dtype=layout.dtype)
    rows[:, 0] = layout.bos_id
    # The position behind `<s>` and behind the pieces before it, each with its `</s>`.
    behind = np.cumsum(fitted.tokens + 1)
    is_first = np.append(True, np.diff(fitted.sequence) > 0)
    before = np.append(0, behind[:-1])
    at = 1 + before - np.maximum.accumulate(np.where(is_first, before, 0))
    source = place[fitted.document] + fitted.offset
    columns = (fitted.sequence, at, source, fitted.tokens)
    for row, first, left, count in zip(*(column.tolist() for column in columns), strict=True):
        rows[row, first : first + count] = stream[left : left + count]
        rows[row, first + count] = layout.eos_id
    ends = np.searchsorted(fitted.sequence, np.arange(fitted.sequences), side="right")
    pieces = Pieces(ends, fitted.document, np.where(is_first, 0, at), fitted.offset)
    return _Rows(rows, pieces, kept.tokens, read)


def _packing_facts(pieces: Pieces, lengths: np.ndarray, layout: Layout) -> dict[str, int]:
    """How documents of these `lengths` lie in the rows: `PACKING_FACTS`."""
    whole = lengths[pieces.documents]
    # The second piece of a document starts within its first sequence's worth of tokens, the third behind it.
    cut = (pieces.offsets > 0) & (pieces.offsets <= layout.stream_tokens) & (pieces.offsets < whole)
    needless = cut & (whole <= layout.stream_tokens)
    return dict(zip(PACKING_FACTS, (len(whole), int(cut.sum()), int(needless.sum())), strict=True))


def _copy_tokens(
    unit: PackUnit,
    numbers: np.ndarray,
    stream: np.ndarray,
    place: np.ndarray,
    skip: np.ndarray,
    copied: np.ndarray,
    stores: Stores,
) -> _Read:
    """Copies of each document its tokens [skip, skip + copied) to `stream` at `place`; file by file, so that of each
    one its range of rows is read once and nothing is held."""
    ids: list[pa.Array] = []
    source = np.zeros(len(numbers), dtype=np.int32)
    by_number = np.argsort(numbers, kind="stable")
    for entry, rows, own in entries_with_rows(unit.catalogue, stores.work, numbers[by_number]):
        file = TokensFile(stores.work.open_arrow_ranged(entry.tokens.name, entry.tokens.sha256))
        documents = by_number[own]
        source[documents] = entry.source
        for batch in file.batches_of(int(rows[0]), int(rows[-1]) + 1):
            first, last = np.searchsorted(rows, [batch.first, batch.first + len(batch)])
            of_batch, some = rows[first:last] - batch.first, documents[first:last]
            ids.append(batch.ids.take(pa.array(of_batch)))
            columns = (of_batch, place[some], skip[some], copied[some])
            for row, at, left, count in zip(*(column.tolist() for column in columns), strict=True):
                stream[at : at + count] = batch.tokens(row)[left : left + count]
    ranked = np.empty(len(numbers), dtype=np.int64)
    ranked[by_number] = np.arange(len(numbers))
    return _Read(pa.concat_arrays(ids).take(pa.array(ranked)), source)


def lay_out(stream: np.ndarray, layout: Layout) -> np.ndarray:
    """(tokens,) of the stream → (sequences, sequence_length): `<s>` before, `</s>` after each full piece of it;
    what is left of the last row is `<pad>`."""
    full, rest = divmod(len(stream), layout.stream_tokens)
    sequences = full + bool(rest)
    rows = np.full((sequences, layout.sequence_length), layout.pad_id, dtype=stream.dtype)
    rows[:, 0] = layout.bos_id
    rows[:full, 1:-1] = stream[: full * layout.stream_tokens].reshape(full, layout.stream_tokens)
    rows[:full, -1] = layout.eos_id
    if rest:
        rows[full, 1 : 1 + rest] = stream[full * layout.stream_tokens :]
        rows[full, 1 + rest] = layout.eos_id
    return rows


def cut_pieces(start: np.ndarray, begin: int, end: int, stream_tokens: int) -> Pieces:
    """Which documents lie in which sequence, for the part [begin, end) of a stream.

    `start` are the places in the stream where the documents of this part start, the first at or before `begin`;
    documents are numbered by their place in it.
    """
    left = np.arange(begin, end, stream_tokens)
    first = np.searchsorted(start, left, side="right") - 1
    last = np.searchsorted(start, np.minimum(left + stream_tokens, end), side="left")
    ends = np.cumsum(last - first)
    row = np.repeat(np.arange(len(left)), last - first)
    documents = np.arange(len(row)) - (ends - (last - first))[row] + first[row]
    is_first = documents == first[row]
    starts = np.where(is_first, 0, start[documents] - left[row] + 1)
    return Pieces(ends, documents, starts, np.where(is_first, left[row] - start[documents], 0))
