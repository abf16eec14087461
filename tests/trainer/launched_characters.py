"""Run by the launcher in the tests: trains character models one after another in one launch.

    launched_characters.py NAME.yaml … NAME.yaml@STEP,STEP …

@STEP asks the run to stop after that step, as SIGTERM does, and starts it again; on all ranks of one node.
"""

import sys

from tests.trainer.stopping import train_each
from trainer.charlm import prepare
from trainer.engine import deepspeed as processes
from trainer.engine.character_config import CharacterTraining

if __name__ == "__main__":
    processes.start_processes()
    train_each(sys.argv[1:], CharacterTraining, prepare)
    processes.end_processes()
    processes.leave(0)
