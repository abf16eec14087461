"""Readers, on small real files of each format."""

import bz2
import gzip
import lzma
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.documents import Document, Quarantined
from pipeline.errors import InputError
from pipeline.fetch import find_inputs
from pipeline.sources import SOURCES
from pipeline.sources.books import strip_gutenberg
from pipeline.sources.reading import accepts, read_documents
from tests.pipeline.conftest import write_jsonl, write_tar


def read(kind: str, *paths: Path | str, **options: str) -> list[Document | Quarantined]:
    source = SOURCES[kind](**options)
    inputs = find_inputs([str(path) for path in paths], lambda name: accepts(SOURCES[kind], name))
    return [document for item in inputs for document in read_documents(source, item)]


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
