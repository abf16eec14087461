"""Summarisation of long documents by LED (Longformer paper, section 7): arXiv's and PubMed's layout, or one's own.

    <s> document </s>   →   <s> summary </s>

`<s>` of the document has global attention. The loss is the summary's cross-entropy, a sum over its tokens, without
label smoothing. Predictions come from beam search by transformers' generation, and the metric is ROUGE of the
rouge-score package: mean F-measures of 1-grams, 2-grams and, line by line, the longest common subsequence.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from pipeline.shards import write_atomically
from trainer.engine.config import InputError
from trainer.model.led_model import LedModel
from trainer.model.longformer import EncoderConfig
from trainer.tasks.example import Example, Skipped
from trainer.tasks.rows import id_of, read_rows
from trainer.tasks.task import SPLITS, Lengths, Split, TaskSettings
from trainer.tasks.wordpieces import Wordpieces

ROUGE = ("rouge1", "rouge2", "rougeLsum")
_TAGS = re.compile(r"</?S>")
_DOCUMENT, _SUMMARY = (
    ("article", "article_text", "document", "text"),
    ("abstract", "abstract_text", "summary"),
)


class SummarizationSettings(TaskSettings):
    """Summaries of long documents, by LED: rows {article, abstract, id?} in .jsonl or .parquet, as arXiv and PubMed."""

    name: Literal["summarization"]
    train: Path = Field(description="rows to train on")
    validation: Path | None = Field(
        None, description="likewise, for ROUGE while training (evaluation.examples of them)"
    )
    test: Path | None = Field(None, description="likewise, to report on")
    longest_summary: int = Field(512, ge=4, le=1 << 16, description="tokens of a summary, at most")
    beams: int = Field(4, ge=1, le=64, description="of the search; 1: greedy")
    length_penalty: float = Field(2.0, ge=-10, le=10, description="above 0 longer summaries are preferred")
    no_repeated: int = Field(
        3, ge=0, le=64, description="a summary has no n-gram of this length twice; 0: it may"
    )

    def task(self) -> Summarization:
        return Summarization(self)


class Document:
    """A text with its summary, where it is known."""

    def __init__(self, id: str, text: str, summary: str | None, where: str) -> None:
        self.id, self.text, self.summary, self.where = id, text, summary, where


class Summarization:
    """See DownstreamTask."""

    name = "summarization"
    added_tokens: tuple[str, ...] = ()
    architecture = "ForConditionalGeneration"
    has_global_tokens = True

    def __init__(self, settings: SummarizationSettings) -> None:
        self.settings = settings

    def splits(self) -> tuple[Split, ...]:
        return tuple(split for split in SPLITS if self._path(split) is not None)

    def files(self, split: Split) -> list[Path]:
        path = self._path(split)
        return [] if path is None else [path]

    def _path(self, split: Split) -> Path | None:
        path: Path | None = getattr(self.settings, split)
        return path

    def read(self, split: Split) -> Iterator[Document]:
        path = self._path(split)
        assert path is not None, f"no {split} is configured"
        for document in read_documents(path):
            if document.summary is None and split == "validation":
                raise InputError(f"{document.where}: found no summary, expected {' or '.join(_SUMMARY)}")
            yield document

    def read_own(self, path: Path) -> Iterator[Document]:
        return read_documents(path)

    def encode(self, entry: Document, wordpieces: Wordpieces, lengths: Lengths, training: bool) -> Example:
        if lengths.longer == "chunk":
            raise InputError("longer: found chunk, expected truncate: LED reads a document in one row")
        if training and not (entry.summary or "").strip():
            raise Skipped("no summary")
        if training and not entry.text.strip():
            raise Skipped("no text")
        text = wordpieces.encode(entry.text).ids
        read = text[: lengths.tokens - 2]
        summary = wordpieces.encode(entry.summary or "").ids[: self.settings.longest_summary - 2]
        labels = np.concatenate([[wordpieces.bos], summary, [wordpieces.eos]]).astype(np.int32)
        return Example(
            entry.id,
            (np.concatenate([[wordpieces.bos], read, [wordpieces.eos]]).astype(np.int32),),
            global_places=np.zeros(1, np.int32),
            features={"summary": labels},
            context_tokens=len(text),
            tokens_cut=len(text) - len(read),
            scored=len(labels),
            about=json.dumps({"summary": entry.summary}),
        )

    def heads(self, config: EncoderConfig) -> dict[str, nn.Module]:
        return {}

    def loss(self, model: nn.Module, states: list[Tensor], examples: Sequence[Example]) -> Tensor:
        assert isinstance(model, LedModel)
        device = states[0].device
        targets = [
            torch.tensor(example.features["summary"], dtype=torch.long, device=device) for example in examples
        ]
        return model.loss_sum(states, targets)

    def predict(self, model: nn.Module, states: list[Tensor], examples: Sequence[Example]) -> list[str]:
        """The text of each summary."""
        assert isinstance(model, LedModel)
        return model.generate(states, **self.generation(model))

    def generation(self, model: LedModel) -> dict[str, Any]:
        """The settings of the search, as transformers calls them."""
        settings = self.settings
        return {
            "num_beams": settings.beams,
            "length_penalty": settings.length_penalty,
            "no_repeat_ngram_size": settings.no_repeated,
            "max_new_tokens": min(settings.longest_summary, model.sizes.max_decoder_position_embeddings - 1),
            "do_sample": False,
        }

    def sums(self, examples: Sequence[Example], predictions: Sequence[str]) -> list[float]:
        """F-measures, and how many examples have a summary to compare with."""
        found = np.zeros(len(ROUGE) + 1)
        for example, prediction in zip(examples, predictions, strict=True):
            summary = json.loads(example.about)["summary"]
            if (summary or "").strip():
                found += [*rouge(summary, prediction), 1.0]
        return found.tolist()

    def figures(self, sums: Sequence[float]) -> dict[str, float]:
        """In percent, as papers give them."""
        *scores, count = sums
        return {name: 100 * score / count for name, score in zip(ROUGE, scores, strict=True)} if count else {}

    def write(self, path: Path, predictions: Iterable[tuple[Example, str]]) -> None:
        """A row {id, summary} each."""
        rows = [json.dumps({"id": example.id, "summary": said}) + "\n" for example, said in predictions]
        try:
            write_atomically(path, "".join(rows).encode())
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror})") from error

    def describe(self) -> Mapping[str, Any]:
        settings = self.settings
        return {
            "longest_summary": settings.longest_summary,
            "beams": settings.beams,
            "length_penalty": settings.length_penalty,
            "no_repeated": settings.no_repeated,
        }


def rouge(summary: str, prediction: str) -> list[float]:
    """F-measures by ROUGE's names, stemmed; lines are the sentences of the last.

    The package's words are runs of a-z and 0-9, as in published figures; of other letters it keeps nothing. So where a
    summary has more of those, words are runs of any letters, and single signs of scripts without spaces.
    """
    from rouge_score.rouge_scorer import RougeScorer  # type: ignore[import-untyped]  # which imports nltk

    letters = [letter for letter in summary.lower() if letter.isalnum()]
    other = 2 * sum(letter.isascii() for letter in letters) < len(letters)
    scorer = RougeScorer(ROUGE, use_stemmer=not other, tokenizer=_AnyScript() if other else None)
    scores = scorer.score(summary, prediction)
    return [float(scores[name].fmeasure) for name in ROUGE]


class _AnyScript:
    """Splits text into words for RougeScorer: letters with their marks, and the signs of wide scripts and Thai."""

    def tokenize(self, text: str) -> list[str]:
        return "".join(self._spaced(sign) for sign in text.lower()).split()

    def _spaced(self, sign: str) -> str:
        if unicodedata.category(sign)[0] not in "LMN":
            return " "
        alone = unicodedata.east_asian_width(sign) in "WF" or "\u0e00" <= sign <= "\u0eff"
        return f" {sign} " if alone else sign


def read_documents(path: Path) -> Iterator[Document]:
    """Rows of a document and its summary, if there is one, under any of the names that are in use."""
    for number, (where, row) in enumerate(read_rows(path)):
        place = f"{path}: {where}"
        text, summary = _joined(row, _DOCUMENT, place), _joined(row, _SUMMARY, place)
        if text is None:
            raise InputError(
                f"{place}: found {', '.join(sorted(row))[:200]}, expected {' or '.join(_DOCUMENT)}"
            )
        name = {**row, "id": row.get("id", row.get("article_id"))}
        yield Document(id_of(name, number, place), text, summary, place)


def _joined(row: Mapping[str, Any], names: Sequence[str], place: str) -> str | None:
    """The text under the first of some names, or its sentences as lines; without the tags that PubMed's have."""
    for name in names:
        value = row.get(name)
        if value is None:
            continue
        lines = [value] if isinstance(value, str) else value
        if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
            raise InputError(
                f"{place}: {name}: found a {type(value).__name__}, expected text or a list of sentences"
            )
        return "\n".join(_TAGS.sub("", line).strip() for line in lines)
    return None
