"""Run by the launcher in test_numbers.py: the configurations given, one after another.

NAME-resumed-STAGE goes on from the step before the last spike of NAME-STAGE, or from step 2; gradient-STAGE is to fail.
"""

import sys
from functools import partial
from pathlib import Path

import torch

from tests.trainer.runs import rewind, rows
from trainer.engine import deepspeed as processes
from trainer.engine.config import Pretraining, load_config
from trainer.engine.training import train
from trainer.pretrain import MaskedLanguageModelling, prepare


class BadGradient(MaskedLanguageModelling):
    """A finite loss whose gradient is not, from step 3 on."""

    step = 0

    def loss(self, model, batch, dropout_seeds):  # type: ignore[no-untyped-def]
        found = super().loss(model, batch, dropout_seeds)
        self.step += 1
        if self.step <= 4:  # two passes a step on each of two processes
            return found
        # The derivative of a root at 0 is infinite, and 0 times it not a number.
        return found + torch.sqrt(0 * self.model.lm_head.bias.sum())


if __name__ == "__main__":
    processes.start_processes()
    for path in [Path(argument) for argument in sys.argv[1:] if argument.endswith(".yaml")]:
        task = prepare(load_config(path, [], Pretraining))
        if "-resumed-" in path.stem:
            run = task.config.run
            whole = run.with_name(run.name.replace("-resumed", ""))
            step = next((row["step"] - 1 for row in reversed(rows(whole)) if "spike" in row), 2)
            processes.on_first_rank(partial(rewind, whole, run, step))
        if "gradient" in path.stem:
            task = BadGradient(**vars(task))
        try:
            assert train(task) == 0
        except FloatingPointError as error:
            if processes.rank() == 0:
                path.with_suffix(".error").write_text(str(error))
    processes.end_processes()
    processes.leave(0)
