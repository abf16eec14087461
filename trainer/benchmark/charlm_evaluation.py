"""What the paper's evaluation of a character model costs: some windows of it, in a process of their own."""

from __future__ import annotations

import multiprocessing
import statistics
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from attention.benchmark.measure import clock_of, process_peak
from trainer.batches.character_evaluation import Windows, character_loss
from trainer.benchmark.charlm_step import Setting
from trainer.engine.allocator import keep_freed_memory
from trainer.model.charlm import CharacterModel

TEXT = 5_000_000  # characters of text8's and enwik8's test split


@dataclass(frozen=True)
class Evaluation:
    setting: Setting
    """Its `tokens` are a window's."""
    step: int
    windows: int


def measure_evaluation(evaluation: Evaluation, threads: int) -> dict[str, Any]:
    """Seconds a window, the process's peak in bytes, and the seconds of the whole text by these."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = pool.submit(_evaluate, evaluation, threads).result()
    windows = len(Windows(TEXT, evaluation.setting.tokens, evaluation.step))
    median = statistics.median(found["seconds"])
    return found | {"median": median, "windows_of_text": windows, "extrapolated": windows * median}


def _evaluate(evaluation: Evaluation, threads: int) -> dict[str, Any]:
    torch.set_num_threads(threads)
    keep_freed_memory()
    setting, clock = evaluation.setting, clock_of(threads)
    torch.manual_seed(0)
    model = CharacterModel(setting.config(dilated=True)).eval()
    length = setting.tokens + evaluation.windows * evaluation.step + 1
    text = np.random.default_rng(0).integers(0, model.config.vocab_size, length, dtype=np.uint8)
    scored: list[int] = []

    def window(number: int) -> None:
        some = slice(number, number + 1)
        _, count = character_loss(model, setting.lookback, text, setting.tokens, evaluation.step, some)
        scored.append(count)

    # Not the first, which scores all of its characters.
    seconds = [clock(partial(window, number + 1)) for number in range(evaluation.windows)]
    assert set(scored) == {evaluation.step}
    return {"seconds": seconds, "peak_bytes": process_peak()}
