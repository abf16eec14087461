"""Ranges of hashes, and the documents whose hash lies in one, gathered from all tables.

A document is known by its number, `file << 32 | row`: its place in the catalogue and in that file.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa

from pipeline.decisions import HASH_VALUES
from pipeline.stages.select.catalogue import Catalogue, Entry, read_catalogue
from pipeline.storage import Storage
from pipeline.units import PublishedFile

DOCUMENTS = 1_000_000
"""About how many documents a range holds: some 200 MB of memory for the unit that decides on them, and 8 bytes more for
each document of the corpus that was dropped before."""

ROW_BYTES = 44
"""Of a table's row: what a unit that looks at all tables reads a document."""

LOSERS_SCHEMA = pa.schema([pa.field("document", pa.int64())])


@dataclass(frozen=True)
class Range:
    """Hashes from `first` on, below `last`."""

    first: int
    last: int

    def __str__(self) -> str:
        return f"hashes {self.first / HASH_VALUES:.1%} to {self.last / HASH_VALUES:.1%}"

    def holds(self, hashes: np.ndarray) -> np.ndarray:
        """(documents,) bool for (documents,) uint64."""
        if self.first == self.last:
            return np.zeros(len(hashes), dtype=bool)
        # `last` may be 2**64, which no uint64 is.
        return (hashes >= np.uint64(self.first)) & (hashes <= np.uint64(self.last - 1))

    def slice(self, ascending: np.ndarray) -> slice:
        """Where the hashes of this range are in an ascending array."""
        first = int(np.searchsorted(ascending, np.uint64(self.first), side="left"))
        return slice(first, int(np.searchsorted(ascending, np.uint64(self.last - 1), side="right")))


def ranges_for(documents: int) -> list[Range]:
    """All hashes, cut into equal ranges of about `DOCUMENTS` of so many documents."""
    count = max(1, -(-documents // DOCUMENTS))
    borders = [HASH_VALUES * number // count for number in range(count + 1)]
    return [Range(first, last) for first, last in pairwise(borders)]


@dataclass(frozen=True)
class RangeUnit:
    """What the units of select have in common that look at a range of some hash in all tables."""

    catalogue: Catalogue
    within: Range

    @property
    def size(self) -> int:
        return self.catalogue.documents * ROW_BYTES

    @property
    def about(self) -> str:
        return str(self.within)


class Losers:
    """Documents that were dropped so far."""

    def __init__(self, lists: Sequence[PublishedFile], work: Storage) -> None:
        found = [np.zeros(0, np.int64)]
        for file in lists:
            found.append(read_column(work, file, "document"))
        self._numbers = np.sort(np.concatenate(found))

    def of(self, entry: Entry) -> np.ndarray:
        """The rows of an entry's documents that were dropped."""
        first, last = np.searchsorted(self._numbers, [entry.number << 32, (entry.number + 1) << 32])
        return self._numbers[first:last] & 0xFFFFFFFF

    def left(self, entry: Entry) -> np.ndarray:
        """(documents,) bool of an entry's documents that were not."""
        left = np.ones(entry.documents, dtype=bool)
        left[self.of(entry)] = False
        return left


@dataclass(frozen=True)
class Documents:
    """Some documents of all tables; each array has one entry a document."""

    number: np.ndarray
    """`file << 32 | row`; int64."""
    source: np.ndarray
    """The source's number, which is its priority."""
    columns: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.number)

    def __getitem__(self, column: str) -> np.ndarray:
        return self.columns[column]


def gather(
    catalogue: Catalogue, work: Storage, columns: Sequence[str], within: Range, by: str, losers: Losers
) -> Documents:
    """The documents that are left whose hash `by` lies `within`, with these columns of their tables.

    Tables are in the order of the hash "order": of that one a range is a slice, of others all rows are looked at.
    """
    numbers, sources = [np.zeros(0, np.int64)], [np.zeros(0, np.int32)]
    found: dict[str, list[np.ndarray]] = {name: [] for name in columns}
    for entry in read_catalogue(catalogue, work):
        table = open_table(work, entry.table)
        hashes = table.column(by).to_numpy()
        left = losers.left(entry)
        if by == "order":
            rows = np.arange(len(hashes))[within.slice(hashes)]
            rows = rows[left[rows]]
        else:
            rows = np.flatnonzero(within.holds(hashes) & left)
        if len(rows):
            numbers.append(rows + (entry.number << 32))
            sources.append(np.full(len(rows), entry.source, dtype=np.int32))
            for name in columns:
                found[name].append(table.column(name).to_numpy()[rows])
    gathered = {
        name: np.concatenate(parts) if parts else np.zeros(0, np.uint64) for name, parts in found.items()
    }
    return Documents(np.concatenate(numbers), np.concatenate(sources), gathered)


def entries_with_rows(
    catalogue: Catalogue, work: Storage, numbers: np.ndarray
) -> Iterator[tuple[Entry, np.ndarray, slice]]:
    """For ascending document numbers: each entry that has some of them, their rows in it, and where they are in
    `numbers`."""
    for entry in read_catalogue(catalogue, work):
        first, last = np.searchsorted(numbers, [entry.number << 32, (entry.number + 1) << 32])
        if first < last:
            yield entry, numbers[first:last] & 0xFFFFFFFF, slice(int(first), int(last))


def open_table(work: Storage, file: PublishedFile) -> pa.RecordBatch:
    """The one record batch of a small Arrow file."""
    return work.open_arrow(file.name, file.sha256).get_batch(0)


def read_column(work: Storage, file: PublishedFile, name: str) -> np.ndarray:
    """A whole column of a small Arrow file."""
    return open_table(work, file).column(name).to_numpy()


def publish_losers(name: str, numbers: np.ndarray, work: Storage) -> PublishedFile:
    """Publishes a list of dropped documents, ascending."""
    batch = pa.record_batch([pa.array(np.sort(numbers), pa.int64())], schema=LOSERS_SCHEMA)
    return PublishedFile.of("work", name, work.publish_arrow(name, batch))
