"""The steps of the Hyperpartisan experiment: each by the project's own code, and skipped where done."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from pipeline.shards import write_atomically
from pipeline.tokenizer import load_tokenizer
from reproduce.articles import HYPERPARTISAN, ArticleFiles, Labels, bag_of_words, constant, cut, most_frequent
from reproduce.recipe import CorpusSizes
from reproduce.trainings import Launches, Seed, Training, merged, run_side_by_side, tokens_of
from trainer.convert import convert
from trainer.engine.config import load_config
from trainer.predict import predict_folder
from trainer.tasks.config import Finetuning
from trainer.tasks.wordpieces import Wordpieces

DEFAULT = Path(__file__).with_name("hyperpartisan.yaml")
LONG, SHORT, WORDS, FIRST_WORDS = "long", "short", "words", "first_words"
FREQUENT, POSITIVE, TRUTH = "frequent", "positive", "truth"
"""Rows of the table, and what they are scored against."""
ROBERTA, CONVERTED, LONGFORMER = "roberta", "converted", "longformer"


class HyperpartisanRecipe(CorpusSizes):
    """A recipe; hyperpartisan.yaml explains it. `common` … `finetuning` hold keys of the trainer's commands."""

    roberta_tokens: Annotated[int, Field(ge=8)]
    window: Annotated[int, Field(ge=2, multiple_of=2)]
    l2: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)]
    common: dict[str, Any]
    roberta: dict[str, Any]
    longformer: dict[str, Any]
    finetuning: dict[str, Any]


@dataclass(frozen=True)
class FinetuningRun(Training):
    """A run of trainer/finetune.py, whose examples differ in length."""

    articles: int
    """To train on."""
    read: float
    """Tokens of an article, on average, that the model reads."""

    @property
    def steps(self) -> int:
        return math.ceil(self.keys["epochs"] * self.articles / self.keys["batch_size"])

    @property
    def tokens(self) -> int:
        return round(self.steps * self.keys["batch_size"] * self.read)


class Experiment:
    """The pretraining and all seeds' finetunings in one folder."""

    def __init__(self, folder: Path, recipe: HyperpartisanRecipe, files: ArticleFiles, seeds: int) -> None:
        self.recipe, self.files, self.folder = recipe, files, folder
        self.pretraining = Seed(folder / "pretraining", 0, of="pretraining")
        self.seeds = [Seed(folder / "finetuning", number, of="finetuning") for number in range(seeds)]
        self.splits = [files.split(number) for number in range(seeds)]
        self.wordpieces = Wordpieces(load_tokenizer(folder / "tokenizer" / "tokenizer.json"))
        articles = [article for part in self.splits[0].values() for article in part]
        pieces = self.wordpieces.encode_all([article.text for article in articles])
        self.lengths = {article.id: len(own) for article, own in zip(articles, pieces, strict=True)}
        """Wordpieces of each article."""
        self.launches = Launches(folder)
        self.pretrainings = (
            Training(ROBERTA, "", self._pretraining(recipe.roberta, recipe.roberta_tokens)),
            Training(LONGFORMER, CONVERTED, self._pretraining(recipe.longformer, recipe.longformer_tokens)),
        )
        self.finetunings = (
            self._finetuning(LONG, recipe.longformer_tokens),
            self._finetuning(SHORT, recipe.roberta_tokens),
        )

    def _pretraining(self, own: Mapping[str, Any], tokens: int) -> dict[str, Any]:
        return merged(self.recipe.common, own, {"sequence_length": tokens})

    def _finetuning(self, name: str, tokens: int) -> FinetuningRun:
        keys = merged(self.recipe.finetuning, {"sequence_length": tokens, "longer": "truncate"})
        read = [min(length + 2, tokens) for length in self.lengths.values()]
        return FinetuningRun(name, LONGFORMER, keys, len(self.splits[0]["train"]), sum(read) / len(read))

    def run(self, jobs: int) -> None:
        """Everything that is not done yet, `jobs` steps at a time; raises what a step raised."""
        tokens = [
            partial(tokens_of, [self.pretraining], self.pretrainings),
            partial(tokens_of, self.seeds, self.finetunings),
        ]
        run_side_by_side([self._pretrain()], 1, tokens)
        run_side_by_side([self._finetune(seed) for seed in self.seeds], jobs, tokens)

    def _pretrain(self) -> Iterator[Callable[[], None]]:
        seed = self.pretraining
        converted = seed.folder / "models" / CONVERTED

        def further(training: Training) -> dict[str, Any]:
            start = {"model": str(converted)} if training.start else {}
            return {"corpus": str(self.folder / "corpus"), **start}

        def lengthen() -> None:
            """python -m trainer.convert, in this process: its imports would cost more than the conversion."""
            if not converted.exists():
                recipe = self.recipe
                convert(
                    seed.run(ROBERTA) / "export",
                    converted,
                    tokens=recipe.longformer_tokens,
                    window=recipe.window,
                    seed=seed.number,
                )

        roberta, longformer = self.pretrainings
        yield lambda: self.launches.train("pretrain", seed, [roberta], further)
        yield lengthen
        yield lambda: self.launches.train("pretrain", seed, [longformer], further)

    def _finetune(self, seed: Seed) -> Iterator[Callable[[], None]]:
        """Each seed has a split of its own: one's 65 test articles alone would decide little."""
        task = self.files.settings(seed.number).model_dump(mode="json", exclude_none=True)
        further = {
            "model": str(self.pretraining.run(LONGFORMER) / "export"),
            "task": task,
            "cache_dir": str(self.folder / "cache"),
        }
        yield lambda: self._count_words(seed)
        yield lambda: self.launches.train("finetune", seed, self.finetunings, lambda _: further)
        yield lambda: self._predict(seed)

    def _predict(self, seed: Seed) -> None:
        """trainer/finetune.py --predict test, in this process."""
        for training in self.finetunings:
            to = seed.folder / "predictions" / f"{training.name}.txt"
            if not to.exists():
                to.parent.mkdir(exist_ok=True)
                run = load_config(seed.run(training.name) / "config.yaml", [], Finetuning)
                predict_folder(seed.run(training.name) / "export", "test", to, run=run)

    def _count_words(self, seed: Seed) -> None:
        """The bag of words, of whole articles and of what the short model reads of them, in the submission's format."""
        splits = self.splits[seed.number]
        for name in (WORDS, FIRST_WORDS):
            to = seed.folder / "predictions" / f"{name}.txt"
            if not to.exists():
                to.parent.mkdir(parents=True, exist_ok=True)
                read = splits if name == WORDS else cut(splits, self.wordpieces, self.recipe.roberta_tokens)
                found = bag_of_words(read, self.recipe.l2)
                write_atomically(to, "".join(f"{id} {label} 1\n" for id, label in found.items()).encode())

    def predicted(self) -> dict[str, dict[int, Labels]]:
        """The labels of each seed's test articles by the row that gives them, and those that they have as TRUTH."""
        found: dict[str, dict[int, Labels]] = {
            name: {
                seed.number: read_submission(seed.folder / "predictions" / f"{name}.txt")
                for seed in self.seeds
            }
            for name in (LONG, SHORT, WORDS, FIRST_WORDS)
        }
        for name, of in (
            (TRUTH, lambda splits: {one.id: str(one.label) for one in splits["test"]}),
            (FREQUENT, lambda splits: constant(splits["test"], most_frequent(splits["train"]))),
            (POSITIVE, lambda splits: constant(splits["test"], HYPERPARTISAN)),
        ):
            found[name] = {number: of(splits) for number, splits in enumerate(self.splits)}
        return found


def read_submission(path: Path) -> dict[str, str]:
    """{article: label}, of lines `id label confidence`."""
    return dict(line.split()[:2] for line in path.read_text(encoding="utf-8").splitlines())
