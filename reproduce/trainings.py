"""Trainings of a reproduction: seeds side by side, each by the project's own code, and skipped where done."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from demo.commands import Commands, free_port
from pipeline.shards import write_atomically
from reproduce.train import PARENT, Kind

TELL_EVERY = 60.0
"""Seconds between two lines of progress."""
SURE_ENOUGH = 0.02
"""Of all tokens, to be trained on in this session before it is said how long the rest takes."""


@dataclass(frozen=True)
class Training:
    """A run of the trainer: `start` names what it continues, "" a new model; `keys` are its configuration's."""

    name: str
    start: str
    keys: Mapping[str, Any]

    @property
    def _phases(self) -> Sequence[Mapping[str, Any]]:
        return self.keys.get("phases", (self.keys,))

    @property
    def steps(self) -> int:
        return sum(int(phase["steps"]) for phase in self._phases)

    @property
    def tokens(self) -> int:
        return sum(
            int(phase["steps"] * phase["batch_size"] * phase["sequence_length"]) for phase in self._phases
        )


def merged(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Later layers win; sections are merged key by key."""
    out: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            inner = out.get(key)
            if isinstance(inner, Mapping) and isinstance(value, Mapping):
                value = merged(inner, value)
            out[key] = value
    return out


def read_metrics(run: Path) -> list[dict[str, float]]:
    """The rows of a run's metrics.jsonl, without one that is being written."""
    try:
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines if line.endswith("\n")]


class Seed:
    """One seed's folder: configs/ and runs/, each NAME as in the plan."""

    def __init__(self, folder: Path, number: int, of: str = "") -> None:
        self.number = number
        self.folder = folder / f"seed-{number}"
        self.title = f"{of} seed {number}".strip()

    def run(self, name: str) -> Path:
        return self.folder / "runs" / name

    def finished(self, training: Training) -> bool:
        return (self.run(training.name) / "export" / "config.json").exists()

    def steps_done(self, training: Training) -> int:
        """Updates that a training has told of."""
        if self.finished(training):
            return training.steps
        return max((int(row["step"]) for row in read_metrics(self.run(training.name))), default=0)

    def tokens_done(self, training: Training) -> int:
        return training.tokens * self.steps_done(training) // training.steps


def tokens_of(seeds: Sequence[Seed], trainings: Sequence[Training]) -> tuple[int, int]:
    """Tokens trained on, and to be trained on in all, where each seed has the same trainings."""
    done = sum(seed.tokens_done(training) for seed in seeds for training in trainings)
    return done, len(seeds) * sum(training.tokens for training in trainings)


class Launches:
    """Runs of the trainer under the deepspeed launcher, one process each."""

    def __init__(self, folder: Path) -> None:
        self.commands = Commands(folder, {"DS_ACCELERATOR": "cpu", PARENT: str(os.getpid())}, quiet=True)

    def train(
        self,
        kind: Kind,
        seed: Seed,
        trainings: Sequence[Training],
        further: Callable[[Training], Mapping[str, Any]],
    ) -> None:
        """Trainings of a kind, one after the other in one launch, each with its further keys. Those that are finished
        are left out; the trainer itself goes on where an interrupted one stopped."""
        left = [training for training in trainings if not seed.finished(training)]
        if not left:
            return
        configs = [seed.folder / "configs" / f"{training.name}.yaml" for training in left]
        for training, path in zip(left, configs, strict=True):
            here = {"run": str(seed.run(training.name)), "seed": seed.number}
            keys = merged(here, further(training), training.keys)
            write_atomically(path, yaml.safe_dump(keys, sort_keys=False).encode())
        launcher = ("deepspeed", "--num_gpus", "1", "--master_port", str(free_port()))
        log = f"{seed.title.replace(' ', '-')}-{left[0].name}"
        started = time.monotonic()
        self.commands.run(log, *launcher, "reproduce/train.py", kind, *map(str, configs))
        names = ", ".join(training.name for training in left)
        say(f"{seed.title}: trained {names} in {(time.monotonic() - started) / 60:.1f} min")


Steps = Iterable[Callable[[], None]]
"""What is done one after the other; each step is skipped by itself where it is done."""
Tokens = Callable[[], tuple[int, int]]
"""How many are trained on, and how many are to be in all."""


def run_side_by_side(several: Sequence[Steps], jobs: int, tokens: Sequence[Tokens]) -> None:
    """All steps, `jobs` at a time, of `several` that wait for nothing of each other; raises what a step raised.

    `tokens` are summed for what is told of progress.
    """
    torch.set_num_threads(1)
    slots = threading.BoundedSemaphore(jobs)
    failures: list[Exception] = []

    def guarded(steps: Steps) -> None:
        try:
            for step in steps:
                with slots:
                    if failures:
                        return
                    step()
        except Exception as error:  # told by the main thread, which waits for it
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(steps,), daemon=True) for steps in several]
    for thread in threads:
        thread.start()
    telling = Telling(tokens)
    while any(thread.is_alive() for thread in threads) and not failures:
        time.sleep(0.2)
        telling.now_and_then()
    if failures:
        raise failures[0]


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)


class Telling:
    """Lines of progress, with the time left by the tokens that this session has trained on."""

    def __init__(self, tokens: Sequence[Tokens]) -> None:
        self._parts = tokens
        self.started = self.last = time.monotonic()
        self.before, total = self.tokens()
        say(f"{total / 1e6:.1f}M tokens to train on, {self.before / total:.0%} of them done before")

    def tokens(self) -> tuple[int, int]:
        counted = [part() for part in self._parts]
        return sum(done for done, _ in counted), sum(total for _, total in counted)

    def now_and_then(self) -> None:
        now = time.monotonic()
        if now - self.last < TELL_EVERY:
            return
        self.last = now
        done, total = self.tokens()
        if done - self.before > SURE_ENOUGH * total:  # launches alone take a while
            left = (total - done) * (now - self.started) / (done - self.before)
            say(f"{done / total:.0%} of the training done, about {left / 60:.0f} min left")
