"""pack: lays the documents of a split out as sequences; one unit writes one shard.

The layouts are `pipeline.shards`'s. Each document's place in the stream of its split is known from the keep-lists, so
unit k takes the stream's tokens from k·S on, whichever worker runs it and whatever the others do. The documents of a
unit are neighbours in the order of their hash, so it reads one range of rows of each tokens file.
"""

from collections import Counter
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
        sources = [self.sources[number] for number in rows.read.source.tolist()]
        shard = serialise_shard(
            self.layout.schema,
            rows.ids,
            rows.starts,
            [[rows.read.ids[document] for document in row] for row in rows.pieces],
            rows.offsets,
            [[sources[document] for document in row] for row in rows.pieces],
        )
        written = stores.output.publish(self.shard, shard)
        tokens: Counter[str] = Counter()
        for source, count in zip(sources, rows.tokens.tolist(), strict=True):
            tokens[source] += count
        facts = {
            "split": self.split,
            "sequences": len(rows.ids),
            "tokens": dict(sorted((source, count) for source, count in tokens.items() if count)),
            **_packing_facts(rows, kept.tokens, self.layout),
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

    ids: list[str]
    source: np.ndarray


@dataclass(frozen=True)
class _Rows:
    """The content of a shard."""

    ids: np.ndarray
    """(sequences, sequence_length)."""
    starts: list[list[int]]
    offsets: list[list[int]]
    pieces: list[list[int]]
    """For each sequence its pieces' positions, their offsets in their documents, and the numbers of the documents
    in `read`."""
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
    starts, offsets, pieces = cut_pieces(kept.start, begin, end, layout.stream_tokens)
    rows = lay_out(stream, layout)
    return _Rows(rows, starts, offsets, [list(numbers) for numbers in pieces], copied, read)


def _fitted(unit: PackUnit, kept: _Kept, stores: Stores) -> _Rows:
    layout = unit.layout
    bins = best_fit(kept.tokens, layout.stream_tokens)
    rows = np.full((len(bins), layout.sequence_length), layout.pad_id, dtype=layout.dtype)
    rows[:, 0] = layout.bos_id
    stream = np.empty(int(kept.tokens.sum()), dtype=layout.dtype)
    place = np.cumsum(kept.tokens) - kept.tokens
    read = _copy_tokens(unit, kept.number, stream, place, np.zeros_like(place), kept.tokens, stores)
    starts: list[list[int]] = []
    for row, pieces in zip(rows, bins, strict=True):
        at = 1
        starts.append([])
        for piece in pieces:
            starts[-1].append(at if starts[-1] else 0)
            first = int(place[piece.document]) + piece.offset
            row[at : at + piece.tokens] = stream[first : first + piece.tokens]
            row[at + piece.tokens] = layout.eos_id
            at += piece.tokens + 1
    offsets = [[piece.offset for piece in pieces] for pieces in bins]
    documents = [[piece.document for piece in pieces] for pieces in bins]
    return _Rows(rows, starts, offsets, documents, kept.tokens, read)


def _packing_facts(rows: _Rows, lengths: np.ndarray, layout: Layout) -> dict[str, int]:
    """How documents of these `lengths` lie in the rows: `PACKING_FACTS`."""
    offsets = np.array([offset for row in rows.offsets for offset in row], dtype=np.int64)
    whole = lengths[np.array([document for row in rows.pieces for document in row], dtype=np.int64)]
    # The second piece of a document starts within its first sequence's worth of tokens, the third behind it.
    cut = (offsets > 0) & (offsets <= layout.stream_tokens) & (offsets < whole)
    needless = cut & (whole <= layout.stream_tokens)
    return dict(zip(PACKING_FACTS, (len(offsets), int(cut.sum()), int(needless.sum())), strict=True))


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
    ids = [""] * len(numbers)
    source = np.zeros(len(numbers), dtype=np.int32)
    by_number = np.argsort(numbers, kind="stable")
    for entry, rows, own in entries_with_rows(unit.catalogue, stores.work, numbers[by_number]):
        file = TokensFile(stores.work.open_arrow_ranged(entry.tokens.name, entry.tokens.sha256))
        waiting = 0
        documents = by_number[own].tolist()
        for batch in file.batches_of(int(rows[0]), int(rows[-1]) + 1):
            while waiting < len(documents) and rows[waiting] < batch.first + len(batch):
                document, row = documents[waiting], int(rows[waiting]) - batch.first
                at, left, count = int(place[document]), int(skip[document]), int(copied[document])
                stream[at : at + count] = batch.tokens(row)[left : left + count]
                ids[document] = batch.ids[row].as_py()
                source[document] = entry.source
                waiting += 1
    return _Read(ids, source)


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


def cut_pieces(
    start: np.ndarray, begin: int, end: int, stream_tokens: int
) -> tuple[list[list[int]], list[list[int]], list[range]]:
    """Which documents lie in which sequence, for the part [begin, end) of a stream.

    `start` are the places in the stream where the documents of this part start, the first at or before `begin`.
    Gives, for each sequence: the pieces' positions in it, their offsets in their documents, and the documents by
    their place in `start`.
    """
    starts, offsets, pieces = [], [], []
    for left in range(begin, end, stream_tokens):
        right = min(left + stream_tokens, end)
        first = int(np.searchsorted(start, left, side="right")) - 1
        last = int(np.searchsorted(start, right, side="left"))
        starts.append([0, *(int(s) - left + 1 for s in start[first + 1 : last])])
        offsets.append([left - int(start[first]), *([0] * (last - first - 1))])
        pieces.append(range(first, last))
    return starts, offsets, pieces
