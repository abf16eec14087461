"""The catalogue: which tables and tokens files a corpus is selected from, as one sealed file.

The units of select are told this file's name instead of a list that grows with the corpus.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from pipeline.ledger import Ledger
from pipeline.storage import Storage, Stores
from pipeline.units import PublishedFile

_FILE = [("name", pa.string()), ("bytes", pa.int64()), ("sha256", pa.string())]
_SCHEMA = pa.schema(
    [
        pa.field("source", pa.int32()),  # the source's number, which is its priority
        pa.field("documents", pa.int64()),
        *(pa.field(f"{kind}_{key}", type_) for kind in ("tokens", "table", "signs") for key, type_ in _FILE),
    ]
)
_BATCH = 1000
"""Entries written at a time."""


@dataclass(frozen=True)
class Catalogue:
    """A published catalogue."""

    file: PublishedFile
    documents: int
    """In all its tables together."""


@dataclass(frozen=True)
class Entry:
    """The files of one chunk; its number in the catalogue is the number that lists of documents give."""

    number: int
    source: int
    documents: int
    tokens: PublishedFile
    table: PublishedFile
    signs: PublishedFile | None


def write_catalogue(ledger: Ledger, sources: dict[str, int], signed: bool, stores: Stores) -> Catalogue:
    """The catalogue of what encode, and sign where `signed`, have done: chunks without a document left out. Its name
    is that of its content."""
    # Twice through the ledger: once for the name, so that equal catalogues are one, and once for the content.
    digest = hashlib.sha256()
    documents = 0
    for entry in _entries(ledger, sources, signed):
        documents += entry.documents
        digest.update(repr(entry).encode())
    name = f"select/catalogue-{digest.hexdigest()[:20]}.arrow"
    with stores.work.create(name) as file, pa.ipc.new_file(file, _SCHEMA) as writer:
        rows: list[dict[str, object]] = []
        for entry in _entries(ledger, sources, signed):
            rows.append(_row(entry))
            if len(rows) == _BATCH:
                writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=_SCHEMA))
                rows = []
        writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=_SCHEMA))
    return Catalogue(PublishedFile.of("work", name, file.written), documents)


def _entries(ledger: Ledger, sources: dict[str, int], signed: bool) -> Iterator[Entry]:
    signs = ledger.records("sign") if signed else None
    kept = (record for record in ledger.records("encode") if record.facts["kept"]["documents"])
    for number, record in enumerate(kept):
        tokens, table = record.files
        sign = next(signs).files[0] if signs is not None else None
        documents = record.facts["kept"]["documents"]
        yield Entry(number, sources[record.facts["source"]], documents, tokens, table, sign)


def _row(entry: Entry) -> dict[str, object]:
    row: dict[str, object] = {"source": entry.source, "documents": entry.documents}
    for kind, file in (("tokens", entry.tokens), ("table", entry.table), ("signs", entry.signs)):
        for key, _ in _FILE:
            row[f"{kind}_{key}"] = getattr(file, key) if file else None
    return row


def read_catalogue(catalogue: Catalogue, work: Storage) -> Iterator[Entry]:
    """The entries of a published catalogue, in their order."""
    reader = work.open_arrow(catalogue.file.name, catalogue.file.sha256)
    number = 0
    for index in range(reader.num_record_batches):
        for row in reader.get_batch(index).to_pylist():
            tokens, table, signs = (_file(row, kind) for kind in ("tokens", "table", "signs"))
            assert tokens is not None
            assert table is not None
            yield Entry(number, row["source"], row["documents"], tokens, table, signs)
            number += 1


def _file(row: dict[str, object], kind: str) -> PublishedFile | None:
    name, size, sha256 = (row[f"{kind}_{key}"] for key, _ in _FILE)
    return PublishedFile("work", str(name), int(str(size)), str(sha256)) if name is not None else None
