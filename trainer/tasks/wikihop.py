"""WikiHop (paper, section 6 and appendix D): the answer to a question, among candidates, from several documents.

A row is

    <s> [q] question [/q] [ent] candidate [/ent] [ent] candidate [/ent] … </s> document </s> document </s> …

with as much of the documents as fits; the next row begins with the same question and candidates and goes on where the
last one ended, in the middle of a document if need be. `<s>`, question and candidates have global attention. The paper
gives no `<s>`; it is there, and global, because RoBERTa's first token always was one, as in the authors' script. Each
`[ent]` has one logit in each row, of a linear layer `answer_score` (without a bias, which the softmax would not see); a
candidate's is the mean over the rows, and the loss is the softmax's cross-entropy over the candidates.

Questions and candidates are not cut. Where they leave less than an eighth of the row to documents, an example is left
out of training; to be predicted all the same, its candidates are shortened to the most wordpieces each that leave so
much, and the metric has the share of such questions beside it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from trainer.engine.config import InputError
from trainer.model.longformer import EncoderConfig, initialise
from trainer.tasks.example import Example, Skipped
from trainer.tasks.question_answering_submissions import write_triviaqa
from trainer.tasks.task import SPLITS, Lengths, Split, TaskSettings
from trainer.tasks.wikihop_files import Question, read_wikihop
from trainer.tasks.wordpieces import Wordpieces

QUESTION, QUESTION_END, CANDIDATE, CANDIDATE_END = "[q]", "[/q]", "[ent]", "[/ent]"
_SPACED = re.compile(r" (?=[.,!?)]|'s\b)|(?<=\() ")


class WikiHopSettings(TaskSettings):
    """WikiHop: choose a question's answer among candidates by several documents."""

    name: Literal["wikihop"]
    train: Path = Field(description="the official train.json, or the hub's rows (.jsonl, .parquet)")
    validation: Path | None = Field(None, description="dev.json, of the same form")
    test: Path | None = Field(None, description="of the same form; answers may be missing")
    join_punctuation: bool = Field(
        True,
        description="`the U.S. ( 1999 ) , and` becomes `the U.S. (1999), and`, as in the authors' script",
    )

    def task(self) -> WikiHop:
        return WikiHop(self)


class WikiHop:
    """See DownstreamTask."""

    name = "wikihop"
    added_tokens: tuple[str, ...] = (QUESTION, QUESTION_END, CANDIDATE, CANDIDATE_END)
    architecture = ""
    has_global_tokens = True

    def __init__(self, settings: WikiHopSettings) -> None:
        self.settings = settings

    def splits(self) -> tuple[Split, ...]:
        return tuple(split for split in SPLITS if self._path(split) is not None)

    def files(self, split: Split) -> list[Path]:
        path = self._path(split)
        return [] if path is None else [path]

    def read(self, split: Split) -> Iterator[Question]:
        path = self._path(split)
        assert path is not None, f"no {split} is configured"
        for question in read_wikihop(path):
            if split == "validation" and question.answer is None:
                raise InputError(f"{question.where}: answer: found none, expected one of the candidates")
            yield question

    def read_own(self, path: Path) -> Iterator[Question]:
        """The official form without answers, or rows {question, candidates, documents, id?}."""
        return read_wikihop(path)

    def _path(self, split: Split) -> Path | None:
        path: Path | None = getattr(self.settings, split)
        return path

    def encode(self, entry: Question, wordpieces: Wordpieces, lengths: Lengths, training: bool) -> Example:
        if training:
            _refuse_useless(entry)
        most = lengths.tokens - max(2, lengths.tokens // 8)
        texts = (entry.question, *entry.candidates, *entry.documents)
        question, *others = [pieces.ids for pieces in wordpieces.encode_all([*map(self._text, texts)])]
        candidates, documents = others[: len(entry.candidates)], others[len(entry.candidates) :]
        whole = _beginning(question, candidates, wordpieces)
        shortened = len(whole) > most
        if shortened and training:
            raise Skipped("question and candidates leave no room for documents")
        beginning = _shortened(question, candidates, wordpieces, most) if shortened else whole
        if beginning is None:
            raise InputError(
                f"{entry.where}: found a question of {len(question):,} wordpieces and {len(candidates):,} candidates, "
                f"expected so many that they take {most:,} tokens of a sequence_length of {lengths.tokens:,} at most"
            )
        contexts = _contexts(documents, lengths.tokens - len(beginning), wordpieces.eos)
        context_tokens = sum(map(len, documents))
        if lengths.longer == "truncate":
            contexts = contexts[:1]
        rows = tuple(np.concatenate([beginning, context]) for context in contexts)
        starts = np.cumsum([0, *map(len, rows)])[:-1, None]
        entities = np.flatnonzero(beginning == wordpieces.special(CANDIDATE))
        label = entry.candidates.index(entry.answer) if entry.answer in entry.candidates else -1
        return Example(
            entry.id,
            rows,
            global_places=(starts + np.arange(len(beginning) - 1)).ravel().astype(np.int32),
            read=(starts + entities).ravel().astype(np.int32),
            features={
                "label": np.array([label], np.int32),
                "rows": np.array([len(rows)], np.int32),
                "shortened": np.array([shortened], np.int32),
            },
            context_tokens=context_tokens,
            tokens_cut=context_tokens - sum(int((context != wordpieces.eos).sum()) for context in contexts),
            about=json.dumps({"candidates": entry.candidates, "answer": entry.answer}),
        )

    def _text(self, text: str) -> str:
        """As its wordpieces are cut: with a space before it, as words in the middle of a text have."""
        text = " ".join(text.split())
        return " " + (_SPACED.sub("", text) if self.settings.join_punctuation else text) if text else ""

    def heads(self, config: EncoderConfig) -> dict[str, nn.Module]:
        score = nn.Linear(config.hidden_size, 1, bias=False)
        initialise(score, config.initializer_range)
        return {"answer_score": score}

    def _logits(self, model: nn.Module, states: list[Tensor], examples: Sequence[Example]) -> list[Tensor]:
        """float32 (candidates,) of each example."""
        scores: Tensor = model.get_submodule("answer_score")(torch.cat(states)).float()
        rows = [int(example.features["rows"][0]) for example in examples]
        parts = scores.flatten().split([len(state) for state in states])
        return [part.view(count, -1).mean(0) for part, count in zip(parts, rows, strict=True)]

    def loss(self, model: nn.Module, states: list[Tensor], examples: Sequence[Example]) -> Tensor:
        """A question whose answer is no candidate adds 0."""
        total = states[0].new_zeros((), dtype=torch.float32)
        for logits, example in zip(self._logits(model, states, examples), examples, strict=True):
            label = int(example.features["label"][0])
            total = total + (logits.logsumexp(0) - logits[label] if label >= 0 else 0 * logits.sum())
        return total

    def predict(
        self, model: nn.Module, states: list[Tensor], examples: Sequence[Example]
    ) -> list[dict[str, Any]]:
        """{answer, probability} of each; of equal ones the first, and "" where there is no candidate."""
        found = []
        for logits, example in zip(self._logits(model, states, examples), examples, strict=True):
            candidates = json.loads(example.about)["candidates"]
            probabilities = logits.softmax(0).cpu().numpy()
            best = int(probabilities.argmax()) if candidates else -1
            found.append(
                {
                    "answer": candidates[best] if candidates else "",
                    "probability": float(probabilities[best]) if candidates else 0.0,
                }
            )
        return found

    def sums(self, examples: Sequence[Example], predictions: Sequence[Any]) -> list[float]:
        """Right answers, known answers, and questions of these whose candidates were shortened."""
        sums = [0.0, 0.0, 0.0]
        for example, prediction in zip(examples, predictions, strict=True):
            answer = json.loads(example.about)["answer"]
            if answer is not None:
                sums[0] += prediction["answer"] == answer
                sums[1] += 1
                sums[2] += int(example.features["shortened"][0])
        return sums

    def figures(self, sums: Sequence[float]) -> dict[str, float]:
        """accuracy, and the share of questions with shortened candidates; nothing where no answer is known."""
        right, known, shortened = sums
        return {"accuracy": right / known, "shortened": shortened / known} if known else {}

    def write(self, path: Path, predictions: Iterable[tuple[Example, Any]]) -> None:
        """The official {id: answer}, a form that TriviaQA's shares."""
        write_triviaqa(path, {example.id: prediction["answer"] for example, prediction in predictions})

    def describe(self) -> Mapping[str, Any]:
        return {"join_punctuation": self.settings.join_punctuation}


def _refuse_useless(entry: Question) -> None:
    if not entry.candidates:
        raise Skipped("no candidates")
    if entry.answer is None:
        raise Skipped("no answer")
    if entry.answer not in entry.candidates:
        raise Skipped("answer is no candidate")


def _beginning(question: np.ndarray, candidates: Sequence[np.ndarray], wordpieces: Wordpieces) -> np.ndarray:
    """int32 ids of what each row begins with."""
    special = {token: [wordpieces.special(token)] for token in WikiHop.added_tokens}
    parts = [[wordpieces.bos], special[QUESTION], question.tolist(), special[QUESTION_END]]
    for ids in candidates:
        parts += [special[CANDIDATE], ids.tolist(), special[CANDIDATE_END]]
    parts.append([wordpieces.eos])
    return np.fromiter(chain.from_iterable(parts), np.int32)


def _shortened(
    question: np.ndarray, candidates: Sequence[np.ndarray], wordpieces: Wordpieces, most: int
) -> np.ndarray | None:
    """The beginning with the longest candidates cut, as little as makes it `most` tokens; None where one wordpiece each
    is too much."""
    room = most - len(_beginning(question, [ids[:0] for ids in candidates], wordpieces))
    for length in range(min(room, max(map(len, candidates), default=0)), 0, -1):
        if sum(min(length, len(ids)) for ids in candidates) <= room:
            return _beginning(question, [ids[:length] for ids in candidates], wordpieces)
    return None


def _contexts(documents: Iterable[np.ndarray], room: int, eos: int) -> list[np.ndarray]:
    """Documents, each or each part of one closed by `</s>`, in runs of `room` tokens; one, empty, of no documents."""
    runs: list[list[np.ndarray]] = [[]]
    left = room
    for ids in documents:
        start = 0
        while start < len(ids):
            if left < 2:
                runs.append([])
                left = room
            part = ids[start : start + left - 1]
            runs[-1] += [part, np.array([eos], np.int32)]
            start += len(part)
            left -= len(part) + 1
    return [np.concatenate(run) if run else np.empty(0, np.int32) for run in runs]
