"""Run by the launcher in the tests: trains several configurations one after another in one launch."""

import sys
from pathlib import Path

from trainer.engine import deepspeed as engine
from trainer.engine.config import load_config
from trainer.pretrain import prepare, train

if __name__ == "__main__":
    engine.start_processes()
    for path in [argument for argument in sys.argv[1:] if argument.endswith(".yaml")]:
        assert train(prepare(load_config(Path(path)))) == 0
    engine.end_processes()
    engine.leave(0)
