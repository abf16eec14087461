"""WikiHop's questions (Welbl et al. 2018), as published, as the hub has them, and anyone's own.

Published is a list of {id, query, answer, candidates, supports, annotations?} in JSON, test files without answer; the
hub (wiki_hop, original) has rows with the same keys. A query is a relation and a subject, `record_label get ready`.
One's own rows are {question, candidates, documents, id?}.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.engine.config import InputError
from trainer.tasks.rows import id_of, read_rows, text_of, texts_of

MOST_CANDIDATES = 10_000  # of a question; WikiHop's most are 79


@dataclass(frozen=True)
class Question:
    id: str
    question: str
    candidates: tuple[str, ...]
    """Each once, in the file's order."""
    documents: tuple[str, ...]
    answer: str | None
    """One of the candidates where the file is right."""
    where: str
    """File, and line or row in it."""


def read_wikihop(path: Path) -> Iterator[Question]:
    """The questions of a .json, .jsonl or .parquet file, in order.

    InputError names file, row and key, what was found and what was expected; ids must differ. That the answer is no
    candidate, or that there are none, is left to the caller.
    """
    seen: set[str] = set()
    for number, (where, row) in enumerate(read_rows(path)):
        place = f"{path}: {where}"
        question = _own(row, place, number) if "question" in row else _published(row, place)
        if question.id in seen:
            raise InputError(f"{place}: id: found a second {question.id[:80]!r}, expected each once")
        seen.add(question.id)
        yield question


def _published(row: dict[str, Any], place: str) -> Question:
    if row.get("id") is None:
        raise InputError(f"{place}: id: found none, expected text")
    name = id_of(row, 0, place)
    place = f"{place} ({name[:80]})"
    query = text_of(row, "query", place).replace("_", " ")
    candidates = _candidates(row, place)
    answer = None if row.get("answer") is None else text_of(row, "answer", place)
    return Question(name, query, candidates, tuple(texts_of(row, "supports", place)), answer, place)


def _own(row: dict[str, Any], place: str, number: int) -> Question:
    name = id_of(row, number, place)
    place = f"{place} ({name[:80]})"
    question, candidates = text_of(row, "question", place), _candidates(row, place)
    answer = None if row.get("answer") is None else text_of(row, "answer", place)
    return Question(name, question, candidates, tuple(texts_of(row, "documents", place)), answer, place)


def _candidates(row: dict[str, Any], place: str) -> tuple[str, ...]:
    found = tuple(dict.fromkeys(texts_of(row, "candidates", place)))
    if len(found) > MOST_CANDIDATES:
        raise InputError(f"{place}: candidates: found {len(found):,}, expected {MOST_CANDIDATES:,} at most")
    return found
