"""Run by the launcher in the tests: a training whose rank 1 never comes back from a micro-batch of step 30."""

import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.engine import deepspeed as processes
from trainer.engine.config import Pretraining, load_config
from trainer.engine.randomness import as_seed
from trainer.engine.training import train
from trainer.pretrain import MaskedLanguageModelling, prepare


def wait_for_nothing() -> None:
    time.sleep(1000)


class Hanging(MaskedLanguageModelling):
    def loss(self, model: Any, batch: Any, dropout_seeds: Tensor) -> Tensor:
        if processes.rank() == 1 and torch.initial_seed() == as_seed(
            "hidden dropout", self.config.seed, 30, 1
        ):
            wait_for_nothing()
        return super().loss(model, batch, dropout_seeds)


if __name__ == "__main__":
    processes.start_processes()
    task = prepare(load_config(Path(sys.argv[-1]), [], Pretraining))
    processes.leave(train(Hanging(**vars(task))))
