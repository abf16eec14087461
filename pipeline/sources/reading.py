"""Reading documents out of files: text, rows, and archives of those, as streams in bounded memory.

Every file is one of: text (.txt), rows (.jsonl, .parquet), or an archive of such files (.tar, .zip), and all
but parquet and zip may be compressed (.gz, .bz2, .xz). A document's id says where it is: the input's key, the
member of an archive after it, and `#7` for the seventh row without an id of its own. So it does not change
with the order of reading, nor with what else is read, but for one thing: where two files of a source have one
key, both keys get the names of their folders.
"""

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import PurePosixPath
from typing import IO, Any, BinaryIO, cast

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.documents import (
    INVALID_JSON,
    INVALID_UTF8,
    NO_TEXT,
    TOO_LARGE,
    Document,
    Quarantined,
    readable_name,
)
from pipeline.errors import BuildError, InputError
from pipeline.fetch import Input, open_input, sequential
from pipeline.sources.source import Source

_COMPRESSIONS: dict[str, Callable[[BinaryIO], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_SHORT_NAMES = {".tgz": ".tar.gz", ".tbz2": ".tar.bz2", ".txz": ".tar.xz"}
_ROWS = frozenset({".jsonl", ".json", ".ndjson"})
_TAR_BLOCK = 512

_TORN = (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile)


def accepts(source: type[Source], name: str) -> bool:
    """Whether `name` says a format that sources of this kind are read from."""
    return _holds_documents(source, name) or _format(name)[0] in (".tar", ".zip")


def is_small_file(name: str) -> bool:
    """Whether a file of this name is worth reading together with others: neither an archive nor rows."""
    return _format(name) == (".txt", "")


def read_documents(source: Source, item: Input) -> Iterator[Document | Quarantined]:
    """The documents of one input, in the order of the file, ids without the source's name.

    Raises InputError where the file is torn, changes its size or is not of the format its name says.
    """
    try:
        with ExitStack() as opened:
            stream = opened.enter_context(open_input(item))
            yield from _read_file(source, item, stream)
    except BuildError:
        raise
    except _TORN as error:
        raise InputError(f"{item.uri}: truncated or damaged: {error or type(error).__name__}") from error
    except pa.ArrowInvalid as error:
        raise InputError(f"{item.uri}: not a whole parquet file: {error}") from error
    except (OSError, UnicodeDecodeError, RuntimeError) as error:
        # zipfile raises the latter: for what is encrypted, or packed by a method it does not know.
        raise InputError(f"{item.uri}: cannot be read: {error}") from error


def _format(name: str) -> tuple[str, str]:
    """(format, compression) by the name's endings, such as (".tar", ".gz")."""
    path = PurePosixPath(name.lower())
    suffixes = PurePosixPath(path.stem + _SHORT_NAMES.get(path.suffix, path.suffix)).suffixes
    if suffixes and suffixes[-1] in _COMPRESSIONS:
        return (suffixes[-2] if len(suffixes) > 1 else "", suffixes[-1])
    return (suffixes[-1] if suffixes else "", "")


def _holds_documents(source: type[Source], name: str) -> bool:
    kind, compression = _format(name)
    if kind == ".parquet":
        return not compression
    return kind in _ROWS or (kind == ".txt" and source.reads_text_files)


def _read_file(source: Source, item: Input, stream: BinaryIO) -> Iterator[Document | Quarantined]:
    kind, compression = _format(item.key)
    if kind == ".parquet":
        yield from _read_parquet(source, item.key, stream)
    elif kind == ".zip":
        yield from _read_zip(source, item.key, stream)
    else:
        whole = sequential(stream, item)
        if kind == ".tar":
            yield from _read_tar(source, item, _decompressed(whole, compression))
        else:
            yield from _read_plain(source, item.key, _decompressed(whole, compression))


def _decompressed(stream: BinaryIO, compression: str) -> BinaryIO:
    if not compression:
        return stream
    unpacked = _COMPRESSIONS[compression](stream)
    return cast(BinaryIO, io.BufferedReader(unpacked, 1 << 20))


def _read_plain(source: Source, name: str, stream: IO[bytes]) -> Iterator[Document | Quarantined]:
    if _format(name)[0] in _ROWS:
        yield from _read_jsonl(source, name, stream)
    else:
        yield from _read_text(source, name, stream)


def _read_text(source: Source, name: str, stream: IO[bytes]) -> Iterator[Document | Quarantined]:
    many = type(source).text_file is not Source.text_file
    for line, content in source.text_file(_lines(source, stream)):
        position = f"{name}, document at line {line}" if many else name
        if len(content) > source.maximum_document_bytes:
            yield _too_large(source, position)
            continue
        try:
            text = source.text(content)
        except UnicodeDecodeError as error:
            yield _invalid_utf8(position, error)
            continue
        yield Document(f"{name}#{line}" if many else name, text)


def _read_jsonl(source: Source, name: str, stream: IO[bytes]) -> Iterator[Document | Quarantined]:
    for number, line in enumerate(_lines(source, stream), 1):
        line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        if not line.strip():
            continue
        position = f"{name}, line {number}"
        if len(line) > source.maximum_document_bytes:
            yield _too_large(source, position)
            continue
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            yield _unreadable_line(position, line, error)
        else:
            yield _from_row(source, name, number, row, position)


def _lines(source: Source, stream: IO[bytes]) -> Iterator[bytes]:
    """The lines with their ends; of one that is too large the first `maximum_document_bytes` + 1 bytes."""
    while line := stream.readline(source.maximum_document_bytes + 1):
        yield line
        if len(line) > source.maximum_document_bytes:
            while line and not line.endswith(b"\n"):
                line = stream.readline(1 << 20)


def _read_parquet(source: Source, name: str, stream: BinaryIO) -> Iterator[Document | Quarantined]:
    file = pq.ParquetFile(stream)
    present = file.schema_arrow.names
    if source.text_column not in present:
        raise InputError(
            f"{name}: no column {source.text_column!r} (key text_column); it has {', '.join(present)}"
        )
    columns = [column for column in (source.id_column, source.text_column) if column in present]
    number = 0
    for batch in file.iter_batches(batch_size=256, columns=columns):
        for index in range(batch.num_rows):
            number += 1
            position = f"{name}, row {number}"
            try:
                [row] = batch.slice(index, 1).to_pylist()
            except UnicodeDecodeError as error:
                yield _invalid_utf8(position, error)
            else:
                yield _from_row(source, name, number, row, position)


def _read_tar(source: Source, item: Input, stream: BinaryIO) -> Iterator[Document | Quarantined]:
    watched = _LastBlock(stream)
    with tarfile.open(fileobj=cast(Any, watched), mode="r|") as archive:
        for member in archive:
            if member.isfile() and _holds_documents(type(source), member.name):
                content = archive.extractfile(member)
                assert content is not None
                yield from _read_member(source, f"{item.key}/{_clean(member.name)}", content)
    while watched.read(1 << 20):
        pass  # to the end, so that the checksum of the compression is looked at
    if watched.last.strip(b"\0"):
        # tarfile takes an archive that was cut between two members for a whole one.
        raise InputError(f"{item.uri}: truncated: the archive does not end with an empty block")


def _read_zip(source: Source, name: str, stream: BinaryIO) -> Iterator[Document | Quarantined]:
    with zipfile.ZipFile(stream) as archive:
        for member in archive.infolist():
            if not member.is_dir() and _holds_documents(type(source), member.filename):
                with archive.open(member) as content:
                    buffered = io.BufferedReader(
                        cast(Any, content), 1 << 20
                    )  # a ZipExtFile's readline is slow
                    yield from _read_member(source, f"{name}/{_clean(member.filename)}", buffered)


def _read_member(source: Source, name: str, content: IO[bytes]) -> Iterator[Document | Quarantined]:
    kind, compression = _format(name)
    if kind == ".parquet":  # needs to seek
        yield from _read_parquet(source, name, io.BytesIO(content.read()))
    else:
        yield from _read_plain(source, name, _decompressed(cast(BinaryIO, content), compression))


def _clean(member: str) -> str:
    """A member's name as a part of an id; nothing is ever written under it."""
    return readable_name("/".join(part for part in member.split("/") if part not in ("", ".", "..")))


def _from_row(source: Source, name: str, number: int, row: Any, position: str) -> Document | Quarantined:
    identifier, text = source.row(row) if isinstance(row, dict) else (None, None)
    if text is None:
        return Quarantined(position, NO_TEXT, f"expected an object whose {source.text_column!r} is a string")
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:  # half a surrogate pair, which JSON can spell
        return Quarantined(position, INVALID_UTF8, str(error.reason))
    if size > source.maximum_document_bytes:
        return _too_large(source, position)
    return Document(f"{name}#{number}" if identifier is None else identifier, text)


def _unreadable_line(position: str, line: bytes, error: orjson.JSONDecodeError) -> Quarantined:
    try:
        line.decode()
    except UnicodeDecodeError as not_text:
        return _invalid_utf8(position, not_text)
    return Quarantined(position, INVALID_JSON, f"{error.msg} at column {error.pos + 1}")


def _invalid_utf8(position: str, error: UnicodeDecodeError) -> Quarantined:
    return Quarantined(position, INVALID_UTF8, f"{error.reason} at byte {error.start}")


def _too_large(source: Source, position: str) -> Quarantined:
    return Quarantined(position, TOO_LARGE, f"more than {source.maximum_document_bytes:,} bytes")


class _LastBlock:
    """Passes reads through and keeps the last block, to see how an archive ends."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.last = b""

    def read(self, size: int = -1) -> bytes:
        content = self._stream.read(size)
        self.last = (self.last + content)[-_TAR_BLOCK:] if content else self.last
        return content
