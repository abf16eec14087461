"""Several trainings in one launch, one after the other: saves the half minute of imports that each launch costs.

    deepspeed --num_gpus 1 reproduce/train.py pretrain roberta.yaml longformer.yaml …

Each YAML is a configuration of trainer/pretrain.py, or of charlm.py or finetune.py where that is named, which does the
work; one that is finished is left as it is, one that was interrupted goes on. Where $LONGSPAN_PARENT names a process,
the trainings end with it: killed with -9 it could not end them, and they would hold the runs' locks against the same
command started again.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from trainer import charlm, finetune, pretrain
from trainer.engine import deepspeed as processes
from trainer.engine.character_config import CharacterTraining
from trainer.engine.config import InputError, Pretraining, load_config
from trainer.engine.training import Task, train
from trainer.tasks.config import Finetuning

PARENT = "LONGSPAN_PARENT"
Kind = Literal["pretrain", "charlm", "finetune"]
PREPARE: dict[str, Callable[[Path], Task]] = {
    "pretrain": lambda path: pretrain.prepare(load_config(path, [], Pretraining)),
    "charlm": lambda path: charlm.prepare(load_config(path, [], CharacterTraining)),
    "finetune": lambda path: finetune.prepare(load_config(path, [], Finetuning)),
}


def end_with(process: int) -> None:
    """End this process, from a thread of its own, within a second of the other's end."""

    def watch() -> None:
        while True:
            try:
                os.kill(process, 0)
            except ProcessLookupError:
                os._exit(1)
            time.sleep(0.5)

    threading.Thread(target=watch, daemon=True).start()


def main(arguments: list[str]) -> int:
    if PARENT in os.environ:
        end_with(int(os.environ[PARENT]))
    # The launcher adds flags of its own.
    kind, *paths = (argument for argument in arguments if not argument.startswith("--"))
    processes.start_processes()
    try:
        for path in paths:
            task = PREPARE[kind](Path(path))
            processes.settle(task.config.deterministic)
            status = train(task)
            if status:
                return status
    except (InputError, FloatingPointError) as error:
        print(f"{path}: {error}", file=sys.stderr, flush=True)
        return 2
    finally:
        processes.end_processes()
    return 0


if __name__ == "__main__":
    processes.leave(main(sys.argv[1:]))
