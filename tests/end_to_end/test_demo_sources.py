"""The demo's text: four sources in their own formats, the same bytes every time, and a tokenizer like RoBERTa's."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer

from demo.sources import module_documentation, prose, read_texts, train_tokenizer, write_sources

MEGABYTES = 0.4


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "sources"
    write_sources(folder, MEGABYTES, seed=0)
    return folder


@pytest.fixture(scope="module")
def tokenizer(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_tokenizer(read_texts(sources), 320, file)
    return Tokenizer.from_file(str(file))


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_books_have_gutenbergs_markers_and_some_come_from_windows(sources: Path) -> None:
    books = [path.read_bytes() for path in sorted((sources / "books").glob("*.txt"))]
    assert len(books) == 5
    for book in books:
        text = book.decode("utf-8-sig").replace("\r\n", "\n")
        start, end = (
            text.index("\n*** START OF THE PROJECT GUTENBERG"),
            text.index("\n*** END OF THE PROJECT GUTENBERG"),
        )
        assert end - start > 1_000
    with_mark = [book.startswith(b"\xef\xbb\xbf") for book in books]
    with_crlf = [b"\r\n" in book for book in books]
    assert with_mark == with_crlf
    assert {*with_mark} == {True, False}


def test_wikipedia_has_the_hubs_columns(sources: Path) -> None:
    table = pq.read_table(sources / "wikipedia.parquet")
    assert table.column_names == ["id", "url", "title", "text"]
    for column in ("id", "url", "title"):
        assert len(set(table.column(column).to_pylist())) == table.num_rows, column
    assert min(map(len, table.column("text").to_pylist())) >= 300


def test_realnews_is_an_archive_of_rows_with_its_columns(sources: Path) -> None:
    with tarfile.open(sources / "realnews.tar.gz") as archive:
        (member,) = archive.getmembers()
        file = archive.extractfile(member)
        assert file is not None
        rows = [json.loads(line) for line in file]
    assert member.name.endswith(".jsonl")
    columns = [
        "title",
        "text",
        "summary",
        "authors",
        "publish_date",
        "status",
        "url",
        "domain",
        "warc_date",
        "split",
    ]
    assert all(list(row) == columns for row in rows)
    assert {row["split"] for row in rows} == {"train", "val"}
    assert all(len(row["publish_date"].split("-")[2]) == 4 for row in rows), "MM-DD-YYYY"


def test_news_lie_on_both_sides_of_the_token_limit(sources: Path, tokenizer: Tokenizer) -> None:
    with tarfile.open(sources / "realnews.tar.gz") as archive:
        texts = [json.loads(row)["text"] for member in archive for row in archive.extractfile(member) or ()]
    is_long = [len(encoding.ids) > 1_200 for encoding in tokenizer.encode_batch(texts)]
    assert 0.2 < sum(is_long) / len(is_long) < 0.9


def test_stories_are_lines_of_text(sources: Path) -> None:
    with (sources / "stories.jsonl").open(encoding="utf-8") as lines:
        stories = [json.loads(line) for line in lines]
    assert stories
    assert all(list(story) == ["text"] and len(story["text"]) >= 300 for story in stories)


def test_text_is_bounded_and_near_what_was_asked_for(sources: Path) -> None:
    summary = write_sources(sources, MEGABYTES, seed=0)
    assert [source.name for source in summary.sources] == ["books", "wikipedia", "realnews", "stories"]
    total = sum(source.bytes for source in summary.sources)
    assert 0.9 * MEGABYTES * 1e6 <= total <= MEGABYTES * 1e6
    assert "realnews" in summary.table()


def test_no_text_is_in_two_documents(sources: Path) -> None:
    texts = list(read_texts(sources))
    assert len(set(texts)) == len(texts)


def test_same_environment_same_bytes_and_the_seed_matters(sources: Path, tmp_path: Path) -> None:
    write_sources(tmp_path / "again", MEGABYTES, seed=0)
    assert contents(tmp_path / "again") == contents(sources)
    write_sources(tmp_path / "other", MEGABYTES, seed=1)
    assert contents(tmp_path / "other") != contents(sources)


def test_a_second_run_touches_nothing_and_a_lost_file_is_made_again(tmp_path: Path) -> None:
    folder = tmp_path / "sources"
    write_sources(folder, 0.1)
    before, times = contents(folder), [path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))]
    write_sources(folder, 0.1)
    assert [path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))] == times
    (folder / "stories.jsonl").unlink()
    write_sources(folder, 0.1)
    assert contents(folder) == before


def test_an_interrupted_run_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("demo.sources.write_stories", full)
    with pytest.raises(OSError, match="No space left"):
        write_sources(tmp_path / "sources", 0.1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--megabytes", "0.2"],
            "made with --megabytes 0.4 --seed 0, now asked for --megabytes 0.2 --seed 0",
        ),
        (["--megabytes", "-1"], "expected a positive number"),
    ],
)
def test_the_command_refuses_with_one_line_and_exit_code_2(
    sources: Path, arguments: list[str], message: str
) -> None:
    command = [sys.executable, "-m", "demo.sources", "--to", str(sources), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_someone_elses_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match="holds something else"):
        write_sources(tmp_path)
    assert (tmp_path / "letter.txt").read_text() == "dear"


def test_tokenizer_has_robertas_special_ids_and_loses_nothing(sources: Path, tokenizer: Tokenizer) -> None:
    assert tokenizer.get_vocab_size() == 320
    specials = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 319}
    assert {token: tokenizer.token_to_id(token) for token in specials} == specials
    for text in [*list(read_texts(sources))[-5:], " naïve café \t\n 中文 🙂", "\x00\x7f"]:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert tokenizer.encode("a<mask>").ids[0::3] == [0, 2]


def test_tokenizer_is_the_same_file_every_time(sources: Path, tmp_path: Path) -> None:
    for name in ("one.json", "two.json"):
        train_tokenizer(read_texts(sources), 320, tmp_path / name)
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()


@pytest.mark.parametrize(("size", "message"), [(260, "at least 261"), (400, "expected more text")])
def test_a_vocabulary_that_cannot_be_is_refused(tmp_path: Path, size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train_tokenizer(["to be or not to be"], size, tmp_path / "tokenizer.json")
    assert list(tmp_path.iterdir()) == []


def test_docstrings_come_in_order_under_their_names() -> None:
    sentence = "A sentence that is long enough to say more than the name above it already says. " * 2
    code = f'''
class Shelf:
    """{sentence}"""
    def take(self):
        """{sentence[:-3]}!"""
    def put(self):
        """Too short."""
'''
    assert module_documentation(code.encode()) == f"Shelf\n{sentence.strip()}\n\nShelf.take\n{sentence[:-3]}!"
    assert module_documentation(b"print 'Python 2'") == ""


def test_prose_drops_doctests_code_tables_and_tags() -> None:
    text = "Before.\n\n>>> 1 + 1\n2\n\n```python\nx = 1\n```\n<br>Tagged\n+-----+\n| 1 2 |\nAfter, in words."
    assert prose(text) == "Before.\n\nTagged\nAfter, in words."
