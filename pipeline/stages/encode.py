"""encode: one chunk → clean → filters → sample → tokenise → its token documents by their hash, and a table.

Two Arrow files a chunk, with the same rows in the same order. The *tokens* file has `id` and `tokens`. The
*table* has what later decisions need, a few bytes a document: see `TABLE_SCHEMA`. Documents that are dropped
here are in neither; they are counted under their reason.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from pipeline.config import Config, SourceConfig
from pipeline.decisions import content_id, decision_hash, text_hash, threshold
from pipeline.documents import Document, Dropped
from pipeline.filters import Filter, first_reason
from pipeline.shards import token_dtype
from pipeline.sources import SOURCES
from pipeline.stages.split import Chunk
from pipeline.storage import Stores
from pipeline.tokenizer import Tokenizer, load_tokenizer
from pipeline.units import VERSIONS, PublishedFile, Record

TOO_SHORT = "too_few_tokens"
TOO_LONG = "too_many_tokens"
NOT_SAMPLED = "not_sampled"


BATCH_BYTES = 4_000_000
"""Text tokenised at a time; bounds memory, changes nothing else."""

TABLE_SCHEMA = pa.schema(
    [
        pa.field("order", pa.uint64()),  # h("order", seed, id): the place in the corpus; the rows' order
        pa.field("budget", pa.uint64()),  # h("budget", seed, id): who is kept when a source has a budget
        pa.field("split", pa.uint64()),  # h("split", seed, text hash): copies of a text on the same side
        pa.field("text_high", pa.uint64()),  # the text hash, in two halves
        pa.field("text_low", pa.uint64()),
        pa.field("tokens", pa.uint32()),
    ]
)


@dataclass(frozen=True)
class EncodeUnit:
    """One chunk of one source."""

    stage: ClassVar[str] = "encode"
    chunk: Chunk
    take: int
    """How many of the chunk's documents to look at, from its start."""
    source: str
    kind: str
    """The kind of source, which cleans the texts."""
    sample: Fraction
    minimum_tokens: int
    maximum_tokens: int | None
    filters: tuple[Filter, ...]
    seed: int
    tokenizer_fingerprint: str

    @classmethod
    def of(
        cls, chunk: Chunk, take: int, source: SourceConfig, config: Config, fingerprint: str
    ) -> "EncodeUnit":
        assert source.sample is not None
        assert source.minimum_tokens is not None
        return cls(
            chunk=chunk,
            take=take,
            source=source.name,
            kind=source.kind,
            sample=source.sample,
            minimum_tokens=source.minimum_tokens,
            maximum_tokens=source.maximum_tokens,
            filters=tuple(f for f in config.filters if f.sources is None or source.name in f.sources),
            seed=config.seed,
            tokenizer_fingerprint=fingerprint,
        )

    @property
    def id(self) -> str:
        limits = (self.sample, self.minimum_tokens, self.maximum_tokens)
        filters = [item.model_dump(exclude={"sources"}) for item in self.filters]
        cleaning = (self.kind, SOURCES[self.kind].cleaning)
        how = (self.source, cleaning, limits, filters, self.seed, self.tokenizer_fingerprint)
        return content_id(self.stage, 1, VERSIONS, self.chunk.sha256, self.take, how)

    @property
    def size(self) -> int:
        return self.chunk.text_bytes

    def run(self, stores: Stores) -> Record:
        tokenizer = _tokenizer(stores.work.where(tokenizer_folder(self.tokenizer_fingerprint)))
        assert tokenizer.fingerprint == self.tokenizer_fingerprint
        encoded = _Encoded(token_dtype(tokenizer.vocabulary_size))
        chunk = stores.work.open_arrow(self.chunk.name, self.chunk.sha256).get_batch(0).slice(0, self.take)
        batch: list[Document] = []
        size = 0
        reader = SOURCES[self.kind]()
        for raw in _documents(chunk):
            try:
                document = Document(raw.id, reader.clean(raw.text))
            except Dropped as dropped:
                encoded.drop(str(dropped))
                continue
            reason = self._reason_before_tokens(document, tokenizer)
            if reason is not None:
                encoded.drop(reason)
                continue
            batch.append(document)
            size += len(document.text)
            if size >= BATCH_BYTES:
                self._encode(batch, tokenizer, encoded)
                batch, size = [], 0
        self._encode(batch, tokenizer, encoded)
        return encoded.publish(stores, self)

    def _reason_before_tokens(self, document: Document, tokenizer: Tokenizer) -> str | None:
        reason = first_reason(self.filters, self.source, document)
        if reason is not None:
            return reason
        if tokenizer.covers_bytes and len(document.text.encode()) < self.minimum_tokens:
            return TOO_SHORT  # a token covers a byte at least: no need to tokenise
        # Asked before tokenising: a document that the sample leaves out would be tokenised for nothing.
        if decision_hash("sample", self.seed, document.id) >= threshold(self.sample):
            return NOT_SAMPLED
        return None

    def _encode(self, batch: list[Document], tokenizer: Tokenizer, encoded: "_Encoded") -> None:
        for document, ids in zip(batch, tokenizer.encode_batch([d.text for d in batch]), strict=True):
            if len(ids) < self.minimum_tokens:
                encoded.drop(TOO_SHORT, len(ids))
            elif self.maximum_tokens is not None and len(ids) > self.maximum_tokens:
                encoded.drop(TOO_LONG, len(ids))
            else:
                encoded.keep(document, ids, self.seed)


@dataclass
class _Encoded:
    """What has come of a chunk so far."""

    dtype: type[np.uint16] | type[np.uint32]
    ids: list[str] = field(default_factory=list)
    tokens: list[np.ndarray] = field(default_factory=list)
    rows: list[tuple[int, ...]] = field(default_factory=list)
    dropped: dict[str, dict[str, int]] = field(default_factory=dict)

    def drop(self, reason: str, tokens: int | None = None) -> None:
        counts = self.dropped.setdefault(reason, {"documents": 0, "tokens": 0, "tokenised": 0})
        counts["documents"] += 1
        if tokens is not None:
            counts["tokens"] += tokens
            counts["tokenised"] += 1

    def keep(self, document: Document, ids: list[int], seed: int) -> None:
        content = text_hash(document.text)
        self.ids.append(document.id)
        self.tokens.append(np.array(ids, dtype=self.dtype))
        self.rows.append(
            (
                decision_hash("order", seed, document.id),
                decision_hash("budget", seed, document.id),
                decision_hash("split", seed, content),
                int.from_bytes(content[:8], "big"),
                int.from_bytes(content[8:], "big"),
                len(ids),
            )
        )

    def publish(self, stores: Stores, unit: EncodeUnit) -> Record:
        table = np.array(self.rows, dtype=np.uint64).reshape(len(self.rows), len(TABLE_SCHEMA))
        rank = np.argsort(
            table[:, 0], kind="stable"
        )  # stable: two documents of one id stay as they were read
        columns = [
            pa.array(table[rank, column].astype(f.type.to_pandas_dtype()))
            for column, f in enumerate(TABLE_SCHEMA)
        ]
        files = []
        tokens, offsets = self._flat_tokens(rank)
        for kind, batch in (
            ("tokens", _token_batch([self.ids[i] for i in rank], tokens, offsets, unit.source)),
            ("table", pa.record_batch(columns, schema=TABLE_SCHEMA)),
        ):
            name = f"{unit.stage}/{unit.id}.{kind}.arrow"
            files.append(PublishedFile.of("work", name, stores.work.publish_arrow(name, batch)))
        facts: dict[str, Any] = {
            "source": unit.source,
            "read": unit.take,
            "dropped": dict(sorted(self.dropped.items())),
            "kept": {"documents": len(self.ids), "tokens": int(offsets[-1])},
        }
        return Record(files, facts)

    def _flat_tokens(self, rank: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        lengths = [len(self.tokens[i]) for i in rank]
        offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
        flat = np.concatenate([self.tokens[i] for i in rank]) if lengths else np.zeros(0, self.dtype)
        return flat, offsets


def _token_batch(ids: list[str], tokens: np.ndarray, offsets: np.ndarray, source: str) -> pa.RecordBatch:
    lists = pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), pa.array(tokens))
    schema = pa.schema(
        [pa.field("id", pa.string()), pa.field("tokens", lists.type)], metadata={b"source": source.encode()}
    )
    return pa.record_batch([pa.array(ids, pa.string()), lists], schema=schema)


def _documents(chunk: pa.RecordBatch) -> Iterator[Document]:
    for identifier, text in zip(chunk.column("id"), chunk.column("text"), strict=True):
        yield Document(identifier.as_py(), text.as_py())


def tokenizer_folder(fingerprint: str) -> str:
    """In the work storage: every worker loads the tokenizer that the driver checked, wherever that came from."""
    return f"tokenizer/{fingerprint}"


@lru_cache(maxsize=2)
def _tokenizer(folder: str) -> Tokenizer:
    return load_tokenizer(folder)
