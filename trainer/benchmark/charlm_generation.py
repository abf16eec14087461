"""What a generated character costs after few and after many others, in a process of its own."""

from __future__ import annotations

import multiprocessing
import statistics
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

import torch

from attention.benchmark.measure import clock_of
from trainer.benchmark.charlm_step import Setting
from trainer.model.charlm import CharacterModel
from trainer.model.charlm_cache import WindowCache

CHARACTERS = 32  # in a round


def measure_generation(
    setting: Setting, before: list[int], rounds: int, threads: int
) -> list[dict[str, Any]]:
    """A row for each number of characters before: seconds a character with the cache, and by the whole forward pass."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_generate, setting, before, rounds, threads).result()


@torch.no_grad()
def _generate(setting: Setting, before: list[int], rounds: int, threads: int) -> list[dict[str, Any]]:
    torch.set_num_threads(threads)
    clock = clock_of(threads)
    torch.manual_seed(0)
    model = CharacterModel(setting.config(dilated=True)).eval()
    texts = {count: torch.randint(0, model.config.vocab_size, (1, count)) for count in before}
    caches = {count: WindowCache(model, setting.lookback) for count in before}
    following = {count: caches[count].append(text).argmax(-1, keepdim=True) for count, text in texts.items()}

    def go_on(count: int) -> None:
        for _ in range(CHARACTERS):
            following[count] = caches[count].append(following[count]).argmax(-1, keepdim=True)

    def again(count: int) -> None:
        model(texts[count], setting.lookback, scored_from=count - 1)

    cached: dict[int, list[float]] = {count: [] for count in before}
    whole: dict[int, list[float]] = {count: [] for count in before}
    for number in range(rounds + 1):
        for count in before:
            seconds = clock(partial(go_on, count)) / CHARACTERS, clock(partial(again, count))
            if number:  # the first warms up
                cached[count].append(seconds[0])
                whole[count].append(seconds[1])
    return [
        {
            "before": count,
            "median": statistics.median(cached[count]),
            "ratio": statistics.median(a / b for a, b in zip(cached[count], cached[before[0]], strict=True)),
            "whole_forward": statistics.median(whole[count]),
            "cache_bytes": caches[count].nbytes,
            "seconds": cached[count],
        }
        for count in before
    ]
