"""Coreference documents in JSON lines: PreCo's own rows, those of the hub's conll2012_ontonotesv5, and one's own.

PreCo (Chen et al. 2018), a document a row; ends of mentions are exclusive, and singletons are marked. Without
mention_clusters it is a document to predict on, and may have speakers, a name or null a sentence:

    {"id": "train_1", "sentences": [["John", "likes", …], …], "mention_clusters": [[[sentence, start, end], …], …]}

Running text to predict on, cut simply: words are letters and digits with what joins them (don't, well-known, 1.5),
every other character is a word, and a sentence ends behind . ! ? and white space, or with a line:

    {"id": "mine", "text": "John likes …"}

The hub's, where a row holds all parts of a document; ends are inclusive, and clusters are a part's:

    {"document_id": …, "sentences": [
        {"part_id": 0, "words": […], "speaker": "Ann", "coref_spans": [[cluster, start, end], …]}, …]}
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from trainer.engine.config import InputError
from trainer.tasks.conll2012 import MOST_WORDS, NO_SPEAKER, Document, Span

MOST_BYTES = 64 << 20  # of a line
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[.!?][\"'”’)])\s+|\n+")
_WORD = re.compile(r"\w+(?:[-'’.,]\w+)*|[^\w\s]")


def read_coreference_rows(path: Path) -> Iterator[Document]:
    """The documents of a file, in order; rows of both kinds may be in it.

    InputError names file, line and key, what was found and what was expected; ids must differ.
    """
    seen: dict[tuple[str, str], int] = {}
    number = 0
    try:
        with path.open("rb") as file:
            while raw := file.readline(MOST_BYTES + 1):
                number += 1
                if len(raw) > MOST_BYTES:
                    raise InputError(
                        f"{path}: line {number}: longer than {MOST_BYTES:,} bytes, expected a document"
                    )
                if not raw.strip():
                    continue
                try:
                    for document in _documents(orjson.loads(raw)):
                        name = (document.id, document.part)
                        if name in seen:
                            raise ValueError(
                                f"found {name} as in line {seen[name]}, expected another id or part"
                            )
                        seen[name] = number
                        yield document
                except orjson.JSONDecodeError as error:
                    raise InputError(f"{path}: line {number}: not JSON ({error})") from error
                except ValueError as error:
                    raise InputError(f"{path}: line {number}: {error}") from error
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    if not seen:
        raise InputError(f"{path}: empty, expected a document a line")


def _documents(row: Any) -> list[Document]:
    if not isinstance(row, dict):
        raise ValueError(f"found a {type(row).__name__}, expected an object")
    if "document_id" in row:
        return _of_the_hub(row)
    if "text" in row:
        return [_of_text(row)]
    return [_of_preco(row)]


def _of_text(row: dict[str, Any]) -> Document:
    if "sentences" in row:
        raise ValueError("found both text and sentences, expected one of them")
    text = str(_of_kind(row["text"], str, "text"))
    sentences = [words for part in _SENTENCE_END.split(text) if (words := _WORD.findall(part))]
    return _document(_name(row, "id"), "000", sentences, [NO_SPEAKER] * len(sentences), [])


def _of_preco(row: dict[str, Any]) -> Document:
    sentences = [_words(words, f"sentences[{n}]") for n, words in enumerate(_list(row, "sentences"))]
    starts = _starts(sentences)
    clusters = []
    for n, cluster in enumerate(_list(row, "mention_clusters") if "mention_clusters" in row else []):
        spans = set()
        for m, mention in enumerate(_of_kind(cluster, list, f"mention_clusters[{n}]")):
            where = f"mention_clusters[{n}][{m}]"
            sentence, start, end = _three(mention, where)
            if not 0 <= sentence < len(sentences):
                raise ValueError(
                    f"{where}: found sentence {sentence}, expected one of {len(sentences)} from 0"
                )
            if not 0 <= start < end <= len(sentences[sentence]):
                raise ValueError(
                    f"{where}: found words {start} to {end}, expected 0 ≤ start < end ≤ {len(sentences[sentence])}"
                )
            spans.add((starts[sentence] + start, starts[sentence] + end))
        clusters.append(spans)
    found = _list(row, "speakers") if "speakers" in row else [None] * len(sentences)
    if len(found) != len(sentences):
        raise ValueError(f"speakers: found {len(found)}, expected one for each of {len(sentences)} sentences")
    speakers = [_speaker(speaker, f"speakers[{n}]") for n, speaker in enumerate(found)]
    return _document(_name(row, "id"), "000", sentences, speakers, clusters)


def _of_the_hub(row: dict[str, Any]) -> list[Document]:
    name = _name(row, "document_id")
    parts: dict[int, list[tuple[str, dict[str, Any]]]] = {}
    for n, sentence in enumerate(_list(row, "sentences")):
        where = f"sentences[{n}]"
        part = _of_kind(_of_kind(sentence, dict, where).get("part_id"), int, f"{where}.part_id")
        if not 0 <= part < 10**9:
            raise ValueError(f"{where}.part_id: found {part}, expected a part's number from 0")
        parts.setdefault(part, []).append((where, sentence))
    documents = []
    for part, found in parts.items():
        sentences = [_words(sentence.get("words"), f"{where}.words") for where, sentence in found]
        clusters: dict[int, set[Span]] = {}
        speakers = []
        for first, words, (where, sentence) in zip(_starts(sentences), sentences, found, strict=True):
            speakers.append(_speaker(sentence.get("speaker"), f"{where}.speaker"))
            for m, span in enumerate(_of_kind(sentence.get("coref_spans", []), list, f"{where}.coref_spans")):
                cluster, start, last = _three(span, f"{where}.coref_spans[{m}]")
                if not 0 <= start <= last < len(words):
                    raise ValueError(
                        f"{where}.coref_spans[{m}]: found words {start} to {last}, expected "
                        f"0 ≤ start ≤ end < {len(words)}"
                    )
                clusters.setdefault(cluster, set()).add((first + start, first + last + 1))
        documents.append(_document(name, f"{part:03d}", sentences, speakers, list(clusters.values())))
    return documents


def _document(
    name: str, part: str, sentences: list[list[str]], speakers: list[str], clusters: list[set[Span]]
) -> Document:
    words = sum(map(len, sentences))
    if words > MOST_WORDS:
        raise ValueError(f"found {words:,} words in a document, expected {MOST_WORDS:,} at most")
    return Document(
        name,
        part,
        tuple(word for sentence in sentences for word in sentence),
        tuple(who for who, sentence in zip(speakers, sentences, strict=True) for _ in sentence),
        tuple(
            (start, start + len(sentence))
            for start, sentence in zip(_starts(sentences), sentences, strict=True)
            if sentence
        ),
        tuple(tuple(sorted(spans)) for spans in clusters if spans),
    )


def _starts(sentences: list[list[str]]) -> list[int]:
    starts = [0]
    for sentence in sentences:
        starts.append(starts[-1] + len(sentence))
    return starts[:-1]


def _of_kind(value: Any, kind: type, where: str) -> Any:
    if type(value) is not kind:  # True is no number here
        raise ValueError(f"{where}: found {str(value)[:80]!r}, expected {_KINDS[kind]}")
    return value


_KINDS = {dict: "an object", list: "a list", str: "text", int: "a whole number"}


def _list(row: dict[str, Any], key: str) -> list[Any]:
    if key not in row:
        raise ValueError(f"found no {key}, expected a list")
    return list(_of_kind(row[key], list, key))


def _name(row: dict[str, Any], key: str) -> str:
    name = str(_of_kind(row.get(key), str, key))
    if not name or not name.isprintable():
        raise ValueError(f"{key}: found {name[:80]!r}, expected a name in one line")
    return name


def _speaker(speaker: Any, where: str) -> str:
    return NO_SPEAKER if speaker is None else str(_of_kind(speaker, str, where))


def _words(words: Any, where: str) -> list[str]:
    return [_of_kind(word, str, f"{where}[{n}]") for n, word in enumerate(_of_kind(words, list, where))]


def _three(numbers: Any, where: str) -> list[int]:
    if len(_of_kind(numbers, list, where)) != 3:
        raise ValueError(f"{where}: found {len(numbers)} numbers, expected three")
    return [_of_kind(number, int, where) for number in numbers]
