"""split: reads each input once, as a stream, and cuts it into sealed chunks at document borders.

A chunk is an Arrow file with one row a document, `id` and `text`, in record batches of a few megabytes, written as
they come: memory does not depend on the archive's size, nor on the chunk's. Documents that cannot be read go to a
quarantine file beside the chunk, with their position and the reason, never their text.

A unit can be killed in the middle of a 120 GB archive. With each chunk it seals the place in the input behind it; run
again, it goes on from the last such place, and cuts the same chunks.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import count
from typing import Any, ClassVar

import pyarrow as pa

from pipeline.decisions import content_id
from pipeline.documents import Document, Quarantined
from pipeline.errors import DamagedFile
from pipeline.fetch import Input
from pipeline.sealed_json import read_sealed_json, seal_json
from pipeline.sources.reading import Position, read_documents
from pipeline.sources.source import Source
from pipeline.stages.fetch import verify_parts
from pipeline.storage import Stores
from pipeline.units import VERSIONS, PublishedFile, Record

CHUNK_SCHEMA = pa.schema([pa.field("id", pa.string()), pa.field("text", pa.large_string())])
BATCH_BYTES = 4_000_000
"""Text in a record batch of a chunk; the memory of reading and writing one."""
BATCH_DOCUMENTS = 10_000
"""Documents in a record batch at most, however small they are."""
MAXIMUM_DOCUMENTS = 100_000
"""A chunk ends after so many documents as well: who reads it needs about a kB of memory for each, be it empty."""
MAXIMUM_QUARANTINED = 100_000
"""A chunk ends after so many unreadable documents as well, so that a killed unit goes on behind them too."""


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
        return content_id(self.stage, 3, VERSIONS, self.source, how, versions)

    @property
    def size(self) -> int:
        return sum(item.bytes for item in self.inputs)

    @property
    def about(self) -> str:
        more = f" and {len(self.inputs) - 1:,} more" if len(self.inputs) > 1 else ""
        return f"{self.source}: {self.inputs[0].key}{more}"

    def run(self, stores: Stores) -> Record:
        sealed = list(self._sealed_before(stores))
        resumed = len(sealed)
        place = _Place.after(sealed[-1]) if sealed else _Place()
        if place is not None:
            for item in self.inputs:
                if item.parts:
                    verify_parts(item, stores)
            sealed.extend(self._cut(stores, len(sealed), place))
        reasons: Counter[str] = Counter()
        for entry in sealed:
            reasons.update(entry["quarantined"])
        facts = {
            "source": self.source,
            "chunks": [entry["chunk"] for entry in sealed if entry["chunk"]["documents"]],
            "quarantined": dict(sorted(reasons.items())),
            "quarantine": [entry["quarantine"]["name"] for entry in sealed],
        }
        files = [
            PublishedFile("work", file["name"], file["bytes"], file["sha256"])
            for entry in sealed
            for file in (entry["file"], entry["quarantine"])
        ]
        return Record(files, facts, {"chunks_of_an_earlier_run": resumed} if resumed else {})

    def _name(self, number: int) -> str:
        return f"{self.stage}/{self.id}/{number:05d}"

    def _sealed_before(self, stores: Stores) -> Iterator[dict[str, Any]]:
        """The chunks that a killed run of this unit has sealed, as far as they are whole."""
        for number in count():
            try:
                sealed = read_sealed_json(stores.work.read(f"{self._name(number)}.json"))
                files = [sealed["file"], sealed["quarantine"]]
                if not all(stores.work.holds(f["name"], f["bytes"], f["sha256"]) for f in files):
                    return
            except (FileNotFoundError, DamagedFile, ValueError):
                return
            yield sealed
            if sealed["next"] is None:
                return

    def _cut(self, stores: Stores, number: int, place: "_Place") -> Iterator[dict[str, Any]]:
        """Reads on from `place` and seals chunk after chunk, from `number` on."""
        found = _Peekable(self._read(stores, place))
        documents = place.documents
        while True:
            name = self._name(number)
            reasons: Counter[str] = Counter()
            with ExitStack() as written:
                file = written.enter_context(stores.work.create(f"{name}.arrow"))
                quarantine = written.enter_context(stores.work.create(f"{name}.quarantine.jsonl"))
                chunk = _Chunk(file)
                while documents != self.limit and reasons.total() < MAXIMUM_QUARANTINED:
                    read = found.peek()
                    if read is None:
                        break
                    if isinstance(read.document, Quarantined):
                        reasons[read.document.reason] += 1
                        entry = {"source": self.source, **asdict(read.document)}
                        quarantine.write(json.dumps(entry, ensure_ascii=False).encode() + b"\n")
                    else:
                        text = read.document.text.encode()  # half the memory of a str, or a quarter
                        if not chunk.has_room(len(text), self.chunk_bytes):
                            break
                        chunk.add(f"{self.source}/{read.document.id}", text)
                        documents += 1
                    place = _Place(read.item, read.after, documents)
                    found.take()
                chunk.end()
            ended = documents == self.limit or found.peek() is None
            sealed = {
                "chunk": asdict(
                    Chunk(f"{name}.arrow", file.written.sha256, chunk.documents, chunk.text_bytes)
                ),
                "file": {"name": f"{name}.arrow", **asdict(file.written)},
                "quarantine": {"name": f"{name}.quarantine.jsonl", **asdict(quarantine.written)},
                "quarantined": dict(reasons),
                "next": None if ended else asdict(place),
            }
            stores.work.publish(f"{name}.json", seal_json(sealed))
            yield sealed
            if ended:
                return
            number += 1

    def _read(self, stores: Stores, place: "_Place") -> "Iterator[_Read]":
        for number in range(place.item, len(self.inputs)):
            start = place.position if number == place.item else Position()
            for document, after in read_documents(self.reader, self.inputs[number], stores.work, start):
                yield _Read(number, document, after)


@dataclass(frozen=True)
class _Place:
    """Where in a unit's inputs a chunk starts."""

    item: int = 0
    position: Position = field(default_factory=Position)
    documents: int = 0
    """Documents in the chunks before it."""

    @classmethod
    def after(cls, sealed: dict[str, Any]) -> "_Place | None":
        following = sealed["next"]
        if following is None:
            return None
        return cls(following["item"], Position(**following["position"]), following["documents"])


@dataclass(frozen=True, slots=True)
class _Read:
    """A document, or what stands for it, of input `item`, and the place in the input behind it."""

    item: int
    document: Document | Quarantined
    after: Position


class _Peekable:
    """Looks one ahead: whether a document still fits its chunk is known when it was read."""

    def __init__(self, reads: Iterator[_Read]) -> None:
        self._reads = reads
        self._next: _Read | None = None

    def peek(self) -> _Read | None:
        """The next one, None at the end."""
        if self._next is None:
            self._next = next(self._reads, None)
        return self._next

    def take(self) -> None:
        self._next = None


class _Chunk:
    """Gathers documents into record batches."""

    def __init__(self, sink: Any) -> None:
        self.documents = 0
        self.text_bytes = 0
        self._writer = pa.ipc.new_file(sink, CHUNK_SCHEMA)
        self._ids: list[str] = []
        self._texts: list[bytes] = []
        self._gathered = 0

    def has_room(self, text_bytes: int, chunk_bytes: int) -> bool:
        """Whether a text of so many bytes still belongs to this chunk."""
        fits = self.text_bytes + text_bytes <= chunk_bytes and self.documents < MAXIMUM_DOCUMENTS
        return fits or not self.documents

    def add(self, identifier: str, text: bytes) -> None:
        self.documents += 1
        self.text_bytes += len(text)
        self._gathered += len(text)
        self._ids.append(identifier)
        self._texts.append(text)
        if self._gathered >= BATCH_BYTES or len(self._ids) == BATCH_DOCUMENTS:
            self._flush()

    def end(self) -> None:
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._ids:
            # Views of bytes that came from a str: no need to look at their UTF-8 again.
            texts = pa.array(self._texts, pa.large_binary()).view(pa.large_string())
            self._writer.write_batch(
                pa.record_batch([pa.array(self._ids, pa.string()), texts], schema=CHUNK_SCHEMA)
            )
            self._ids, self._texts, self._gathered = [], [], 0


def within_limit(
    records: Iterable[Record], limit: int | None
) -> Iterator[tuple[Record, list[tuple[Chunk, int]]]]:
    """The records of one source's units, in the plan's order, each with its chunks and how many documents to
    take of each; what lies behind `limit` documents of the source is left out."""
    left = limit
    for record in records:
        if left == 0:
            return
        chunks = []
        for facts in record.facts["chunks"]:
            chunk = Chunk(**facts)
            take = chunk.documents if left is None else min(left, chunk.documents)
            left = None if left is None else left - take
            if take:
                chunks.append((chunk, take))
        yield record, chunks
