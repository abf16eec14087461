"""The data path of one rank: from memory-mapped shards to masked micro-batches, as the trainer makes them."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from attention.benchmark.measure import cpu_seconds
from trainer.batches.corpus import as_batch
from trainer.batches.order import SequenceOrder
from trainer.engine.config import Pretraining, load_config
from trainer.pretrain import prepare

ALL, APART = "all", "all, documents kept apart"


def measure_data(config: Path, sequences: int, rounds: int) -> list[dict[str, Any]]:
    """Tokens a CPU second, in micro-batches of one sequence: a row for all, and one for each part alone."""
    tasks = {
        name: prepare(load_config(config, [("mask_documents", apart)], Pretraining))
        for name, apart in ((ALL, "false"), (APART, "true"))
    }
    task = tasks[ALL]
    data, masking = task.data, task.masking
    order = SequenceOrder(len(data), 0)
    one, key = np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.uint64)
    ids, documents = data.input_ids(one), data.document_ids(one)
    masked = masking.apply(ids, key)
    parts: dict[str, Callable[[int], object]] = {
        name: lambda step, task=task: task.micro_batch(step, order.batch(step, 1), one)  # type: ignore[misc]
        for name, task in tasks.items()
    }
    parts |= {
        "order": lambda step: order.batch(step, 1),
        "read": lambda step: data.input_ids(np.array([step % len(data)])),
        "document ids": lambda step: data.document_ids(np.array([step % len(data)])),
        "mask": lambda step: masking.apply(ids, key),
        "tensors": lambda step: as_batch(masked, data.corpus.pad_id, documents),
    }
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for number in range(rounds + 1):
        for name, part in parts.items():
            taken = cpu_seconds(lambda part=part: [part(step + 1) for step in range(sequences)])  # type: ignore[misc]
            if number:  # the first is for the file system's cache
                seconds[name].append(taken)
    tokens = data.sequence_length * sequences
    return [
        {"part": name, "tokens_per_second": tokens / statistics.median(found), "seconds": found}
        for name, found in seconds.items()
    ]
