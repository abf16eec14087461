"""Runs that are asked to stop at given steps and started again: what the launched cases of several tasks share."""

import os
import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from trainer.engine.config import Config, load_config
from trainer.engine.stop import INTERRUPTED
from trainer.engine.training import train


def stopping(kind: type) -> type:
    """A task's class that sends itself SIGTERM, so that the run stops after the `stop_after`th step of this start.

    A wish that comes during a step is granted at the end of the next one; 0: never.
    """

    class Stopped(kind):  # type: ignore[misc]
        stop_after = 0
        steps_done = 0

        def facts(self) -> dict[str, Any]:
            self._stop_after_the_next()  # before the first step
            return super().facts()  # type: ignore[no-any-return]

        def figures(self, mean_loss: float) -> dict[str, float]:
            self.steps_done += 1
            self._stop_after_the_next()
            return super().figures(mean_loss)  # type: ignore[no-any-return]

        def _stop_after_the_next(self) -> None:
            if self.steps_done == self.stop_after - 1:
                os.kill(os.getpid(), signal.SIGTERM)

    return Stopped


def train_each(arguments: Iterable[str], kind: type[Config], prepare: Callable[[Config], Any]) -> None:
    """Train NAME.yaml, or NAME.yaml@STEP,STEP stopped after those steps, one by one; on all ranks of one node."""
    for argument in arguments:
        path, _, stops = argument.partition("@")
        if not path.endswith(".yaml"):
            continue
        done = 0
        for stop in [int(step) for step in stops.split(",") if step] + [0]:
            task = prepare(load_config(Path(path), [], kind))
            task = stopping(type(task))(
                **{name: getattr(task, name) for name in type(task).__dataclass_fields__}
            )
            task.stop_after = stop - done
            status = train(task)
            assert status == (INTERRUPTED if stop else 0), (argument, stop, status)
            done = stop
