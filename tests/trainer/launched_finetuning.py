"""Run by the launcher in the tests: finetunes one after another in one launch.

    launched_finetuning.py NAME.yaml … NAME.yaml@STEP,STEP …

@STEP asks the run to stop after that step, as SIGTERM does, and starts it again; on all ranks of one node.
"""

import sys

from tests.trainer.stopping import train_each
from trainer.engine import deepspeed as processes
from trainer.finetune import prepare
from trainer.tasks.config import Finetuning

if __name__ == "__main__":
    processes.start_processes()
    train_each(sys.argv[1:], Finetuning, prepare)
    processes.end_processes()
    processes.leave(0)
