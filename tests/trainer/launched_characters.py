"""Run by the launcher in the tests: trains character models one after another in one launch.

    launched_characters.py NAME.yaml … NAME.yaml@STEP,STEP …

@STEP asks the run to stop after that step, as SIGTERM does, and starts it again; on all ranks of one node.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

from trainer.charlm import CharacterModelling, prepare
from trainer.engine import deepspeed as processes
from trainer.engine.character_config import CharacterTraining
from trainer.engine.config import load_config
from trainer.engine.stop import INTERRUPTED
from trainer.engine.training import train


class Stopped(CharacterModelling):
    """Sends itself SIGTERM so that the run stops after the `stop_after`th step of this start; 0: never.

    A wish that comes during a step is granted at the end of the next one.
    """

    stop_after = 0
    steps_done = 0

    def facts(self) -> dict[str, Any]:
        self._stop_after_the_next()  # before the first step
        return super().facts()

    def figures(self, mean_loss: float) -> dict[str, float]:
        self.steps_done += 1
        self._stop_after_the_next()
        return super().figures(mean_loss)

    def _stop_after_the_next(self) -> None:
        if self.steps_done == self.stop_after - 1:
            os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    processes.start_processes()
    for argument in sys.argv[1:]:
        path, _, stops = argument.partition("@")
        if not path.endswith(".yaml"):
            continue
        done = 0
        for stop in [int(step) for step in stops.split(",") if step] + [0]:
            task = Stopped(**vars(prepare(load_config(Path(path), [], CharacterTraining))))
            task.stop_after = stop - done
            status = train(task)
            assert status == (INTERRUPTED if stop else 0), (argument, stop, status)
            done = stop
    processes.end_processes()
    processes.leave(0)
