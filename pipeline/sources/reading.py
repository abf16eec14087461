"""Reading documents out of files: text, rows, dumps, and archives of those, as streams in bounded memory.

Every file is one of: text (.txt), rows (.jsonl, .parquet), a dump (.xml), or an archive of such files (.tar,
.zip), and all but parquet and zip may be compressed (.gz, .bz2, .xz). A document's id says where it is: the
input's key, the member of an archive after it, and `#7` for the seventh row without an id of its own. So it does
not change with the order of reading, nor with what else is read, but for one thing: where two files of a source
have one key, both keys get the names of their folders.

Reading can go on behind any document, at its `Position`. What lies before is passed over without being looked
at: a plain file is entered in the middle, a compressed one only unpacked, members of a zip and row groups of a
parquet file are jumped over. That a file is whole is seen all the same, since that shows at its end.

What is held in memory, however large the input: the largest document, a few buffers of a MB, for parquet a few
pages and 8 MB of rows. A parquet file inside an archive goes through a temporary file.
"""

import gzip
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import closing
from typing import BinaryIO, cast

import pyarrow as pa

from pipeline.documents import (
    NESTED_ARCHIVE,
    NOT_A_FILE,
    START,
    Document,
    Position,
    Quarantined,
    invalid_utf8,
    too_large,
)
from pipeline.errors import BuildError, InputError
from pipeline.fetch import Input, open_input, sequential
from pipeline.sources.archives import Member, tar_members, zip_members
from pipeline.sources.dumps import read_dump
from pipeline.sources.formats import ROWS, format_of, holds_documents, is_archive
from pipeline.sources.rows import read_jsonl, read_parquet
from pipeline.sources.source import Source
from pipeline.sources.streams import BUFFER, Damaged, Lines, decompressed, skip
from pipeline.storage import Storage

Read = Iterator[tuple[Document | Quarantined, Position]]

_TORN = (
    Damaged,
    EOFError,
    gzip.BadGzipFile,
    zlib.error,
    tarfile.TarError,
    zipfile.BadZipFile,
)


def read_documents(source: Source, item: Input, work: Storage | None = None, start: Position = START) -> Read:
    """The documents of one input behind `start`, in the order of the file, ids without the source's name; each
    with the place right behind it. `work` is where the parts of an input that was fetched lie.

    Raises InputError where the file is torn, changes its size or is not of the format its name says.
    """
    try:
        with closing(open_input(item, work)) as stream:
            yield from _read_file(source, item, stream, start)
    except BuildError:
        raise
    except _TORN as error:
        raise InputError(f"{item.name}: truncated or damaged: {error or type(error).__name__}") from error
    except pa.ArrowInvalid as error:
        raise InputError(f"{item.name}: not a whole parquet file: {error}") from error
    except (OSError, UnicodeDecodeError, RuntimeError) as error:
        # zipfile raises the latter: for what is encrypted, or packed by a method it does not know.
        raise InputError(f"{item.name}: cannot be read: {error}") from error


def _read_file(source: Source, item: Input, stream: BinaryIO, start: Position) -> Read:
    kind, compression = format_of(item.key)
    if kind == ".parquet":
        yield from read_parquet(source, item.key, stream, start)
    elif kind == ".zip":
        yield from _read_members(source, item.key, zip_members(stream, start.member), start)
    elif kind == ".tar":
        whole = decompressed(sequential(stream, item), compression)
        yield from _read_members(source, item.key, tar_members(whole, start.member), start)
    elif start.member == 0:  # else behind the only document there is
        yield from _read_plain(source, item.key, _at(stream, item, compression, start.offset), start)


def _at(stream: BinaryIO, item: Input, compression: str, offset: int) -> BinaryIO:
    """The file's content from a byte of it on."""
    if not compression:
        return sequential(stream, item, offset)
    content = decompressed(sequential(stream, item), compression)
    skip(content, offset)
    return content


def _read_members(source: Source, name: str, members: Iterator[Member], start: Position) -> Read:
    for member in members:
        place = f"{name}/{member.name}"
        here = start if member.number == start.member else Position(member.number)
        behind = Position(member.number + 1)
        if is_archive(member.name):
            yield Quarantined(place, NESTED_ARCHIVE, "an archive in an archive; unpack it"), behind
        elif not holds_documents(type(source), member.name):
            continue
        elif member.content is None:
            yield Quarantined(place, NOT_A_FILE, "a link, a device or the like; expected a file"), behind
        else:
            yield from _read_member(source, place, member.content, here)


def _read_member(source: Source, name: str, content: BinaryIO, start: Position) -> Read:
    kind, compression = format_of(name)
    if kind == ".parquet":  # needs to seek
        with tempfile.TemporaryFile() as file:
            shutil.copyfileobj(content, file, BUFFER)
            yield from read_parquet(source, name, cast(BinaryIO, file), start)
    else:
        stream = decompressed(content, compression)
        skip(stream, start.offset)
        yield from _read_plain(source, name, stream, start)


def _read_plain(source: Source, name: str, stream: BinaryIO, start: Position) -> Read:
    """The documents of a stream that stands at `start`."""
    kind, _ = format_of(name)
    if kind in ROWS:
        yield from read_jsonl(source, name, stream, start)
    elif kind == ".xml":
        yield from read_dump(name, stream, start, source.maximum_document_bytes)
    else:
        yield from _read_text(source, name, stream, start)


def _read_text(source: Source, name: str, stream: BinaryIO, start: Position) -> Read:
    lines = Lines(stream, source.maximum_document_bytes, start.offset, start.number)
    if not source.many_in_a_text_file:
        yield _text(source, name, name, lines.whole()), Position(start.member + 1)
        return
    for line, content in source.text_file(lines):
        document = _text(source, f"{name}#{line}", f"{name}, document at line {line}", content)
        yield document, Position(start.member, lines.offset, lines.number)


def _text(source: Source, identifier: str, position: str, content: bytes) -> Document | Quarantined:
    if len(content) > source.maximum_document_bytes:
        return too_large(position, source.maximum_document_bytes)
    try:
        return Document(identifier, source.text(content))
    except UnicodeDecodeError as error:
        return invalid_utf8(position, error)
