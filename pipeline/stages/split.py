"""split: reads each input once, as a stream, and cuts it into sealed chunks at document borders.

A chunk is an Arrow file with one row a document: `id` and `text`. Documents that cannot be read go to a
quarantine file beside the chunks, with their position and the reason, never their text.
"""

import json
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import pyarrow as pa

from pipeline.decisions import content_id
from pipeline.documents import Document, Quarantined
from pipeline.fetch import Input
from pipeline.sources.reading import read_documents
from pipeline.sources.source import Source
from pipeline.storage import Stores
from pipeline.units import VERSIONS, PublishedFile, Record

CHUNK_SCHEMA = pa.schema([pa.field("id", pa.string()), pa.field("text", pa.large_string())])


@dataclass(frozen=True)
class Chunk:
    """A sealed chunk, as the records of this stage list it."""

    name: str
    sha256: str
    documents: int
    text_bytes: int


@dataclass(frozen=True)
class SplitUnit:
    """Reads some inputs of one source: one archive or file of rows, or a group of small files."""

    stage: ClassVar[str] = "split"
    source: str
    reader: Source
    inputs: tuple[Input, ...]
    chunk_bytes: int
    limit: int | None
    """Stop after so many documents."""

    @property
    def id(self) -> str:
        versions = [(item.key, item.version, item.bytes) for item in self.inputs]
        how = (self.reader.kind, asdict(self.reader), self.chunk_bytes, self.limit)
        return content_id(self.stage, 1, VERSIONS, self.source, how, versions)

    @property
    def size(self) -> int:
        return sum(item.bytes for item in self.inputs)

    def run(self, stores: Stores) -> Record:
        writer = _ChunkWriter(stores, f"{self.stage}/{self.id}", self.chunk_bytes)
        quarantined: list[dict[str, Any]] = []
        reasons: Counter[str] = Counter()
        documents = 0
        for item in self.inputs:
            for document, _ in read_documents(self.reader, item, stores.work):
                if isinstance(document, Quarantined):
                    reasons[document.reason] += 1
                    quarantined.append({"source": self.source, **asdict(document)})
                    continue
                writer.add(Document(f"{self.source}/{document.id}", document.text))
                documents += 1
                if documents == self.limit:
                    break
            if documents == self.limit:
                break
        writer.flush()
        lines = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in quarantined)
        name = f"{self.stage}/{self.id}.quarantine.jsonl"
        written = stores.work.publish(name, lines.encode())
        facts = {
            "chunks": [asdict(chunk) for chunk in writer.chunks],
            "quarantined": dict(sorted(reasons.items())),
            "quarantine": name,
        }
        return Record([*writer.files, PublishedFile.of("work", name, written)], facts)


class _ChunkWriter:
    """Gathers documents and publishes a chunk whenever enough text has come together."""

    def __init__(self, stores: Stores, prefix: str, chunk_bytes: int) -> None:
        self.files: list[PublishedFile] = []
        self.chunks: list[Chunk] = []
        self._work = stores.work
        self._prefix = prefix
        self._chunk_bytes = chunk_bytes
        self._ids: list[str] = []
        self._texts: list[bytes] = []
        self._bytes = 0

    def add(self, document: Document) -> None:
        text = document.text.encode()  # half the memory of a str, or a quarter
        if self._texts and self._bytes + len(text) > self._chunk_bytes:
            self.flush()
        self._ids.append(document.id)
        self._texts.append(text)
        self._bytes += len(text)

    def flush(self) -> None:
        if not self._texts:
            return
        texts = pa.array(self._texts, pa.large_binary()).cast(pa.large_string())
        batch = pa.record_batch([pa.array(self._ids, pa.string()), texts], schema=CHUNK_SCHEMA)
        name = f"{self._prefix}-{len(self.chunks):05d}.arrow"
        written = self._work.publish_arrow(name, batch)
        self.files.append(PublishedFile.of("work", name, written))
        self.chunks.append(Chunk(name, written.sha256, len(self._ids), self._bytes))
        self._ids, self._texts, self._bytes = [], [], 0


def within_limit(records: list[Record], limit: int | None) -> list[tuple[Record, list[tuple[Chunk, int]]]]:
    """The records of one source's units, in the plan's order, each with its chunks and how many documents to
    take of each; what lies behind `limit` documents of the source is left out."""
    left = limit
    taken = []
    for record in records:
        if left == 0:
            break
        chunks = []
        for facts in record.facts["chunks"]:
            chunk = Chunk(**facts)
            take = chunk.documents if left is None else min(left, chunk.documents)
            left = None if left is None else left - take
            if take:
                chunks.append((chunk, take))
        taken.append((record, chunks))
    return taken
