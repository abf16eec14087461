"""TriviaQA (Longformer paper, section 6.1 and appendix D): a question's evidence read at one time, the answer a span.

A row is `<s> question </s> context </s>`, the documents of a question joined to one context. Global are `<s>` and the
question's tokens, as in transformers' LongformerForQuestionAnswering; the `</s>` behind them is not. The head's
probabilities that the answer starts, and ends, at a place are over the context, of all rows of an example together.

allenai's script differs: its softmax is over question and special tokens too, it sees only spans whose start and end
are both among the 20 best, and puts the answer together from wordpieces instead of taking the text's characters.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from trainer.engine.config import InputError
from trainer.model.longformer import EncoderConfig, initialise
from trainer.tasks.example import Example, Skipped
from trainer.tasks.question_answering_metrics import TRIVIAQA_PUNCTUATION, best_scores, normalise_triviaqa
from trainer.tasks.question_answering_submissions import write_triviaqa
from trainer.tasks.spans import answer_pieces, best_spans, or_loss
from trainer.tasks.task import SPLITS, Lengths, Split, TaskSettings
from trainer.tasks.triviaqa_files import Domain, Question, evidence_of, is_official, read_questions
from trainer.tasks.wordpieces import Pieces, Wordpieces

HEAD = "qa_outputs"  # as transformers calls it
FEWEST_TOKENS = 7  # <s>, half a row of question, </s>, one token of context, </s>


class TriviaQASettings(TaskSettings):
    """TriviaQA's questions, or others with documents to find their answers in."""

    name: Literal["triviaqa"]
    train: Path = Field(
        description="qa/wikipedia-train.json of the official archive; or rows as .jsonl or .parquet, the hub's or your "
        "own, or a folder of files whose names begin with the split's"
    )
    validation: Path | None = Field(None, description="likewise, such as qa/wikipedia-dev.json")
    test: Path | None = Field(None, description="likewise; its questions need no answers")
    evidence: Path | None = Field(
        None, description="the official archive's folder of texts; else `evidence` beside the folder qa"
    )
    domain: Domain = Field("wikipedia", description="which of the two data sets: the paper's is wikipedia")
    documents: Literal["joined", "each"] = Field(
        "joined",
        description="a question's documents as one context, as the paper; or, in the web domain, each for itself, as "
        "it is scored (joined, the answer is scored for each document)",
    )
    longest_answer: int = Field(30, ge=1, le=512, description="wordpieces; the paper's")
    longest_context: int = Field(
        65_536,
        ge=1,
        le=1 << 22,
        description="wordpieces that are read of a context in chunks; the rest is cut off",
    )
    candidates: int = Field(20, ge=1, le=1000, description="spans that a prediction lists, best first")

    @model_validator(mode="after")
    def _pages_are_scored_in_the_web_domain(self) -> TriviaQASettings:
        if self.documents == "each" and self.domain == "wikipedia":
            raise ValueError(
                "documents: found each, expected joined: the wikipedia domain scores one answer a question"
            )
        return self

    def task(self) -> TriviaQA:
        return TriviaQA(self)


class TriviaQA:
    """The task under its settings. An example's features count the wordpieces of its context that are read."""

    name = "triviaqa"
    added_tokens: tuple[str, ...] = ()
    architecture = "ForQuestionAnswering"
    has_global_tokens = True

    def __init__(self, settings: TriviaQASettings) -> None:
        self.settings = settings

    def splits(self) -> tuple[Split, ...]:
        return tuple(split for split in SPLITS if getattr(self.settings, split) is not None)

    def files(self, split: Split) -> list[Path]:
        """Of the questions, and the folders of the evidence: its some hundred thousand files are taken to stay as they
        are, but not which ones there are."""
        found = self._questions(split)
        folders = {
            folder / domain
            for folder in (evidence_of(path, self.settings.evidence) for path in found if is_official(path))
            for domain in get_args(Domain)
        }
        return [*found, *sorted(folder for folder in folders if folder.is_dir())]

    def _questions(self, split: Split) -> list[Path]:
        path: Path | None = getattr(self.settings, split)
        assert path is not None, f"the configuration names no {split}"
        return _files(path, split)

    def read(self, split: Split) -> Iterator[Question]:
        seen: dict[str, Path] = {}
        for path in self._questions(split):
            for question in self._read(path, self.settings.domain, answered=split != "test"):
                if seen.setdefault(question.id, path) != path:
                    raise InputError(
                        f"{path}: found {question.id} as in {seen[question.id]}, expected each question once"
                    )
                yield question

    def read_own(self, path: Path) -> Iterator[Question]:
        """Of either domain: an official file says which, rows are of that trained on."""
        yield from self._read(path, None if is_official(path) else self.settings.domain, answered=False)

    def _read(self, path: Path, domain: Domain | None, answered: bool) -> Iterator[Question]:
        for question in read_questions(path, domain, self.settings.evidence, answered):
            if self._each(question):
                yield from question.by_page()
            else:
                yield question

    def _each(self, question: Question) -> bool:
        """One's own rows have no documents that are scored for themselves."""
        return self.settings.documents == "each" and question.domain == "web"

    def encode(self, entry: Question, wordpieces: Wordpieces, lengths: Lengths, training: bool) -> Example:
        """What does not fit is cut off the context, never the question: one that takes more than half a row is Skipped
        in training, else an InputError. Also Skipped is one with evidence missing, or without an answer in what is read
        of it."""
        if lengths.tokens < FEWEST_TOKENS:
            raise InputError(
                f"sequence_length: found {lengths.tokens}, expected {FEWEST_TOKENS} tokens or more for triviaqa"
            )
        if training and (entry.missing or not entry.context):
            raise Skipped("evidence is missing")
        question, context = wordpieces.encode_all([entry.question, entry.context])
        most = lengths.tokens // 2
        if len(question) > most:
            if training:
                raise Skipped("question longer than half a row")
            raise InputError(
                f"{entry.where or entry.id}: found {len(question):,} wordpieces in the question, which is never cut, "
                f"expected {most:,} at most where rows have {lengths.tokens:,} tokens"
            )
        room = lengths.tokens - len(question) - 3
        kept = context[: self.settings.longest_context if lengths.longer == "chunk" else room]
        answers: list[tuple[int, int]] = []
        if entry.answers is not None:
            everywhere = answer_pieces(
                context, entry.answers, TRIVIAQA_PUNCTUATION, self.settings.longest_answer
            )
            # Both ends in the same row.
            answers = [
                span for span in everywhere if span[0] // room == span[1] // room and span[1] < len(kept)
            ]
            if training and not answers:
                raise Skipped(
                    "no answer in what is read of the evidence" if everywhere else "no answer in the evidence"
                )
        before = np.array([wordpieces.bos, *question.ids, wordpieces.eos], np.int32)
        rows = [
            np.concatenate([before, kept.ids[start : start + room], np.array([wordpieces.eos], np.int32)])
            for start in range(0, max(1, len(kept)), room)
        ]
        offsets = np.cumsum([0, *map(len, rows[:-1])])
        in_row = np.arange(len(kept)) % room + len(before)
        about = {
            "question": entry.question,
            "context": kept.text[: int(kept.ends[-1])] if len(kept) else "",
            "answers": entry.answers,
            "scored_as": entry.scored_as,
            "documents_missing": entry.missing,
        }
        return Example(
            entry.scored_as[0][0] if self._each(entry) else entry.id,
            tuple(rows),
            (offsets[:, None] + np.arange(len(before) - 1)).astype(np.int32).ravel(),
            (np.repeat(offsets, room)[: len(kept)] + in_row).astype(np.int32),
            {
                "starts": np.array(sorted({first for first, _ in answers}), np.int32),
                "ends": np.array(sorted({last for _, last in answers}), np.int32),
                "characters_from": kept.starts,
                "characters_to": kept.ends,
            },
            len(context),
            len(context) - len(kept),
            json.dumps(about),
        )

    def heads(self, config: EncoderConfig) -> dict[str, nn.Module]:
        head = nn.Linear(config.hidden_size, 2)
        initialise(head, config.initializer_range)
        return {HEAD: head}

    def loss(self, model: nn.Module, states: list[Tensor], examples: Sequence[Example]) -> Tensor:
        head = model.get_submodule(HEAD)
        losses = []
        for own, example in zip(states, examples, strict=True):
            starts, ends = (
                torch.from_numpy(example.features[name].astype(np.int64)).to(own.device)
                for name in ("starts", "ends")
            )
            losses.append(or_loss(head(own), starts, ends))
        return torch.stack(losses).sum()

    def predict(
        self, model: nn.Module, states: list[Tensor], examples: Sequence[Example]
    ) -> list[dict[str, Any]]:
        """Each example's `answer`, the characters of the best span ("" without a context); `spans` lists the best ones,
        with their places in `context`, its documents joined by an empty line, and log p(start) + log p(end)."""
        head = model.get_submodule(HEAD)
        return [self._prediction(head(own), example) for own, example in zip(states, examples, strict=True)]

    def _prediction(self, logits: Tensor, example: Example) -> dict[str, Any]:
        about = json.loads(example.about)
        assert example.read is not None
        row_ends = np.cumsum([len(row) for row in example.rows])
        rows = torch.from_numpy(np.searchsorted(row_ends, example.read, side="right")).to(logits.device)
        pieces = Pieces(
            about["context"],
            np.concatenate(example.rows)[example.read],
            example.features["characters_from"],
            example.features["characters_to"],
        )
        spans = []
        for span in best_spans(logits, self.settings.longest_answer, self.settings.candidates, rows):
            start, end = pieces.characters(span.first, span.last)
            spans.append({"answer": pieces.text[start:end], "start": start, "end": end, "score": span.score})
        told = {key: about[key] for key in ("documents_missing",) if about[key]}
        return {"answer": spans[0]["answer"] if spans else "", "spans": spans, **told}

    def sums(self, examples: Sequence[Example], predictions: Sequence[Any]) -> list[float]:
        """Exact matches, F1 and number of all that is scored, and the same of the verified part. What has no answers
        is not scored."""
        sums = np.zeros(6)
        for example, prediction in zip(examples, predictions, strict=True):
            about = json.loads(example.about)
            if about["answers"] is None:
                continue
            scores = best_scores(prediction["answer"], about["answers"], normalise_triviaqa)
            for _, verified in about["scored_as"]:
                own = np.array([*scores, 1.0])
                sums += np.concatenate([own, own * verified])
        return [float(value) for value in sums]

    def figures(self, sums: Sequence[float]) -> dict[str, float]:
        """Percent, as `evaluate_triviaqa` gives them; InputError where nothing has answers."""
        if not sums[2]:
            raise InputError("found no answers to score by, expected those of one question at least")
        figures: dict[str, float] = {}
        for part, (exact, f1, count) in (("", sums[:3]), ("verified_", sums[3:])):
            if count:
                figures |= {f"{part}f1": 100 * f1 / count, f"{part}exact_match": 100 * exact / count}
        return figures

    def write(self, path: Path, predictions: Iterable[tuple[Example, Any]]) -> None:
        """The official script's file: the answer by question id, or in the web domain by that and the document's. The
        spans go into NAME.spans.jsonl beside it, a line an example."""
        answers: dict[str, str] = {}
        spans = path.with_name(f"{path.stem}.spans.jsonl")
        partial = spans.with_name(f"{spans.name}.partial")
        try:
            with partial.open("w", encoding="ascii") as file:
                for example, prediction in predictions:
                    about = json.loads(example.about)
                    answers |= {id: prediction["answer"] for id, _ in about["scored_as"]}
                    row = {"id": example.id, "question": about["question"], **prediction}
                    file.write(json.dumps(row) + "\n")
            write_triviaqa(path, answers)
            partial.replace(spans)
        except OSError as error:
            raise InputError(f"{spans}: cannot be written ({error.strerror})") from error
        finally:
            with suppress(OSError):
                partial.unlink()

    def describe(self) -> Mapping[str, Any]:
        return self.settings.model_dump(include={"domain", "documents", "longest_answer", "longest_context"})


def _files(path: Path, split: Split) -> list[Path]:
    """The file itself, or those of a folder whose names begin with the split's."""
    if not path.is_dir():
        return [path]
    found = sorted(file for file in path.glob(f"{split}*") if file.suffix in (".jsonl", ".parquet"))
    if not found:
        raise InputError(f"{path}: found no {split}*.jsonl and no {split}*.parquet in it")
    return found
