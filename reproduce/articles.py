"""Hyperpartisan's articles in the splits of the table, and the baselines that need no pretrained model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from reproduce.bag_of_words import Weighing, fit
from trainer.engine.config import InputError
from trainer.tasks.classification import HyperpartisanSettings
from trainer.tasks.classification_files import Document
from trainer.tasks.classification_metrics import accuracy_and_f1, confusion
from trainer.tasks.task import SPLITS, Split
from trainer.tasks.wordpieces import Wordpieces

HYPERPARTISAN = "true"
Labels = Mapping[str, str]
"""`true` or `false` by article id."""


@dataclass(frozen=True)
class ArticleFiles:
    """The XML pair of the by-article set."""

    articles: Path
    ground_truth: Path

    @classmethod
    def below(cls, folder: Path) -> ArticleFiles:
        """By the official names' beginnings; InputError where one is missing or not alone."""
        found = [sorted(folder.glob(f"{kind}-*.xml*")) for kind in ("articles", "ground-truth")]
        if any(len(files) != 1 for files in found):
            names = ", ".join(path.name for files in found for path in files) or "neither"
            raise InputError(
                f"{folder}: found {names}, expected one articles-*.xml(.gz) and one ground-truth-*.xml(.gz), the "
                "by-article set of https://zenodo.org/records/1489920"
            )
        return cls(*(files[0] for files in found))

    def settings(self, split_seed: int) -> HyperpartisanSettings:
        return HyperpartisanSettings(
            name="hyperpartisan",
            articles=self.articles,
            ground_truth=self.ground_truth,
            split="stratified",
            split_seed=split_seed,
            split_file=None,
        )

    def split(self, split_seed: int) -> dict[Split, list[Document]]:
        task = self.settings(split_seed).task()
        return {split: list(task.read(split)) for split in SPLITS}


def truth_of(documents: Sequence[Document]) -> dict[str, str]:
    return {document.id: str(document.label) for document in documents}


def score(truth: Labels, predicted: Labels) -> dict[str, float]:
    """Accuracy, and F1 of the hyperpartisan class; both hold the same articles."""
    if truth.keys() != predicted.keys():
        raise ValueError(f"articles: found {len(predicted)}, expected the {len(truth)} of the split")
    labels, said = ([int(each[name] == HYPERPARTISAN) for name in truth] for each in (truth, predicted))
    return accuracy_and_f1(confusion(labels, said, 2))


def constant(documents: Sequence[Document], label: str) -> dict[str, str]:
    return {document.id: label for document in documents}


def most_frequent(documents: Sequence[Document]) -> str:
    """The class that most have; of equally many the first in the alphabet."""
    labels = [str(document.label) for document in documents]
    return max(sorted(set(labels)), key=labels.count)


def bag_of_words(splits: Mapping[Split, Sequence[Document]], strengths: Sequence[float]) -> Labels:
    """Predictions of test by logistic regression over the words of train. The strength of L2 is that of the greatest F1
    on validation, and of equal ones the strongest."""
    weighing = Weighing([document.text for document in splits["train"]])
    vectors = {
        split: weighing.vectors([one.text for one in documents]) for split, documents in splits.items()
    }
    labels = torch.tensor([document.label == HYPERPARTISAN for document in splits["train"]])
    best: tuple[float, Labels] | None = None
    for l2 in sorted(strengths, reverse=True):
        regression = fit(vectors["train"], labels, l2)
        found = {
            split: {
                document.id: HYPERPARTISAN if logit > 0 else "false"
                for document, logit in zip(
                    splits[split], regression.logits(vectors[split]).tolist(), strict=True
                )
            }
            for split in ("validation", "test")
        }
        f1 = score(truth_of(splits["validation"]), found["validation"])["f1"]
        if best is None or f1 > best[0]:
            best = f1, found["test"]
    assert best is not None, "a recipe has strengths"
    return best[1]


def cut(
    splits: Mapping[Split, Sequence[Document]], wordpieces: Wordpieces, tokens: int
) -> dict[Split, list[Document]]:
    """The articles as a model of so many tokens reads them: what lies beyond is cut off, as the task does it."""
    room = tokens - 2  # <s> and </s>

    def beginning(article: Document) -> Document:
        pieces = wordpieces.encode(article.text)
        return (
            replace(article, text=article.text[: int(pieces.ends[room - 1])])
            if len(pieces) > room
            else article
        )

    return {split: list(map(beginning, documents)) for split, documents in splits.items()}
