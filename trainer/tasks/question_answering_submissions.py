"""Predictions in the files that TriviaQA's and HotpotQA's official scripts and leaderboards take.

The files are ASCII, other characters escaped, because HotpotQA's script opens them in whatever encoding its machine
has; ids are sorted, so that the same predictions make the same file in whatever order they were found.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from trainer.engine.config import InputError
from trainer.model.json_files import read_json
from trainer.tasks.question_answering_metrics import Fact, HotpotQAAnswers

FACTS = "a list of [title, sentence number from 0]"


def write_triviaqa(path: Path, predictions: Mapping[str, str]) -> None:
    """One object, {question id: answer}: the whole file or, with an InputError, none."""
    _write(path, dict(predictions))


def read_triviaqa(path: Path) -> dict[str, str]:
    """The answers by question id; InputError with the file and the id where it has another form."""
    return _answers(read_json(path), str(path))


def write_hotpotqa(path: Path, predictions: HotpotQAAnswers) -> None:
    """One object, {"answer": {id: text}, "sp": {id: [[title, sentence], …]}}, supporting facts in the given order.

    The whole file or, with an InputError, none.
    """
    facts = {
        question: [[title, sentence] for title, sentence in found]
        for question, found in predictions.supporting_facts.items()
    }
    _write(path, {"answer": dict(predictions.answer), "sp": facts})


def read_hotpotqa(path: Path) -> HotpotQAAnswers:
    """Answers and supporting facts by question id; InputError with the file and the id where it has another form.

    Ids may be in one of the two only, as the official script allows; other keys beside them are not read.
    """
    found = read_json(path)
    for key in ("answer", "sp"):
        if not isinstance(found.get(key), dict):
            what = (
                f"a {type(found[key]).__name__}"
                if key in found
                else f"only the keys {reprlib.repr(list(found))}"
            )
            raise InputError(f"{path}: {key}: found {what}, expected an object by question id")
    where = f"{path}: sp"
    return HotpotQAAnswers(
        answer=_answers(found["answer"], f"{path}: answer"),
        supporting_facts={
            question: _facts(facts, f"{where}: {question}") for question, facts in found["sp"].items()
        },
    )


def _answers(found: Mapping[str, Any], where: str) -> dict[str, str]:
    for question, answer in found.items():
        if not isinstance(answer, str):
            raise InputError(
                f"{where}: {question}: found {reprlib.repr(answer)}, expected the answer as a string"
            )
    return dict(found)


def _facts(found: Any, where: str) -> list[Fact]:
    if not isinstance(found, list):
        raise InputError(f"{where}: found {reprlib.repr(found)}, expected {FACTS}")
    for fact in found:
        # JSON's true would pass for the number 1.
        match fact:
            case [str(), int(sentence)] if not isinstance(sentence, bool) and sentence >= 0:
                pass
            case _:
                raise InputError(f"{where}: found {reprlib.repr(fact)} in it, expected {FACTS}")
    return [(title, sentence) for title, sentence in found]


def _write(path: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, indent=2, sort_keys=True) + "\n"
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_text(text, encoding="ascii")
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise InputError(f"{path}: cannot be written ({error.strerror})") from error
