"""The tokens file: the token documents of one chunk, in the order of their hash.

Rows are spread over record batches of `rows_per_batch`, which the schema's metadata states, so that row r lies in
batch r // rows_per_batch: a reader of a range of rows reads that range alone, from a memory map as from an object
store.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

BATCHES = 32
"""About how many record batches a file has: the fraction of it that a reader of one document reads."""

_ROWS_KEY = b"longspan.rows_per_batch"


def write_tokens(
    sink: Any, ids: Sequence[str], chunk_rows: np.ndarray, tokens: np.ndarray, offsets: np.ndarray
) -> None:
    """Writes documents, in this order: `ids`, their rows in the chunk they came from, and their tokens, document i's
    being tokens[offsets[i] : offsets[i + 1]]."""
    rows = max(1, -(-len(ids) // BATCHES))
    lists = pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), pa.array(tokens))
    columns = {
        "id": pa.array(ids, pa.string()),
        "chunk_row": pa.array(chunk_rows, pa.uint32()),
        "tokens": lists,
    }
    schema = pa.schema([(name, column.type) for name, column in columns.items()])
    table = pa.Table.from_arrays(list(columns.values()), schema=schema)
    with pa.ipc.new_file(sink, schema.with_metadata({_ROWS_KEY: str(rows).encode()})) as writer:
        for first in range(0, len(ids), rows):
            [batch] = table.slice(first, rows).to_batches()
            writer.write_batch(batch)


class TokensFile:
    """A tokens file, opened for reading."""

    def __init__(self, reader: pa.RecordBatchFileReader) -> None:
        self._reader = reader
        self._rows = int(reader.schema.metadata[_ROWS_KEY])

    def batches(self) -> Iterator["TokenRows"]:
        """All rows, a record batch at a time."""
        for number in range(self._reader.num_record_batches):
            yield TokenRows(self._reader.get_batch(number), number * self._rows)

    def batches_of(self, first: int, last: int) -> Iterator["TokenRows"]:
        """The record batches that hold rows [first, last)."""
        if first < last:
            for number in range(first // self._rows, (last - 1) // self._rows + 1):
                yield TokenRows(self._reader.get_batch(number), number * self._rows)


class TokenRows:
    """Some consecutive rows of a tokens file."""

    def __init__(self, batch: pa.RecordBatch, first: int) -> None:
        self.first = first
        """The number of the first of them in the file."""
        self.ids = batch.column("id")
        self.chunk_rows = batch.column("chunk_row").to_numpy()
        tokens = batch.column("tokens")
        self.offsets = tokens.offsets.to_numpy()
        self.values = tokens.values.to_numpy()

    def __len__(self) -> int:
        return len(self.ids)

    def tokens(self, row: int) -> np.ndarray:
        """(tokens,) of row `row` of these, a view."""
        return self.values[self.offsets[row] : self.offsets[row + 1]]
