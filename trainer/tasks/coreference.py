"""OntoNotes' coreference (section 6 and appendix D.4): who and what in a document are the same.

The input is the document's wordpieces, in one row where they fit, or else cut at sentences into rows that the encoder
reads apart; the scorer sees all of them joined (trainer/model/coreference.py). No token is global. Mentions are spans
of words, predicted and scored in the document's own words, whatever wordpieces these have.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from trainer.engine.config import InputError
from trainer.model.coreference import Antecedents, CoreferenceScorer, ScorerSizes, Words, marginal_loss
from trainer.model.longformer import EncoderConfig
from trainer.tasks.conll2012 import Document, SpanClusters, find_conll, read_conll, write_conll
from trainer.tasks.coreference_metrics import CoreferenceScores, Ratio, score_document
from trainer.tasks.coreference_rows import read_coreference_rows
from trainer.tasks.example import Example, Skipped
from trainer.tasks.task import DownstreamTask, Lengths, Split, TaskSettings
from trainer.tasks.wordpieces import Wordpieces

HEAD = "coreference"
GENRES = ("bc", "bn", "mz", "nw", "pt", "tc", "wb")
"""OntoNotes' folders, with which its documents' ids begin: broadcast conversation and news, magazines, newswire, the
New Testament, telephone conversation, web."""
_PAIR = Ratio.__dataclass_fields__.keys()


class CoreferenceSettings(TaskSettings):
    """OntoNotes coreference; sizes and pruning are those of Joshi et al. 2019, which the paper keeps."""

    name: Literal["coreference"] = "coreference"
    train: Path = Field(
        description="CoNLL-2012 file, a folder with *gold_conll below it, or JSON lines (PreCo's rows, the hub's)"
    )
    validation: Path | None = Field(None, description="the same for evaluation")
    test: Path | None = Field(None, description="the same for the last figures")
    max_span_width: int = Field(30, ge=1, le=1000, description="words of the longest mention looked for")
    spans_per_word: float = Field(0.4, gt=0, le=2, description="spans kept, by the words of the document")
    antecedents: int = Field(50, ge=1, le=1000, description="kept for each span by the coarse score")
    feed_forward_size: int = Field(3000, ge=1, le=100_000, description="hidden units of the scoring networks")
    feature_size: int = Field(20, ge=1, le=10_000, description="of widths, distances, speakers and genres")
    depth: int = Field(
        2, ge=1, le=10, description="scorings of the pairs, all but the first with refined spans"
    )
    mention_loss: float = Field(
        0.0,
        ge=0,
        description="weight of a loss that tells true mentions, all of which are kept then, from the other spans kept; "
        "0 is the paper's, which leaves pruning to learn from what it keeps, and needs thousands of documents",
    )
    dropout: float = Field(0.3, ge=0, lt=1, description="in the scoring networks and features")

    def task(self) -> DownstreamTask:
        return Coreference(self)


class Coreference:
    """The task under some settings."""

    name = "coreference"
    added_tokens: tuple[str, ...] = ()
    architecture = ""
    has_global_tokens = False

    def __init__(self, settings: CoreferenceSettings) -> None:
        self.settings = settings

    def splits(self) -> tuple[Split, ...]:
        named: tuple[Split, ...] = ("validation", "test")
        return ("train", *(split for split in named if getattr(self.settings, split) is not None))

    def files(self, split: Split) -> list[Path]:
        return _files(getattr(self.settings, split))

    def read(self, split: Split) -> Iterator[Document]:
        return self.read_own(getattr(self.settings, split))

    def read_own(self, path: Path) -> Iterator[Document]:
        """A cluster of one mention is left out, as OntoNotes marks none and the model predicts none (PreCo's rows have
        many): they count neither in training nor in the metric."""
        seen: set[str] = set()
        for file in _files(path):
            for document in read_coreference_rows(file) if _is_json(file) else read_conll(file):
                if (name := _name(document)) in seen:
                    raise InputError(f"{file}: found a second {name}, expected each document's part once")
                seen.add(name)
                several = tuple(cluster for cluster in document.clusters if len(cluster) > 1)
                yield replace(document, clusters=several)

    def encode(self, entry: Document, wordpieces: Wordpieces, lengths: Lengths, training: bool) -> Example:
        """Each word is encoded as it stands in running text, behind a space. Rows end where sentences do; a sentence
        that fits no row alone is cut between words, and a word that fits none loses its end."""
        capacity = lengths.tokens - 2
        if capacity < 1:
            raise InputError(f"sequence_length: found {lengths.tokens}, expected 3 or more")
        pieces = [word.ids for word in wordpieces.encode_all([f" {word}" for word in entry.words])]
        context = sum(map(len, pieces))
        pieces = [ids[:capacity] for ids in pieces]
        parts = row_borders([len(ids) for ids in pieces], entry.sentences, capacity)
        if lengths.longer == "truncate":
            parts = parts[:1]
        read = parts[-1][1]
        counts = np.array([len(ids) for ids in pieces[:read]], np.int32)
        rows = tuple(
            np.concatenate([[wordpieces.bos], *pieces[start:end], [wordpieces.eos]]).astype(np.int32)
            for start, end in parts
        )
        clusters = [[span for span in cluster if span[1] <= read] for cluster in entry.clusters]
        clusters = [cluster for cluster in clusters if len(cluster) > 1]
        if training and not clusters:
            raise Skipped("no two mentions of the same in what is read")
        gold = [(*span, number) for number, cluster in enumerate(clusters) for span in cluster]
        sentence_end = [end for start, end in entry.sentences for _ in range(start, end)]
        names = {speaker: number for number, speaker in enumerate(dict.fromkeys(entry.speakers))}
        features = {
            "word_ends": counts.cumsum(),
            "sentence_end": [min(end, read) for end in sentence_end[:read]],
            "speaker": [names[speaker] for speaker in entry.speakers[:read]],
            "segment": [row for row, (start, end) in enumerate(parts) for _ in range(start, end)],
            "genre": [_genre(entry.id)],
            "gold_start": [start for start, _, _ in gold],
            "gold_end": [end for _, end, _ in gold],
            "gold_cluster": [number for _, _, number in gold],
        }
        places = np.arange(sum(map(len, rows)))
        ends = np.cumsum([len(row) for row in rows])
        return Example(
            _name(entry),
            rows,
            read=np.setdiff1d(places, [ends - 1, ends - [len(row) for row in rows]]).astype(np.int32),
            features={name: np.asarray(values, np.int32) for name, values in features.items()},
            context_tokens=context,
            tokens_cut=context - int(counts.sum()),
            about=json.dumps(_as_json(entry)),
        )

    def heads(self, config: EncoderConfig) -> dict[str, nn.Module]:
        settings = self.settings
        sizes = ScorerSizes(
            settings.max_span_width,
            settings.spans_per_word,
            settings.antecedents,
            settings.feed_forward_size,
            settings.feature_size,
            settings.depth,
            settings.dropout,
        )
        return {HEAD: CoreferenceScorer(config.hidden_size, sizes, config.initializer_range)}

    def loss(self, model: nn.Module, states: list[Tensor], examples: Sequence[Example]) -> Tensor:
        return torch.stack(
            [self._loss(_scorer(model), *each) for each in zip(states, examples, strict=True)]
        ).sum()

    def _loss(self, scorer: CoreferenceScorer, states: Tensor, example: Example) -> Tensor:
        cluster_of = _gold_clusters(example)
        weight = self.settings.mention_loss
        found = scorer(states, _words(example, states.device), list(cluster_of) if weight else ())
        if not found.scores.numel():  # one span, or none: there is nothing to learn
            sums = [parameter.sum() for parameter in scorer.parameters()]
            return 0 * torch.stack([states.float().sum(), *sums]).sum()
        own = zip(found.starts.tolist(), found.ends.tolist(), strict=True)
        cluster = torch.tensor([cluster_of.get(span, -1) for span in own], device=states.device)
        loss = marginal_loss(found.scores, true_antecedents(cluster, found))
        if weight:
            is_mention = (cluster >= 0).float()
            loss = loss + weight * F.binary_cross_entropy_with_logits(
                found.mention, is_mention, reduction="sum"
            )
        return loss

    def predict(self, model: nn.Module, states: list[Tensor], examples: Sequence[Example]) -> list[Any]:
        """For each document its clusters of two mentions or more, each mention as [start, end] in words, the end
        exclusive."""
        scorer = _scorer(model)
        return [
            linked(scorer(hidden, _words(example, hidden.device)))
            for hidden, example in zip(states, examples, strict=True)
        ]

    def sums(self, examples: Sequence[Example], predictions: Sequence[Any]) -> list[float]:
        """Numerators and denominators of mentions, MUC, B³ and CEAFφ4, four each."""
        total = CoreferenceScores()
        for example, prediction in zip(examples, predictions, strict=True):
            total += score_document(_document(example).clusters, _clusters(prediction))
        return [number for ratio in astuple(total) for number in ratio]

    def figures(self, sums: Sequence[float]) -> dict[str, float]:
        """Percent, as the official scorer prints."""
        width = len(_PAIR)
        mentions, muc, b_cubed, ceaf_e = (
            Ratio(*sums[first : first + width]) for first in range(0, len(sums), width)
        )
        figures = {"conll_f1": CoreferenceScores(mentions, muc, b_cubed, ceaf_e).mean_f1}
        ratios = {"muc": muc, "b_cubed": b_cubed, "ceaf_e": ceaf_e, "mentions": mentions}
        for name, ratio in ratios.items():
            figures |= {
                f"{name}_f1": ratio.f1,
                f"{name}_precision": ratio.precision,
                f"{name}_recall": ratio.recall,
            }
        return {name: 100 * figure for name, figure in figures.items()}

    def write(self, path: Path, predictions: Iterable[tuple[Example, Any]]) -> None:
        """A CoNLL-2012 file of whole documents, also of those that were not read whole."""
        write_conll(path, ((_document(example), _clusters(found)) for example, found in predictions))

    def describe(self) -> Mapping[str, Any]:
        return self.settings.model_dump(mode="json", exclude={"train", "validation", "test"})


def row_borders(
    counts: Sequence[int], sentences: Sequence[tuple[int, int]], capacity: int
) -> list[tuple[int, int]]:
    """The words (start, end) of each row: as many whole sentences as fit `capacity` wordpieces, or as many words of
    one sentence that does not fit alone. counts: a word's wordpieces, at most `capacity`. One row at the least."""
    rows = []
    start = used = 0
    for first, end in sentences:
        size = sum(counts[first:end])
        if used + size <= capacity:
            used += size
            continue
        if first > start:
            rows.append((start, first))
        start, used = first, 0
        for word in range(first, end):
            if used + counts[word] > capacity:
                rows.append((start, word))
                start, used = word, 0
            used += counts[word]
    words = len(counts)
    if words > start or not rows:
        rows.append((start, words))
    return rows


def linked(found: Antecedents) -> list[list[list[int]]]:
    """The clusters of spans with their best antecedents, none of which has a score above 0 where there is none; the
    earlier column where scores are equal. Mentions [start, end] are of words, the end exclusive."""
    K = len(found.starts)
    if not found.scores.numel():
        return []
    scores = found.scores.detach().cpu().numpy()
    best = scores.argmax(1)
    linked = scores[np.arange(K), best] > 0
    antecedent = found.index.cpu().numpy()[np.arange(K), best]
    cluster_of: dict[int, list[list[int]]] = {}
    clusters = []
    spans = [[int(start), int(end) + 1] for start, end in zip(found.starts, found.ends, strict=True)]
    for number in np.flatnonzero(linked).tolist():
        other = int(antecedent[number])
        if other not in cluster_of:
            cluster_of[other] = [spans[other]]
            clusters.append(cluster_of[other])
        cluster_of[number] = cluster_of[other]
        cluster_of[number].append(spans[number])
    return sorted(clusters)


def true_antecedents(cluster: Tensor, found: Antecedents) -> Tensor:
    """bool (K, A): which antecedents are of their span's cluster; cluster (K,), -1 where a span has none."""
    same = (cluster[:, None] == cluster[found.index]) & (cluster[:, None] >= 0)
    return same & found.scores.isfinite()


def _gold_clusters(example: Example) -> dict[tuple[int, int], int]:
    """Which cluster a mention is of, by its first and last word."""
    features = example.features
    spans = zip(features["gold_start"].tolist(), (features["gold_end"] - 1).tolist(), strict=True)
    return dict(zip(spans, features["gold_cluster"].tolist(), strict=True))


def _words(example: Example, device: torch.device) -> Words:
    ends = example.features["word_ends"]
    firsts = np.concatenate([[0], ends[:-1]]) if len(ends) else ends

    def moved(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values.astype(np.int64)).to(device)

    return Words(
        moved(firsts),
        moved(ends - 1),
        moved(example.features["sentence_end"]),
        moved(example.features["speaker"]),
        moved(example.features["segment"]),
        int(example.features["genre"][0]),
    )


def _scorer(model: nn.Module) -> CoreferenceScorer:
    scorer = model.get_submodule(HEAD)
    assert isinstance(scorer, CoreferenceScorer)
    return scorer


def _genre(id: str) -> int:
    """The entry of a document's genre; 0 where the id names none."""
    folder = id.partition("/")[0]
    return GENRES.index(folder) + 1 if folder in GENRES else 0


def _name(document: Document) -> str:
    return f"{document.id}_{document.part}"


def _as_json(document: Document) -> dict[str, Any]:
    return {
        "id": document.id,
        "part": document.part,
        "words": document.words,
        "speakers": document.speakers,
        "sentences": document.sentences,
        "clusters": document.clusters,
        "columns": document.columns,
    }


def _document(example: Example) -> Document:
    found = json.loads(example.about)
    return Document(
        found["id"],
        found["part"],
        tuple(found["words"]),
        tuple(found["speakers"]),
        tuple((start, end) for start, end in found["sentences"]),
        _clusters(found["clusters"]),
        tuple(found["columns"]),
    )


def _clusters(found: Any) -> SpanClusters:
    """Of JSON's lists."""
    return tuple(tuple((start, end) for start, end in cluster) for cluster in found)


def _files(path: Path) -> list[Path]:
    """The file itself, or CoNLL files below a folder, or else its files of JSON lines."""
    if path.is_dir() and not any(path.rglob("*conll")) and (found := sorted(path.rglob("*.jsonl"))):
        return found
    return find_conll(path)


def _is_json(path: Path) -> bool:
    """By content: a line of CoNLL begins with # or is empty, and JSON lines are objects."""
    try:
        with path.open("rb") as file:
            return file.read(1 << 16).lstrip()[:1] == b"{"
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
