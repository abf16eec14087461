"""Reading goes on behind any document: the same further documents, the same ids, and a torn end still found."""

import bz2
import gzip
import io
import json
import lzma
import random
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.documents import Document, Position, Quarantined
from pipeline.errors import InputError
from pipeline.fetch import Input
from pipeline.sources import SOURCES
from pipeline.sources import streams as streams_module
from pipeline.sources.reading import read_documents
from pipeline.sources.source import Source
from tests.pipeline.conftest import words, write_tar

Found = list[tuple[Document | Quarantined, Position]]


def read(source: Source, path: Path, start: Position = Position()) -> Found:  # noqa: B008
    item = Input(str(path), path.name, path.stat().st_size)
    return list(read_documents(source, item, start=start))


def rows(count: int, seed: int = 0) -> bytes:
    """Lines of every kind: with an id and without, blank, torn, too large for the reader."""
    generator = random.Random(seed)
    lines = [b"\xef\xbb\xbf"]
    for number in range(count):
        text = words(generator, generator.randint(0, 60))
        line = json.dumps({"id": str(number), "text": text} if number % 3 else {"text": text})
        lines.append(line.encode() + b"\n")
        if number % 7 == 3:
            lines.append(generator.choice([b"\n", b" \r\n", b'{"text": "torn\n', b'{"text": "caf\xe9"}\n']))
        if number % 20 == 5:
            lines.append(b'{"text": "' + b"x" * 5_000 + b'"}\n')
    return b"".join(lines)


def stories(count: int) -> bytes:
    return b"\n\n\n".join(words(random.Random(n), 40).encode() for n in range(count)) + b"\n\n"


def table(count: int) -> bytes:
    sink = io.BytesIO()
    texts = [words(random.Random(n), n % 50) for n in range(count)]
    ids = [None if n % 4 == 0 else f"row {n}" for n in range(count)]
    pq.write_table(pa.table({"id": ids, "other": range(count), "text": texts}), sink, row_group_size=17)
    return sink.getvalue()


def members() -> dict[str, bytes]:
    return {
        "one.txt": b"one",
        "cover.jpg": b"\0" * 700,
        "rows.jsonl": rows(25),
        "two.txt": b"x" * 5_000,
        "packed.jsonl.gz": gzip.compress(rows(25, seed=1)),
        "table.parquet": table(40),
        "inner.zip": b"PK",
        "empty.jsonl": b"",
        "three.txt": b"caf\xe9",
        "four.txt": b"four",
    }


def make_tar(path: Path) -> None:
    write_tar(path, members())


def make_tar_xz(path: Path) -> None:
    make_tar(path.with_name("plain.tar"))
    path.write_bytes(lzma.compress(path.with_name("plain.tar").read_bytes()))


def make_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members().items():
            archive.writestr(name, content)


def make_many_streams(path: Path) -> None:
    """As Wikimedia's multistream dumps are."""
    content = rows(60)
    parts = [bz2.compress(content[at : at + 999]) for at in range(0, len(content), 999)]
    path.write_bytes(b"".join(parts))


FILES: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "a.jsonl": ("text", lambda path: path.write_bytes(rows(60))),
    "a.jsonl.gz": ("text", lambda path: path.write_bytes(gzip.compress(rows(60)))),
    "a.jsonl.bz2": ("text", make_many_streams),
    "a.jsonl.xz": ("text", lambda path: path.write_bytes(lzma.compress(rows(60)))),
    "a.txt": ("text", lambda path: path.write_bytes(b"one\ntwo")),
    "a.txt.gz": ("text", lambda path: path.write_bytes(gzip.compress(b"one\ntwo"))),
    "a.parquet": ("text", lambda path: path.write_bytes(table(60))),
    "lines.txt": ("stories", lambda path: path.write_bytes(stories(20))),
    "blank.txt.gz": ("stories", lambda path: path.write_bytes(gzip.compress(stories(20)))),
    "a.tar": ("text", make_tar),
    "a.tar.gz": ("text", make_tar),
    "a.tar.xz": ("text", make_tar_xz),
    "a.zip": ("text", make_zip),
}


def source_for(kind: str, name: str) -> Source:
    separator = "\n\n" if name.startswith("blank") else "\n"
    return SOURCES[kind](maximum_document_bytes=4_000, separator=separator)


@pytest.mark.parametrize("name", FILES)
def test_reading_goes_on_behind_any_document(tmp_path: Path, name: str) -> None:
    kind, make = FILES[name]
    path = tmp_path / name
    make(path)
    source = source_for(kind, name)
    whole = read(source, path)
    assert len(whole) == (1 if name.startswith("a.txt") else len(whole))
    assert len(whole) > (15 if kind == "stories" or not name.startswith("a.txt") else 0)
    for number, (_, position) in enumerate(whole):
        again = Position(**json.loads(json.dumps(asdict(position))))
        assert read(source, path, again) == whole[number + 1 :]


@pytest.mark.parametrize(
    "name", [name for name in FILES if name not in ("a.parquet", "a.zip", "a.txt", "a.txt.gz")]
)
def test_a_torn_end_is_found_after_going_on(tmp_path: Path, name: str) -> None:
    kind, make = FILES[name]
    path = tmp_path / name
    make(path)
    source = source_for(kind, name)
    item = Input(str(path), path.name, path.stat().st_size)
    position = read(source, path)[2][1]
    content = path.read_bytes()
    for cut in (len(content) - 1, len(content) * 2 // 3):
        path.write_bytes(content[:cut])
        with pytest.raises(InputError, match=name):
            list(read_documents(source, item, start=position))


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.tar.gz", "a.zip"])
def test_a_place_behind_the_end_is_an_error(tmp_path: Path, name: str) -> None:
    """The file is another one than when it was read."""
    kind, make = FILES[name]
    path = tmp_path / name
    make(path)
    member = next(p.member for d, p in read(source_for(kind, name), path) if p.offset)
    with pytest.raises(InputError, match=name):
        read(source_for(kind, name), path, Position(member, 10_000_000, 1))


@given(st.lists(st.binary(max_size=30), max_size=20), st.integers(1, 40), st.data())
def test_lines_are_those_of_the_bytes(
    tmp_path_factory: Any, parts: list[bytes], limit: int, data: Any
) -> None:
    """Lines, their numbers and offsets against a split of the whole; and from any place on."""
    content = b"\n".join(parts)
    lines = streams_module.Lines(io.BytesIO(content), limit, 0, 0)
    found = [(line, lines.offset, lines.number) for line in lines]
    expected, offset = [], 0
    for number, line in enumerate(io.BytesIO(content), 1):
        offset += len(line)
        expected.append((line[: limit + 1], offset, number))
    assert found == expected
    if found:
        index = data.draw(st.integers(0, len(found) - 1))
        rest = streams_module.Lines(io.BytesIO(content[found[index][1] :]), limit, *found[index][1:])
        assert [(line, rest.offset, rest.number) for line in rest] == found[index + 1 :]


@pytest.mark.parametrize("where", ["header", "joined", "sparse"])
def test_a_damaged_tar_is_not_taken_for_a_shorter_one(tmp_path: Path, where: str) -> None:
    """tarfile ends without a word at a header whose checksum is wrong."""
    path = write_tar(tmp_path / "a.tar", {f"{n}.txt": b"text" for n in range(5)})
    content = bytearray(path.read_bytes())
    if where == "header":
        content[2 * 1024 + 5] ^= 1
    elif where == "joined":
        content *= 2
    else:
        member = tarfile.TarInfo("s.txt")
        member.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "s.txt"}
        with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
            archive.addfile(member)
        content = bytearray(path.read_bytes())
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.tar: truncated or damaged: "):
        read(SOURCES["text"](), path)


@pytest.mark.parametrize("pack", [bz2.compress, lzma.compress], ids=["bz2", "xz"])
def test_a_damaged_stream_in_the_middle_is_not_the_end(
    tmp_path: Path, pack: Callable[[bytes], bytes]
) -> None:
    """Python's own readers drop, silently, all that follows a stream's end and is not the begin of another."""
    path = tmp_path / ("a.jsonl.bz2" if pack is bz2.compress else "a.jsonl.xz")
    first, second = pack(b'{"text": "1"}\n'), bytearray(pack(b'{"text": "2"}\n'))
    path.write_bytes(first + b"\0" * 4 + second + b"\0" * 8)
    assert [d.text for d, _ in read(SOURCES["text"](), path) if isinstance(d, Document)] == ["1", "2"]
    second[1] ^= 1
    path.write_bytes(first + second)
    with pytest.raises(InputError, match="truncated or damaged"):
        read(SOURCES["text"](), path)
