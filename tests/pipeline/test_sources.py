"""Readers, on small real files of each format."""

import bz2
import errno
import gzip
import lzma
import os
import tracemalloc
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.documents import Document, Quarantined
from pipeline.errors import InputError
from pipeline.fetch import Input, _unique_keys, find_inputs
from pipeline.sources import SOURCES
from pipeline.sources.books import strip_gutenberg
from pipeline.sources.formats import accepts
from pipeline.sources.reading import read_documents
from tests.pipeline.conftest import write_jsonl, write_tar


def read(kind: str, *paths: Path | str, **options: Any) -> list[Document | Quarantined]:
    source = SOURCES[kind](**options)
    inputs = find_inputs([str(path) for path in paths], lambda name: accepts(SOURCES[kind], name))
    found = (document for item in inputs for document, _ in read_documents(source, item))
    return [replace(d, text=source.clean(d.text)) if isinstance(d, Document) else d for d in found]


BOOK = "Title\r\n\r\n*** START OF THIS PROJECT GUTENBERG EBOOK X ***\r\n\r\nIt began.\r\n\r\nIt ended.\r\n"
BOOK += "*** END OF THIS PROJECT GUTENBERG EBOOK X ***\r\nLicence\r\n"


def test_books_as_files_and_in_archives(tmp_path: Path) -> None:
    text = "It began.\n\nIt ended."
    (tmp_path / "folder/sub").mkdir(parents=True)
    (tmp_path / "folder/a.txt").write_bytes(b"\xef\xbb\xbf" + BOOK.encode())
    (tmp_path / "folder/sub/b.txt.gz").write_bytes(gzip.compress(b"plain\rold lines"))
    (tmp_path / "folder/.hidden.txt").write_text("no")
    (tmp_path / "folder/readme.md").write_text("no")
    assert read("books", tmp_path / "folder") == [
        Document("a.txt", text),
        Document("sub/b.txt.gz", "plain\nold lines"),
    ]
    members = {"x/./one.txt": BOOK.encode(), "../two.txt": b"2", "x/cover.jpg": b"\0", "bad.txt": b"caf\xe9"}
    expected = [
        Document("x/one.txt", text),
        Document("two.txt", "2"),
        Quarantined("bad.txt", "invalid_utf8", "unexpected end of data at byte 3"),
    ]
    for name in ("b.tar", "b.tar.gz", "b.tgz"):
        found = read("books", write_tar(tmp_path / name, members))
        assert [d.id if isinstance(d, Document) else d.position for d in found] == [
            f"{name}/{d.id if isinstance(d, Document) else d.position}" for d in expected
        ]
        assert [d.text for d in found if isinstance(d, Document)] == [text, "2"]
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    assert read("books", tmp_path / "b.zip")[0] == Document("b.zip/x/one.txt", text)


def test_bookcorpusopen_rows(tmp_path: Path) -> None:
    rows = [{"title": "a.epub.txt", "text": "First"}, {"title": "b.epub.txt", "text": "Second"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "b.parquet")
    write_jsonl(tmp_path / "b.jsonl", rows)
    assert read("books", tmp_path / "b.parquet", tmp_path / "b.jsonl") == [
        Document("b.jsonl#1", "First"),
        Document("b.jsonl#2", "Second"),
        Document("b.parquet#1", "First"),
        Document("b.parquet#2", "Second"),
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no markers at all", "no markers at all"),
        ("head\n***START OF THE PROJECT GUTENBERG EBOOK A***\nbody\n", "body"),
        ("body\nEnd of Project Gutenberg's A\nlicence", "body"),
        ("head\n*END THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.1*END*\nbody", "body"),
        ("he wrote *** START *** in the middle", "he wrote *** START *** in the middle"),
    ],
)
def test_gutenberg_markers(text: str, expected: str) -> None:
    assert strip_gutenberg(text) == expected


def test_real_books_keep_no_licence(shared_data: Path) -> None:
    books = read("books", shared_data / "books")
    assert len(books) == 3
    for book in books:
        assert isinstance(book, Document)
        assert "\r" not in book.text
        assert "START OF TH" not in book.text
        assert "www.gutenberg.org" not in book.text
        assert len(book.text) > 400_000


def test_rows_with_ids_and_without(tmp_path: Path) -> None:
    rows = [
        {"id": "12", "url": "u", "title": "t", "text": "one"},
        {"id": 13, "text": "two"},
        {"id": "", "text": "three"},
        {"text": "four"},
    ]
    expected = [Document("12", "one"), Document("13", "two")]
    write_jsonl(tmp_path / "w.jsonl.gz", rows)
    found = read("wikipedia", tmp_path / "w.jsonl.gz")
    assert found == [*expected, Document("w.jsonl.gz#3", "three"), Document("w.jsonl.gz#4", "four")]
    for name, pack in (("w.jsonl.bz2", bz2.compress), ("w.jsonl.xz", lzma.compress)):
        (tmp_path / name).write_bytes(pack(gzip.decompress((tmp_path / "w.jsonl.gz").read_bytes())))
        assert read("wikipedia", tmp_path / name)[:2] == expected


def test_columns_of_other_names(tmp_path: Path) -> None:
    rows = [{"key": "k", "TEXT": "one"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    options = {"text_column": "TEXT", "id_column": "key"}
    assert read("text", tmp_path / "a.parquet", **options) == [Document("k", "one")]
    with pytest.raises(InputError, match=r"no column 'text' .*it has key, TEXT"):
        read("text", tmp_path / "a.parquet")


def test_realnews_archive_names_rows_by_place(tmp_path: Path) -> None:
    lines = b'{"id": "x", "text": "one", "split": "train"}\n\n{"text": "two"}\n'
    archive = write_tar(tmp_path / "realnews.tar.gz", {"realnews/realnews.jsonl": lines})
    assert read("realnews", archive) == [
        Document("realnews.tar.gz/realnews/realnews.jsonl#1", "one"),
        Document("realnews.tar.gz/realnews/realnews.jsonl#3", "two"),
    ]


@pytest.mark.parametrize(
    ("separator", "text", "expected"),
    [
        ("\n", "one\n\n  two\r\nthree", [("#1", "one"), ("#3", "  two"), ("#4", "three")]),
        ("\n\n", "one\nmore\n\n\n \ntwo\n", [("#1", "one\nmore"), ("#6", "two")]),
        (
            "<|end|>",
            "one\n\nmore\n<|end|>\ntwo <|end|>\n<|end|>\n",
            [("#1", "one\n\nmore"), ("#5", "two <|end|>")],
        ),
    ],
)
def test_stories_separators(
    tmp_path: Path, separator: str, text: str, expected: list[tuple[str, str]]
) -> None:
    (tmp_path / "s.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    found = read("stories", tmp_path / "s.txt", separator=separator)
    assert found == [Document(f"s.txt{place}", text) for place, text in expected]


def test_what_cannot_be_read_is_quarantined_with_its_place(tmp_path: Path) -> None:
    rows = [
        b"\xef\xbb\xbf" + b'{"text": "good"}',
        b'{"text": "caf\xe9"}',
        b'{"text": "torn',
        b'{"title": "none"}',
        b'{"text": 7}',
        b'["text"]',
        b'{"text": "\\ud800"}',
        b'{"text": "\\u0000 <mask> </s>"}',
    ]
    write_jsonl(tmp_path / "t.jsonl", rows)
    found = read("text", tmp_path / "t.jsonl")
    assert [d for d in found if isinstance(d, Document)] == [
        Document("t.jsonl#1", "good"),
        Document("t.jsonl#8", "\0 <mask> </s>"),
    ]
    bad = [(d.position, d.reason) for d in found if isinstance(d, Quarantined)]
    reasons = ["invalid_utf8", "invalid_json", "no_text", "no_text", "no_text", "invalid_json"]
    assert bad == [
        (f"t.jsonl, line {line}", reason) for line, reason in zip(range(2, 8), reasons, strict=True)
    ]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.tar.gz", "a.tar", "a.jsonl.xz", "a.zip", "a.parquet"])
def test_truncated_files_are_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    rows = b"".join(b'{"text": "%d"}\n' % i for i in range(5000))
    if name == "a.zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.jsonl", rows)
    elif name == "a.parquet":
        pq.write_table(pa.table({"text": ["a"] * 100}), path)
    elif ".tar" in name:
        write_tar(path, {"a.jsonl": rows, "b.jsonl": rows})
    else:
        path.write_bytes({".gz": gzip.compress, ".xz": lzma.compress}[path.suffix](rows))
    whole = path.read_bytes()
    for cut in (len(whole) // 3, len(whole) - 30 if name != "a.tar" else 512 * (len(rows) // 512 + 2)):
        path.write_bytes(whole[:cut])
        with pytest.raises(InputError, match=name):
            read("text", path)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("encrypted.zip", "is encrypted"), ("method.zip", "compression"), ("name.zip", "can't decode byte")],
)
def test_zips_that_cannot_be_read_are_named(tmp_path: Path, name: str, reason: str) -> None:
    """zipfile raises RuntimeError, NotImplementedError and UnicodeDecodeError for these."""
    with zipfile.ZipFile(tmp_path / name, "w") as archive:
        archive.writestr("\xe9.txt", "a text")
    content = bytearray((tmp_path / name).read_bytes())
    local, central = content.index(b"PK\x03\x04"), content.index(b"PK\x01\x02")
    if name == "encrypted.zip":
        content[local + 6] |= 1
        content[central + 8] |= 1
    elif name == "method.zip":
        content[local + 8] = content[central + 10] = 9
    else:
        content[central + 46] = 0xFF
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"{name}: cannot be read: .*{reason}"):
        read("text", tmp_path / name)


def test_parquet_text_that_is_not_utf8_is_quarantined_by_row(tmp_path: Path) -> None:
    raw = pa.array([b"one", b"caf\xe9", b"three"], pa.binary())
    text = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    pq.write_table(pa.table({"text": text}), tmp_path / "a.parquet")
    assert read("text", tmp_path / "a.parquet") == [
        Document("a.parquet#1", "one"),
        Quarantined("a.parquet, row 2", "invalid_utf8", "unexpected end of data at byte 3"),
        Document("a.parquet#3", "three"),
    ]


def test_names_that_are_not_utf8_are_spelt_out(tmp_path: Path) -> None:
    """In an archive and on the disk: their half surrogates fit into no id."""
    write_tar(tmp_path / "a.tar", {"caf\udce9.txt": b"one"})
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/caf\udce9.txt").write_text("two")
    found = read("text", tmp_path / "a.tar", tmp_path / "folder")
    assert found == [Document(r"a.tar/caf\xe9.txt", "one"), Document(r"caf\xe9.txt", "two")]
    (tmp_path / "folder/caf\\xe9.txt").write_text("three")
    with pytest.raises(InputError, match="cannot be told apart"):
        read("text", tmp_path / "folder")


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gz"])
def test_documents_that_are_too_large_are_quarantined(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    ending = "" if pack is bytes else ".gz"
    jsonl, stories, text = (tmp_path / f"{name}{ending}" for name in ("a.jsonl", "s.txt", "t.txt"))
    large = b"x" * 3_000_000
    jsonl.write_bytes(pack(b'{"text": "1"}\n{"text": "%b"}\n{"text": "3"}\n{"text": "%b' % (large, large)))
    stories.write_bytes(pack(b"one\none\n\n" + b"two\n" * 300 + b"\nthree"))
    text.write_bytes(pack(b"line\n" * 300))
    limit = {"maximum_document_bytes": 1000}
    assert [
        (d.id, d.text) if isinstance(d, Document) else (d.position, d.reason)
        for d in read("text", jsonl, **limit)
    ] == [
        (f"{jsonl.name}#1", "1"),
        (f"{jsonl.name}, line 2", "too_large"),
        (f"{jsonl.name}#3", "3"),
        (f"{jsonl.name}, line 4", "too_large"),
    ]
    found = read("stories", stories, separator="\n\n", **limit)
    too_large = Quarantined(f"{stories.name}, document at line 4", "too_large", "more than 1,000 bytes")
    assert found == [
        Document(f"{stories.name}#1", "one\none"),
        too_large,
        Document(f"{stories.name}#305", "three"),
    ]
    assert read("text", text, **limit) == [Quarantined(text.name, "too_large", "more than 1,000 bytes")]
    pq.write_table(pa.table({"text": ["1", "é" * 501]}), tmp_path / "a.parquet")
    assert [type(d) for d in read("text", tmp_path / "a.parquet", **limit)] == [Document, Quarantined]
    assert len(read("text", tmp_path / "a.parquet")) == 2


def test_no_more_of_a_line_is_held_than_may_be(tmp_path: Path) -> None:
    """A file of a few MB once unpacked to a line of 1.5 GB in memory."""
    with gzip.open(tmp_path / "a.txt.gz", "wb") as file:
        for _ in range(64):
            file.write(bytes(1 << 20))
    tracemalloc.start()
    try:
        [found] = read("text", tmp_path / "a.txt.gz", maximum_document_bytes=1 << 20)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
    assert isinstance(found, Quarantined)


def test_addresses_that_differ_in_a_slash_keep_different_names() -> None:
    """Their search for keys that differ once had no end."""
    addresses = ["https://h//x.jsonl", "https://h/x.jsonl", "https://h/y.jsonl"]
    inputs = _unique_keys([Input(uri, uri[-7:], 1) for uri in addresses])
    assert [(item.uri, item.key) for item in inputs] == [
        (addresses[0], "/x.jsonl"),
        (addresses[1], "h/x.jsonl"),
        (addresses[2], "y.jsonl"),
    ]


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was in it was left out of the corpus, unsaid. Hidden folders are left out anyway."""
    for name in ("a.txt", "closed/b.txt", ".closed/c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    scandir = os.scandir

    def refuse(path: str) -> Any:
        if Path(path).name == refused:
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    refused = ".closed"
    assert len(read("text", tmp_path)) == 2
    refused = "closed"
    for pattern in ("", "**/*.txt", "*/*.txt", "c*/b.txt"):
        with pytest.raises(InputError, match="/closed: cannot be read: Permission denied"):
            read("text", tmp_path / pattern)
    (tmp_path / "open").mkdir()
    (tmp_path / "open/d.txt").write_text("d")
    assert len(read("text", tmp_path / "*.txt")) == len(read("text", tmp_path / "o*/*.txt")) == 1


def test_files_of_one_name_keep_their_folders(tmp_path: Path) -> None:
    for folder in ("x/1", "x/2", "y/1"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "a.txt").write_text(folder)
    (tmp_path / "x/1/b.txt").write_text("b")
    paths = [tmp_path / folder for folder in ("y/1", "x/1", "x/2")]
    found = read("text", *paths, tmp_path / "x/1/a.txt")
    assert [d.id for d in found if isinstance(d, Document)] == ["2/a.txt", "b.txt", "x/1/a.txt", "y/1/a.txt"]
    assert found == read("text", *reversed(paths))


def test_patterns(tmp_path: Path) -> None:
    for name in ("a/1.txt", "a/2.txt", "b/c/1.txt", "b/c/1.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    found = read("text", tmp_path / "**/1.*")
    assert [d.id for d in found if isinstance(d, Document)] == ["a/1.txt", "b/c/1.txt"]
    with pytest.raises(InputError, match="fits this pattern"):
        read("text", tmp_path / "*.md")
    with pytest.raises(InputError, match="not of a format"):
        read("text", tmp_path / "b/c/1.jpg")
    with pytest.raises(InputError, match="no such file or folder"):
        read("text", tmp_path / "absent")
    with pytest.raises(InputError, match="unknown scheme"):
        read("text", "ftp://x/y")
