"""Which examples meet in a forward pass, training apart: those of like length, as many as a bound on tokens allows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from trainer.batches.examples import as_batch
from trainer.model.led_model import LedModel
from trainer.model.task_model import TaskModel
from trainer.tasks.example import Example
from trainer.tasks.task import DownstreamTask

TOKENS_PER_BATCH = 16_384


def by_length(examples: Sequence[Example]) -> Iterator[list[int]]:
    """The numbers of examples in groups of like length, the longest first: what does not fit into memory fails at once.

    A group's rows, filled to the longest, have at most TOKENS_PER_BATCH tokens, but for an example that has more.
    """
    longest = [max(map(len, example.rows)) for example in examples]
    group: list[int] = []
    rows = 0
    for number in sorted(range(len(examples)), key=lambda each: (-longest[each], each)):
        rows += len(examples[number].rows)
        if group and rows * longest[group[0]] > TOKENS_PER_BATCH:
            yield group
            group, rows = [], len(examples[number].rows)
        group.append(number)
    if group:
        yield group


def predictions(
    model: TaskModel | LedModel,
    task: DownstreamTask,
    examples: Sequence[Example],
    beat: Callable[[], None] = lambda: None,
) -> list[Any]:
    """What a model in evaluation mode says of each example, in their order."""
    device = next(model.parameters()).device
    found: list[Any] = [None] * len(examples)
    for group in by_length(examples):
        chosen = [examples[number] for number in group]
        batch = as_batch(chosen, model.config.pad_token_id, model.global_attention).to(device)
        with torch.no_grad():
            said = task.predict(model, model.states(batch), chosen)
        for number, prediction in zip(group, said, strict=True):
            found[number] = prediction
        beat()
    return found


def summed(
    model: TaskModel | LedModel,
    task: DownstreamTask,
    examples: Sequence[Example],
    share: slice,
    beat: Callable[[], None] = lambda: None,
    block: int = 256,
    first: int | None = None,
) -> list[float]:
    """The task's sums over a share of the first so many examples, or of all, of which some are read at a time."""
    numbers = range(len(examples))[:first][share]
    parts = [task.sums([], [])]  # so that a process without examples has as many sums
    for start in range(0, len(numbers), block):
        chosen = [examples[number] for number in numbers[start : start + block]]
        parts.append(task.sums(chosen, predictions(model, task, chosen, beat)))
    return [float(each) for each in np.sum(parts, axis=0)]
