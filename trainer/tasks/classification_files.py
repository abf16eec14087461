"""Texts to classify: Hyperpartisan's XML pair, IMDB's folders, rows of anyone's.

Hyperpartisan (Kiesel et al. 2019, SemEval task 4): `<articles>` of `<article id title>` whose text stands in `<p>` and
between them; the ground truth is a second file with `<article id hyperpartisan="true">`. IMDB (Maas et al. 2011): a
folder `aclImdb` with a review a file, `train/pos/0_9.txt`.
"""

from __future__ import annotations

import html
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.parsers import expat

from trainer.engine.config import InputError
from trainer.tasks.rows import MOST_BYTES, id_of, open_binary, read_rows, text_of

_PIECE = 1 << 16
_DEPTH = 100
_REFERENCE = re.compile(r"&#?\w{1,20};", re.ASCII)
_TRUTH = ("false", "true")
_IMDB: dict[str | int, str] = {0: "neg", 1: "pos", "neg": "neg", "pos": "pos"}
_LONGEST_LABEL = 200  # characters


@dataclass(frozen=True)
class Document:
    """A text, with its label where that is known."""

    id: str
    text: str
    label: str | None
    where: str
    """File, and line or row in it."""


# ---- Hyperpartisan ---------------------------------------------------------------------------------------------------


def read_articles(path: Path) -> Iterator[Document]:
    """The articles of an XML file (.gz), without labels; InputError names file, line and what is wrong with it.

    The text is the title and the article's blocks, a line each: paragraphs, and what stands between them. Tags within
    a block go (their text stays, as of `<a>`), references become their characters, also those that are escaped twice
    (161 in the by-article set), and white space becomes one space.
    """
    seen: set[str] = set()
    for line, attributes, blocks in _elements(path):
        where = f"{path}: line {line}"
        name = _article_id(attributes, where, seen)
        yield Document(name, _joined(attributes.get("title", ""), blocks), None, where)


def read_truth(path: Path) -> dict[str, str]:
    """ "true" or "false" by article id, of a ground-truth XML file (.gz)."""
    seen: set[str] = set()
    truth = {}
    for line, attributes, _ in _elements(path):
        where = f"{path}: line {line}"
        label = attributes.get("hyperpartisan")
        if label not in _TRUTH:
            raise InputError(f"{where}: hyperpartisan: found {label!r}, expected true or false")
        truth[_article_id(attributes, where, seen)] = label
    return truth


def label_articles(articles: Path, truth_file: Path, truth: dict[str, str]) -> Iterator[Document]:
    """Articles with their labels; InputError where one of the two files has an id that the other has not."""
    left = dict(truth)
    for article in read_articles(articles):
        label = left.pop(article.id, None)
        if label is None:
            raise InputError(
                f"{article.where}: article {article.id} is not in {truth_file}, expected its label there"
            )
        yield Document(article.id, article.text, label, article.where)
    if left:
        raise InputError(
            f"{truth_file}: {len(left)} ids such as {next(iter(left))} are not in {articles}, expected their articles"
        )


def read_hub_articles(path: Path) -> Iterator[Document]:
    """The hub's rows {title, text, hyperpartisan}, whose text still has tags; a row's number from 0 is its id, as that
    of the by-article set's articles is."""
    for number, (where, row) in enumerate(read_rows(path)):
        place = f"{path}: {where}"
        blocks = _Blocks()
        blocks.feed(text_of(row, "text", place))
        blocks.close()
        label = row.get("hyperpartisan")
        if not isinstance(label, bool):
            raise InputError(f"{place}: hyperpartisan: found {label!r}, expected true or false")
        text = _joined(text_of(row, "title", place), blocks.found)
        yield Document(f"{number:07d}", text, _TRUTH[label], place)


def _article_id(attributes: dict[str, str], where: str, seen: set[str]) -> str:
    name = attributes.get("id", "")
    if not (name.isascii() and name.isdigit()):
        raise InputError(f"{where}: id: found {name[:80]!r}, expected digits")
    if name in seen:
        raise InputError(f"{where}: found a second article {name}, expected each once")
    seen.add(name)
    return name


def _joined(title: str, blocks: Iterable[str]) -> str:
    lines = (" ".join(_REFERENCE.sub(_character, block).split()) for block in (title, *blocks))
    return "\n".join(line for line in lines if line)


def _character(reference: re.Match[str]) -> str:
    return html.unescape(reference.group())


def _elements(path: Path) -> Iterator[tuple[int, dict[str, str], list[str]]]:
    """(line, attributes, blocks of text) of each `<article>` of `<articles>`. Held are one article, and what a piece of
    the file has of others."""
    reading = _Reading(path)
    try:
        with open_binary(path) as file:
            while piece := file.read(_PIECE):
                yield from reading.feed(piece)
            yield from reading.feed(b"", last=True)
    except expat.ExpatError as error:
        where = f"line {error.lineno}, column {error.offset + 1}"
        raise InputError(f"{path}: {where}: malformed XML ({expat.ErrorString(error.code)})") from error
    except InputError:
        raise
    except (LookupError, ValueError) as error:  # of the encoding that its first line names
        raise InputError(f"{path}: line 1: {error}, expected XML in UTF-8") from error
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: {getattr(error, 'strerror', None) or error}") from error


class _Reading:
    """An XML file's articles, as its pieces come in. A document type is refused: without one there are no entities that
    could expand or name other files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.parser = parser = expat.ParserCreate()
        parser.buffer_text = True
        parser.StartElementHandler = self._begin
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._text
        parser.StartDoctypeDeclHandler = self._doctype
        self.depth = 0
        self.size = 0  # bytes since an article has ended
        self.found: list[tuple[int, dict[str, str], list[str]]] = []
        self.line, self.attributes, self.blocks = 0, dict[str, str](), list[str]()
        self.parts: list[str] = []

    def feed(self, piece: bytes, last: bool = False) -> list[tuple[int, dict[str, str], list[str]]]:
        self.size += len(piece)
        self.parser.Parse(piece, last)
        if self.size > MOST_BYTES:
            self._refuse(f"found an article of more than {MOST_BYTES:,} bytes, expected a shorter one")
        found, self.found = self.found, []
        return found

    def _begin(self, tag: str, attributes: dict[str, str]) -> None:
        expected = ("articles", "article")[self.depth] if self.depth < 2 else tag
        if tag != expected:
            self._refuse(f"found <{tag[:40]}>, expected <{expected}>")
        if self.depth == 1:
            self.line, self.attributes, self.blocks = self.parser.CurrentLineNumber, attributes, []
            self.parts.clear()
        elif tag == "p":
            self._end_block()
        self.depth += 1
        if self.depth > _DEPTH:
            self._refuse(f"found elements nested more than {_DEPTH} deep")

    def _end(self, tag: str) -> None:
        self.depth -= 1
        if self.depth == 1:
            self._end_block()
            self.found.append((self.line, self.attributes, self.blocks))
            self.size = 0
        elif tag == "p":
            self._end_block()

    def _end_block(self) -> None:
        self.blocks.append("".join(self.parts))
        self.parts.clear()

    def _text(self, text: str) -> None:
        if self.depth > 1:
            self.parts.append(text)

    def _doctype(self, *_: object) -> None:
        self._refuse("found a document type (<!DOCTYPE …>), expected none")

    def _refuse(self, message: str) -> None:
        raise InputError(f"{self.path}: line {self.parser.CurrentLineNumber}: {message}")


class _Blocks(HTMLParser):
    """The blocks of a text with tags that need not be well-formed."""

    def __init__(self) -> None:
        super().__init__()
        self.found = [""]

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag == "p":
            self.found.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == "p":
            self.found.append("")

    def handle_data(self, data: str) -> None:
        self.found[-1] += data

    def parse_marked_section(self, i: int, report: bool = True) -> int:
        """`<![x…>` goes up to its end, as a browser reads it; the base class knows some and fails at all others."""
        return self.parse_bogus_comment(i, report)


# ---- IMDB ------------------------------------------------------------------------------------------------------------


def imdb_files(folder: Path, part: str) -> list[Path]:
    """What "train" or "test" is read from: its reviews in an aclImdb folder, or the hub's files below the folder."""
    reviews = [file for label in ("neg", "pos") for file in sorted((folder / part / label).glob("*.txt"))]
    if reviews:
        return reviews
    rows = [file for kind in ("jsonl", "parquet") for file in sorted(folder.rglob(f"{part}*.{kind}"))]
    if rows:
        return rows
    raise InputError(
        f"{folder}: found no {part}/neg/*.txt, {part}/pos/*.txt, {part}*.parquet or {part}*.jsonl, expected reviews"
    )


def read_imdb(folder: Path, part: str) -> Iterator[Document]:
    """The reviews of "train" or "test"; `<br />` becomes a new line. The hub's labels are 0 (neg) and 1 (pos)."""
    for file in imdb_files(folder, part):
        if file.suffix == ".txt":
            label = file.parent.name
            review, where = _review(read_text(file)), _written(str(file))
            yield Document(_written(f"{part}/{label}/{file.stem}"), review, label, where)
            continue
        for number, (where, row) in enumerate(read_rows(file)):
            place = f"{file}: {where}"
            rating = _IMDB.get(_scalar(row, "label", place))
            if rating is None:
                raise InputError(f"{place}: label: found {row.get('label')!r}, expected 0, 1, neg or pos")
            yield Document(f"{file.stem}/{number}", _review(text_of(row, "text", place)), rating, place)


def _review(text: str) -> str:
    return text.replace("<br />", "\n").strip()


# ---- one's own -------------------------------------------------------------------------------------------------------


def read_labelled(path: Path) -> Iterator[Document]:
    """Rows {text, label?, id?, title?}; a label is text or a whole number (or true and false), an id its row's number
    if it has none. A title becomes the first line."""
    seen: set[str] = set()
    for number, (where, row) in enumerate(read_rows(path)):
        place = f"{path}: {where}"
        name = id_of(row, number, place)
        if name in seen:
            raise InputError(f"{place}: id: found a second {name[:80]!r}, expected each once")
        seen.add(name)
        text = text_of(row, "text", place)
        if row.get("title") is not None:
            text = f"{text_of(row, 'title', place)}\n{text}"
        label = None if row.get("label") is None else as_label(_scalar(row, "label", place))
        if label is not None and not 0 < len(label) <= _LONGEST_LABEL:
            raise InputError(
                f"{place}: label: found {len(label):,} characters, expected a name of {_LONGEST_LABEL} at most"
            )
        yield Document(name, text, label, place)


def read_plain(path: Path) -> Iterator[Document]:
    """A .txt file, or all of a folder in the order of their names: a text a file, the name its id."""
    files = sorted(file for file in path.rglob("*.txt") if file.is_file()) if path.is_dir() else [path]
    if not files:
        raise InputError(f"{path}: found no .txt in it, expected texts")
    for file in files:
        name = str(file.relative_to(path)) if path.is_dir() else file.name
        yield Document(_written(name.removesuffix(".txt")), read_text(file), None, _written(str(file)))


def _written(name: str) -> str:
    """A file's name as a file can hold it: names may be bytes of no encoding."""
    return name.encode("utf-8", "replace").decode()


def read_text(path: Path) -> str:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise InputError(f"{path}: longer than {MOST_BYTES:,} bytes, expected a text")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start}: found no UTF-8, expected a text in UTF-8") from error
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error


def as_label(value: str | int | bool) -> str:
    """A label as its name: 1 is "1", true is "true"."""
    return _TRUTH[value] if isinstance(value, bool) else str(value)


def _scalar(row: dict[str, Any], key: str, place: str) -> str | int | bool:
    value = row.get(key)
    if not isinstance(value, str | int):
        found = f"a {type(value).__name__}" if key in row else "none"
        raise InputError(f"{place}: {key}: found {found}, expected text or a whole number")
    return value
