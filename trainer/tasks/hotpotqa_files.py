"""HotpotQA's questions in its official files, in the hub's columns, and in one's own; and stage one's scores.

Three layouts of a row, told apart by their keys, in any of the containers that `read_rows` knows:

    official  {"_id", "question", "answer", "supporting_facts": [[title, sentence], …],
               "context": [[title, [sentence, …]], …]}
    the hub's {"id", "question", "answer", "supporting_facts": {"title": […], "sent_id": […]},
               "context": {"title": […], "sentences": [[…], …]}}
    one's own {"id", "question", "paragraphs": [{"title", "sentences": […]} or {"title", "text"}, …]}

Answers and supporting facts may be missing in each, as in the official test file.
"""

from __future__ import annotations

import json
import math
import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from trainer.engine.config import InputError
from trainer.model.json_files import read_json
from trainer.tasks.question_answering_metrics import Fact
from trainer.tasks.rows import read_rows

# Where a text of one's own is cut: behind a sentence's mark, before white space that a capital, digit or quote follows.
SENTENCE_END = re.compile(r"(?<=[.!?…])(?=\s+[^\Wa-z_]|\s+[\"'“‘(])")
KINDS = {str: "text", int: "a whole number", list: "a list", dict: "an object"}

ParagraphScores = list[tuple[str, float | None]]
"""(title, logit) of a question's paragraphs in their order; None where the model has not read it."""


@dataclass(frozen=True)
class Paragraph:
    title: str
    sentences: tuple[str, ...]

    @property
    def text(self) -> str:
        """Its sentences, which bring their own space between them."""
        return "".join(self.sentences)


@dataclass(frozen=True)
class Question:
    id: str
    text: str
    paragraphs: tuple[Paragraph, ...]
    answer: str | None
    facts: tuple[Fact, ...] | None
    """As given: the real data name some sentences that do not exist."""
    where: str = field(default="", compare=False)
    """File, and line or row in it."""


def read_questions(path: Path) -> Iterator[Question]:
    """The questions of a file, in order.

    InputError names file, row and key, what was found and what was expected; ids must differ.
    """
    seen: dict[str, str] = {}
    for where, row in read_rows(path):
        try:
            question = _question(row)
            if question.id in seen:
                raise ValueError(
                    f"found the id {question.id!r} as in {seen[question.id]}, expected another one"
                )
        except ValueError as error:
            raise InputError(f"{path}: {where}: {error}") from error
        seen[question.id] = where
        yield replace(question, where=f"{path}: {where} ({question.id[:80]})")


def _question(row: Mapping[str, Any]) -> Question:
    key = "_id" if "_id" in row else "id"
    answer = row.get("answer")
    return Question(
        _id(row, key),
        _get(row, "question", str),
        tuple(_paragraphs(row)),
        # The hub's test split has an empty or no answer, and no facts.
        None if answer is None or answer == "" else _of_kind(answer, str, "answer"),
        tuple(_facts(row["supporting_facts"])) or None if row.get("supporting_facts") else None,
    )


def _id(row: Mapping[str, Any], key: str) -> str:
    """Text that can be written to a file: half a surrogate pair is in no UTF-8."""
    found: str = _get(row, key, str)
    try:
        found.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{key}: found half a surrogate pair in {found!a:.80}, expected text") from error
    return found


def _paragraphs(row: Mapping[str, Any]) -> Iterator[Paragraph]:
    if "paragraphs" in row:
        for n, found in enumerate(_get(row, "paragraphs", list)):
            yield _own_paragraph(found, f"paragraphs[{n}]")
        return
    context = row.get("context")
    if isinstance(context, dict):
        pairs = _side_by_side(context, "context", "title", "sentences")
    else:
        pairs = _pairs(context, "context", "[title, sentences]")
    for n, (title, sentences) in enumerate(pairs):
        where = f"context[{n}]"
        yield Paragraph(_of_kind(title, str, f"{where}: title"), _sentences(sentences, where))


def _own_paragraph(found: Any, where: str) -> Paragraph:
    paragraph = _of_kind(found, dict, where)
    title = _of_kind(paragraph.get("title"), str, f"{where}: title")
    if "sentences" in paragraph:
        return Paragraph(title, _sentences(paragraph["sentences"], where))
    text = _of_kind(paragraph.get("text"), str, f"{where}: text (or sentences)")
    return Paragraph(title, tuple(SENTENCE_END.split(text)))


def _sentences(found: Any, where: str) -> tuple[str, ...]:
    sentences = _of_kind(found, list, f"{where}: sentences")
    return tuple(_of_kind(text, str, f"{where}: sentences[{n}]") for n, text in enumerate(sentences))


def _facts(found: Any) -> Iterator[Fact]:
    if isinstance(found, dict):
        pairs = _side_by_side(found, "supporting_facts", "title", "sent_id")
    else:
        pairs = _pairs(found, "supporting_facts", "[title, sentence number]")
    for n, (title, sentence) in enumerate(pairs):
        where = f"supporting_facts[{n}]"
        if _of_kind(sentence, int, f"{where}: sentence") < 0:
            raise ValueError(f"{where}: found sentence {sentence}, expected its number from 0")
        yield _of_kind(title, str, f"{where}: title"), sentence


def _side_by_side(columns: Mapping[str, Any], name: str, first: str, second: str) -> list[tuple[Any, Any]]:
    one, two = (_of_kind(columns.get(key), list, f"{name}.{key}") for key in (first, second))
    if len(one) != len(two):
        raise ValueError(
            f"{name}: found {len(one)} of {first} and {len(two)} of {second}, expected as many of both"
        )
    return list(zip(one, two, strict=True))


def _pairs(found: Any, name: str, form: str) -> list[tuple[Any, Any]]:
    pairs = []
    for n, pair in enumerate(_of_kind(found, list, name)):
        if not isinstance(pair, list) or len(pair) != 2:
            raise ValueError(f"{name}[{n}]: found {reprlib.repr(pair)}, expected {form}")
        pairs.append((pair[0], pair[1]))
    return pairs


def _get(row: Mapping[str, Any], key: str, kind: type) -> Any:
    if key not in row:
        raise ValueError(f"found no {key}, expected {KINDS[kind]}")
    return _of_kind(row[key], kind, key)


def _of_kind(value: Any, kind: type, where: str) -> Any:
    if type(value) is not kind:  # True is no number here
        raise ValueError(f"{where}: found {reprlib.repr(value)}, expected {KINDS[kind]}")
    return value


def write_scores(path: Path, scores: Mapping[str, ParagraphScores]) -> None:
    """Stage one's result, {id: [[title, score], …]}: the whole file or, with an InputError, none."""
    lines = [f"{json.dumps(question)}: {json.dumps(found)}" for question, found in sorted(scores.items())]
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="ascii")
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise InputError(f"{path}: cannot be written ({error.strerror})") from error


def read_scores(paths: Sequence[Path]) -> dict[str, ParagraphScores]:
    """The scores of all files by question id; InputError with the file and the id where one has another form."""
    scores: dict[str, ParagraphScores] = {}
    for path in paths:
        for question, found in read_json(path).items():
            try:
                pairs = _pairs(found, question, "[title, score]")
                scores[question] = [
                    (_of_kind(title, str, f"{question}[{n}]: title"), _score(score, f"{question}[{n}]"))
                    for n, (title, score) in enumerate(pairs)
                ]
            except ValueError as error:
                raise InputError(f"{path}: {error}") from error
    return scores


def _score(found: Any, where: str) -> float | None:
    if found is None:
        return None
    if type(found) not in (int, float) or not math.isfinite(found):
        raise ValueError(f"{where}: found {reprlib.repr(found)}, expected a score or null")
    return float(found)
