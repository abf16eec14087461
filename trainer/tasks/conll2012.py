"""CoNLL-2012 files, in which OntoNotes' coreference is published and the official scorer takes predictions.

    #begin document (bc/cctv/00/cctv_0000); part 000
    bc/cctv/00/cctv_0000  0  0  John   NNP  (TOP(S(NP*)  -  -  -  Speaker#1  (PERSON)  (ARG0*)  (12)
    bc/cctv/00/cctv_0000  0  1  likes  VBZ  (VP*         …                              (V*)     -
                                                                                        (an empty line: a sentence ends)
    #end document

A row is a word: document, part, number in the sentence, word, part of speech, parse, lemma, frameset, sense, speaker,
named entity, one column for each predicate of the sentence, and last the coreference: `(12` where a mention of cluster
12 begins, `12)` where one ends, `(12)` for one of this word, several joined by `|`, `-` for none. Columns are parted by
blanks and tabs alone, and lines by line feeds: words may hold other white space of Unicode's.

Spans are (start, end) over the words of the document, the end exclusive.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from pipeline.shards import write_atomically
from trainer.engine.config import InputError

Span = tuple[int, int]
"""(start, end) of words, the end exclusive."""
SpanClusters = tuple[tuple[Span, ...], ...]

FEWEST_COLUMNS = 12
MOST_WORDS = 1_000_000  # of a document; OntoNotes' longest has some 4,000
MOST_BYTES = 1 << 20  # of a line
NO_SPEAKER = "-"
_SPEAKER = 9
_BEGIN = re.compile(r"#begin document \((.+)\); part (\d+)", re.ASCII)
_END = "#end document"
_PART = re.compile(r"\((\d{1,9})\)|\((\d{1,9})|(\d{1,9})\)", re.ASCII)
_NONE = ("-", "_")  # the scorer takes both


@dataclass(frozen=True)
class Document:
    """A document's part, which coreference does not leave."""

    id: str
    part: str
    """As written, such as 000: the scorer pairs documents by the whole line."""
    words: tuple[str, ...]
    speakers: tuple[str, ...]
    """One a word; `-` where none is known."""
    sentences: tuple[Span, ...]
    """They follow each other and cover the words; none is empty."""
    clusters: SpanClusters
    """The key, in the order in which clusters begin in the file; spans ascend, each once in its cluster. Empty where
    there is none. Hardly ever is a span in two clusters."""
    columns: tuple[str, ...] = field(default=(), repr=False)
    """Each row as read, up to its last column; () for what does not come from such a file."""


def find_conll(path: Path) -> list[Path]:
    """The file itself, or the files `*gold_conll` below a folder (as the shared task's archives name them), or else
    those `*.conll`, sorted."""
    if not path.is_dir():
        return [path]
    for pattern in ("*gold_conll", "*.conll"):
        if found := sorted(file for file in path.rglob(pattern) if file.is_file()):
            return found
    raise InputError(f"{path}: found no *gold_conll and no *.conll below it, expected CoNLL-2012 files")


def read_conll(path: Path) -> Iterator[Document]:
    """The documents of a file, or of a folder's by `find_conll`, in order.

    InputError names file and line, what was found and what was expected: what is not of the format, ends too soon, or
    comes twice. Mentions of one cluster that begin and end otherwise than nested cannot be told apart in this format;
    as in the scorer an end belongs to the last beginning, and in a row beginnings come before ends.
    """
    seen: dict[tuple[str, str], Path] = {}
    for file in find_conll(path):
        for document in _read_file(file):
            name = (document.id, document.part)
            if name in seen:
                raise InputError(
                    f"{file}: found a second {_header(document)} (the first is in {seen[name]}), expected each once"
                )
            seen[name] = file
            yield document


def write_conll(path: Path, predictions: Iterable[tuple[Document, Sequence[Sequence[Span]]]]) -> None:
    """Writes documents with their predicted clusters, whole or not at all."""
    write_atomically(path, "".join(conll_text(*prediction) for prediction in predictions).encode("utf-8"))


def conll_text(document: Document, clusters: Sequence[Sequence[Span]]) -> str:
    """A document with these clusters in the last column, the others as they were read (or `-` and `*`, for what comes
    from elsewhere). Clusters are numbered from 0 in the order given.

    InputError where a span is none of the document, or two of one cluster cross or touch in a word without the one
    holding the other: the scorer would read other mentions.
    """
    coreference = _coreference(document, clusters)
    rows = document.columns or _columns(document)
    lines = [_header(document)]
    for start, end in document.sentences:
        lines += [rows[word] + coreference[word] for word in range(start, end)]
        lines.append("")
    lines.append(_END)
    return "\n".join(lines) + "\n"


class _Reading:
    """A document between its first line and its last."""

    def __init__(self, id: str, part: str, line: int) -> None:
        self.id, self.part, self.line = id, part, line
        self.words: list[str] = []
        self.speakers: list[str] = []
        self.columns: list[str] = []
        self.borders = [0]
        self.clusters: dict[int, set[Span]] = {}
        self.open: dict[int, list[tuple[int, int]]] = {}
        """Of each cluster the mentions begun: the word and the line."""

    def end_sentence(self) -> None:
        if len(self.words) > self.borders[-1]:
            self.borders.append(len(self.words))

    def add(self, row: str, line: int) -> None:
        """ValueError tells what was found and expected."""
        cells = re.split(r"[ \t]+", row.strip(" \t"))
        if len(cells) < FEWEST_COLUMNS:
            raise ValueError(f"found a row of {len(cells)} columns, expected {FEWEST_COLUMNS} or more")
        if len(self.words) == MOST_WORDS:
            raise ValueError(f"found more than {MOST_WORDS:,} words in a document, expected so many at most")
        self.add_mentions(cells[-1], line)
        self.words.append(cells[3])
        self.speakers.append(cells[_SPEAKER])
        self.columns.append(row.rstrip(" \t")[: -len(cells[-1])])

    def add_mentions(self, cell: str, line: int) -> None:
        if cell in _NONE:
            return
        parts = [_PART.fullmatch(part) for part in cell.split("|")]
        if None in parts:
            raise ValueError(
                f"found {cell[:80]!r} in the last column, expected - or clusters such as (12, 12) and (12) joined by |"
            )
        word = len(self.words)
        whole, begun, ended = (
            [int(part[kind]) for part in parts if part and part[kind]] for kind in (1, 2, 3)
        )
        for cluster in whole:
            self.clusters.setdefault(cluster, set()).add((word, word + 1))
        for cluster in begun:
            self.clusters.setdefault(cluster, set())
            self.open.setdefault(cluster, []).append((word, line))
        for cluster in ended:
            if not self.open.get(cluster):
                raise ValueError(
                    f"found the end {cluster}) of a mention, expected its beginning ({cluster} before"
                )
            start, _ = self.open[cluster].pop()
            self.clusters[cluster].add((start, word + 1))

    def document(self) -> Document:
        self.end_sentence()
        for cluster, left in self.open.items():
            if left:
                raise ValueError(
                    f"found the end of a document, expected the end {cluster}) of the mention that begins in line "
                    f"{left[-1][1]}"
                )
        return Document(
            self.id,
            self.part,
            tuple(self.words),
            tuple(self.speakers),
            tuple(pairwise(self.borders)),
            tuple(tuple(sorted(spans)) for spans in self.clusters.values()),
            tuple(self.columns),
        )


def _read_file(path: Path) -> Iterator[Document]:
    reading: _Reading | None = None
    line = 0
    for line, text in _lines(path):
        try:
            if text.startswith("#begin"):
                if reading:
                    raise ValueError(
                        f"found {text[:80]!r}, expected {_END} of the document from line {reading.line}"
                    )
                begin = _BEGIN.fullmatch(text)
                if not begin:
                    raise ValueError(f"found {text[:80]!r}, expected #begin document (ID); part 000")
                reading = _Reading(begin[1], begin[2], line)
            elif reading is None:
                if text:
                    raise ValueError(f"found {text[:80]!r}, expected #begin document (ID); part 000")
            elif text == _END:
                yield reading.document()
                reading = None
            elif text:
                reading.add(text, line)
            else:
                reading.end_sentence()
        except ValueError as error:
            raise InputError(f"{path}: line {line}: {error}") from error
    if reading:
        raise InputError(
            f"{path}: line {line}: the file ends, expected {_END} of the document from line {reading.line}"
        )
    if not line:
        raise InputError(f"{path}: empty, expected CoNLL-2012 documents")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines from 1 on, without what ends them and without blanks there."""
    try:
        with path.open("rb") as file:
            number = 0
            while raw := file.readline(MOST_BYTES + 1):
                number += 1
                if len(raw) > MOST_BYTES:
                    raise InputError(
                        f"{path}: line {number}: longer than {MOST_BYTES:,} bytes, expected a row"
                    )
                try:
                    yield number, raw.decode("utf-8").rstrip(" \t\r\n")
                except UnicodeDecodeError as error:
                    raise InputError(f"{path}: line {number}: byte {error.start + 1}: no UTF-8") from error
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error


def _header(document: Document) -> str:
    return f"#begin document ({document.id}); part {document.part}"


def _columns(document: Document) -> list[str]:
    """The first columns of documents that came without. White space would part a word in two columns."""
    rows = []
    id = re.sub(r"\s", "_", document.id)
    for start, end in document.sentences:
        for word in range(start, end):
            cells = [
                re.sub(r"\s", "_", cell) or "_" for cell in (document.words[word], document.speakers[word])
            ]
            numbers = f"{int(document.part)}\t{word - start}"
            rows.append(f"{id}\t{numbers}\t{cells[0]}\t-\t*\t-\t-\t-\t{cells[1]}\t*\t")
    return rows


def _coreference(document: Document, clusters: Sequence[Sequence[Span]]) -> list[str]:
    """The last column."""
    words = len(document.words)
    cells: list[list[str]] = [[] for _ in range(words)]
    # Outer mentions first where they begin, and last where they end, as people would read it.
    spans = [(start, end, number) for number, cluster in enumerate(clusters) for start, end in set(cluster)]
    for start, end, number in spans:
        if not 0 <= start < end <= words:
            raise InputError(
                f"{_header(document)}: found the span {start, end} in cluster {number}, expected "
                f"0 ≤ start < end ≤ {words}"
            )
    _check_nested(document, clusters)
    for start, end, number in sorted(spans, key=lambda span: (-span[1], span[2])):
        if end - start > 1:
            cells[start].append(f"({number}")
    for start, end, number in sorted(spans, key=lambda span: span[2]):
        if end - start == 1:
            cells[start].append(f"({number})")
    for start, end, number in sorted(spans, key=lambda span: (-span[0], -span[2])):
        if end - start > 1:
            cells[end - 1].append(f"{number})")
    return ["|".join(cell) or "-" for cell in cells]


def _check_nested(document: Document, clusters: Sequence[Sequence[Span]]) -> None:
    for number, cluster in enumerate(clusters):
        around: list[Span] = []
        for start, end in sorted(set(cluster), key=lambda span: (span[0], -span[1])):
            while around and around[-1][1] <= start:
                around.pop()
            if around and end > around[-1][1]:
                raise InputError(
                    f"{_header(document)}: found the spans {around[-1]} and {start, end} in cluster {number}, expected "
                    "one inside the other or apart: the format cannot tell which begins and ends where"
                )
            around.append((start, end))
