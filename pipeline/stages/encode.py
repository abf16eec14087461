"""encode: one chunk → sample → clean → filters → tokenise: token documents in the order of their hash, and a table.

Two Arrow files a chunk, with the same rows in the same order: the *tokens* file (see `pipeline.stages.tokens`), and
the *table* with what later decisions need, a few bytes a document (see `TABLE_SCHEMA`). Documents that are dropped here
are in neither; they are counted under their reason.

Tokens do not depend on filters, samples and seeds. Where an earlier build with other ones has left its tokens of the
same chunk in the work storage, only the documents that it did not keep are tokenised.
"""

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from pipeline.config import Config, SourceConfig
from pipeline.decisions import content_id, decision_hash, text_hash, threshold
from pipeline.decontaminate import contaminated
from pipeline.documents import Document, Dropped
from pipeline.errors import BuildError
from pipeline.filters import Filter, first_reason
from pipeline.shards import token_dtype
from pipeline.sources import SOURCES
from pipeline.stages.evaluation import Evaluation, open_index
from pipeline.stages.split import Chunk
from pipeline.stages.tokens import TokensFile, write_tokens
from pipeline.storage import Stores
from pipeline.tokenizer import Tokenizer, load_tokenizer
from pipeline.units import VERSIONS, PublishedFile, Record, read_record

TOO_SHORT = "too_few_tokens"
TOO_LONG = "too_many_tokens"
NOT_SAMPLED = "not_sampled"

EXAMPLES = 2
"""Documents of each fate that a unit's notes show the beginning of."""
EXAMPLE_CHARACTERS = 300

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
    evaluation: Evaluation | None
    seed: int
    examples: bool
    tokenizer_fingerprint: str
    engine: str
    """The tokenizer's engine, which every worker must have."""

    @classmethod
    def of(
        cls,
        chunk: Chunk,
        take: int,
        source: SourceConfig,
        config: Config,
        evaluation: Evaluation | None,
        tokenizer: Tokenizer,
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
            evaluation=evaluation,
            seed=config.seed,
            examples=config.examples,
            tokenizer_fingerprint=tokenizer.fingerprint,
            engine=tokenizer.engine,
        )

    @property
    def id(self) -> str:
        limits = (self.sample, self.minimum_tokens, self.maximum_tokens)
        filters = [item.identity() for item in self.filters]
        evaluation = self.evaluation.identity if self.evaluation else None
        how = (self.source, self.take, limits, filters, evaluation, self.seed, self.examples)
        return f"{self._texts}/{content_id(self.stage, 2, VERSIONS, how)}"

    @property
    def _texts(self) -> str:
        """Names the documents and the tokenizer: what tokens depend on. The folder of all units that have them."""
        tokenizer = (self.tokenizer_fingerprint, self.engine)
        cleaning = (self.kind, SOURCES[self.kind].cleaning)
        return content_id("tokens", 2, VERSIONS, self.chunk.sha256, cleaning, tokenizer)

    @property
    def size(self) -> int:
        return self.chunk.text_bytes

    @property
    def about(self) -> str:
        return f"{self.source}: {self.chunk.documents:,} documents of {self.chunk.name}"

    def run(self, stores: Stores) -> Record:
        tokenizer = _tokenizer(stores, self.tokenizer_fingerprint, self.engine)
        encoded = _Encoded(token_dtype(tokenizer.vocabulary_size))
        reader = SOURCES[self.kind]()
        limit = threshold(self.sample)
        earlier = _EarlierTokens(stores, f"{self.stage}/{self._texts}")
        for first, ids, texts in self._batches(stores):
            documents = []
            for row, (identifier, text) in enumerate(zip(ids, texts, strict=True), first):
                # Asked first: nothing is to be done for a document that the sample leaves out.
                if self.sample < 1 and decision_hash("sample", self.seed, identifier) >= limit:
                    encoded.drop(NOT_SAMPLED, self._example(Document(identifier, text)))
                    continue
                try:
                    document = Document(identifier, reader.clean(text))
                except Dropped as dropped:
                    encoded.drop(str(dropped), self._example(Document(identifier, text)))
                    continue
                reason = self._reason_before_tokens(document, tokenizer, stores)
                if reason is None:
                    documents.append((row, document))
                else:
                    encoded.drop(reason, self._example(document))
            tokens, offsets = encoded.tokenise(documents, tokenizer, earlier)
            lengths = np.diff(offsets)
            for (row, document), length, start in zip(documents, lengths.tolist(), offsets.tolist()):
                if length < self.minimum_tokens:
                    encoded.drop(TOO_SHORT, self._example(document), length)
                elif self.maximum_tokens is not None and length > self.maximum_tokens:
                    encoded.drop(TOO_LONG, self._example(document), length)
                else:
                    encoded.keep(
                        row, document, tokens[start : start + length], self.seed, self._example(document)
                    )
        return encoded.publish(stores, self)

    def _batches(self, stores: Stores) -> Iterator[tuple[int, list[str], list[str]]]:
        """(number of the first row, ids, texts) of each record batch of the chunk, as far as they are taken."""
        reader = stores.work.open_arrow(self.chunk.name, self.chunk.sha256)
        first = 0
        for number in range(reader.num_record_batches):
            if first >= self.take:
                return
            batch = reader.get_batch(number).slice(0, self.take - first)
            yield first, batch.column("id").to_pylist(), batch.column("text").to_pylist()
            first += batch.num_rows

    def _reason_before_tokens(self, document: Document, tokenizer: Tokenizer, stores: Stores) -> str | None:
        reason = first_reason(self.filters, self.source, document)
        if reason is not None:
            return reason
        # A token covers a byte at least: a text of few bytes need not be tokenised. (Few characters are a quick sign.)
        few = tokenizer.covers_bytes and len(document.text) < self.minimum_tokens
        if few and len(document.text.encode()) < self.minimum_tokens:
            return TOO_SHORT
        if self.evaluation is not None:
            index = open_index(self.evaluation, stores.work)
            return contaminated(document.text, index, self.evaluation.settings)
        return None

    def _example(self, document: Document) -> tuple[str, str] | None:
        return (document.id, document.text[:EXAMPLE_CHARACTERS]) if self.examples else None


@dataclass
class _Encoded:
    """What has come of a chunk so far."""

    dtype: type[np.uint16] | type[np.uint32]
    ids: list[str] = field(default_factory=list)
    chunk_rows: list[int] = field(default_factory=list)
    tokens: list[np.ndarray] = field(default_factory=list)
    rows: list[tuple[int, ...]] = field(default_factory=list)
    dropped: dict[str, dict[str, int]] = field(default_factory=dict)
    examples: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    lengths: list[int] = field(default_factory=list)
    """Entry i counts the documents of 2**i to 2**(i+1) - 1 tokens, those dropped for their length among them."""
    reused: int = 0
    tokenised: int = 0
    tokenise_seconds: float = 0.0

    def tokenise(
        self, documents: Sequence[tuple[int, Document]], tokenizer: Tokenizer, earlier: "_EarlierTokens"
    ) -> tuple[np.ndarray, np.ndarray]:
        """(tokens of all documents, where each one's start, and the end)."""
        started = time.process_time()
        found = [earlier.tokens(row) for row, _ in documents]
        new, ends = tokenizer.encode([d.text for (_, d), known in zip(documents, found) if known is None])
        self.tokenise_seconds += time.process_time() - started
        self.tokenised += len(ends) - 1
        self.reused += len(documents) - (len(ends) - 1)
        if len(ends) - 1 < len(documents):
            fresh = iter(np.split(new, ends[1:-1]) if len(ends) > 1 else ())
            parts = [next(fresh) if known is None else known for known in found]
            new, ends = np.concatenate(parts), np.cumsum([0, *map(len, parts)])
        self._count_lengths(np.diff(ends))
        return new, ends

    def _count_lengths(self, lengths: np.ndarray) -> None:
        for exponent, count in enumerate(length_histogram(lengths)):
            if exponent == len(self.lengths):
                self.lengths.append(0)
            self.lengths[exponent] += count

    def drop(self, reason: str, example: tuple[str, str] | None, tokens: int | None = None) -> None:
        counts = self.dropped.setdefault(reason, {"documents": 0, "tokens": 0, "tokenised": 0})
        counts["documents"] += 1
        if tokens is not None:
            counts["tokens"] += tokens
            counts["tokenised"] += 1
        self._show(reason, example)

    def keep(
        self,
        chunk_row: int,
        document: Document,
        tokens: np.ndarray,
        seed: int,
        example: tuple[str, str] | None,
    ) -> None:
        content = text_hash(document.text)
        self.ids.append(document.id)
        self.chunk_rows.append(chunk_row)
        self.tokens.append(tokens)
        self.rows.append(
            (
                decision_hash("order", seed, document.id),
                decision_hash("budget", seed, document.id),
                decision_hash("split", seed, content),
                int.from_bytes(content[:8], "big"),
                int.from_bytes(content[8:], "big"),
                len(tokens),
            )
        )
        self._show("kept", example)

    def _show(self, fate: str, example: tuple[str, str] | None) -> None:
        if example is not None and len(shown := self.examples.setdefault(fate, [])) < EXAMPLES:
            shown.append(example)

    def publish(self, stores: Stores, unit: EncodeUnit) -> Record:
        table = np.array(self.rows, dtype=np.uint64).reshape(len(self.rows), len(TABLE_SCHEMA))
        # Stable: two documents of one id stay as they were read.
        rank = np.argsort(table[:, 0], kind="stable")
        lengths = [len(self.tokens[i]) for i in rank]
        offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
        tokens = np.concatenate([self.tokens[i] for i in rank]) if lengths else np.zeros(0, self.dtype)
        name = f"{unit.stage}/{unit.id}"
        with stores.work.create(f"{name}.tokens.arrow") as file:
            rows = np.array(self.chunk_rows, dtype=np.uint32)[rank]
            write_tokens(file, [self.ids[i] for i in rank], rows, tokens, offsets)
        columns = [
            pa.array(table[rank, column].astype(f.type.to_pandas_dtype()))
            for column, f in enumerate(TABLE_SCHEMA)
        ]
        batch = pa.record_batch(columns, schema=TABLE_SCHEMA)
        written = stores.work.publish_arrow(f"{name}.table.arrow", batch)
        facts: dict[str, Any] = {
            "source": unit.source,
            "read": unit.take,
            "dropped": dict(sorted(self.dropped.items())),
            "kept": {"documents": len(self.ids), "tokens": int(offsets[-1])},
        }
        notes = {
            "tokenised": self.tokenised,
            "reused": self.reused,
            "tokenise_seconds": round(self.tokenise_seconds, 3),
            "examples": self.examples,
            "lengths": self.lengths,
        }
        files = [
            PublishedFile.of("work", f"{name}.tokens.arrow", file.written),
            PublishedFile.of("work", f"{name}.table.arrow", written),
        ]
        return Record(files, facts, notes)


class _EarlierTokens:
    """The tokens of a chunk's documents that builds with other filters have left."""

    def __init__(self, stores: Stores, folder: str) -> None:
        self._places: dict[int, tuple[TokensFile, int]] = {}
        for name in stores.work.list(folder):
            if name.endswith(".json"):
                self._add(stores, name)

    def _add(self, stores: Stores, name: str) -> None:
        try:
            tokens, _ = read_record(stores.work.read(name)).files
            file = TokensFile(stores.work.open_arrow(tokens.name, tokens.sha256))
        except (FileNotFoundError, ValueError, KeyError, TypeError, BuildError):
            return  # damaged or on its way out: its documents are tokenised anew
        for rows in file.batches():
            self._places |= {int(r): (file, rows.first + i) for i, r in enumerate(rows.chunk_rows)}

    def tokens(self, chunk_row: int) -> np.ndarray | None:
        """(tokens,) of the document in this row of the chunk, None where no build has kept it."""
        if chunk_row not in self._places:
            return None
        file, row = self._places[chunk_row]
        [rows] = file.batches_of(row, row + 1)
        return rows.tokens(row - rows.first)


def length_histogram(lengths: np.ndarray) -> list[int]:
    """Entry i counts the documents of 2**i to 2**(i+1) - 1 tokens."""
    exponents = np.frexp(np.maximum(lengths, 1).astype(np.float64))[1] - 1
    return np.bincount(exponents).tolist() if len(lengths) else []


def tokenizer_folder(fingerprint: str) -> str:
    """In the work storage: every worker loads the tokenizer that the driver checked, wherever that came from."""
    return f"tokenizer/{fingerprint}"


@lru_cache(maxsize=2)
def _tokenizer(stores: Stores, fingerprint: str, engine: str) -> Tokenizer:
    name = f"{tokenizer_folder(fingerprint)}/tokenizer.json"
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        file.write(stores.work.read(name))
        file.flush()
        tokenizer = load_tokenizer(file.name, engine)
    assert tokenizer.fingerprint == fingerprint, f"{stores.work.where(name)} has another tokenizer"
    return tokenizer
