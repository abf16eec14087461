"""Classification of long texts (paper, section 6 and appendix D): Hyperpartisan, IMDB, and anyone's own rows.

The input is `<s> text </s>` with global attention on `<s>`, whose last hidden state goes through a head: dropout,
dense, tanh, dropout, out_proj, as in transformers' LongformerForSequenceClassification. The paper's loss is the binary
cross-entropy; over two classes the softmax's is the same function, of the difference of the two logits.

A text longer than the model reads is cut off ("truncate"), or read in several rows, each `<s> … </s>`, over whose `<s>`
states the head gets the mean ("chunk").
"""

from __future__ import annotations

import json
import sys
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from pipeline.shards import write_atomically
from trainer.engine.config import InputError
from trainer.model.longformer import EncoderConfig, initialise
from trainer.tasks.classification_files import (
    Document,
    imdb_files,
    label_articles,
    read_articles,
    read_hub_articles,
    read_imdb,
    read_labelled,
    read_plain,
    read_truth,
)
from trainer.tasks.classification_metrics import accuracy_and_f1, confusion
from trainer.tasks.classification_splits import published, stratified, uniform
from trainer.tasks.example import Example, Skipped
from trainer.tasks.rows import read_rows
from trainer.tasks.task import SPLITS, Lengths, Split, TaskSettings
from trainer.tasks.wordpieces import Wordpieces

_ROWS = (".jsonl", ".json", ".parquet", ".gz")


class HyperpartisanSettings(TaskSettings):
    """News articles, hyperpartisan or not (SemEval-2019 task 4, by-article: 645 articles)."""

    name: Literal["hyperpartisan"]
    articles: Path = Field(
        description="the articles' XML (.gz), or the hub's rows (.jsonl, .parquet) with their labels"
    )
    ground_truth: Path | None = Field(None, description="the labels' XML (.gz); none for the hub's rows")
    split: Literal["stratified", "published"] = Field(
        "stratified",
        description="stratified: 80/10/10 of each class, by split_seed; published: split_file, 51 of whose 65 test ids "
        "are also in its train part",
    )
    split_seed: int = Field(
        0, ge=0, description="of the stratified split; not the run's, so that runs can share one"
    )
    split_file: Path | None = Field(
        None, description="the published hp-splits.json: lists train, dev, test of ids"
    )

    @model_validator(mode="after")
    def _files_fit(self) -> HyperpartisanSettings:
        wrong = []
        rows = self.articles.suffix in (".jsonl", ".parquet")
        if rows == (self.ground_truth is not None):
            expected = "none beside the hub's rows" if rows else "the XML with the labels"
            wrong.append(f"ground_truth: found {self.ground_truth}, expected {expected}")
        if (self.split == "published") != (self.split_file is not None):
            expected = "hp-splits.json" if self.split == "published" else "none for a stratified split"
            wrong.append(f"split_file: found {self.split_file}, expected {expected}")
        if wrong:
            raise ValueError("\n".join(wrong))
        return self

    def task(self) -> Hyperpartisan:
        return Hyperpartisan(self)


class ImdbSettings(TaskSettings):
    """Film reviews, positive or not (Maas et al. 2011)."""

    name: Literal["imdb"]
    data: Path = Field(
        description="the folder aclImdb, or one with the hub's train*.parquet and test*.parquet"
    )
    validation_share: float = Field(0.1, gt=0, lt=1, description="of train, held out by split_seed and id")
    split_seed: int = Field(0, ge=0, description="of that choice; not the run's, so that runs can share it")

    def task(self) -> Imdb:
        return Imdb(self)


class ClassificationSettings(TaskSettings):
    """Texts with labels: rows {text, label, id?, title?} in .jsonl or .parquet."""

    name: Literal["classification"]
    train: Path = Field(description="rows to train on")
    validation: Path | None = Field(None, description="rows to choose by")
    test: Path | None = Field(None, description="rows to report on")
    labels: list[str] | None = Field(
        None, min_length=2, description="all labels, in the model's order; null: those in train, sorted"
    )

    @field_validator("labels")
    @classmethod
    def _each_once(cls, labels: list[str] | None) -> list[str] | None:
        if labels is not None and len(set(labels)) < len(labels):
            raise ValueError(f"found {_list(labels)}, expected each once")
        return labels

    def task(self) -> OwnClassification:
        return OwnClassification(self)


class ClassificationHead(nn.Module):
    """Hidden states (B, hidden_size) of `<s>` to logits (B, labels), under transformers' names."""

    def __init__(self, config: EncoderConfig, labels: int) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.out_proj = nn.Linear(config.hidden_size, labels)
        initialise(self, config.initializer_range)

    def forward(self, states: Tensor) -> Tensor:
        inner = torch.tanh(self.dense(self.dropout(states)))
        return self.out_proj(self.dropout(inner))


class ClassificationTask:
    """What the three have in common; see DownstreamTask."""

    name: str
    added_tokens: tuple[str, ...] = ()
    architecture = "ForSequenceClassification"
    has_global_tokens = True

    @property
    @abstractmethod
    def labels(self) -> tuple[str, ...]:
        """In the order of the logits; of two the second is the positive one, whose F1 counts."""

    @abstractmethod
    def splits(self) -> tuple[Split, ...]: ...

    @abstractmethod
    def files(self, split: Split) -> list[Path]: ...

    @abstractmethod
    def read(self, split: Split) -> Iterator[Document]: ...

    def read_own(self, path: Path) -> Iterator[Document]:
        """Rows {text, id?, title?, label?}, a .txt file or a folder of them; also articles in XML."""
        if path.name.endswith((".xml", ".xml.gz")):
            return read_articles(path)
        if path.suffix in _ROWS:
            return self._checked(read_labelled(path))
        return read_plain(path)

    def _checked(self, documents: Iterable[Document]) -> Iterator[Document]:
        """InputError at a label that the task does not have."""
        for document in documents:
            if document.label is not None and document.label not in self.labels:
                raise InputError(
                    f"{document.where}: label: found {document.label[:80]!r}, expected one of {_list(self.labels)}"
                )
            yield document

    def encode(self, entry: Document, wordpieces: Wordpieces, lengths: Lengths, training: bool) -> Example:
        if training and entry.label is None:
            raise Skipped("no label")
        if training and not entry.text.strip():
            raise Skipped("no text")
        room = lengths.tokens - 2
        if room < 1:
            raise InputError(f"sequence_length: found {lengths.tokens}, expected 3 at least")
        pieces = wordpieces.encode(entry.text).ids
        starts = range(0, max(1, len(pieces)), room)
        if lengths.longer == "truncate":
            starts = starts[:1]
        rows = tuple(_row(pieces[start : start + room], wordpieces) for start in starts)
        first = np.cumsum([0, *map(len, rows)])[:-1].astype(np.int32)
        label = -1 if entry.label is None else self.labels.index(entry.label)
        return Example(
            entry.id,
            rows,
            global_places=first,
            read=first,
            features={"label": np.array([label], np.int32)},
            context_tokens=len(pieces),
            tokens_cut=len(pieces) - sum(len(row) - 2 for row in rows),
        )

    def heads(self, config: EncoderConfig) -> dict[str, nn.Module]:
        return {"classifier": ClassificationHead(config, len(self.labels))}

    def _logits(self, model: nn.Module, states: list[Tensor]) -> Tensor:
        """float32 (examples, labels)."""
        logits: Tensor = model.get_submodule("classifier")(torch.stack([state.mean(0) for state in states]))
        return logits.float()

    def loss(self, model: nn.Module, states: list[Tensor], examples: Sequence[Example]) -> Tensor:
        logits = self._logits(model, states)
        labels = torch.tensor(_labels(examples), device=logits.device)
        return F.cross_entropy(logits, labels, ignore_index=-1, reduction="sum")

    def predict(
        self, model: nn.Module, states: list[Tensor], examples: Sequence[Example]
    ) -> list[dict[str, Any]]:
        """{label, probability} of each; of equal ones the first."""
        found = []
        for probabilities in self._logits(model, states).softmax(1).cpu().numpy():
            best = int(probabilities.argmax())
            found.append({"label": self.labels[best], "probability": float(probabilities[best])})
        return found

    def sums(self, examples: Sequence[Example], predictions: Sequence[Any]) -> list[float]:
        """The confusion matrix, row by row."""
        predicted = [self.labels.index(prediction["label"]) for prediction in predictions]
        return confusion(_labels(examples), predicted, len(self.labels))

    def figures(self, sums: Sequence[float]) -> dict[str, float]:
        return accuracy_and_f1(sums)

    def write(self, path: Path, predictions: Iterable[tuple[Example, Any]]) -> None:
        """A row {id, label, probability} each."""
        rows = [json.dumps({"id": example.id, **prediction}) for example, prediction in predictions]
        _write(path, rows)

    def describe(self) -> Mapping[str, Any]:
        return {"labels": list(self.labels)}


class Hyperpartisan(ClassificationTask):
    name = "hyperpartisan"
    labels = ("false", "true")

    def __init__(self, settings: HyperpartisanSettings) -> None:
        self.settings = settings

    def splits(self) -> tuple[Split, ...]:
        return SPLITS

    def files(self, split: Split) -> list[Path]:
        named = (self.settings.articles, self.settings.ground_truth, self.settings.split_file)
        return [path for path in named if path is not None]

    def read(self, split: Split) -> Iterator[Document]:
        articles, truth_file = self.settings.articles, self.settings.ground_truth
        if truth_file is None:
            truth = {article.id: str(article.label) for article in read_hub_articles(articles)}
        else:
            truth = read_truth(truth_file)
        wanted = self._ids(truth)[split]
        labelled = (
            read_hub_articles(articles) if truth_file is None else label_articles(articles, truth_file, truth)
        )
        return (article for article in labelled if article.id in wanted)

    def read_own(self, path: Path) -> Iterator[Document]:
        """Also the hub's rows, whose text has tags."""
        if path.suffix in _ROWS and not path.name.endswith(".xml.gz"):
            _, first = next(read_rows(path))
            if "hyperpartisan" in first:
                return read_hub_articles(path)
        return super().read_own(path)

    def _ids(self, truth: Mapping[str, str]) -> dict[Split, set[str]]:
        if self.settings.split_file is None:
            return stratified(truth, self.settings.split_seed)
        splits = published(self.settings.split_file, truth)
        if leak := len(splits["train"] & splits["test"]):
            print(
                f"{self.settings.split_file}: warning: {leak} of its {len(splits['test'])} test articles are also in "
                "its train part: figures of test are of articles that were trained on; `split: stratified` has none",
                file=sys.stderr,
            )
        return splits

    def write(self, path: Path, predictions: Iterable[tuple[Example, Any]]) -> None:
        """SemEval-2019's: `id true|false confidence` a line, the confidence that of what is said."""
        _write(
            path,
            [
                f"{'_'.join(example.id.split())} {prediction['label']} {prediction['probability']:.6f}"
                for example, prediction in predictions
            ],
        )

    def figures(self, sums: Sequence[float]) -> dict[str, float]:
        """F1 first: the paper's table 7 gives it."""
        found = super().figures(sums)
        return {name: found[name] for name in ("f1", "accuracy", "precision", "recall") if found}

    def describe(self) -> Mapping[str, Any]:
        settings = self.settings
        return {**super().describe(), "split": settings.split, "split_seed": settings.split_seed}


class Imdb(ClassificationTask):
    """Train less a held-out share, that share, and the official test."""

    name = "imdb"
    labels = ("neg", "pos")

    def __init__(self, settings: ImdbSettings) -> None:
        self.settings = settings

    def splits(self) -> tuple[Split, ...]:
        return SPLITS

    def files(self, split: Split) -> list[Path]:
        return imdb_files(self.settings.data, "test" if split == "test" else "train")

    def read(self, split: Split) -> Iterator[Document]:
        if split == "test":
            return read_imdb(self.settings.data, "test")
        held_out = split == "validation"
        return (
            review
            for review in read_imdb(self.settings.data, "train")
            if (uniform("imdb split", self.settings.split_seed, review.id) < self.settings.validation_share)
            == held_out
        )

    def read_own(self, path: Path) -> Iterator[Document]:
        """Also a part of aclImdb, such as its `test`, and the hub's rows, whose labels are 0 and 1."""
        if (path / "neg").is_dir() and (path / "pos").is_dir():
            return read_imdb(path.absolute().parent, path.absolute().name)
        if path.suffix not in _ROWS:
            return super().read_own(path)
        names = dict(zip(("0", "1"), self.labels, strict=True))
        rows = read_labelled(path)
        return self._checked(replace(row, label=names.get(row.label or "", row.label)) for row in rows)

    def describe(self) -> Mapping[str, Any]:
        settings = self.settings
        return {
            **super().describe(),
            "validation_share": settings.validation_share,
            "split_seed": settings.split_seed,
        }


class OwnClassification(ClassificationTask):
    name = "classification"

    def __init__(self, settings: ClassificationSettings) -> None:
        self.settings = settings
        self._labels: tuple[str, ...] | None = None
        if settings.labels is not None:
            self._labels = tuple(settings.labels)

    @property
    def labels(self) -> tuple[str, ...]:
        if self._labels is None:
            path: Path | None = self.settings.train
            if path is None:  # a finetuned model's description without them
                raise InputError("task.labels: found none, expected those that the model was trained on")
            found = {document.label for document in read_labelled(path)} - {None}
            if len(found) < 2:
                raise InputError(
                    f"{path}: found the labels {_list(found)}, expected two at least, or task.labels"
                )
            self._labels = tuple(sorted(map(str, found), key=_order))
        return self._labels

    def splits(self) -> tuple[Split, ...]:
        return tuple(split for split in SPLITS if self._path(split) is not None)

    def files(self, split: Split) -> list[Path]:
        path = self._path(split)
        return [] if path is None else [path]

    def read(self, split: Split) -> Iterator[Document]:
        """Labels of a split that training does not know are all named in one InputError."""
        path = self._path(split)
        assert path is not None, f"no {split} is configured"
        found = {document.label for document in read_labelled(path)}
        if unknown := found - {None, *self.labels}:
            known = "task.labels" if self.settings.labels else "train"
            raise InputError(
                f"{path}: {split} has the labels {_list(unknown)}, expected those of {known}: {_list(self.labels)}"
            )
        for document in read_labelled(path):
            if document.label is None and split != "train":
                raise InputError(f"{document.where}: label: found none, expected one of {_list(self.labels)}")
            yield document

    def _path(self, split: Split) -> Path | None:
        path: Path | None = getattr(self.settings, split)
        return path


def _row(pieces: np.ndarray, wordpieces: Wordpieces) -> np.ndarray:
    return np.concatenate([[wordpieces.bos], pieces, [wordpieces.eos]]).astype(np.int32)


def _labels(examples: Sequence[Example]) -> list[int]:
    return [int(example.features["label"][0]) for example in examples]


def _order(label: str) -> tuple[bool, int, str]:
    """Whole numbers by their size, before all others."""
    number = label.isascii() and label.removeprefix("-").isdigit()
    return not number, int(label) if number else 0, label


def _list(labels: Iterable[str | None]) -> str:
    names = sorted(str(label)[:80] for label in labels)
    return ", ".join(map(repr, names[:20])) + (f" and {len(names) - 20} others" if names[20:] else "")


def _write(path: Path, rows: Sequence[str]) -> None:
    try:
        write_atomically(path, "".join(row + "\n" for row in rows).encode("utf-8", "replace"))
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from error
