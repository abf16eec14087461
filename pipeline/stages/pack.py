"""pack: cuts the stream of a split into sequences; one unit writes one shard.

The layout is `pipeline.shards`'s. Every document's place in the stream is known from the keep-list, so shard k
holds exactly the sequences from k·shard_sequences on, whichever worker writes it and whatever the others do:
one contiguous stream, with padding in the last sequence of the split only. The documents of a shard are
neighbours in the order of their hash, so a unit reads one range of rows of each tokens file.
"""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import pyarrow as pa

from pipeline.config import Config
from pipeline.decisions import content_id
from pipeline.shards import FORMAT_VERSION, serialise_shard, shard_schema
from pipeline.stages.select import SPLITS, SelectUnit, Table
from pipeline.storage import Storage, Stores
from pipeline.tokenizer import Tokenizer
from pipeline.units import VERSIONS, PublishedFile, Record


@dataclass(frozen=True)
class Layout:
    """What a sequence looks like."""

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

    @classmethod
    def of(cls, config: Config, tokenizer: Tokenizer) -> "Layout":
        return cls(
            sequence_length=config.sequence_length,
            vocabulary_size=tokenizer.vocabulary_size,
            tokenizer_fingerprint=tokenizer.fingerprint,
            bos_id=tokenizer.bos_id,
            eos_id=tokenizer.eos_id,
            pad_id=tokenizer.pad_id,
        )


@dataclass(frozen=True)
class PackUnit:
    """Sequences `first` to `first + sequences` of one split."""

    stage: ClassVar[str] = "pack"
    keep: PublishedFile
    """The keep-list of the split."""
    split: str
    number: int
    first: int
    sequences: int
    tables: tuple[Table, ...]
    layout: Layout

    @property
    def id(self) -> str:
        where = (self.keep.name, self.keep.sha256, self.split, self.number, self.first, self.sequences)
        return content_id(self.stage, FORMAT_VERSION, VERSIONS, where, self.layout)

    @property
    def size(self) -> int:
        return self.sequences * self.layout.sequence_length * 2

    @property
    def shard(self) -> str:
        """The shard's name in the output."""
        return f"{self.split}/{self.number:05d}.arrow"

    def run(self, stores: Stores) -> Record:
        keep = _KeepList(stores.work.open_arrow(self.keep.name, self.keep.sha256).get_batch(0))
        files = _TokenFiles(stores.work, self.tables)
        begin = self.first * self.layout.stream_tokens
        end = min(begin + self.sequences * self.layout.stream_tokens, keep.end)
        documents = keep.overlapping(begin, end)

        stream = np.empty(
            end - begin, dtype=self.layout.schema.field("input_ids").type.value_type.to_pandas_dtype()
        )
        packed: Counter[str] = Counter()
        for document in documents:
            start = int(keep.start[document]) - begin
            tokens = files.tokens(int(keep.file[document]), int(keep.row[document]))
            skip = max(0, -start)
            copied = tokens[skip : max(skip, len(stream) - start)]
            stream[start + skip : start + skip + len(copied)] = copied
            if start + len(tokens) < len(stream):
                stream[start + len(tokens)] = self.layout.eos_id
            packed[files.source(int(keep.file[document]))] += len(copied)

        starts, offsets, pieces = cut_pieces(
            keep.start[documents], begin, end, self.layout.stream_tokens, first_document=documents.start
        )
        origins = [[(int(keep.file[d]), int(keep.row[d])) for d in row] for row in pieces]
        shard = serialise_shard(
            self.layout.schema,
            lay_out(stream, self.layout),
            starts,
            [[files.document(*origin) for origin in row] for row in origins],
            offsets,
            [[files.source(file) for file, _ in row] for row in origins],
        )
        written = stores.output.publish(self.shard, shard)
        facts = {"split": self.split, "sequences": self.sequences, "tokens": dict(sorted(packed.items()))}
        return Record([PublishedFile.of("output", self.shard, written)], facts)


def plan_shards(selection: SelectUnit, record: Record, config: Config, layout: Layout) -> list[PackUnit]:
    """The pack units of all splits."""
    units = []
    for split, keep in zip(SPLITS, record.files, strict=True):
        total = -(-record.facts["streams"][split] // layout.stream_tokens)
        for number, first in enumerate(range(0, total, config.shard_sequences)):
            sequences = min(config.shard_sequences, total - first)
            units.append(PackUnit(keep, split, number, first, sequences, selection.tables, layout))
    return units


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
    start: np.ndarray, begin: int, end: int, stream_tokens: int, first_document: int = 0
) -> tuple[list[list[int]], list[list[int]], list[range]]:
    """Which documents lie in which sequence, for the part [begin, end) of a stream.

    `start` are the places in the stream where the documents of this part start, the first at or before `begin`;
    `first_document` is that one's number. Gives, for each sequence: the pieces' positions in it, their offsets
    in their documents, and the numbers of the documents.
    """
    starts, offsets, pieces = [], [], []
    for left in range(begin, end, stream_tokens):
        right = min(left + stream_tokens, end)
        first = int(np.searchsorted(start, left, side="right")) - 1
        last = int(np.searchsorted(start, right, side="left"))
        starts.append([0, *(int(s) - left + 1 for s in start[first + 1 : last])])
        offsets.append([left - int(start[first]), *([0] * (last - first - 1))])
        pieces.append(range(first_document + first, first_document + last))
    return starts, offsets, pieces


class _KeepList:
    """A split's keep-list, memory-mapped; (documents,) arrays."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        self.file = batch.column("file").to_numpy()
        self.row = batch.column("row").to_numpy()
        self.start = batch.column("start").to_numpy()
        self.end = int(self.start[-1] + batch.column("tokens").to_numpy()[-1] + 1) if len(self.start) else 0

    def overlapping(self, begin: int, end: int) -> range:
        """The documents with a token, or their `</s>`, in [begin, end) of the stream."""
        first = int(np.searchsorted(self.start, begin, side="right")) - 1
        return range(first, int(np.searchsorted(self.start, end, side="left")))


class _TokenFiles:
    """The tokens files of encode, opened when first needed."""

    def __init__(self, work: Storage, tables: tuple[Table, ...]) -> None:
        self._work = work
        self._tables = tables
        self._open: dict[int, _TokenFile] = {}

    def tokens(self, file: int, row: int) -> np.ndarray:
        """(tokens of the document,), a view into the memory map."""
        opened = self._file(file)
        return opened.values[opened.offsets[row] : opened.offsets[row + 1]]

    def document(self, file: int, row: int) -> str:
        return self._file(file).ids[row].as_py()

    def source(self, file: int) -> str:
        return self._tables[file].source

    def _file(self, number: int) -> "_TokenFile":
        if number not in self._open:
            file = self._tables[number].tokens
            self._open[number] = _TokenFile(self._work.open_arrow(file.name, file.sha256).get_batch(0))
        return self._open[number]


class _TokenFile:
    def __init__(self, batch: pa.RecordBatch) -> None:
        self.ids = batch.column("id")
        self._column = batch.column("tokens")

    @cached_property
    def offsets(self) -> np.ndarray:
        return self._column.offsets.to_numpy()

    @cached_property
    def values(self) -> np.ndarray:
        return self._column.values.to_numpy()
