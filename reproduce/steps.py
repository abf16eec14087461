"""The steps of a reproduction: seeds side by side, each step by the project's own code and skipped where done."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import yaml

from demo.commands import Commands
from pipeline.shards import write_atomically
from reproduce.recipe import Plan, Recipe, Training
from reproduce.train import PARENT
from trainer.convert import convert
from trainer.evaluate import evaluate_folder

TELL_EVERY = 60.0
"""Seconds between two lines of progress."""


def free_port() -> int:
    """Launches side by side may not share the launcher's default port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


CURVES_START = ("roberta", "copied", "uncopied")
SURE_ENOUGH = 0.02
"""Of all tokens, to be trained on in this session before it is said how long the rest takes."""


class Seed:
    """One seed's folder: configs/, runs/, models/ and evaluations/, each NAME as in the plan."""

    def __init__(self, folder: Path, number: int) -> None:
        self.number = number
        self.folder = folder / f"seed-{number}"

    def model(self, name: str) -> Path:
        """The folder of a conversion, or of a training's last weights."""
        converted = self.folder / "models" / name
        return converted if converted.exists() else self.run(name) / "export"

    def run(self, name: str) -> Path:
        return self.folder / "runs" / name

    def evaluation(self, name: str) -> Path:
        return self.folder / "evaluations" / f"{name}.json"

    def steps_done(self, training: Training) -> int:
        """Updates that a training has told of."""
        if (self.run(training.name) / "export" / "config.json").exists():
            return int(training.keys["steps"])
        rows = read_metrics(self.run(training.name))
        return max((int(row["step"]) for row in rows), default=0)


def read_metrics(run: Path) -> list[dict[str, float]]:
    """The rows of a run's metrics.jsonl, without one that is being written."""
    try:
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines if line.endswith("\n")]


class Reproduction:
    """All seeds of a plan in one folder."""

    def __init__(self, folder: Path, recipe: Recipe, seeds: int, jobs: int) -> None:
        self.folder = folder
        self.plan = Plan(recipe)
        self.seeds = [Seed(folder, number) for number in range(seeds)]
        self.corpus = folder / "corpus"
        self.commands = Commands(folder, {"DS_ACCELERATOR": "cpu", PARENT: str(os.getpid())}, quiet=True)
        self.slots = threading.BoundedSemaphore(jobs)
        self.jobs = jobs
        self.failure: Exception | None = None

    def run(self) -> None:
        """Everything that is not done yet, `jobs` steps at a time; raises what a step raised."""
        torch.set_num_threads(1)
        threads = [threading.Thread(target=self._guarded, args=(seed,), daemon=True) for seed in self.seeds]
        for thread in threads:
            thread.start()
        telling = Telling(self)
        while any(thread.is_alive() for thread in threads) and self.failure is None:
            time.sleep(0.2)
            telling.now_and_then()
        if self.failure is not None:
            raise self.failure

    def _guarded(self, seed: Seed) -> None:
        try:
            for step in self._steps(seed):
                with self.slots:
                    if self.failure is not None:
                        return
                    step()
        except Exception as error:  # told by the main thread, which waits for it
            self.failure = error

    def _steps(self, seed: Seed) -> Iterator[Callable[[], None]]:
        plan = self.plan
        yield lambda: self._train(seed, "roberta", plan.first())
        yield lambda: self._convert(seed)
        yield lambda: self._train(seed, "continued", *plan.continued())
        yield lambda: self._evaluate(seed)

    def _train(self, seed: Seed, name: str, *trainings: Training) -> None:
        """One launch; the trainer itself goes on where an interrupted training stopped."""
        configs = []
        for training in trainings:
            if (seed.run(training.name) / "export" / "config.json").exists():
                continue
            keys = {"run": str(seed.run(training.name)), "corpus": str(self.corpus), "seed": seed.number}
            if training.start:
                keys["model"] = str(seed.model(training.start))
            path = seed.folder / "configs" / f"{training.name}.yaml"
            write_atomically(path, yaml.safe_dump(keys | dict(training.keys), sort_keys=False).encode())
            configs.append(str(path))
        if not configs:
            return
        launcher = ("deepspeed", "--num_gpus", "1", "--master_port", str(free_port()))
        started = time.monotonic()
        self.commands.run(f"seed-{seed.number}-{name}", *launcher, "reproduce/train.py", *configs)
        names = ", ".join(Path(path).stem for path in configs)
        say(f"seed {seed.number}: trained {names} in {(time.monotonic() - started) / 60:.1f} min")

    def _convert(self, seed: Seed) -> None:
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

    def _evaluate(self, seed: Seed) -> None:
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

    def tokens(self) -> tuple[int, int]:
        """Tokens trained on, and to be trained on in all."""
        done = total = 0
        for seed in self.seeds:
            for training in self.plan.trainings():
                steps = int(training.keys["steps"])
                done += training.tokens * seed.steps_done(training) // steps
                total += training.tokens
        return done, total


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)


class Telling:
    """Lines of progress, with the time left by the tokens that this session has trained on."""

    def __init__(self, reproduction: Reproduction) -> None:
        self.reproduction = reproduction
        self.started = self.last = time.monotonic()
        self.before, total = reproduction.tokens()
        seeds = len(reproduction.seeds)
        say(
            f"{seeds} seeds, {total / 1e6:.1f}M tokens to train on, {self.before / total:.0%} of them done before"
        )

    def now_and_then(self) -> None:
        now = time.monotonic()
        if now - self.last < TELL_EVERY:
            return
        self.last = now
        done, total = self.reproduction.tokens()
        if done - self.before > SURE_ENOUGH * total:  # launches alone take a while
            left = (total - done) * (now - self.started) / (done - self.before)
            say(f"{done / total:.0%} of the training done, about {left / 60:.0f} min left")
