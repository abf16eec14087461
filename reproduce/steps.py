"""The steps of table 5: each seed's by the project's own code, and skipped where done."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.shards import write_atomically
from reproduce.recipe import Plan, Recipe
from reproduce.trainings import Launches, Seed, Training, run_side_by_side, tokens_of
from trainer.convert import convert
from trainer.evaluate import evaluate_folder

CURVES_START = ("roberta", "copied", "uncopied")


class MaskedSeed(Seed):
    """One seed's folder: configs/, runs/, models/ and evaluations/, each NAME as in the plan."""

    def model(self, name: str) -> Path:
        """The folder of a conversion, or of a training's last weights."""
        converted = self.folder / "models" / name
        return converted if converted.exists() else self.run(name) / "export"

    def evaluation(self, name: str) -> Path:
        return self.folder / "evaluations" / f"{name}.json"


class Reproduction:
    """All seeds of a plan in one folder."""

    def __init__(self, folder: Path, recipe: Recipe, seeds: int) -> None:
        self.plan = Plan(recipe)
        self.seeds = [MaskedSeed(folder, number) for number in range(seeds)]
        self.corpus = folder / "corpus"
        self.launches = Launches(folder)

    def run(self, jobs: int) -> None:
        """Everything that is not done yet, `jobs` steps at a time; raises what a step raised."""
        tokens = partial(tokens_of, self.seeds, self.plan.trainings())
        run_side_by_side([self._steps(seed) for seed in self.seeds], jobs, [tokens])

    def _steps(self, seed: MaskedSeed) -> Iterator[Callable[[], None]]:
        plan = self.plan
        yield lambda: self._train(seed, plan.first())
        yield lambda: self._convert(seed)
        yield lambda: self._train(seed, *plan.continued())
        yield lambda: self._evaluate(seed)

    def _train(self, seed: MaskedSeed, *trainings: Training) -> None:
        def further(training: Training) -> dict[str, Any]:
            start = {"model": str(seed.model(training.start))} if training.start else {}
            return {"corpus": str(self.corpus), **start}

        self.launches.train("pretrain", seed, trainings, further)

    def _convert(self, seed: MaskedSeed) -> None:
        """python -m trainer.convert, in this process: its imports would cost more than the conversions."""
        for conversion in self.plan.conversions():
            to = seed.folder / "models" / conversion.name
            if not to.exists():
                convert(
                    seed.model("roberta"),
                    to,
                    tokens=self.plan.recipe.longformer_tokens,
                    window=conversion.window,
                    copy_positions=conversion.copy_positions,
                    seed=seed.number,
                )

    def _evaluate(self, seed: MaskedSeed) -> None:
        """python -m trainer.evaluate, in this process, of every model: the same text and masked places for all."""
        limit, apart = self.plan.recipe.evaluated_sequences, self.plan.documents.name
        for name in self.plan.evaluated():
            if not seed.evaluation(name).exists():
                found = evaluate_folder(
                    seed.model(name), self.corpus, limit=limit, mask_documents=name == apart
                )
                write_atomically(seed.evaluation(name), (json.dumps(found) + "\n").encode())
        for name in CURVES_START:
            start = seed.evaluation(f"{name}-start")
            if not start.exists():
                found = evaluate_folder(seed.model(name), self.corpus, limit=self.plan.recipe.curve_sequences)
                write_atomically(start, (json.dumps(found) + "\n").encode())

    def found(self) -> dict[str, dict[int, float]]:
        """{model name: {seed: BPC}} of all models, over the sequences of the tables."""
        return {name: self._found(name) for name in self.plan.evaluated()}

    def starts(self) -> dict[str, dict[int, float]]:
        """The same of the models that curves start from, over the fewer sequences of the curves."""
        return {name: self._found(f"{name}-start") for name in CURVES_START}

    def _found(self, evaluation: str) -> dict[int, float]:
        texts = {seed.number: seed.evaluation(evaluation).read_text(encoding="utf-8") for seed in self.seeds}
        return {number: float(json.loads(text)["bpc"]) for number, text in texts.items()}
