"""HotpotQA's distractor setting (Yang et al. 2018) in two stages (Longformer paper, appendix D).

Stage "paragraphs" scores the paragraphs of a question, and its submission is a file of scores. Stage "answers" reads
the best of them, or all without such a file, and finds answer and evidence. Both train the heads on the tokens of
paragraphs and sentences; the second has two more, for the answer's kind and for its span. The loss is a weighted sum:

- paragraphs: binary cross-entropy of each <t>, whether a supporting fact lies in its paragraph;
- sentences: that of each [s], whether it is one; both are means over a question's tokens, so that all count alike;
- kind: cross-entropy of span, yes and no on <s>;
- span: the paper names BERT's loss of one start and end, and HotpotQA does not say which occurrence of an answer is
  meant. All those in supporting paragraphs are right here (the OR loss, which for one occurrence is BERT's).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from trainer.engine.config import InputError
from trainer.model.longformer import EncoderConfig, initialise
from trainer.tasks.example import Example, Skipped
from trainer.tasks.hotpotqa_files import ParagraphScores, Question, read_questions, read_scores, write_scores
from trainer.tasks.hotpotqa_input import ADDED_TOKENS, Layout
from trainer.tasks.question_answering_metrics import (
    SQUAD_PUNCTUATION,
    HotpotQAAnswers,
    hotpotqa_answer_scores,
    joint_scores,
    supporting_fact_scores,
)
from trainer.tasks.question_answering_submissions import write_hotpotqa
from trainer.tasks.spans import best_spans, occurrences, or_loss
from trainer.tasks.task import SPLITS, Lengths, Split, TaskSettings
from trainer.tasks.wordpieces import Wordpieces

KINDS = ("span", "yes", "no")
UNKNOWN = -1  # a label that is missing
EVIDENCE = 2  # paragraphs that every question of the distractor setting needs
OFFICIAL_NAMES = [
    f"{part}{name}" for part in ("", "sp_", "joint_") for name in ("em", "f1", "prec", "recall")
]


class HotpotQASettings(TaskSettings):
    """HotpotQA: its official files (.json), the hub's (.jsonl, .parquet), or one's own."""

    name: Literal["hotpotqa"]
    train: Path = Field(description="questions with answers and supporting facts")
    validation: Path | None = Field(None, description="likewise, for figures while training")
    test: Path | None = Field(None, description="questions to predict; the official ones have no answers")
    stage: Literal["paragraphs", "answers"] = Field(
        "answers", description="score the paragraphs, or find answers and evidence in them"
    )
    paragraphs: tuple[Path, ...] = Field(
        (), description="files of scores that stage paragraphs predicted, for all splits; none: all are read"
    )
    keep: int = Field(5, ge=EVIDENCE, description="paragraphs to read of a question, at most (the paper's)")
    least_score: float = Field(
        -3.0, description="a logit above which they are read (the paper's), except that two always are"
    )
    longest_answer: int = Field(30, ge=1, description="wordpieces of an answer")
    span_weight: float = Field(1.0, ge=0, description="of the answer's span in the loss")
    kind_weight: float = Field(1.0, ge=0, description="of its kind, span, yes or no")
    sentence_weight: float = Field(1.0, ge=0, description="of the supporting sentences")
    paragraph_weight: float = Field(1.0, ge=0, description="of the supporting paragraphs")

    @model_validator(mode="after")
    def _scores_are_for_answers(self) -> HotpotQASettings:
        if self.paragraphs and self.stage == "paragraphs":
            raise ValueError("paragraphs: found scores for stage paragraphs, expected them for stage answers")
        return self

    def task(self) -> HotpotQA:
        return HotpotQA(self)


class HotpotQA:
    """One of the two stages. Predictions are {"paragraphs"} or {"answer", "supporting_facts"}, as files have them."""

    name = "hotpotqa"
    added_tokens: tuple[str, ...] = ADDED_TOKENS
    architecture = ""
    has_global_tokens = True

    def __init__(self, settings: HotpotQASettings) -> None:
        self.settings = settings
        self.answers = settings.stage == "answers"

    def splits(self) -> tuple[Split, ...]:
        return tuple(split for split in SPLITS if getattr(self.settings, split) is not None)

    def files(self, split: Split) -> list[Path]:
        path = getattr(self.settings, split)
        assert path is not None, split
        return [path, *self.settings.paragraphs]

    def read(self, split: Split) -> Iterator[Question]:
        return self.read_own(self.files(split)[0])

    def read_own(self, path: Path) -> Iterator[Question]:
        if not self.settings.paragraphs:
            yield from read_questions(path)
            return
        scores = read_scores(self.settings.paragraphs)
        for question in read_questions(path):
            titles = [paragraph.title for paragraph in question.paragraphs]
            if question.id not in scores:
                raise InputError(
                    f"{path}: {question.id}: found no scores of its paragraphs in "
                    f"{', '.join(map(str, self.settings.paragraphs))}, expected those of stage paragraphs"
                )
            if [title for title, _ in scores[question.id]] != titles:
                raise InputError(
                    f"{path}: {question.id}: found other titles in the scores of its paragraphs, "
                    "expected the scores of this file"
                )
            kept = self._kept(scores[question.id])
            yield replace(question, paragraphs=tuple(question.paragraphs[n] for n in kept))

    def _kept(self, scores: ParagraphScores) -> list[int]:
        """The numbers of the paragraphs that stage answers reads, ascending; of equal scores the first ones."""
        read = [n for n, (_, score) in enumerate(scores) if score is not None]
        best = sorted(read, key=lambda n: -(scores[n][1] or 0.0))[: self.settings.keep]
        high = [n for n in best if (scores[n][1] or 0.0) > self.settings.least_score]
        return sorted(best[: max(EVIDENCE, len(high))])

    def encode(self, entry: Question, wordpieces: Wordpieces, lengths: Lengths, training: bool) -> Example:
        if training and not entry.facts:
            raise Skipped("no supporting facts")
        if training and self.answers and entry.answer is None:
            raise Skipped("no answer")
        layout = Layout(entry, wordpieces, lengths, training)
        titles = [paragraph.title for paragraph in entry.paragraphs]
        facts = None if entry.facts is None else set(entry.facts)
        supporting = {title for title, _ in facts or ()}
        # Facts that name no sentence of the context, as some of the real data do, label nothing.
        features: dict[str, Sequence[int]] = {
            "part_paragraphs": layout.part_paragraphs,
            "part_labels": [
                UNKNOWN if facts is None else int(titles[n] in supporting) for n in layout.part_paragraphs
            ],
            "sentence_paragraphs": layout.sentence_paragraphs,
            "sentence_numbers": layout.sentence_numbers,
            "sentence_labels": [
                UNKNOWN if facts is None else int((titles[n], sentence) in facts)
                for n, sentence in zip(layout.sentence_paragraphs, layout.sentence_numbers, strict=True)
            ],
        }
        places = {"part_places": layout.part_places, "sentence_places": layout.sentence_places}
        about: dict[str, Any] = {"titles": titles, "facts": entry.facts}
        if self.answers:
            places |= {"row_places": layout.row_places, "piece_places": layout.piece_places}
            about |= {"texts": [paragraph.text for paragraph in entry.paragraphs], "answer": entry.answer}
            kind = _kind(entry.answer)
            spans = _spans(entry, layout, supporting) if kind == KINDS.index("span") else []
            if training and kind == KINDS.index("span") and not spans:
                raise Skipped("no answer occurs")
            features |= {
                "piece_parts": layout.piece_parts,
                "piece_starts": layout.piece_starts,
                "piece_ends": layout.piece_ends,
                "kind": [kind],
                "span_starts": [first for first, _ in spans],
                "span_ends": [last for _, last in spans],
            }
        read = np.unique(np.concatenate([np.array(found, np.int32) for found in places.values()]))
        # In the features places count what is read.
        features |= {name: np.searchsorted(read, found).tolist() for name, found in places.items()}
        return Example(
            entry.id,
            tuple(layout.rows),
            np.array(layout.global_places, np.int32),
            read,
            {name: np.array(found, np.int32) for name, found in features.items()},
            layout.context_tokens,
            layout.tokens_cut,
            json.dumps(about),
        )

    def heads(self, config: EncoderConfig) -> dict[str, nn.Module]:
        size = config.hidden_size
        heads: dict[str, nn.Module] = {"paragraph_scorer": _scorer(size), "sentence_scorer": _scorer(size)}
        if self.answers:
            heads |= {"qa_outputs": nn.Linear(size, 2), "answer_kind": nn.Linear(size, len(KINDS))}
        for head in heads.values():
            initialise(head, config.initializer_range)
        return heads

    def loss(self, model: nn.Module, states: list[Tensor], examples: Sequence[Example]) -> Tensor:
        settings = self.settings
        total = states[0].new_zeros((), dtype=torch.float32)
        for hidden, example in zip(states, examples, strict=True):
            feature = _features(example, hidden.device)
            paragraphs, sentences = self._evidence(model, hidden, feature)
            total = total + settings.paragraph_weight * _labelled_loss(paragraphs, feature["part_labels"])
            total = total + settings.sentence_weight * _labelled_loss(sentences, feature["sentence_labels"])
            if self.answers:
                kinds, spans = self._answer(model, hidden, feature)
                known = feature["kind"] != UNKNOWN
                kind = F.cross_entropy(kinds[None], feature["kind"].clamp(min=0), reduction="none")
                total = total + settings.kind_weight * torch.where(known, kind, 0).sum()
                total = total + settings.span_weight * or_loss(
                    spans, feature["span_starts"], feature["span_ends"]
                )
        return total

    def predict(self, model: nn.Module, states: list[Tensor], examples: Sequence[Example]) -> list[Any]:
        predictions: list[Any] = []
        for hidden, example in zip(states, examples, strict=True):
            feature = _features(example, hidden.device)
            about = json.loads(example.about)
            parts, sentences = self._evidence(model, hidden, feature)
            count = len(about["titles"])
            scores = _paragraph_scores(parts.tolist(), example.features["part_paragraphs"], count)
            if not self.answers:
                pairs = zip(about["titles"], scores, strict=True)
                predictions.append({"paragraphs": [[title, score] for title, score in pairs]})
                continue
            evidence = supporting_sentences(
                sentences.tolist(), example.features["sentence_paragraphs"].tolist(), scores
            )
            of, number = example.features["sentence_paragraphs"], example.features["sentence_numbers"]
            facts = [[about["titles"][of[n]], int(number[n])] for n in evidence]
            kinds, spans = self._answer(model, hidden, feature)
            kind = KINDS[int(kinds.argmax())]
            if kind == "span":
                answer = self._text(spans, feature, {int(of[n]) for n in evidence}, about["texts"])
            else:
                answer = kind
            predictions.append({"answer": answer, "supporting_facts": facts})
        return predictions

    def _evidence(
        self, model: nn.Module, hidden: Tensor, feature: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Logits, float32, of the parts and of the sentences."""
        paragraphs = model.get_submodule("paragraph_scorer")(hidden[feature["part_places"]])
        sentences = model.get_submodule("sentence_scorer")(hidden[feature["sentence_places"]])
        return paragraphs.squeeze(1).float(), sentences.squeeze(1).float()

    def _answer(
        self, model: nn.Module, hidden: Tensor, feature: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Logits, float32, of the kinds, the mean over rows, and (pieces, 2) of starts and ends."""
        kinds = model.get_submodule("answer_kind")(hidden[feature["row_places"]])
        spans = model.get_submodule("qa_outputs")(hidden[feature["piece_places"]])
        return kinds.float().mean(0), spans.float()

    def _text(
        self, spans: Tensor, feature: Mapping[str, Tensor], paragraphs: set[int], texts: Sequence[str]
    ) -> str:
        """The best span within the evidence's paragraphs; "" where they have no text."""
        part_paragraphs, parts = feature["part_paragraphs"].tolist(), feature["piece_parts"]
        readable = torch.tensor([n in paragraphs for n in part_paragraphs], device=parts.device)
        if not len(parts):
            return ""
        best = best_spans(
            spans, self.settings.longest_answer, 1, torch.where(readable[parts], parts, UNKNOWN)
        )
        if not best:
            return ""
        first, last = best[0].first, best[0].last
        text = texts[part_paragraphs[int(parts[first])]]
        return text[int(feature["piece_starts"][first]) : int(feature["piece_ends"][last])].strip()

    def sums(self, examples: Sequence[Example], predictions: Sequence[Any]) -> list[float]:
        """The questions that have labels, and of these the sums of `figures`' figures."""
        sums = np.zeros(1 + (len(OFFICIAL_NAMES) if self.answers else 3))
        for example, prediction in zip(examples, predictions, strict=True):
            about = json.loads(example.about)
            if about["facts"] is None or (self.answers and about["answer"] is None):
                continue
            facts = [(title, sentence) for title, sentence in about["facts"]]
            if self.answers:
                answer = hotpotqa_answer_scores(prediction["answer"], about["answer"])
                evidence = supporting_fact_scores(
                    [(title, sentence) for title, sentence in prediction["supporting_facts"]], facts
                )
                scores = [*answer, *evidence, *joint_scores(answer, evidence)]
            else:
                scores = self._paragraphs_found(prediction["paragraphs"], {title for title, _ in facts})
            sums += [1, *scores]
        return [float(found) for found in sums]

    def _paragraphs_found(self, scores: ParagraphScores, supporting: set[str]) -> list[float]:
        kept = self._kept(scores)
        best = sorted(kept, key=lambda n: -(scores[n][1] or 0.0))[:EVIDENCE]
        return [
            float(supporting <= {scores[n][0] for n in kept}),
            float(supporting == {scores[n][0] for n in best}),
            float(len(kept)),
        ]

    def figures(self, sums: Sequence[float]) -> dict[str, float]:
        """Stage answers: HotpotQA's twelve, in percent. Stage paragraphs: the share of questions, in percent, whose
        supporting paragraphs are all kept, and are the two best; and how many paragraphs are kept of one, the mean.
        None where no question has labels, as in the test split."""
        count, *scores = sums
        if not count:
            return {}
        if not self.answers:
            complete, pair, kept = (score / count for score in scores)
            return {"supporting_kept": 100 * complete, "pair_em": 100 * pair, "paragraphs_kept": kept}
        figures = {name: 100 * score / count for name, score in zip(OFFICIAL_NAMES, scores, strict=True)}
        return {"joint_f1": figures["joint_f1"], **figures}

    def write(self, path: Path, predictions: Iterable[tuple[Example, Any]]) -> None:
        by_id = {example.id: prediction for example, prediction in predictions}
        if not self.answers:
            write_scores(path, {question: found["paragraphs"] for question, found in by_id.items()})
            return
        write_hotpotqa(
            path,
            HotpotQAAnswers(
                {question: found["answer"] for question, found in by_id.items()},
                {question: found["supporting_facts"] for question, found in by_id.items()},
            ),
        )

    def describe(self) -> Mapping[str, Any]:
        return self.settings.model_dump(mode="json", exclude={*SPLITS, "paragraphs"})


def supporting_sentences(
    sentences: Sequence[float], sentence_paragraphs: Sequence[int], paragraphs: Sequence[float | None]
) -> list[int]:
    """The most likely evidence that lies in exactly two paragraphs (fewer where fewer have sentences), ascending.

    The constraint is the paper's, after Groeneveld et al. (2020). sentences: a logit each, sentence_paragraphs: whose
    they are; paragraphs: their logits. As sentences are judged independently, a set's log-odds against the empty one is
    the sum of its logits: of a paragraph the likely sentences are taken (logit > 0), or the likeliest one, and the two
    paragraphs for which this sum and their own logit are the most. Of equal ones the first.
    """
    chosen: dict[int, list[int]] = {}
    for n, paragraph in enumerate(sentence_paragraphs):
        chosen.setdefault(paragraph, []).append(n)
    value = {}
    for paragraph, own in chosen.items():
        likely = [n for n in own if sentences[n] > 0] or [max(own, key=lambda n: sentences[n])]
        chosen[paragraph] = likely
        value[paragraph] = (paragraphs[paragraph] or 0.0) + sum(sentences[n] for n in likely)
    best = sorted(value, key=lambda paragraph: (-value[paragraph], paragraph))[:EVIDENCE]
    return sorted(n for paragraph in best for n in chosen[paragraph])


def _kind(answer: str | None) -> int:
    if answer is None:
        return UNKNOWN
    return KINDS.index(answer) if answer in ("yes", "no") else KINDS.index("span")


def _spans(question: Question, layout: Layout, supporting: set[str]) -> list[tuple[int, int]]:
    """The pieces (first, last), the last inclusive, of each occurrence of the answer in a supporting paragraph that the
    rows hold."""
    assert question.answer is not None
    parts, starts, ends = (np.array(x) for x in (layout.piece_parts, layout.piece_starts, layout.piece_ends))
    paragraph_of_piece = np.array(layout.part_paragraphs, np.int64)[parts] if len(parts) else parts
    spans = []
    for number, paragraph in enumerate(question.paragraphs):
        own = np.flatnonzero(paragraph_of_piece == number)
        if paragraph.title not in supporting or not len(own):
            continue
        for start, end in occurrences(paragraph.text, [question.answer], SQUAD_PUNCTUATION):
            first = own[0] + int(np.searchsorted(ends[own], start, side="right"))
            last = own[0] + int(np.searchsorted(starts[own], end, side="left")) - 1
            held = first <= last and starts[first] <= start and end <= ends[last]
            if held and parts[first] == parts[last]:
                spans.append((int(first), int(last)))
    return spans


def _paragraph_scores(logits: Sequence[float], paragraphs: Iterable[int], count: int) -> list[float | None]:
    """A paragraph's score: the greatest of its parts', None where no row holds any."""
    scores: list[float | None] = [None] * count
    for paragraph, logit in zip(paragraphs, logits, strict=True):
        before = scores[paragraph]
        scores[paragraph] = logit if before is None else max(before, logit)
    return scores


def _scorer(size: int) -> nn.Module:
    """The paper's two-layer feed-forward network."""
    return nn.Sequential(nn.Linear(size, size), nn.GELU(), nn.Linear(size, 1))


def _features(example: Example, device: torch.device) -> dict[str, Tensor]:
    found = example.features.items()
    return {name: torch.tensor(values, dtype=torch.long, device=device) for name, values in found}


def _labelled_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean binary cross-entropy where there are labels; 0, in the graph, where there are none."""
    known = labels != UNKNOWN
    losses = F.binary_cross_entropy_with_logits(logits, labels.clamp(min=0).float(), reduction="none")
    return torch.where(known, losses, 0).sum() / max(1, len(labels))
