"""A process for each method that a benchmark compares: no method's memory or allocator is another's."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from typing import Protocol

import torch

from attention.benchmark.measure import clock_of, peak_memory


class Step(Protocol):
    """One training step at a time; remembers the last loss."""

    loss: float

    def __call__(self) -> None: ...


# In a method's own process.


_steps: list[Step] = []  # this process's only one


def _start(make: Callable[[], Step], threads: int) -> tuple[list[float], int | None]:
    """Make the method's step and take it twice, to warm up and for its memory: the losses, and the peak in bytes."""
    torch.set_num_threads(threads)
    step = make()
    _steps.append(step)
    step()
    losses = [step.loss]
    peak = peak_memory(step)
    return [*losses, step.loss], peak


def _take_step(threads: int) -> tuple[float, float]:
    """Seconds and loss of the process's next step."""
    [step] = _steps
    return clock_of(threads)(step), step.loss


# In the benchmark's.


class Alone:
    """A process for one method, that stays until `close`: `make` is called there."""

    def __init__(
        self, make: Callable[[], Step], threads: int, environment: dict[str, str] | None = None
    ) -> None:
        self.threads = threads
        with allocator_environment(environment or {}):
            spawn = multiprocessing.get_context("spawn")
            self.pool = ProcessPoolExecutor(1, mp_context=spawn)
            starting: Future[tuple[list[float], int | None]] = self.pool.submit(_start, make, threads)
            self.losses, self.peak_bytes = starting.result()

    def step(self) -> float:
        seconds, loss = self.pool.submit(_take_step, self.threads).result()
        self.losses.append(loss)
        return seconds

    def __enter__(self) -> Alone:
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown()


@contextmanager
def allocator_environment(wanted: dict[str, str]) -> Iterator[None]:
    """os.environ with these MALLOC_ variables and no others, for processes started meanwhile."""
    before = {name: value for name, value in os.environ.items() if name.startswith("MALLOC_")}
    try:
        for name in before:
            del os.environ[name]
        os.environ.update(wanted)
        yield
    finally:
        for name in wanted:
            del os.environ[name]
        os.environ.update(before)
