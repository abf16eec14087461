"""Documents as rows: a line of a .jsonl file, or of a parquet file."""

from collections.abc import Iterator
from typing import IO, Any, BinaryIO

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.documents import (
    INVALID_JSON,
    NO_TEXT,
    Document,
    Position,
    Quarantined,
    invalid_utf8,
    too_large,
)
from pipeline.errors import InputError
from pipeline.sources.source import Source
from pipeline.sources.streams import BUFFER, Lines

_BOM = b"\xef\xbb\xbf"
_BATCH_BYTES = 8_000_000
_BATCH_ROWS = 1_024


def read_jsonl(
    source: Source, name: str, stream: IO[bytes], start: Position
) -> Iterator[tuple[Document | Quarantined, Position]]:
    """The rows of a stream that stands at `start`, one a line; blank lines are none."""
    lines = Lines(stream, source.maximum_document_bytes, start.offset, start.number)
    for line in lines:
        number = lines.number
        if number == 1:
            line = line.removeprefix(_BOM)
        if line.isspace() or not line:
            continue
        document: Document | Quarantined
        if len(line) > source.maximum_document_bytes:
            document = too_large(f"{name}, line {number}", source.maximum_document_bytes)
        else:
            try:
                row = orjson.loads(line)
            except orjson.JSONDecodeError as error:
                document = _unreadable_line(f"{name}, line {number}", line, error)
            else:
                document = _from_row(source, name, "line", number, row)
        yield document, Position(start.member, lines.offset, number)


def read_parquet(
    source: Source, name: str, stream: BinaryIO, start: Position
) -> Iterator[tuple[Document | Quarantined, Position]]:
    """The rows of a parquet file behind the first `start.number`. What is held is a few pages of its columns
    and some MB of rows, whatever the size of a row group."""
    # Without these two, pyarrow reads a row group's columns whole.
    file = pq.ParquetFile(stream, buffer_size=BUFFER, pre_buffer=False)
    present = file.schema_arrow.names
    if source.text_column not in present:
        raise InputError(
            f"{name}: no column {source.text_column!r} (key text_column); it has {', '.join(present)}"
        )
    columns = [column for column in (source.id_column, source.text_column) if column in present]
    before = 0
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if before + rows > start.number:
            size = _batch_size(file.metadata.row_group(group), source.text_column)
            number = before
            for batch in file.iter_batches(size, row_groups=[group], columns=columns):
                wanted = batch.slice(min(max(0, start.number - number), batch.num_rows))
                number += batch.num_rows - wanted.num_rows
                for row in _rows(wanted):
                    number += 1
                    document = (
                        invalid_utf8(f"{name}, row {number}", row)
                        if isinstance(row, UnicodeDecodeError)
                        else _from_row(source, name, "row", number, row)
                    )
                    yield document, Position(start.member, 0, number)
        before += rows


def _batch_size(group: Any, column: str) -> int:
    """How many rows to decode at a time."""
    columns = (group.column(index) for index in range(group.num_columns))
    size = sum(chunk.total_uncompressed_size for chunk in columns if chunk.path_in_schema == column)
    return max(1, min(_BATCH_ROWS, _BATCH_BYTES * group.num_rows // max(1, size)))


def _rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | UnicodeDecodeError]:
    try:
        columns = [column.to_pylist() for column in batch.columns]
    except UnicodeDecodeError:
        for index in range(batch.num_rows):
            try:
                yield from batch.slice(index, 1).to_pylist()
            except UnicodeDecodeError as error:
                yield error
        return
    for values in zip(*columns, strict=True):
        yield dict(zip(batch.schema.names, values, strict=True))


def _from_row(source: Source, name: str, unit: str, number: int, row: Any) -> Document | Quarantined:
    identifier, text = source.row(row) if isinstance(row, dict) else (None, None)
    if text is None:
        expected = f"expected an object whose {source.text_column!r} is a string"
        return Quarantined(f"{name}, {unit} {number}", NO_TEXT, expected)
    # A character is at most 4 bytes: most texts need no look at their encoded size.
    maximum = source.maximum_document_bytes
    if 4 * len(text) > maximum and len(text.encode()) > maximum:
        return too_large(f"{name}, {unit} {number}", maximum)
    return Document(f"{name}#{number}" if identifier is None else identifier, text)


def _unreadable_line(position: str, line: bytes, error: orjson.JSONDecodeError) -> Quarantined:
    try:
        line.decode()
    except UnicodeDecodeError as not_text:
        return invalid_utf8(position, not_text)
    return Quarantined(position, INVALID_JSON, f"{error.msg} at column {error.pos + 1}")
