"""TriviaQA's questions and their evidence (Joshi et al. 2017), in the three forms that people have them in.

The official archive: `qa/*.json` with {"Domain", "VerifiedEval", "Data": [{"QuestionId", "Question", "Answer",
"EntityPages": [{"Filename"}, …], "SearchResults": [{"Filename"}, …]}, …]}, and the texts of the pages in
`evidence/wikipedia` and of the search results in `evidence/web`. The Wikipedia domain reads a question's entity pages,
the web domain both, search results after them, as the official script orders them.

The hub's rows (`trivia_qa`, configurations rc.*), as .jsonl or .parquet: {"question_id", "question", "answer",
"entity_pages": {"filename": […], "wiki_context": […]}, "search_results": {"filename": […], "search_context": […]}}.

One's own .jsonl: {"id", "question", "context"} or "documents", a list, in its place; "answers", a list, where known.
"""

from __future__ import annotations

import json
import reprlib
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import orjson

from trainer.engine.config import InputError
from trainer.tasks.question_answering_metrics import triviaqa_answers, triviaqa_web_id
from trainer.tasks.rows import MOST_BYTES, read_rows, text_of, texts_of

Domain = Literal["wikipedia", "web"]

MOST_JSON_BYTES = 4 << 30  # of a qa/*.json
SEPARATOR = "\n\n"  # between the documents of a context


@dataclass(frozen=True)
class Page:
    """A document that may hold the answer."""

    name: str
    """Its `Filename`, by which the web domain is scored."""
    text: str | None
    """None where its file is missing."""
    verified: bool = False
    """People found the answer in it (`DocPartOfVerifiedEval`)."""


@dataclass(frozen=True)
class Question:
    """A question and what it is to be answered from."""

    id: str
    question: str
    pages: tuple[Page, ...]
    """With different names."""
    answers: tuple[str, ...] | None
    """All that count as right (`triviaqa_answers`); None where they are not known."""
    verified: bool = False
    """People could answer it (`QuestionPartOfVerifiedEval`)."""
    domain: Domain = "wikipedia"
    where: str = field(default="", compare=False)
    """File, and line or row in it."""

    @property
    def context(self) -> str:
        return SEPARATOR.join(page.text for page in self.pages if page.text is not None)

    @property
    def missing(self) -> int:
        """Pages without a text."""
        return sum(page.text is None for page in self.pages)

    @property
    def scored_as(self) -> list[tuple[str, bool]]:
        """The ids that its answer is scored by, and whether each is of the verified part: its own, or in the web domain
        one for each page. As in the official script, what a model has read does not change which ones count."""
        if self.domain == "wikipedia":
            return [(self.id, self.verified)]
        return [(triviaqa_web_id(self.id, page.name), self.verified and page.verified) for page in self.pages]

    def by_page(self) -> list[Question]:
        """The question once for each of its pages."""
        return [replace(self, pages=(page,)) for page in self.pages]


def read_questions(
    path: Path, domain: Domain | None, evidence: Path | None, answered: bool
) -> Iterator[Question]:
    """The questions of a file, in its order. A .json is in the official form, .jsonl (.gz) and .parquet are rows.

    Of a file of the verified evaluation ("VerifiedEval": true) those questions and pages that are part of it.
    domain: which one the file must be of; None: an official file says it, and rows are of wikipedia. evidence: the
    folder of `wikipedia` and `web`; None: `evidence` beside the folder that the .json is in. A page whose file is not
    there has no text. `answered`: a question without answers is an error.
    InputError names file and place, what was found and what was expected. So it does where no page at all has a text.
    """
    official, folder = is_official(path), evidence_of(path, evidence)
    seen: dict[str, str] = {}
    found = False
    for where, question in (
        _official(path, domain, folder, answered)
        if official
        else _rows(path, domain or "wikipedia", answered)
    ):
        if question.id in seen:
            raise InputError(
                f"{path}: {where}: found {question.id} as in {seen[question.id]}, expected each question once"
            )
        seen[question.id] = where
        found = found or any(page.text for page in question.pages)
        yield replace(question, where=f"{path}: {where} ({question.id[:80]})")
    if not seen:
        raise InputError(f"{path}: found no questions, expected at least one")
    if not found:
        raise InputError(
            f"{folder if official else path}: found no evidence for any question of {path}, expected documents' texts"
        )


def is_official(path: Path) -> bool:
    return path.suffix == ".json"


def evidence_of(path: Path, evidence: Path | None) -> Path:
    """The folder of `wikipedia` and `web` that a file of questions is read with."""
    return evidence or path.absolute().parent.parent / "evidence"


def _official(
    path: Path, domain: Domain | None, evidence: Path, answered: bool
) -> Iterator[tuple[str, Question]]:
    """Questions and where in the file each is."""
    data = _json(path)
    found = text_of(data, "Domain", str(path)).lower()
    if found not in ([domain] if domain else get_args(Domain)):
        expected = f"{domain} (the setting `domain`)" if domain else " or ".join(get_args(Domain))
        raise InputError(f"{path}: Domain: found {reprlib.repr(found)}, expected {expected}")
    verified_alone = _flag(data, "VerifiedEval", str(path))
    if not evidence.is_dir():
        raise InputError(
            f"{path}: found no folder {evidence}, expected the evidence there (the setting `evidence`)"
        )
    for number, row in enumerate(_of(data, "Data", list, str(path))):
        where = f"Data[{number}]"
        place = f"{path}: {where}"
        _check(row, dict, place)
        if not verified_alone or _flag(row, "QuestionPartOfVerifiedEval", place):
            pages = _pages(row, "web" if found == "web" else "wikipedia", evidence, verified_alone, place)
            id = _name(row, "QuestionId", place)
            yield (
                where,
                Question(
                    id,
                    text_of(row, "Question", place),
                    tuple(pages.values()),
                    _answers(id, row.get("Answer"), answered, place),
                    _flag(row, "QuestionPartOfVerifiedEval", place),
                    "web" if found == "web" else "wikipedia",
                ),
            )


def _pages(
    row: Mapping[str, Any], domain: Domain, evidence: Path, verified_alone: bool, place: str
) -> dict[str, Page]:
    pages: dict[str, Page] = {}
    sources = [("EntityPages", "wikipedia"), ("SearchResults", "web")]
    for key, folder in sources if domain == "web" else sources[:1]:
        if domain == "web" and key not in row:  # as in the official script
            continue
        for number, page in enumerate(_of(row, key, list, place)):
            at = f"{place}: {key}[{number}]"
            _check(page, dict, at)
            name, verified = _name(page, "Filename", at), _flag(page, "DocPartOfVerifiedEval", at)
            if name not in pages and (verified or not verified_alone or domain == "wikipedia"):
                pages[name] = Page(name, _text(evidence / folder, name, at), verified)
    return pages


def _text(folder: Path, name: str, place: str) -> str | None:
    """A page's text, None where there is no such file. A name is somebody else's: it may not lead elsewhere."""
    shown = f"{place}: Filename: found {reprlib.repr(name)}"
    try:
        root = folder.resolve()
        file = None if "\0" in name else (root / name).resolve()
        if file is None or not file.is_relative_to(root):
            raise InputError(f"{shown}, expected a file inside {folder}")
        found = file.stat()
        if not stat.S_ISREG(found.st_mode):
            raise InputError(f"{shown}, which is no file, expected a page's text")
        if found.st_size > MOST_BYTES:
            raise InputError(f"{shown}, longer than {MOST_BYTES:,} bytes, expected a page's text")
        return file.read_bytes().decode("utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except UnicodeError as error:
        raise InputError(f"{shown}, which is not UTF-8 ({error})") from error
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise InputError(f"{shown}, which cannot be read ({error})") from error


def _rows(path: Path, domain: Domain, answered: bool) -> Iterator[tuple[str, Question]]:
    for where, row in read_rows(path):
        place = f"{path}: {where}"
        if "question_id" in row:
            yield where, _of_the_hub(row, domain, answered, place)
        else:
            yield where, _own(row, answered, place)


def _of_the_hub(row: dict[str, Any], domain: Domain, answered: bool, place: str) -> Question:
    id = _name(row, "question_id", place)
    pages: dict[str, Page] = {}
    sources = [("entity_pages", "wiki_context"), ("search_results", "search_context")]
    for key, text_key in sources if domain == "web" else sources[:1]:
        columns = _of(row, key, dict, place)
        names, texts = (texts_of(columns, column, f"{place}: {key}") for column in ("filename", text_key))
        if len(names) != len(texts):
            raise InputError(
                f"{place}: {key}: found {len(names)} filename and {len(texts)} {text_key}, expected as many"
            )
        for name, text in zip(names, texts):
            pages.setdefault(name, Page(name, text))
    question = text_of(row, "question", place)
    answers = _answers(id, row.get("answer"), answered, place)
    return Question(id, question, tuple(pages.values()), answers, domain=domain)


def _own(row: dict[str, Any], answered: bool, place: str) -> Question:
    """Scored by its own id, whatever the domain: there are no files that the web's could name."""
    if ("context" in row) == ("documents" in row):
        raise InputError(
            f"{place}: found the keys {reprlib.repr(sorted(row))}, "
            "expected id, question, and context or documents (or the hub's rows with question_id)"
        )
    texts = [text_of(row, "context", place)] if "context" in row else texts_of(row, "documents", place)
    answers = None
    if row.get("answers") is not None or answered:
        answers = tuple(texts_of(row, "answers", place))
        if not answers:
            raise InputError(f"{place}: answers: found none, expected at least one")
    pages = tuple(Page(str(number), text) for number, text in enumerate(texts))
    return Question(_name(row, "id", place), text_of(row, "question", place), pages, answers)


def _answers(id: str, answer: Any, answered: bool, place: str) -> tuple[str, ...] | None:
    keys = ("NormalizedAliases", "normalized_aliases", "HumanAnswers")
    known = any(map(answer.get, keys)) if isinstance(answer, dict) else answer is not None
    if not known and not answered:
        return None
    if not isinstance(answer, dict):
        what = "none" if answer is None else f"a {type(answer).__name__}"
        raise InputError(f"{place}: {id}: Answer: found {what}, expected an object with NormalizedAliases")
    try:
        return tuple(triviaqa_answers(id, answer))
    except InputError as error:
        raise InputError(f"{place}: {error}") from error


def _json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MOST_JSON_BYTES:
            raise InputError(f"{path}: longer than {MOST_JSON_BYTES:,} bytes, expected TriviaQA's questions")
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    try:
        found = orjson.loads(content)
    except orjson.JSONDecodeError:
        try:  # orjson refuses lone surrogates, which texts from the web have
            found = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: not JSON ({error})") from error
    _check(found, dict, str(path))
    return dict(found)


def _check(value: Any, kind: type, place: str) -> None:
    if not isinstance(value, kind):
        raise InputError(f"{place}: found a {type(value).__name__}, expected a {kind.__name__}")


def _of(row: Mapping[str, Any], key: str, kind: type, place: str) -> Any:
    if key not in row:
        raise InputError(f"{place}: {key}: found none, expected a {kind.__name__}")
    _check(row[key], kind, f"{place}: {key}")
    return row[key]


def _flag(row: Mapping[str, Any], key: str, place: str) -> bool:
    return bool(_of(row, key, bool, place)) if key in row else False


def _name(row: dict[str, Any], key: str, place: str) -> str:
    """Text that can be written to a file: a lone surrogate is in no UTF-8."""
    found = text_of(row, key, place)
    try:
        found.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{place}: {key}: found {reprlib.repr(found)}, expected Unicode text") from error
    return found
