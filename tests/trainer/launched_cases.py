"""Run by the launcher in the tests: trains several configurations one after another in one launch."""

import sys
from pathlib import Path

from trainer.engine import deepspeed as processes
from trainer.engine.config import Pretraining, load_config
from trainer.engine.training import train
from trainer.pretrain import prepare

if __name__ == "__main__":
    processes.start_processes()
    for path in [argument for argument in sys.argv[1:] if argument.endswith(".yaml")]:
        assert train(prepare(load_config(Path(path), [], Pretraining))) == 0
    processes.end_processes()
    processes.leave(0)
